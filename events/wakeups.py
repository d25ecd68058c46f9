"""Notifies readers of the log about new events, with PostgreSQL's NOTIFY and LISTEN.

PostgreSQL serialises the commits of transactions that notify, so appends do not notify themselves: `Notifier` sends one
NOTIFY for many commits, on a connection of its own. `Wakeups` listens, once per process. Readers also poll, so a lost
notification only adds latency.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable

import psycopg
import structlog

from payloops.events.background import begin, end
from payloops.events.connections import connect, wait_to_reconnect
from payloops.events.statement import Statement

CHANNEL = "payloops_events"
NOTIFY = f"SELECT pg_notify('{CHANNEL}', '')"
NOTIFY_PAUSE = 0.02
"""Minimum time between notifications, in seconds, so that under load one covers many appends.

The first append after a pause is notified at once. A notification costs this process, PostgreSQL and every reader about
as much as an append.
"""
POLL_SECONDS = 0.25

log = structlog.get_logger()


class Notifier:
    """Sends a NOTIFY soon after `notify()`, one for all calls up to then."""

    def __init__(self, database_url: str) -> None:
        self._database_url = database_url
        self._due = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = begin(self._run(), name="notifier")

    async def close(self) -> None:
        await end(self._task)

    def notify(self) -> None:
        self._due.set()

    async def _run(self) -> None:
        while True:
            try:
                statement = await Statement.prepare(
                    self._database_url, NOTIFY, application_name="payloops notifier"
                )
                try:
                    while True:
                        await self._due.wait()
                        self._due.clear()
                        await statement.execute([])
                        await asyncio.sleep(NOTIFY_PAUSE)
                finally:
                    await statement.close()
            except (psycopg.Error, OSError) as error:
                log.warning("notifier.reconnecting", error=type(error).__name__)
                await wait_to_reconnect()


class Wakeups:
    """Wakes all tasks of this process that wait for new events."""

    def __init__(
        self, database_url: str, *, reconnected: Callable[[], Awaitable[None]] | None = None
    ) -> None:
        """
        Args:
            reconnected: called after the connection was lost and is established again.
        """
        self._database_url = database_url
        self._reconnected = reconnected
        self._grown = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = begin(self._run(), name="wakeups")

    async def close(self) -> None:
        await end(self._task)

    async def ticks(self, *, poll_seconds: float = POLL_SECONDS) -> AsyncGenerator[None]:
        """Yields now, then whenever the log may have grown, and at least every `poll_seconds`."""
        while True:
            grown = self._grown  # taken before the reader reads, so that an append meanwhile is not missed
            yield
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(poll_seconds):
                    await grown.wait()

    def _wake(self) -> None:
        grown, self._grown = self._grown, asyncio.Event()
        grown.set()

    async def _run(self) -> None:
        lost = failed = False
        while True:
            try:
                async with await connect(
                    self._database_url, application_name="payloops wakeups"
                ) as connection:
                    await connection.execute(f"LISTEN {CHANNEL}")
                    if failed:
                        log.info("wakeups.reconnected")
                        failed = False
                    if lost and self._reconnected is not None:
                        await self._reconnected()
                    lost = True
                    self._wake()
                    async for _ in connection.notifies():
                        self._wake()
            except (psycopg.Error, OSError) as error:
                log.warning("wakeups.reconnecting", error=type(error).__name__)
                failed = True
            await wait_to_reconnect()
