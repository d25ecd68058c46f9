"""The lock under which appends are written (migration 0001): taken by tests, and waited for."""

import asyncio

import psycopg
from psycopg.rows import TupleRow

KEY = 1885431908
WAIT_LONGER = """
    DO $$ DECLARE version regprocedure; BEGIN
        FOR version IN SELECT oid FROM pg_proc WHERE proname IN ('append_event', 'append_batch') LOOP
            EXECUTE format('ALTER FUNCTION %s SET lock_timeout = %L', version, '60s');
        END LOOP;
    END $$
"""
"""Appends wait for a minute: for a test that holds the lock, or for others on a busy machine."""
TAKE = f"SELECT pg_advisory_lock({KEY})"
AWAITED = f"""
    SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND objid = {KEY} AND NOT granted
    AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""


async def an_append_waits(connection: psycopg.AsyncConnection[TupleRow]) -> None:
    """Until the database has an append that waits for the lock."""
    async with asyncio.timeout(60):
        while await (await connection.execute(AWAITED)).fetchone() is None:
            await asyncio.sleep(0.01)
