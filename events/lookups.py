"""Looks up rows by keys, in batches over all requests of a process (`payloops.events.batch_loader`).

Each look-up has a connection of its own, on which its query is prepared once (`payloops.events.statement`). While that
connection is blocked, lost or not yet established, connections of the pool are used instead.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Generic

import psycopg
import structlog
from psycopg.rows import TupleRow

from payloops.events.batch_loader import HELD_UP, BatchLoader, Done, K, V
from payloops.events.columns import Column
from payloops.events.connections import wait_to_reconnect
from payloops.events.pools import Pool
from payloops.events.statement import Statement

NAME = "payloops look-ups"
"""Application name of their connections."""

log = structlog.get_logger()


class Lookup(Generic[K, V]):
    """A query by keys. Its own connection is opened at the first look-up, and closed with the pool."""

    def __init__(
        self,
        pool: Pool,
        query: str,
        *,
        column: Callable[[Sequence[K]], Column],
        read: Callable[[list[TupleRow]], Mapping[K, V]],
        most: int,
    ) -> None:
        """
        Args:
            query: takes an array of keys as `$1`. Must only read, because it may be executed twice.
            column: encodes the keys as that array.
            read: makes the value of each key from the rows.
            most: maximum number of keys per query.
        """
        self._pool = pool
        self._query = query
        self._column = column
        self._read = read
        self._statement: Statement | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._closed = False
        self.find = BatchLoader(self._by_pool, most=most, held_up=HELD_UP, send=self._send).find
        pool.closes(self._close)

    async def _by_pool(self, keys: Sequence[K]) -> Mapping[K, V]:
        async with self._pool.connection() as connection:
            cursor = psycopg.AsyncRawCursor(connection)
            await cursor.execute(self._query, (self._column(keys),), binary=True)
            return self._read(await cursor.fetchall())

    def _send(self, keys: Sequence[K], done: Done[K, V]) -> bool:
        statement = self._statement
        if statement is None or statement.closed:
            self._connect_later()
            return False
        try:
            statement.send((self._column(keys),), partial(self._received, done))
        except psycopg.Error:
            self._connect_later()
            return False
        return True

    def _received(self, done: Done[K, V], rows: list[TupleRow] | Exception) -> None:
        if isinstance(rows, psycopg.errors.QueryCanceled):  # too slow: a connection of the pool would be, too
            done(rows)
        elif isinstance(rows, Exception):
            log.warning("look_up.lost", error=type(rows).__name__)
            self._connect_later()
            done(None)
        else:
            try:
                found = self._read(rows)
            except Exception as error:  # noqa: BLE001  # raised to the callers
                done(error)
            else:
                done(found)

    def _connect_later(self) -> None:
        if not self._closed and (self._connecting is None or self._connecting.done()):
            lost, self._statement = self._statement, None
            # Not in the context of the current request: the connection serves all later ones, too.
            self._connecting = asyncio.create_task(
                self._connect(lost), name="look-up's connection", context=self._pool.context.copy()
            )

    async def _connect(self, lost: Statement | None) -> None:
        if lost is not None:
            await lost.close()
        try:
            self._statement = await Statement.prepare(
                self._pool.database_url, self._query, application_name=NAME
            )
        except (psycopg.Error, OSError) as error:
            log.warning("look_up.cannot_connect", error=type(error).__name__)
            await wait_to_reconnect()

    async def _close(self) -> None:
        self._closed = True
        if self._connecting is not None:
            self._connecting.cancel()
            await asyncio.wait([self._connecting])
        if self._statement is not None:
            await self._statement.close()
