"""Connections to PostgreSQL, each with its timeouts."""

import asyncio
import random
import re
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from contextvars import copy_context
from typing import Any, Self

import orjson
import psycopg
from prometheus_client import Counter, Gauge
from psycopg import errors
from psycopg.rows import TupleRow, tuple_row
from psycopg.types.json import set_json_loads
from psycopg_pool import AsyncConnectionPool

CONNECT_TIMEOUT = 3
"""Seconds."""
RECONNECT_SECONDS = 1.0
STATEMENT_TIMEOUT = 5
"""Seconds that PostgreSQL gives a statement of ours, unless it is told otherwise."""
WAIT_SECONDS = 2.0
"""That somebody waits for a connection of a pool before he is turned away."""
TICKS = 4
"""So often a pool's queue is looked at before those who wait are turned away."""
STALLED_TICKS = 16 * TICKS
"""So many looks without anybody who waits it takes to forget that a pool was stalled."""

# A page of orders has as many metadata, which the standard library takes several times as long to read.
set_json_loads(orjson.loads)

POOL_CONNECTIONS = Gauge(
    "payloops_pool_connections", "Connections of the pool", ["state"], multiprocess_mode="livesum"
)
POOL_WAITING = Gauge(
    "payloops_pool_waiting", "Who waits for a connection of the pool", multiprocess_mode="livesum"
)
POOL_REQUESTS = Counter("payloops_pool_requests", "Who asked for a connection of the pool")
POOL_QUEUED = Counter("payloops_pool_requests_queued", "Of these, who had to wait for it")
POOL_REFUSED = Counter("payloops_pool_requests_refused", "Of these, who waited in vain, or was not let wait")
POOL_STALLED = Counter("payloops_pool_requests_stalled", "Who was turned away because the pool stood still")
POOL_WAIT = Counter("payloops_pool_wait_seconds", "How long those who were given one had waited, in all")


SCHEMA_ERRORS = (errors.UndefinedTable, errors.UndefinedColumn, errors.UndefinedFunction)
"""What statements meet where migrations of this version have not been applied."""


NO_CONNECTION_LEFT = re.compile(
    "too many clients already|connection slots are reserved|too many connections for|no more connections allowed"
)
"""What PostgreSQL and PgBouncer say then: psycopg knows no SQLSTATE of who was not let in."""


class TooManyConnections(psycopg.OperationalError):
    """PostgreSQL is there, and lets nobody in any more."""

    def __init__(self) -> None:
        super().__init__(
            "PostgreSQL has no connection left: lower DATABASE_POOL_SIZE, run fewer processes, or raise"
            ' max_connections ("Connections to PostgreSQL" in README.md has the sum)'
        )


class PoolStalled(psycopg.OperationalError):
    """Nobody is given a connection at present: all are taken for long, or the database is away."""

    def __init__(self) -> None:
        super().__init__("no connection was free for a while")


def connection_options(application_name: str) -> dict[str, object]:
    """Keyword arguments for `connect`: autocommit, prepared at first use, and no wait without an end."""
    return {
        "autocommit": True,
        "prepare_threshold": 0,
        "row_factory": tuple_row,
        "application_name": application_name,
        "connect_timeout": CONNECT_TIMEOUT,
        "keepalives_idle": 10,
        "keepalives_interval": 5,
        "keepalives_count": 2,
        "tcp_user_timeout": 8_000,
        "options": f"-c statement_timeout={STATEMENT_TIMEOUT}s -c idle_in_transaction_session_timeout=30s"
        " -c timezone=UTC",
    }


class _Connection(psycopg.AsyncConnection[TupleRow]):
    """As psycopg's own, that says what to do where there is none left."""

    @classmethod
    async def connect(cls, conninfo: str = "", **options: Any) -> Self:
        try:
            return await super().connect(conninfo, **options)
        except psycopg.OperationalError as error:
            if NO_CONNECTION_LEFT.search(str(error)):
                raise TooManyConnections from None
            raise


async def connect(database_url: str, *, application_name: str) -> psycopg.AsyncConnection[TupleRow]:
    """A connection of one's own, outside the pool.

    Raises:
        TooManyConnections: see there.
    """
    return await _Connection.connect(database_url, **connection_options(application_name))


def is_about_data(error: Exception) -> bool:
    """Whether the values are refused, rather than the database out of order.

    By SQLSTATE class: 22 data exception, 23 integrity constraint violation, 54 program limit exceeded.
    Psycopg refuses some data itself, without an SQLSTATE.
    """
    if isinstance(error, psycopg.Error):
        return isinstance(error, psycopg.DataError) or (error.sqlstate or "")[:2] in {"22", "23", "54"}
    return isinstance(error, TypeError | ValueError)


def one_line(error: BaseException) -> str:
    """One line without the row: PostgreSQL's details quote personal data."""
    text = error.diag.message_primary if isinstance(error, psycopg.Error) else None
    remedy = ": run `payloops migrate`" if isinstance(error, SCHEMA_ERRORS) else ""
    words = f"{type(error).__name__}: {text or error}{remedy}".replace("\x00", "\\0").split()
    return " ".join(words)[:1_000]


async def wait_to_reconnect() -> None:
    """About a second: who lost the database together does not come back together."""
    await asyncio.sleep(RECONNECT_SECONDS * (0.5 + random.random()))  # noqa: S311  # jitter


