"""A server of aiohttp and nothing else, which answers with given bytes: what the framework alone costs.

    python benchmarks/bare_server.py PORT ANSWERS.json
    python benchmarks/bare_server.py PORT ANSWERS.json --ask DATABASE_URL

Answers are a list of objects: method, path as aiohttp's router takes it, status, headers, and body. Runs until SIGTERM,
on the same event loop and with the same settings as `payloops serve`; several of them may share a port.

With `--ask` each answer waits for the least that PostgreSQL can be asked, by a pool of psycopg's: what framework and
driver cost a service that does nothing yet.
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
from psycopg_pool import AsyncConnectionPool

CONNECTIONS = 10
"""Of its pool: as many as `payloops serve` has."""


def handler_of(
    answer: dict[str, Any], pool: AsyncConnectionPool | None
) -> Callable[[web.Request], Awaitable[web.Response]]:
    status, headers, body = answer["status"], answer["headers"], answer["body"].encode()

    async def handle(request: web.Request) -> web.Response:
        if request.method == "POST":
            await request.read()
        if pool is not None:
            async with pool.connection() as connection:
                await (await connection.execute("SELECT 1")).fetchone()
        return web.Response(status=status, headers=headers, body=body)

    return handle


async def serve(port: int, answers: list[dict[str, Any]], *, ask: str | None) -> None:
    app = web.Application()
    pool = None
    if ask is not None:
        options = {"autocommit": True, "prepare_threshold": 0}
        pool = AsyncConnectionPool(
            ask, min_size=CONNECTIONS, max_size=CONNECTIONS, kwargs=options, open=False
        )
        await pool.open(wait=True)
    for answer in answers:
        app.router.add_route(answer["method"], answer["path"], handler_of(answer, pool))
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port, reuse_port=True, backlog=1_024).start()
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await stop.wait()
    await runner.cleanup()
    if pool is not None:
        await pool.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("port", type=int)
    parser.add_argument("answers", type=Path)
    parser.add_argument("--ask", metavar="DATABASE_URL", help="wait for SELECT 1 before each answer")
    options = parser.parse_args()
    uvloop.run(serve(options.port, json.loads(options.answers.read_text()), ask=options.ask))
