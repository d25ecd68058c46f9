"""Alembic's entry: runs the plain-SQL migrations in versions/ over one psycopg connection.

`payloops.migrate` calls this with the database's URL, and a list to note in what was applied; nothing is read from an
ini file.
"""

from typing import Any

import psycopg
from alembic import context
from sqlalchemy import create_engine
from sqlalchemy.pool import NullPool

from payloops.events.connections import CONNECT_TIMEOUT, session_settings, session_statement

# Two processes that migrate at once: the second waits here, then finds nothing to do.
MIGRATION_LOCK = 0x70617901
UNLIMITED = {"statement_timeout": "0", "idle_in_transaction_session_timeout": "0"}


def note(*_: Any, **given: Any) -> None:
    context.config.attributes["applied"].append(given["step"].up_revision_id)


def connect() -> "psycopg.Connection[Any]":
    """By psycopg, as the service does: SQLAlchemy reads URLs differently."""
    url = context.config.attributes["database_url"]
    settings = session_settings(url, **UNLIMITED)
    opened = psycopg.connect(url, connect_timeout=CONNECT_TIMEOUT, **settings)
    opened.execute(session_statement(**UNLIMITED))
    opened.commit()
    encoding = opened.info.parameter_status("server_encoding")
    if encoding != "UTF8":
        opened.close()
        raise psycopg.NotSupportedError(
            f"the database is in {encoding}: create it anew, WITH TEMPLATE template0 ENCODING 'UTF8'"
        )
    return opened


engine = create_engine("postgresql+psycopg://", creator=connect, poolclass=NullPool)

with engine.connect() as connection:
    connection.exec_driver_sql(f"SELECT pg_advisory_lock({MIGRATION_LOCK})")
    connection.commit()
    context.configure(
        connection=connection, target_metadata=None, transaction_per_migration=True, on_version_apply=note
    )
    with context.begin_transaction():
        context.run_migrations()
    connection.commit()
engine.dispose()
