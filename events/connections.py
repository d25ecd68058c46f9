"""Connections to PostgreSQL, each with its timeouts."""

import asyncio
import random
import re
import traceback
from typing import Any, Self

import orjson
import psycopg
from psycopg import errors
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import TupleRow, tuple_row
from psycopg.types.json import set_json_loads

CONNECT_TIMEOUT = 3
"""Seconds."""
RECONNECT_SECONDS = 1.0
STATEMENT_TIMEOUT = 5
"""Seconds after which PostgreSQL cancels a statement, unless the connection sets another limit."""
# Several times as fast as the standard library's: a page of orders has the metadata of each.
set_json_loads(orjson.loads)

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


def session_settings(database_url: str, **timeouts: str) -> dict[str, Any]:
    """Keyword arguments for psycopg's `connect`, so that a session is as statements here need it.

    An operator may have set other defaults for the server, the database or the role. Other settings that the URL names
    in its `options` apply as well. Standbys are passed over, unless the URL itself says whom to connect to: they are
    behind, and read-only.

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
        "target_session_attrs": given.get("target_session_attrs", "primary"),
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


class Connection(psycopg.AsyncConnection[TupleRow]):
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
    return await Connection.connect(
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
