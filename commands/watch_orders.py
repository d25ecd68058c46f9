"""Waiting until orders change, for any number of requests of a process together.

While any request waits, each growth of the log costs one query for all orders that are waited for. A request whose
order has changed then loads it again.
"""

import asyncio
import contextlib
from collections.abc import Callable
from typing import Self
from uuid import UUID

import psycopg
import structlog

from payloops.events.background import begin, end
from payloops.events.event_store import EventStore
from payloops.events.orders import Order

VERSIONS = """
    SELECT originator_id, max(originator_version) FROM stored_events
    WHERE originator_id = ANY(%s) GROUP BY originator_id
"""
PAUSE = 0.01
"""Seconds between two queries: under load the log grows all the time."""

log = structlog.get_logger()


class OrderWatch:
    """Watches orders, and other streams. Use as an async context manager, one per process."""

    def __init__(self, store: EventStore) -> None:
        self._store = store
        self._waiting: dict[asyncio.Event, tuple[UUID, int]] = {}
        self._somebody = asyncio.Event()
        self._stopped = False
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = begin(self._run(), name="order watch")
        return self

    async def __aexit__(self, *_: object) -> None:
        await end(self._task)

    async def until(self, order: Order, reached: Callable[[Order], bool], *, seconds: float) -> Order:
        """The order as soon as `reached` is true of it, or as it is when the time is over."""
        try:
            async with asyncio.timeout(seconds):
                while not reached(order) and not self._stopped:
                    await self._moved(order.id, order.version)
                    order = await self._store.load(Order, order.id) or order
        except TimeoutError:
            pass
        return order

    async def moves(self, stream_id: UUID, *, version: int, seconds: float) -> None:
        """Return when a stream has a later version, or the time is over, or the process is ending."""
        if self._stopped:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._moved(stream_id, version)

    def stop_waiting(self) -> None:
        """Have all requests answered as things are: the process is ending."""
        self._stopped = True
        for moved in self._waiting:
            moved.set()

    async def _moved(self, stream_id: UUID, version: int) -> None:
        moved = asyncio.Event()
        self._waiting[moved] = (stream_id, version)
        self._somebody.set()
        try:
            await moved.wait()
        finally:
            del self._waiting[moved]

    async def _run(self) -> None:
        async for _ in self._store.wakeups():
            await self._somebody.wait()
            try:
                await self._look()
            except psycopg.Error as error:
                log.warning("order_watch.failed", error=type(error).__name__)
            if not self._waiting:
                self._somebody.clear()
            await asyncio.sleep(PAUSE)

    async def _look(self) -> None:
        ids = list({stream_id for stream_id, _ in self._waiting.values()})
        async with self._store.pool.connection() as connection:
            rows = await (await connection.execute(VERSIONS, (ids,))).fetchall()
        versions: dict[UUID, int] = dict(rows)
        for moved, (stream_id, version) in self._waiting.items():
            if versions.get(stream_id, 0) > version:
                moved.set()
