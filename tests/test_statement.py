"""A statement that is sent over and over: what it returns is committed, and a lost connection is known as such."""

import asyncio
import socket
from collections.abc import AsyncIterator

import psycopg
import pytest

from payloops.events.columns import byteas, ints
from payloops.events.statement import Statement


@pytest.fixture
async def observer(database_url: str) -> AsyncIterator[psycopg.AsyncConnection]:
    async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as connection:
        yield connection


async def prepare(database_url: str, text: str) -> Statement:
    return await Statement.prepare(database_url, text, application_name="test")


async def test_it_returns_its_rows_each_time(database_url: str) -> None:
    statement = await prepare(database_url, "SELECT n, n::text, NULL FROM unnest($1::int[]) AS n")
    for numbers in ([1], [], [3, 2]):
        assert await statement.execute([ints(numbers)]) == [(n, str(n), None) for n in numbers]
    await statement.close()
    assert statement.closed


async def test_more_than_a_socket_takes_at_once_is_sent_and_received(database_url: str) -> None:
    statement = await prepare(database_url, "SELECT value FROM unnest($1::bytea[]) AS value")
    large = [b"x" * 8_000_000, b"y" * 8_000_000]
    for _ in range(2):
        assert await statement.execute([byteas(large)]) == [(large[0],), (large[1],)]
    await statement.close()


async def test_what_is_refused_leaves_it_usable(database_url: str) -> None:
    statement = await prepare(database_url, "SELECT 1 / n FROM unnest($1::int[]) AS n")
    with pytest.raises(psycopg.errors.DivisionByZero):
        await statement.execute([ints([1, 0])])
    assert not statement.closed
    assert await statement.execute([ints([1])]) == [(1,)]
    await statement.close()


async def test_what_is_refused_at_its_commit_was_not_done_whatever_it_had_returned(
    database_url: str, observer: psycopg.AsyncConnection
) -> None:
    await observer.execute("CREATE TABLE deferred (n int UNIQUE DEFERRABLE INITIALLY DEFERRED)")
    try:
        statement = await prepare(
            database_url, "INSERT INTO deferred SELECT unnest($1::int[]) RETURNING repeat('x', 100_000)"
        )
        with pytest.raises(psycopg.errors.UniqueViolation):
            await statement.execute([ints([1, 1])])
        assert len(await statement.execute([ints([1, 2])])) == 2
        await statement.close()
    finally:
        await observer.execute("DROP TABLE deferred")


async def test_a_connection_that_ends_meanwhile_is_closed(
    database_url: str, observer: psycopg.AsyncConnection
) -> None:
    statement = await prepare(database_url, "SELECT pg_terminate_backend(pg_backend_pid())")
    with pytest.raises(psycopg.OperationalError):
        await statement.execute([])
    assert statement.closed
    await statement.close()


async def test_a_connection_that_ends_while_nothing_is_asked_is_closed_by_then(
    database_url: str, observer: psycopg.AsyncConnection
) -> None:
    statement = await prepare(database_url, "SELECT 1")
    await observer.execute("SELECT pg_terminate_backend(%s, 10000)", (statement.backend[0],))
    while not statement.closed:
        await observer.execute("SELECT 1")
    with pytest.raises(psycopg.OperationalError):
        await statement.execute([])
    await statement.close()


async def test_to_close_what_is_lost_leaves_alone_what_was_opened_since(database_url: str) -> None:
    statement = await prepare(database_url, "SELECT pg_terminate_backend(pg_backend_pid())")
    with pytest.raises(psycopg.OperationalError):
        await statement.execute([])
    pairs = [socket.socketpair() for _ in range(8)]  # one of them has the number of the connection's socket
    loop = asyncio.get_running_loop()
    told = [loop.create_future() for _ in pairs]
    for (ours, _), each in zip(pairs, told, strict=True):
        loop.add_reader(ours, each.set_result, None)
    await statement.close()
    for (ours, theirs), each in zip(pairs, told, strict=True):
        theirs.send(b"x")
        async with asyncio.timeout(20):
            await each
        loop.remove_reader(ours)
        ours.close()
        theirs.close()
