"""Connections to PostgreSQL, each with its timeouts."""

import asyncio
import random
import re
import traceback
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from contextvars import copy_context
from typing import Any, Self

import orjson
import psycopg
from prometheus_client import Counter, Gauge
from psycopg import errors
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import TupleRow, tuple_row
from psycopg.types.json import set_json_loads
from psycopg_pool import AsyncConnectionPool

CONNECT_TIMEOUT = 3
"""Seconds."""
RECONNECT_SECONDS = 1.0
STATEMENT_TIMEOUT = 5
"""Seconds after which PostgreSQL cancels a statement, unless the connection sets another limit."""
WAIT_SECONDS = 2.0
"""How long a request waits for a connection of a pool before it is refused."""
CHECKS = 4
"""Consecutive checks without any connection given to a waiting request after which a pool counts as stalled."""
RECOVERED_CHECKS = 16 * CHECKS
"""Checks without any waiting request after which a stalled pool counts as normal again."""

# Several times as fast as the standard library's: a page of orders has the metadata of each.
set_json_loads(orjson.loads)

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


SESSION = {
    "search_path": "public",
    "timezone": "UTC",
    "datestyle": "ISO",
    "intervalstyle": "postgres",
    "default_transaction_isolation": "read committed",
    "lock_timeout": "0",
    "idle_session_timeout": "0",
    "standard_conforming_strings": "on",
}
"""Settings of every session. Search path: tables are rebuilt beside those in `public`. Isolation: where transactions
could conflict, statements lock. Timeouts: connections that listen or hold an advisory lock are idle for long, and a
wait for a lock is limited as part of its statement."""

LONG_TRANSACTIONS = """
    CASE WHEN current_setting('transaction_timeout', true) <> '0' THEN
        set_config('transaction_timeout', '0', false)
    END
"""
"""Sets this by a statement, because PostgreSQL before 17 refuses a session that names it in its options."""

TIMEOUTS = {
    "statement_timeout": f"{STATEMENT_TIMEOUT}s",
    "idle_in_transaction_session_timeout": "30s",
}
"""Settings of sessions that do not set their own."""

SCHEMA_ERRORS = (errors.UndefinedTable, errors.UndefinedColumn, errors.UndefinedFunction)
"""Errors of statements if migrations of this version have not been applied."""


NO_CONNECTION_LEFT = re.compile(
    "too many clients already|connection slots are reserved|too many connections for|no more connections allowed"
)
"""Messages of PostgreSQL and PgBouncer: psycopg has no SQLSTATE for a connection that was refused."""

OPTIONS_REFUSED = re.compile("unsupported startup parameter(: options| in options)")
"""Messages of PgBouncer."""

BACKEND = f"SELECT pg_backend_pid(), {LONG_TRANSACTIONS}".encode()
KEPT_TRIES = 3
"""How often a session behind a pooler has to be found unchanged before it is taken to be kept."""
SESSIONS_KEPT: set[str] = set()
"""Addresses behind whose pooler sessions have been found to be kept."""


class NoUsableConnection(psycopg.OperationalError):
    """There is no connection of use, and the message says what helps."""


class TooManyConnections(NoUsableConnection):
    """PostgreSQL is up, but accepts no more connections."""

    def __init__(self) -> None:
        super().__init__(
            "PostgreSQL has no connection left: lower DATABASE_POOL_SIZE, run fewer processes, or raise"
            ' max_connections ("Connections to PostgreSQL" in docs/operating.md has the sum)'
        )


class OptionsRefused(NoUsableConnection):
    """A pooler accepts no settings at the start of a session."""

    def __init__(self) -> None:
        super().__init__(
            "the pooler before PostgreSQL refuses the options of a session: set ignore_startup_parameters = options and"
            " pool_mode = session in PgBouncer, or let DATABASE_URL name PostgreSQL itself"
        )


class SessionNotKept(NoUsableConnection):
    """A pooler takes the session away between transactions, with its locks and settings."""

    def __init__(self) -> None:
        super().__init__(
            "the pooler before PostgreSQL gives sessions to others between transactions: set pool_mode = session"
            " in PgBouncer, or let DATABASE_URL name PostgreSQL itself"
        )


class PoolStalled(psycopg.OperationalError):
    """The pool gives no connections at present: all are in use for long, or the database is unreachable."""

    def __init__(self) -> None:
        super().__init__("no connection was free for a while")


def session_settings(database_url: str, **timeouts: str) -> dict[str, Any]:
    """Keyword arguments for psycopg's `connect`, so that a session is as statements here need it.

    An operator may have set other defaults for the server, the database or the role. Other settings that the URL names
    in its `options` apply as well. Whoever accepts no writes is passed over, unless the URL itself says whom to connect
    to: a standby, which is behind, and sessions that begin read-only, which would stay so when that is over.

    Args:
        timeouts: settings of PostgreSQL that limit how long something takes.
    """
    given = conninfo_to_dict(database_url)
    own = " ".join(
        "-c {}={}".format(name, value.replace(" ", r"\ ")) for name, value in {**SESSION, **timeouts}.items()
    )
    return {
        "options": f"{given['options']} {own}" if given.get("options") else own,
        "client_encoding": "UTF8",
        "target_session_attrs": given.get("target_session_attrs", "read-write"),
    }


def session_statement(**settings: str) -> bytes:
    """A statement that sets what `session_settings` does, and these: poolers ignore the options of a session."""
    pairs = {**SESSION, **TIMEOUTS, **settings}.items()
    calls = ", ".join(f"set_config('{name}', '{value}', false)" for name, value in pairs)
    return f"SELECT {calls}, {LONG_TRANSACTIONS}".encode()