async def reach(database_url: str, *, application_name: str) -> None:
    """For who is not to wait for a database that is away, as a pool does.

    Raises:
        psycopg.OperationalError: it is not there; says why.
    """
    await (await connect(database_url, application_name=application_name)).close()


def connection_pool(
    database_url: str, *, size: int, application_name: str, patience: float | None = None
) -> "Pool":
    """A pool, not yet open, for reads and for transactions of a command.

    Who waits two seconds for a connection, or finds fifty waiting for each, is turned away
    (`psycopg.OperationalError`): overload is answered early instead of piling up.

    Args:
        patience: seconds without any connection given after which those who wait are turned away, too.
    """
    options: dict[str, Any] = {
        "connection_class": _Connection,
        "min_size": min(2, size),
        "max_size": size,
        "max_waiting": size * 50,
        "timeout": WAIT_SECONDS,
        "reconnect_timeout": 60.0,
        "kwargs": connection_options(application_name),
        "open": False,
        "name": application_name,
    }
    if patience is None:
        return Pool(database_url, **options)
    return ImpatientPool(database_url, patience=patience, **options)


@asynccontextmanager
async def command_pool(database_url: str, *, application_name: str) -> AsyncIterator["Pool"]:
    """A small pool for as long as a command runs.

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


class Pool(AsyncConnectionPool):
    """A pool that finds a database that was away for long.

    psycopg's own keeps those who gave up in its queue until a connection comes back. Once it has given up
    reconnecting, too, only a new request would make it try again, and each is turned away for the queue's length.
    """

    def __init__(self, conninfo: str, **options: Any) -> None:
        super().__init__(conninfo, **options)
        self.database_url = conninfo
        self.context = copy_context()
        self._beside: list[Callable[[], Awaitable[None]]] = []

    def closes(self, close: Callable[[], Awaitable[None]]) -> None:
        """Have something closed before the pool: what asks by it."""
        self._beside.append(close)

    async def close(self, timeout: float = 5.0) -> None:  # noqa: ASYNC109
        """As the pool's own."""
        for close in self._beside:
            await close()
        await super().close(timeout)

    async def check(self) -> None:
        """As the pool's own, which takes it for a broken connection where whoever calls it is cancelled."""
        await super().check()
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise asyncio.CancelledError

    @asynccontextmanager
    async def connection(
        self,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> AsyncGenerator[psycopg.AsyncConnection[Any]]:
        """As the pool's own, which then ends a transaction; ours commit each statement, or by `transaction()`."""
        connection = await self.getconn(timeout)
        try:
            yield connection
        finally:
            await self.putconn(connection)

    async def getconn(self, timeout: float | None = None) -> psycopg.AsyncConnection[Any]:  # noqa: ASYNC109
        """As the pool's own."""
        try:
            return await super().getconn(timeout)
        except BaseException:
            waiting = [client for client in self._waiting if client.error is None]
            self._waiting.clear()
            self._waiting.extend(waiting)
            raise

    def sample(self) -> None:
        """Count what psycopg has counted since the last time, and tell how it stands now."""
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
    """A pool that turns away those who wait in vain, instead of letting a queue stand.

    A queue that moves is left alone. When nobody was given a connection for a while, all who wait are turned
    away, and from then on whoever comes while another still finds out whether there are connections again.
    The while is counted in turns of the event loop: a process that is slow itself does not take the pool for
    stalled.
    """

    def __init__(self, conninfo: str, *, patience: float, **options: Any) -> None:
        super().__init__(conninfo, **options)
        self._seconds = patience / TICKS
        self._waits: set[asyncio.Timeout] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._given = self._given_before = self._quiet = 0

    async def getconn(self, timeout: float | None = None) -> psycopg.AsyncConnection[Any]:  # noqa: ASYNC109
        """As the pool's own.

        Raises:
            PoolStalled: see there.
        """
        if self._quiet >= TICKS and self._waits:
            POOL_STALLED.inc()
            raise PoolStalled
        if self._pool:  # somebody is idle: nobody waits, and nothing has to be timed
            connection = await super().getconn(timeout)
        else:
            connection = await self._wait_for(timeout)
        self._given += 1
        self._quiet = 0
        return connection

    async def _wait_for(self, timeout: float | None) -> psycopg.AsyncConnection[Any]:  # noqa: ASYNC109
        try:
            async with asyncio.timeout(None) as wait:
                self._waits.add(wait)
                if self._timer is None:
                    self._look_later()
                try:
                    return await super().getconn(timeout)
                finally:
                    self._waits.discard(wait)
        except TimeoutError:
            POOL_STALLED.inc()
            raise PoolStalled from None

    def _look_later(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._seconds, self._look)

    def _look(self) -> None:
        self._timer = None
        quiet, self._given_before = self._given == self._given_before, self._given
        if not self._waits:
            self._quiet = max(0, self._quiet - 1)
            if self._quiet > 0:
                self._look_later()
            return
        self._quiet = self._quiet + 1 if quiet else 0
        if self._quiet >= TICKS:
            self._quiet = STALLED_TICKS
            waits, self._waits = self._waits, set()
            for wait in waits:
                wait.reschedule(asyncio.get_running_loop().time())
        self._look_later()
