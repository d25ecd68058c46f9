"""Checks that a database has the schema of this version, without importing the migration tools, which is slow."""

from functools import cache
from pathlib import Path

import psycopg
from psycopg_pool import AsyncConnectionPool

import payloops.migrations


class SchemaBehind(Exception):
    """Not all migrations of this version have been applied."""

    def __init__(self, *, applied: str | None) -> None:
        super().__init__(
            f"the database has migrations up to {applied}, and lacks those up to {newest_migration()}:"
            " run `payloops migrate`"
        )


@cache
def newest_migration() -> str:
    """The newest revision. Revisions are numbers with leading zeros, at the beginning of their files' names."""
    assert payloops.migrations.__file__ is not None
    files = Path(payloops.migrations.__file__).parent.glob("versions/[0-9]*.py")
    return max(file.name for file in files).partition("_")[0]


async def require_schema(pool: AsyncConnectionPool) -> None:
    """Check that the schema is that of this version, or of a later one, which keeps what this version needs.

    Raises:
        SchemaBehind: it is older, or there is no schema.
    """
    async with pool.connection() as connection:
        try:
            row = await (await connection.execute("SELECT version_num FROM alembic_version")).fetchone()
        except psycopg.errors.UndefinedTable:
            row = None
    applied = row[0] if row is not None else None
    if applied is None or applied < newest_migration():
        raise SchemaBehind(applied=applied)
