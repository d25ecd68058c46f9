"""Connections to PostgreSQL, each with its deadlines."""

import psycopg
from psycopg.rows import TupleRow, tuple_row
from psycopg_pool import AsyncConnectionPool

CONNECT_TIMEOUT = 3
"""Seconds."""
STATEMENT_TIMEOUT = 5
"""Seconds that PostgreSQL gives a statement of ours, unless it is told otherwise."""


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


async def connect(database_url: str, *, application_name: str) -> psycopg.AsyncConnection[TupleRow]:
    """A connection of one's own, outside the pool."""
    return await psycopg.AsyncConnection.connect(database_url, **connection_options(application_name))  # type: ignore[arg-type]


def connection_pool(database_url: str, *, size: int, application_name: str) -> AsyncConnectionPool:
    """A pool, not yet open, for reads and for transactions of a command.

    Who waits two seconds for a connection, or finds fifty waiting for each, is turned away
    (`psycopg.OperationalError`): overload is answered early instead of piling up.
    """
    return AsyncConnectionPool(
        database_url,
        min_size=min(2, size),
        max_size=size,
        max_waiting=size * 50,
        timeout=2.0,
        # Afterwards whoever asks for a connection starts the next attempt; the pauses within grow.
        reconnect_timeout=5.0,
        kwargs=connection_options(application_name),
        open=False,
        name=application_name,
    )
