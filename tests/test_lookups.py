"""What is looked up over and over has a connection of its own, and nobody depends on it: the pool takes its place."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import psycopg
import pytest
import structlog
from psycopg.rows import TupleRow

from payloops.events import connections as events_connections
from payloops.events import statement
from payloops.events.columns import ints
from payloops.events.lookups import NAME, Lookup
from payloops.events.pools import Pool, connection_pool

THINGS = (
    "SELECT t.id, t.name FROM unnest((SELECT $1::int[])) AS wanted (id) JOIN things t ON t.id = wanted.id"
)
CONNECTIONS = "SELECT pid FROM pg_stat_activity WHERE application_name = %s AND datname = current_database()"


@pytest.fixture
async def observer(database_url: str) -> AsyncIterator[psycopg.AsyncConnection]:
    async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as connection:
        await connection.execute("CREATE TABLE things (id int PRIMARY KEY, name text)")
        await connection.execute("INSERT INTO things VALUES (1, 'one'), (2, 'two')")
        yield connection


@pytest.fixture
async def pool(database_url: str, observer: psycopg.AsyncConnection) -> AsyncIterator[Pool]:
    pool = connection_pool(database_url, size=2, application_name="test")
    await pool.open(wait=True)
    yield pool
    await pool.close()


def by_id(rows: Sequence[TupleRow]) -> dict[int, str]:
    return dict(rows)


def things(pool: Pool) -> Lookup[int, str]:
    return Lookup(pool, THINGS, column=ints, read=by_id, most=10)


async def connections(observer: psycopg.AsyncConnection) -> list[int]:
    return [pid for (pid,) in await (await observer.execute(CONNECTIONS, (NAME,))).fetchall()]


@asynccontextmanager
async def held_up(database_url: str) -> AsyncIterator[None]:
    """Nobody can read things meanwhile."""
    async with await psycopg.AsyncConnection.connect(database_url) as connection:
        await connection.execute("LOCK TABLE things IN ACCESS EXCLUSIVE MODE")
        yield
        await connection.rollback()


async def waits(observer: psycopg.AsyncConnection, pid: int) -> None:
    """Until this connection waits for a lock."""
    async with asyncio.timeout(30):
        waiting = "SELECT 1 FROM pg_locks WHERE pid = %s AND NOT granted"
        while not await (await observer.execute(waiting, (pid,))).fetchone():
            await asyncio.sleep(0.001)


async def by_its_own(lookup: Lookup[int, str], pool: Pool) -> None:
    """Until it answers without asking the pool."""
    async with asyncio.timeout(30):
        asked = -1
        while asked != (asked := pool.get_stats().get("requests_num", 0)):
            assert await lookup.find(1) == "one"


async def test_it_finds_what_there_is_by_the_pool_at_first_and_then_on_its_own(pool: Pool) -> None:
    lookup = things(pool)
    for _ in range(2):
        assert await asyncio.gather(*(lookup.find(id) for id in (1, 3, 2, 1))) == ["one", None, "two", "one"]
        await by_its_own(lookup, pool)


async def test_it_sees_what_was_written_before_it_is_asked(
    pool: Pool, observer: psycopg.AsyncConnection
) -> None:
    lookup = things(pool)
    await by_its_own(lookup, pool)
    for name in ("uno", "une"):
        await observer.execute("UPDATE things SET name = %s WHERE id = 1", (name,))
        assert await lookup.find(1) == name


async def test_a_connection_that_ended_is_made_anew_and_nobody_notices(
    pool: Pool, observer: psycopg.AsyncConnection
) -> None:
    lookup = things(pool)
    await by_its_own(lookup, pool)
    [pid] = await connections(observer)
    await observer.execute("SELECT pg_terminate_backend(%s, 10000)", (pid,))
    assert await lookup.find(2) == "two"
    await by_its_own(lookup, pool)
    assert pid not in await connections(observer)


async def test_who_asks_while_the_connection_ends_is_answered_by_the_pool(
    pool: Pool, observer: psycopg.AsyncConnection, database_url: str
) -> None:
    lookup = things(pool)
    await by_its_own(lookup, pool)
    [pid] = await connections(observer)
    async with held_up(database_url):
        asking = asyncio.create_task(lookup.find(1))
        await waits(observer, pid)
        await observer.execute("SELECT pg_terminate_backend(%s, 10000)", (pid,))
    assert await asking == "one"
    await by_its_own(lookup, pool)


async def test_what_is_held_up_holds_up_one_and_the_others_ask_by_the_pool(
    pool: Pool, observer: psycopg.AsyncConnection, database_url: str
) -> None:
    lookup = things(pool)
    await by_its_own(lookup, pool)
    [pid] = await connections(observer)
    async with held_up(database_url):
        asking = [asyncio.create_task(lookup.find(id)) for id in (1, 2, 3)]
        waiting = "SELECT count(DISTINCT pid) FROM pg_locks WHERE NOT granted AND database = "
        waiting += "(SELECT oid FROM pg_database WHERE datname = current_database())"
        while (await (await observer.execute(waiting)).fetchone()) != (3,):
            await asyncio.sleep(0.001)
    assert await asyncio.gather(*asking) == ["one", "two", None]
    await by_its_own(lookup, pool)
    assert await connections(observer) == [pid]


async def test_who_waits_for_longer_than_postgresql_lets_a_statement_take_is_told(
    pool: Pool, observer: psycopg.AsyncConnection, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(events_connections.TIMEOUTS, "statement_timeout", "1s")
    lookup = things(pool)
    await by_its_own(lookup, pool)
    [pid] = await connections(observer)
    async with held_up(database_url):
        with pytest.raises(psycopg.errors.QueryCanceled):
            await lookup.find(1)
    await by_its_own(lookup, pool)
    assert await connections(observer) == [pid]


async def test_a_server_that_falls_silent_is_left_alone(
    pool: Pool, observer: psycopg.AsyncConnection, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statement, "ANSWER_SECONDS", 0.5)
    lookup = things(pool)
    await by_its_own(lookup, pool)
    by_pool = "SELECT 1 FROM pg_locks JOIN pg_stat_activity USING (pid) WHERE NOT granted"
    by_pool += " AND datname = current_database() AND application_name = 'test'"
    async with held_up(database_url), asyncio.timeout(30):
        asking = asyncio.create_task(lookup.find(1))
        while not await (await observer.execute(by_pool)).fetchone():
            await asyncio.sleep(0.001)
    assert await asking == "one"


async def test_what_happens_to_its_connection_is_not_told_of_who_asked_first(
    pool: Pool, observer: psycopg.AsyncConnection, database_url: str
) -> None:
    lookup = things(pool)
    with structlog.contextvars.bound_contextvars(correlation_id="first"):
        await by_its_own(lookup, pool)
    [pid] = await connections(observer)
    with structlog.testing.capture_logs([structlog.contextvars.merge_contextvars]) as logged:
        async with held_up(database_url):
            asking = asyncio.create_task(lookup.find(1))
            await waits(observer, pid)
            await observer.execute("SELECT pg_terminate_backend(%s, 10000)", (pid,))
        assert await asking == "one"
    assert [("correlation_id" in each) for each in logged if each["event"] == "look_up.lost"] == [False]


async def test_where_no_connection_is_to_be_had_for_it_the_pool_has_all(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events_connections, "RECONNECT_SECONDS", 0.01)
    right, pool.database_url = pool.database_url, "host=/nowhere"
    lookup = things(pool)
    for _ in range(20):
        assert await lookup.find(1) == "one"
        await asyncio.sleep(0.001)
    pool.database_url = right
    await by_its_own(lookup, pool)


async def test_its_connection_ends_with_the_pool(pool: Pool, observer: psycopg.AsyncConnection) -> None:
    lookup = things(pool)
    await by_its_own(lookup, pool)
    assert len(await connections(observer)) == 1
    await pool.close()
    while await connections(observer):
        await asyncio.sleep(0.001)
    with pytest.raises(psycopg.OperationalError):
        await lookup.find(1)
    assert await connections(observer) == []
