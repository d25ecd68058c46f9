"""The service's own processes, for tests that kill them."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from enum import Enum
from types import MappingProxyType
from uuid import UUID

from forking import run_forked
from pydantic import SecretStr

from payloops.events.event_store import EventStore
from payloops.events.orders import Order
from payloops.settings import Settings

SECONDS = 90
"""That a test waits for what has to come."""
DOOMED = """
import sys
from payloops.__main__ import main
from payloops.events.crash_points import arm
arm(sys.argv.pop(1), passings=int(sys.argv.pop(1)))
main()
"""
"""`payloops …` that kills itself at a point, as it passes it for the nth time: commands do not read CRASH_AT."""


@contextlib.asynccontextmanager
async def process(settings: Settings, *command: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """`payloops <command>` by itself. At the end it is asked to stop, and has to, in order."""
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "payloops", *command, env=os.environ | environment_of(settings)
    )
    try:
        yield child
        if child.returncode is None:
            child.send_signal(signal.SIGTERM)
            assert await asyncio.wait_for(child.wait(), SECONDS) == 0
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()


def without_terminal(settings: Settings, environment: Mapping[str, str]) -> dict[str, str]:
    """The environment of a command."""
    # GNU readline tells of a terminal where there is none, to all processes that pytest starts for its tests.
    inherited = {name: value for name, value in os.environ.items() if name not in {"COLUMNS", "LINES"}}
    return {**inherited, **environment_of(settings), **environment}


async def begin_command(
    settings: Settings, *arguments: str, environment: Mapping[str, str] = MappingProxyType({})
) -> asyncio.subprocess.Process:
    """`payloops …` without a terminal, for tests that follow or interrupt it."""
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "payloops", *arguments),
        env=without_terminal(settings, environment),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        # As a terminal starts it; what runs in the background of a shell script is deaf to SIGINT, children too.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


async def run_command(
    settings: Settings,
    *arguments: str,
    environment: Mapping[str, str] = MappingProxyType({}),
    stdin: str = "",
    seconds: float = 120,
) -> tuple[int, str, str]:
    """`payloops …` to its end, without a terminal: its status, what it printed, and what it complained of."""
    given = without_terminal(settings, environment)
    return await run_forked(arguments, environment=given, stdin=stdin, seconds=seconds)


def environment_of(settings: Settings) -> dict[str, str]:
    environment = {}
    for name in type(settings).model_fields:
        match getattr(settings, name):
            case None | ():
                continue
            case SecretStr() as secret:
                text = secret.get_secret_value()
            case Enum() as member:
                text = str(member.value)
            case value:
                text = str(value)
        environment[name.upper()] = text
    return environment


async def becomes(store: EventStore, order_id: UUID, status: str, *, seconds: float = SECONDS) -> Order:
    """Wait until an order has a status."""
    async with asyncio.timeout(seconds):
        while True:
            order = await store.load(Order, order_id)
            assert order is not None
            if order.status == status:
                return order
            await asyncio.sleep(0.05)


async def charged(store: EventStore) -> list[tuple[str, int, int]]:
    """The sandbox's books: order, attempt and what was captured of each charge."""
    async with store.pool.connection() as connection:
        cursor = await connection.execute("SELECT order_id, attempt, amount_captured FROM sandbox.charges")
        return [(row[0], row[1], row[2]) for row in await cursor.fetchall()]
