"""Looking up rows by keys, gathered over all requests of a process that ask at the same time.

A gathering has one query under way at a time, on a connection of its own, where the query is prepared once
(`payloops.events.statement`). While that connection is blocked, lost or not there yet, the pool is used instead.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Generic

import psycopg
import structlog
from psycopg.rows import TupleRow

from payloops.events.columns import Column
from payloops.events.connections import Pool, wait_to_reconnect
from payloops.events.gathering import HELD_UP, Gathering, K, Tell, V
from payloops.events.statement import Statement

NAME = "payloops look-ups"
"""Of their connections, as the database has it."""

log = structlog.get_logger()


class Lookup(Generic[K, V]):
    """One for each query of a pool. Its connection is made when it is first asked, and ends with the pool."""

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
            query: has `$1`, the keys. It only reads: it may be asked twice.
            column: the keys as the query has them. read: what its rows hold under each key.
            most: keys of one query.
        """
        self._pool = pool
        self._query = query
        self._column = column
        self._read = read
        self._statement: Statement | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._closed = False
        self.find = Gathering(self._by_pool, most=most, held_up=HELD_UP, send=self._send).find
        pool.closes(self._close)

    async def _by_pool(self, keys: Sequence[K]) -> Mapping[K, V]:
        async with self._pool.connection() as connection:
            cursor = psycopg.AsyncRawCursor(connection)
            await cursor.execute(self._query, (self._column(keys),), binary=True)
            return self._read(await cursor.fetchall())

    def _send(self, keys: Sequence[K], tell: Tell[K, V]) -> bool:
        statement = self._statement
        if statement is None or statement.closed:
            self._connect_later()
            return False
        try:
            statement.ask((self._column(keys),), partial(self._answered, tell))
        except psycopg.Error:
            self._connect_later()
            return False
        return True

    def _answered(self, tell: Tell[K, V], rows: list[TupleRow] | Exception) -> None:
        if isinstance(rows, psycopg.errors.QueryCanceled):  # it took too long: so it would by the pool
            tell(rows)
        elif isinstance(rows, Exception):
            log.warning("look_up.lost", error=type(rows).__name__)
            self._connect_later()
            tell(None)
        else:
            try:
                found = self._read(rows)
            except Exception as error:  # noqa: BLE001  # whatever it is, it is for those who asked
                tell(error)
            else:
                tell(found)

    def _connect_later(self) -> None:
        if not self._closed and (self._connecting is None or self._connecting.done()):
            lost, self._statement = self._statement, None
            # Not in the context of who asks now: the connection is there for all who come.
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
