"""Orders in the log, and projectors to watch."""

import asyncio
import random
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import cast
from uuid import UUID

import orjson
import psycopg
import pytest
from psycopg.rows import TupleRow
from random_orders import recorded
from uuid_utils.compat import uuid7

from payloops.events.connections import connect
from payloops.events.errors import StoreUnavailable
from payloops.events.event_store import EventStore
from payloops.events.orders import (
    Order,
)
from payloops.events.stream import StreamEvent
from payloops.projections import own_writes
from payloops.projections.batches import project_batch
from payloops.projections.orders import CHECKPOINT
from payloops.projections.orders import PROJECTION as ORDERS
from payloops.projections.projection import all_projections
from payloops.projections.projector import run_projections

DEADLINE = 60.0
"""Seconds that a test waits for what has to come."""


async def _appended(store: EventStore, events: list[StreamEvent]) -> int:
    """Append, again where the store was too busy: nothing is there then."""
    async with asyncio.timeout(DEADLINE):
        while True:
            try:
                return await store.append(events)
            except StoreUnavailable:
                await asyncio.sleep(0.1)


async def append(store: EventStore, *orders: Order) -> int:
    """Append what the orders recorded; the position of the last event."""
    positions = await asyncio.gather(*(_appended(store, recorded(order)) for order in orders))
    return max(positions)


async def append_interleaved(store: EventStore, chance: random.Random, orders: list[Order]) -> int:
    """Append event by event, the orders in turns, each in its own order."""
    waiting = [recorded(order) for order in orders]
    position = 0
    while waiting:
        turn = chance.sample(waiting, k=min(len(waiting), 50))
        position = max(await asyncio.gather(*(_appended(store, [events.pop(0)]) for events in turn)))
        waiting = [events for events in waiting if events]
    return position


async def project_orders(database_url: str, *, limit: int = 1_000) -> None:
    """Bring the projection up to date, in this task."""
    async with await connect(database_url, application_name="test") as connection:
        while await project_batch(connection, ORDERS, limit=limit):
            pass


async def project_everything(database_url: str) -> None:
    """Bring every projection up to date, in this task."""
    async with await connect(database_url, application_name="test") as connection:
        for projection in all_projections():
            await connection.execute(
                "INSERT INTO checkpoints (name, version) VALUES (%s, %s) ON CONFLICT DO NOTHING",
                (projection.name, projection.version),
            )
            while await project_batch(connection, projection):
                pass


async def eventually(look: Callable[[], Awaitable[bool]], *, within: float = DEADLINE) -> None:
    """Look until it is so."""
    deadline = time.monotonic() + within
    while not await look():
        assert time.monotonic() < deadline, f"not so after {within} s"
        await asyncio.sleep(0.01)


async def reached(store: EventStore, position: int, *, within: float = DEADLINE) -> None:
    """Wait until the projection has come to a position."""

    async def look() -> bool:
        return await checkpoint(store) >= position

    await eventually(look, within=within)


async def checkpoint(store: EventStore) -> int:
    position = await one(store, "SELECT position FROM checkpoints WHERE name = %s", CHECKPOINT)
    return cast("int | None", position) or 0


async def one(store: EventStore, query: str, *arguments: object) -> object:
    """The first column of a query's first row, seen by another connection than the projector's."""
    async with store.pool.connection() as connection:
        row = await (await connection.execute(query, arguments)).fetchone()
    return row[0] if row else None


async def rows(store: EventStore, query: str, *arguments: object) -> list[TupleRow]:
    async with store.pool.connection() as connection:
        return await (await connection.execute(query, arguments)).fetchall()


REQUESTED = {
    "timestamp": "2026-11-23T15:40:00Z",
    "merchant_id": "0192e4a0-0000-7000-8000-000000000000",
    "actor": "system",
    "correlation_id": "test",
    "causation_id": None,
    "status": "processing",
    "attempt": 1,
    "transaction_id": "0192e4a0-0000-7000-8000-000000000001",
    "processor": "stripe",
    "routing": "test",
    "capture": "manual",
    "amount": 1,
    "currency": "USD",
    "return_url": None,
    "payment_method": None,
}
"""A payment's request with all of its fields, so that what is wrong with it below is what is refused."""
POISON = {
    "no JSON": b"{",
    "a field missing": orjson.dumps({"timestamp": "2026-11-23T15:40:00Z", "status": "processing"}),
    "a number that no column holds": orjson.dumps({**REQUESTED, "attempt": 99_999_999_999_999}),
    "an id that is none": orjson.dumps({**REQUESTED, "transaction_id": "x"}),
    "a character that text cannot hold": orjson.dumps({**REQUESTED, "processor": "stri\0pe"}),
}


async def insert_raw(
    store: EventStore,
    merchant_id: UUID,
    *,
    topic: str,
    state: bytes,
    stream: UUID | None = None,
    version: int | None = None,
) -> int:
    """An event as no code of this version would write it; its position."""
    return cast(
        "int",
        await one(
            store,
            """
            INSERT INTO stored_events (originator_id, originator_version, topic, state, notification_id,
                                       merchant_id, content_hash)
            SELECT %s, coalesce(
                       %s, (SELECT max(originator_version) + 1 FROM stored_events WHERE originator_id = %s), 1
                   ), %s, %s, (SELECT coalesce(max(notification_id), 0) + 1 FROM stored_events), %s, ''
            RETURNING notification_id
            """,
            *(stream or uuid7(), version, stream, topic, state, merchant_id),
        ),
    )


@asynccontextmanager
async def projector(database_url: str) -> AsyncIterator[asyncio.Event]:
    """A projector in this process; setting the event stops it, and so does the end.

    Lists wait for it, however slow the machine makes it.
    """
    stop = asyncio.Event()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(own_writes, "WAIT_SECONDS", DEADLINE)
        task = asyncio.create_task(run_projections(database_url=database_url, stop=stop))
        try:
            yield stop
        finally:
            stop.set()
            await task


PROGRAM = """
import asyncio, sys
from payloops.projections.projector import run_projections
asyncio.run(run_projections(database_url=sys.argv[1], stop=asyncio.Event()))
"""


@asynccontextmanager
async def projector_process(database_url: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """A projector in a process of its own, killed with -9 at the end at the latest."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PROGRAM, database_url, stdout=asyncio.subprocess.DEVNULL
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


@asynccontextmanager
async def locked(database_url: str, table: str) -> AsyncIterator[psycopg.AsyncConnection[TupleRow]]:
    """Nobody can write to a table."""
    async with (
        await connect(database_url, application_name="test lock") as connection,
        connection.transaction(),
    ):
        await connection.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")
        yield connection
