"""Detecting tables that know of events missing from the log, which shows that its end was cut off."""

from dataclasses import dataclass
from uuid import UUID

import psycopg
from psycopg.rows import TupleRow

READERS = """
    SELECT name, position FROM checkpoints
    WHERE position > (SELECT coalesce(max(notification_id), 0) FROM stored_events)
    ORDER BY position DESC, name LIMIT 1
"""
ORDERS = """
    SELECT o.id, o.version, head.version
    FROM orders o CROSS JOIN LATERAL (
        SELECT coalesce(max(originator_version), 0) AS version FROM stored_events WHERE originator_id = o.id
    ) head
    WHERE o.version > head.version ORDER BY o.updated_at LIMIT 1
"""


@dataclass(frozen=True, slots=True)
class ReaderAhead:
    """A reader of the log that has come further than the log goes."""

    name: str
    position: int


@dataclass(frozen=True, slots=True)
class OrderAhead:
    """An order's row that holds a version which its stream does not have any more."""

    order_id: UUID
    version: int
    stream_version: int


async def reader_ahead(connection: psycopg.AsyncConnection[TupleRow]) -> ReaderAhead | None:
    """The reader that has come furthest past the end of the log; None where none has."""
    row = await (await connection.execute(READERS)).fetchone()
    return None if row is None else ReaderAhead(*row)


async def order_ahead(connection: psycopg.AsyncConnection[TupleRow]) -> OrderAhead | None:
    """The order, changed the longest ago, whose row is ahead of its stream; None where none is."""
    row = await (await connection.execute(ORDERS)).fetchone()
    return None if row is None else OrderAhead(*row)
