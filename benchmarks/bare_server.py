"""A server of aiohttp and nothing else, which answers with given bytes: what the framework alone costs.

    python benchmarks/bare_server.py PORT ANSWERS.json

Answers are a list of objects: method, path as aiohttp's router takes it, status, headers, and body. Runs until SIGTERM,
on the same event loop and with the same settings as `payloops serve`; several of them may share a port.
"""

import argparse
import asyncio
import json
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import uvloop
from aiohttp import web


def handler_of(answer: dict[str, Any]) -> Callable[[web.Request], Awaitable[web.Response]]:
    status, headers, body = answer["status"], answer["headers"], answer["body"].encode()

    async def handle(request: web.Request) -> web.Response:
        if request.method == "POST":
            await request.read()
        return web.Response(status=status, headers=headers, body=body)

    return handle


async def serve(port: int, answers: list[dict[str, Any]]) -> None:
    app = web.Application()
    for answer in answers:
        app.router.add_route(answer["method"], answer["path"], handler_of(answer))
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port, reuse_port=True, backlog=1_024).start()
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await stop.wait()
    await runner.cleanup()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("port", type=int)
    parser.add_argument("answers", type=Path)
    options = parser.parse_args()
    uvloop.run(serve(options.port, json.loads(options.answers.read_text())))