def connection_options(database_url: str, *, application_name: str) -> dict[str, Any]:
    """Keyword arguments for psycopg's `connect`: autocommit, prepared at first use, and every wait with a timeout."""
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
        **session_settings(database_url, **TIMEOUTS),
    }


class _Connection(psycopg.AsyncConnection[TupleRow]):
    """A psycopg connection that closes its socket if it is not established, and says what helps.

    By way of a pooler, the session is set up by a statement, and refused if it is not kept.
    """

    @classmethod
    async def connect(cls, conninfo: str = "", **options: Any) -> Self:
        connection = await cls._established(conninfo, options)
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                backend = await _backend(connection)
                if backend != connection.info.backend_pid:  # a pooler makes one up
                    await connection.execute(session_statement(), prepare=False)
                    if conninfo not in SESSIONS_KEPT:
                        await _require_kept(connection, backend, await cls._established(conninfo, options))
                        SESSIONS_KEPT.add(conninfo)
        except TimeoutError:
            await connection.close()
            raise errors.ConnectionTimeout(
                "the session did not begin in time: a pooler before PostgreSQL may have none left, such as"
                " PgBouncer (default_pool_size)"
            ) from None
        except BaseException:
            await connection.close()
            raise
        return connection

    @classmethod
    async def _established(cls, conninfo: str, options: dict[str, Any]) -> Self:
        try:
            return await super().connect(conninfo, **options)
        except BaseException as error:
            # psycopg leaves the socket to the garbage collector, in the frames of this traceback. PostgreSQL would
            # keep a slot for it for a minute: after a stall of the server, none would be left for others.
            traceback.clear_frames(error.__traceback__)
            if NO_CONNECTION_LEFT.search(str(error)):
                raise TooManyConnections from None
            if OPTIONS_REFUSED.search(str(error)):
                raise OptionsRefused from None
            raise


async def _backend(connection: psycopg.AsyncConnection[TupleRow]) -> int:
    """The process behind a session, which is set up by the same statement."""
    async with psycopg.AsyncCursor(connection, row_factory=tuple_row) as cursor:  # whatever others use
        row = await (await cursor.execute(BACKEND, prepare=False)).fetchone()
    assert row is not None
    return int(row[0])


async def _require_kept(
    connection: psycopg.AsyncConnection[TupleRow], backend: int, other: psycopg.AsyncConnection[TupleRow]
) -> None:
    """Check that a connection keeps its session while another takes one and gives it back, which is closed then.

    Raises:
        SessionNotKept: see there.
    """
    async with other:
        for _ in range(KEPT_TRIES):
            try:
                async with other.transaction():
                    await _backend(other)
                    backends = {await _backend(connection)}
            except errors.ProtocolViolation:  # PgBouncer's, where not even a transaction is kept
                raise SessionNotKept from None
            # What the other gave back is the next to be given, or the one after it.
            backends |= {await _backend(connection), await _backend(connection)}
            if backends != {backend}:
                raise SessionNotKept


async def connect(database_url: str, *, application_name: str) -> psycopg.AsyncConnection[TupleRow]:
    """A new connection outside any pool.

    Raises:
        NoUsableConnection: see its kinds.
    """
    return await _Connection.connect(
        database_url, **connection_options(database_url, application_name=application_name)
    )


def is_about_data(error: Exception) -> bool:
    """Whether an error is about the values in a statement, and not about the state of the database.

    By SQLSTATE class: 22 data exception, 23 integrity constraint violation, 54 program limit exceeded.
    Psycopg refuses some values itself, without an SQLSTATE.
    """
    if isinstance(error, psycopg.Error):
        return isinstance(error, psycopg.DataError) or (error.sqlstate or "")[:2] in {"22", "23", "54"}
    return isinstance(error, TypeError | ValueError)


def one_line(error: BaseException) -> str:
    """The error in one line, without PostgreSQL's details, which quote rows and so personal data."""
    text = error.diag.message_primary if isinstance(error, psycopg.Error) else None
    remedy = ": run `payloops migrate`" if isinstance(error, SCHEMA_ERRORS) else ""
    said = f": {text or error}" if str(error) else ""
    words = f"{type(error).__name__}{said}{remedy}".replace("\x00", "\\0").split()
    return " ".join(words)[:1_000]


async def try_lock(connection: psycopg.AsyncConnection[TupleRow], name: str) -> bool:
    """Take an advisory lock, unless another connection has it. It is held until the connection ends."""
    query = "SELECT pg_try_advisory_lock(hashtextextended(%s, 0))"
    row = await (await connection.execute(query, (name,))).fetchone()
    assert row is not None
    return bool(row[0])


async def wait_to_reconnect() -> None:
    """Wait about a second, with jitter: clients that lost the database together should not reconnect together."""
    await asyncio.sleep(RECONNECT_SECONDS * (0.5 + random.random()))  # noqa: S311  # jitter


async def reach(database_url: str, *, application_name: str) -> None:
    """Check that the database can be reached. A pool would keep trying instead.

    Raises:
        psycopg.OperationalError: it cannot; says why.
    """
    await (await connect(database_url, application_name=application_name)).close()


def connection_pool(
    database_url: str, *, size: int, application_name: str, patience: float | None = None
) -> "Pool":
    """A pool, not yet open, for reads and for transactions of a command.

    A request that waits two seconds for a connection, or finds fifty requests per connection in the queue, is refused
    (`psycopg.OperationalError`), so that the queue stays short under overload.

    Args:
        patience: if no waiting request gets a connection for this many seconds, all that wait are refused.
    """
    options: dict[str, Any] = {
        "connection_class": _Connection,
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
async def command_pool(database_url: str, *, application_name: str) -> AsyncIterator["Pool"]:
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
