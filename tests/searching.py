"""Looking for a text in everything that the database holds."""

from psycopg import sql
from psycopg_pool import AsyncConnectionPool

TABLES = """
    SELECT schemaname, tablename FROM pg_tables
    WHERE schemaname NOT IN ('pg_catalog', 'information_schema')
"""
COUNT = sql.SQL("SELECT count(*) FROM {} AS each WHERE each::text ILIKE ANY(%s)")


async def tables_that_hold(pool: AsyncConnectionPool, *texts: str) -> list[str]:
    """Every table with a row in which one of the texts stands, in whatever case as text, or in bytes."""
    patterns = [f"%{form}%" for text in texts for form in (text, text.encode().hex())]
    found = []
    async with pool.connection() as connection:
        cursor = await connection.execute(TABLES)
        for schema, table in await cursor.fetchall():
            query = COUNT.format(sql.Identifier(schema, table))
            row = await (await connection.execute(query, (patterns,))).fetchone()
            assert row is not None
            if row[0]:
                found.append(table)
    return found
