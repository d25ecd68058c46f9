"""Commands of `payloops`, forked from a process that has imported the libraries, which is most of what a command does.

Of the service itself each imports anew what it needs, as it would by itself. What starts a command in another way, or
signals it, is in `processes.py`.
"""

import asyncio
import atexit
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import sys
import tempfile
import threading
import traceback
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cache
from subprocess import Popen
from typing import IO

LIBRARIES = (
    *("aiohttp.web", "alembic.command", "babel", "bcrypt", "email_validator", "eventsourcing.domain"),
    *("cryptography.hazmat.primitives.asymmetric.ed25519", "cryptography.hazmat.primitives.ciphers.aead"),
    *("iso4217", "jinja2", "jwt", "limits", "orjson", "prometheus_client", "psycopg", "psycopg_pool"),
    *("pydantic", "pydantic_settings", "razorpay", "redis.asyncio", "rich.console", "rich.table"),
    *("standardwebhooks", "stripe", "structlog", "temporalio.client", "temporalio.worker", "typer"),
)


@dataclass(frozen=True)
class _Forker:
    process: "Popen[bytes]"  # ends when the socket is closed
    orders: socket.socket


@cache
def _forker() -> _Forker:
    """The process that commands are forked from: one for all tests."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        command = [sys.executable, "-P", __file__, str(theirs.fileno())]
        return _Forker(Popen(command, pass_fds=[theirs.fileno()]), ours)


async def run_forked(
    arguments: Sequence[str], *, environment: Mapping[str, str], stdin: str, seconds: float
) -> tuple[int, str, str]:
    """`payloops …` to its end: its status, what it printed, and what it complained of.

    Raises:
        TimeoutError: it took longer, and was killed.
    """
    with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        given.write(stdin.encode())
        given.seek(0)
        order = {"arguments": arguments, "environment": environment, "folder": os.getcwd()}  # noqa: PTH109
        ours, theirs = socket.socketpair()
        with theirs:
            files = [each.fileno() for each in (given, out, err, theirs)]
            socket.send_fds(_forker().orders, [json.dumps(order).encode()], files)
        told, connection = await asyncio.open_connection(sock=ours)
        with closing(connection):
            child = int(await told.readline())
            try:
                status = int(await asyncio.wait_for(told.readline(), seconds))
            except BaseException:
                os.kill(child, signal.SIGKILL)
                raise
        return status, _written(out), _written(err)


def _written(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode()


def _next_order(orders: socket.socket) -> Mapping[str, object] | None:
    """Fork for each order: what this returns is for a child to do. None when there will be no more."""
    while True:
        message, files, _, _ = socket.recv_fds(orders, 2**20, 4)
        if not message:
            return None
        if os.fork() == 0:
            *streams, told = files
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            child = os.fork()
            if child:
                os.write(told, b"%d\n" % child)
                _, status = os.waitpid(child, 0)
                os.write(told, b"%d\n" % os.waitstatus_to_exitcode(status))
                os._exit(0)
            for number, stream in enumerate(streams):
                os.dup2(stream, number)
            for each in files:
                os.close(each)
            order: Mapping[str, object] = json.loads(message)
            return order
        for each in files:
            os.close(each)


def _fork_for(orders: socket.socket) -> None:
    for name in LIBRARIES:
        importlib.import_module(name)
    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with orders:
        order = _next_order(orders)
    if order is None:
        return
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w", buffering=1)  # noqa: SIM115
    os.environ.clear()
    os.environ.update(order["environment"])  # type: ignore[call-overload]
    os.chdir(str(order["folder"]))
    sys.argv = ["payloops", *order["arguments"]]  # type: ignore[misc]
    status = 0
    try:
        runpy.run_module("payloops", run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        if isinstance(ended.code, str):
            print(ended.code, file=sys.stderr)  # noqa: T201
        status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:  # noqa: BLE001
        traceback.print_exc()
        status = 1
    # As the interpreter ends, but without taking the libraries apart, which takes longer than most commands.
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    os._exit(status)


if __name__ == "__main__":
    _fork_for(socket.socket(fileno=int(sys.argv[1])))
