"""Pools of connections to PostgreSQL, which refuse who would wait in vain."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from contextvars import copy_context
from typing import Any

import psycopg
from prometheus_client import Counter, Gauge
from psycopg_pool import AsyncConnectionPool

from payloops.events.connections import Connection, connection_options, reach

WAIT_SECONDS = 2.0
"""How long a request waits for a connection of a pool before it is refused."""
CHECKS = 4
"""Consecutive checks without any connection given to a waiting request after which a pool counts as stalled."""
RECOVERED_CHECKS = 16 * CHECKS
"""Checks without any waiting request after which a stalled pool counts as normal again."""

POOL_CONNECTIONS = Gauge(
    "payloops_pool_connections", "Connections of the pool", ["state"], multiprocess_mode="livesum"
)
POOL_WAITING = Gauge(
    "payloops_pool_waiting", "Requests that wait for a connection of the pool", multiprocess_mode="livesum"
)
POOL_REQUESTS = Counter("payloops_pool_requests", "Requests for a connection of the pool")
POOL_QUEUED = Counter("payloops_pool_requests_queued", "Those that had to wait for it")
POOL_REFUSED = Counter("payloops_pool_requests_refused", "Those that timed out, or found the queue full")
POOL_STALLED = Counter("payloops_pool_requests_stalled", "Those refused because the pool gave no connections")
POOL_WAIT = Counter("payloops_pool_wait_seconds", "Total time that those given a connection had waited")


class PoolStalled(psycopg.OperationalError):
    """The pool gives no connections at present: all are in use for long, or the database is unreachable."""

    def __init__(self) -> None:
        super().__init__("no connection was free for a while")


class Pool(AsyncConnectionPool):
    """A pool that recovers after a long outage of the database.

    psycopg's pool keeps requests that timed out in its queue until a connection comes back. Once it has stopped
    reconnecting, only a new request would make it try again, but each is refused because the queue is full.

    Attributes:
        context: of the code that created the pool, for tasks that must not belong to a request.
    """

    def __init__(self, conninfo: str, **options: Any) -> None:
        super().__init__(conninfo, **options)
        self.database_url = conninfo
        self.context = copy_context()
        self._close_first: list[Callable[[], Awaitable[None]]] = []

    def closes(self, close: Callable[[], Awaitable[None]]) -> None:
        """Call `close` before this pool is closed."""
        self._close_first.append(close)

    async def close(self, timeout: float = 5.0) -> None:  # noqa: ASYNC109
        """As psycopg's."""
        for close in self._close_first:
            await close()
        await super().close(timeout)

    async def check(self) -> None:
        """As psycopg's, which takes a cancellation of its caller for a broken connection."""
        await super().check()
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise asyncio.CancelledError

    @asynccontextmanager
    async def connection(
        self,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> AsyncGenerator[psycopg.AsyncConnection[Any]]:
        """As psycopg's, which also ends a transaction; ours commit each statement, or use `transaction()`."""
        connection = await self.getconn(timeout)
        try:
            yield connection
        except psycopg.errors.ReadOnlySqlTransaction:
            await connection.close()  # a session that began read-only stays so
            raise
        finally:
            await self.putconn(connection)

    async def getconn(self, timeout: float | None = None) -> psycopg.AsyncConnection[Any]:  # noqa: ASYNC109
        """As psycopg's; removes requests that timed out from the queue."""
        try:
            return await super().getconn(timeout)
        except BaseException:
            waiting = [client for client in self._waiting if client.error is None]
            self._waiting.clear()
            self._waiting.extend(waiting)
            raise

    def sample(self) -> None:
        """Update the metrics from psycopg's statistics."""
        stats = self.pop_stats()
        size, available = stats["pool_size"], stats["pool_available"]
        POOL_CONNECTIONS.labels("idle").set(available)
        POOL_CONNECTIONS.labels("used").set(size - available)
        POOL_WAITING.set(stats["requests_waiting"])
        POOL_REQUESTS.inc(stats.get("requests_num", 0))
        POOL_QUEUED.inc(stats.get("requests_queued", 0))
        POOL_REFUSED.inc(stats.get("requests_errors", 0))
        POOL_WAIT.inc(stats.get("requests_wait_ms", 0) / 1000)


class ImpatientPool(Pool):
    """A pool that refuses waiting requests once it gives no connections any more.

    If no request was given a connection for `patience`, the pool counts as stalled: all that wait are refused. From
    then on one request at a time may wait, to find out whether there are connections again, and the others are refused
    at once. The time is measured by several checks on the event loop, so that a process that is slow itself does not
    take the pool for stalled.
    """

    def __init__(self, conninfo: str, *, patience: float, **options: Any) -> None:
        super().__init__(conninfo, **options)
        self._check_seconds = patience / CHECKS
        self._waits: set[asyncio.Timeout] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._given = self._given_before = 0
        self._checks_without_connection = 0

    async def getconn(self, timeout: float | None = None) -> psycopg.AsyncConnection[Any]:  # noqa: ASYNC109
        """As psycopg's.

        Raises:
            PoolStalled: see there.
        """
        if self._checks_without_connection >= CHECKS and self._waits:
            POOL_STALLED.inc()
            raise PoolStalled
        if self._pool:  # a connection is idle: no need to wait
            connection = await super().getconn(timeout)
        else:
            connection = await self._wait_for(timeout)
        self._given += 1
        self._checks_without_connection = 0
        return connection

    async def _wait_for(self, timeout: float | None) -> psycopg.AsyncConnection[Any]:  # noqa: ASYNC109
        try:
            async with asyncio.timeout(None) as wait:
                self._waits.add(wait)
                if self._timer is None:
                    self._schedule_check()
                try:
                    return await super().getconn(timeout)
                finally:
                    self._waits.discard(wait)
        except TimeoutError:
            POOL_STALLED.inc()
            raise PoolStalled from None

    def _schedule_check(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._check_seconds, self._check_stalled)

    def _check_stalled(self) -> None:
        """Refuse all waiting requests if none was given a connection for several checks."""
        self._timer = None
        none_given, self._given_before = self._given == self._given_before, self._given
        if not self._waits:
            self._checks_without_connection = max(0, self._checks_without_connection - 1)
            if self._checks_without_connection > 0:
                self._schedule_check()
            return
        self._checks_without_connection = self._checks_without_connection + 1 if none_given else 0
        if self._checks_without_connection >= CHECKS:
            self._checks_without_connection = RECOVERED_CHECKS
            waits, self._waits = self._waits, set()
            for wait in waits:
                wait.reschedule(asyncio.get_running_loop().time())
        self._schedule_check()


def connection_pool(
    database_url: str, *, size: int, application_name: str, patience: float | None = None
) -> Pool:
    """A pool, not yet open, for reads and for transactions of a command.

    A request that waits two seconds for a connection, or finds fifty requests per connection in the queue, is refused
    (`psycopg.OperationalError`), so that the queue stays short under overload.

    Args:
        patience: if no waiting request gets a connection for this many seconds, all that wait are refused.
    """
    options: dict[str, Any] = {
        "connection_class": Connection,
        "min_size": min(2, size),
        "max_size": size,
        "max_waiting": size * 50,
        "timeout": WAIT_SECONDS,
        "reconnect_timeout": 60.0,
        "kwargs": connection_options(database_url, application_name=application_name),
        "open": False,
        "name": application_name,
    }
    if patience is None:
        return Pool(database_url, **options)
    return ImpatientPool(database_url, patience=patience, **options)


@asynccontextmanager
async def command_pool(database_url: str, *, application_name: str) -> AsyncIterator[Pool]:
    """A small pool for a command of the command line, while it runs.

    Raises:
        psycopg.OperationalError: as `reach`.
    """
    await reach(database_url, application_name=application_name)
    pool = connection_pool(database_url, size=2, application_name=application_name)
    await pool.open(wait=False)
    try:
        yield pool
    finally:
        await pool.close()
