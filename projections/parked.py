"""The table `parked_events`: retrying what projections parked, and having subscribers forward theirs again.

Later events of the same stream may have changed its rows since. So a projection's rows are made again from all events
of the stream, up to the projection's position: a parked event is applied in its place, or parked again.
"""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import psycopg
from psycopg import sql
from psycopg.rows import TupleRow, class_row
from psycopg_pool import AsyncConnectionPool

from payloops.events.event_store import RecordedEvent
from payloops.projections.batches import Change, LoggedEvent, apply, decode, park
from payloops.projections.projection import Projection
from payloops.projections.totals import remove_empty, take_away

LOOK_SECONDS = 0.1
STREAMS = 50
"""Streams whose rows are made again in one transaction."""

LOCK = "SELECT position FROM checkpoints WHERE name = %s AND version = %s FOR UPDATE"
PARKED_STREAMS = """
    SELECT DISTINCT originator_id FROM parked_events
    WHERE reader = %s AND position <= %s AND (%s::uuid IS NULL OR originator_id > %s)
    ORDER BY originator_id LIMIT %s
"""
EVENTS = """
    SELECT notification_id, originator_id, originator_version, topic,
           CASE WHEN split_part(topic, '.', 1) = ANY(%s) THEN state END, personal_key
    FROM readable_events WHERE originator_id = %s AND notification_id <= %s ORDER BY originator_version
"""
FORGET = "DELETE FROM parked_events WHERE reader = %s AND originator_id = %s RETURNING position"


# Subscribers keep their parked events in the same table. Only they can forward them: they are asked to, by `retry`.
SUBSCRIBERS = """
    SELECT reader FROM (
        SELECT reader FROM parked_events UNION SELECT name FROM checkpoints WHERE name <> 'seals'
    ) readers (reader)
    WHERE reader <> ALL (%s) ORDER BY 1
"""
AGAIN = """
    INSERT INTO parked_events (reader, position, originator_id, originator_version, topic, error, retry)
    VALUES (%s, %s, %s, %s, %s, %s, true) ON CONFLICT (reader, position) DO UPDATE SET retry = true
"""
PARKED = """
    SELECT reader, position, originator_id AS stream_id, originator_version AS version, topic, error, parked_at, retry
    FROM parked_events
"""
NEWEST = PARKED + "ORDER BY parked_at DESC, position DESC LIMIT %s"
OF_STREAM = PARKED + "WHERE reader = %s AND originator_id = %s ORDER BY position"
ASK = "UPDATE parked_events SET retry = true WHERE reader = %s"
COUNT = "SELECT count(*), count(*) FILTER (WHERE retry) FROM parked_events WHERE reader = %s"


@dataclass(frozen=True, slots=True, kw_only=True)
class Retried:
    """The result for one reader of the log.

    Attributes:
        applied: how many of its parked events were applied or forwarded.
        parked: how many were parked again.
        waiting: how many the subscriber has not retried yet.
    """

    reader: str
    applied: int
    parked: int
    waiting: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Parked:
    """A parked event: its reader continued without it.

    Attributes:
        reader: the projection or subscriber. position: of the event in the log.
        stream_id, version: the stream, and the event's version in it.
        retry: whether its subscriber was asked to forward it again.
    """

    reader: str
    position: int
    stream_id: UUID
    version: int
    topic: str
    error: str
    parked_at: datetime
    retry: bool


async def list_parked_events(pool: AsyncConnectionPool, *, limit: int) -> list[Parked]:
    """Parked events of all readers, newest first."""
    async with pool.connection() as connection, connection.cursor(row_factory=class_row(Parked)) as cursor:
        return await (await cursor.execute(NEWEST, (limit,))).fetchall()


async def parked_of(
    connection: psycopg.AsyncConnection[TupleRow], *, subscriber: str, stream: UUID
) -> dict[int, Parked]:
    """A stream's events that a subscriber parked, by version."""
    async with connection.cursor(row_factory=class_row(Parked)) as cursor:
        await cursor.execute(OF_STREAM, (subscriber, stream))
        return {each.version: each for each in await cursor.fetchall()}


async def list_subscribers(
    connection: psycopg.AsyncConnection[TupleRow], *, projections: Sequence[str]
) -> list[str]:
    """The readers of the log that have come as far as any position, besides the projections and the seals."""
    return [row[0] for row in await (await connection.execute(SUBSCRIBERS, (list(projections),))).fetchall()]


async def retry_forwarding(
    connection: psycopg.AsyncConnection[TupleRow], *, subscriber: str, seconds: float
) -> Retried:
    """Have the active subscriber forward its parked events again, and wait for it.

    Args:
        seconds: to wait at most; the subscriber continues afterwards.
    """
    asked = (await connection.execute(ASK, (subscriber,))).rowcount
    deadline = time.monotonic() + seconds
    while True:
        row = await (await connection.execute(COUNT, (subscriber,))).fetchone()
        assert row is not None
        parked, waiting = row
        if not waiting or time.monotonic() >= deadline:
            return Retried(
                reader=subscriber, applied=max(0, asked - parked), parked=parked - waiting, waiting=waiting
            )
        await asyncio.sleep(LOOK_SECONDS)


async def forward_again(
    connection: psycopg.AsyncConnection[TupleRow], *, subscriber: str, event: RecordedEvent, why: str
) -> None:
    """Have the active subscriber forward an event again: it is marked as parked until that is done."""
    stored = event.stored
    values = (event.position, stored.originator_id, stored.originator_version, stored.topic, why)
    await connection.execute(AGAIN, (subscriber, *values))


async def retry_parked(connection: psycopg.AsyncConnection[TupleRow], *, projection: Projection) -> Retried:
    """Apply a projection's parked events, as far as possible by now. May run beside projectors, and be repeated."""
    applied = parked = 0
    after: UUID | None = None
    while True:
        async with connection.transaction():
            row = await (await connection.execute(LOCK, (projection.name, projection.version))).fetchone()
            if row is None:
                break
            position = row[0]
            found = await (
                await connection.execute(PARKED_STREAMS, (projection.name, position, after, after, STREAMS))
            ).fetchall()
            for (stream,) in found:
                before, still = await _make_again(connection, projection, stream, position)
                applied += before - still
                parked += still
        if len(found) < STREAMS:
            break
        after = found[-1][0]
    return Retried(reader=projection.name, applied=applied, parked=parked)


async def _make_again(
    connection: psycopg.AsyncConnection[TupleRow], projection: Projection, stream: UUID, position: int
) -> tuple[int, int]:
    """Make a stream's rows again; return how many of its events were parked before, and how many still are."""
    families = list(projection.families)
    rows = await (await connection.execute(EVENTS, (families, stream, position))).fetchall()
    [batch] = decode([projection], [LoggedEvent(*row) for row in rows])
    for place, table in enumerate(projection.tables):
        ids = _ids(batch.changes, place)
        for totals in projection.totals:
            if totals.of is table:
                await take_away(connection, totals=totals, ids=ids)
        await connection.execute(
            sql.SQL("DELETE FROM {} WHERE id = ANY(%s::uuid[])").format(sql.Identifier(table.name)), (ids,)
        )
    await apply(connection, projection, batch.changes, batch.parked)
    for totals in projection.totals:
        await remove_empty(connection, totals=totals)
    forgotten = await (await connection.execute(FORGET, (projection.name, stream))).fetchall()
    for event, error in batch.parked:
        await connection.execute(*park(projection, event, error))
    return len(forgotten), len(batch.parked)


def _ids(changes: Sequence[Change], place: int) -> list[Any]:
    return list({id: None for change in changes for id, _, _ in change.patches[place]})
