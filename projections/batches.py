"""Applying batches of the log to a projection's tables: each in one transaction with the checkpoint.

An event that cannot be applied is parked with its error, and stops nothing else.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, LiteralString, NamedTuple
from uuid import UUID

import psycopg
import structlog
from prometheus_client import Counter, Histogram
from psycopg.rows import TupleRow

from payloops.events.connections import is_about_data, one_line
from payloops.events.crash_points import crash_point
from payloops.events.encoding import decode_state
from payloops.events.stream import StreamEvent
from payloops.projections.patches import Patch, merge, patches_of
from payloops.projections.projection import Projection
from payloops.projections.totals import write

BATCH_EVENTS = 1_000
END_OF_LOG = 2**63 - 1

PROJECTED = Counter("payloops_projected_events", "Events of the log that were processed", ["projection"])
PARKED = Counter("payloops_projection_parked", "Events that could not be applied", ["projection"])
BATCH_SECONDS = Histogram(
    "payloops_projection_batch_duration_seconds",
    "Duration of a batch, including its commit",
    ["projection"],
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
)

log = structlog.get_logger()

NEXT = """
    WITH checkpoint AS MATERIALIZED (
        SELECT position FROM checkpoints
        WHERE name = %(name)s AND version = %(version)s
          AND position < (SELECT notification_id FROM stored_events ORDER BY notification_id DESC LIMIT 1)
    )
    SELECT checkpoint.position, e.notification_id, e.originator_id, e.originator_version, e.topic,
           CASE WHEN split_part(e.topic, '.', 1) = ANY(%(families)s) THEN e.state END, e.personal_key
    FROM checkpoint CROSS JOIN LATERAL (
        SELECT * FROM readable_events
        WHERE notification_id > checkpoint.position AND notification_id <= %(upto)s
        ORDER BY notification_id LIMIT %(limit)s
    ) e
    ORDER BY e.notification_id
"""
# From here to the end of the transaction, nobody else moves the checkpoint or replaces the tables.
MOVE = """
    UPDATE checkpoints SET position = %s, updated_at = clock_timestamp()
    WHERE name = %s AND version = %s AND position = %s
"""
PARK = """
    INSERT INTO parked_events (reader, position, originator_id, originator_version, topic, error)
    VALUES (%s, %s, %s, %s, %s, %s)
    ON CONFLICT (reader, position) DO UPDATE
    SET error = excluded.error, parked_at = excluded.parked_at, retry = false
"""


class LoggedEvent(NamedTuple):
    """A row of the log. `state` is None if the projection does not need the event."""

    position: int
    originator_id: UUID
    version: int
    topic: str
    state: bytes | None
    personal_key: bytes | None

    def __repr__(self) -> str:
        """Without the state, which must not get into logs."""
        return f"LoggedEvent({self.position}, {self.originator_id}:{self.version}, {self.topic})"

    @property
    def fact(self) -> StreamEvent:
        """The event decoded; raises where it cannot be."""
        _, stream_id, version, topic, state, personal_key = self
        assert state is not None
        return decode_state(topic, state, stream_id=stream_id, version=version, personal_key=personal_key)


@dataclass(slots=True)
class Change:
    """What an event does to the projection's tables: a list of patches for each, in their order."""

    logged: LoggedEvent
    patches: list[list[Patch]]


Unapplied = list[tuple[LoggedEvent, Exception]]
"""Events that cannot be applied, and why."""


@dataclass(slots=True)
class Batch:
    """What the events of a batch change, and those among them that cannot be applied."""

    changes: list[Change] = field(default_factory=list)
    parked: Unapplied = field(default_factory=list)


async def project_batch(
    connection: psycopg.AsyncConnection[TupleRow],
    projection: Projection,
    *,
    limit: int = BATCH_EVENTS,
    upto: int = END_OF_LOG,
) -> int:
    """Apply the next events of the log, at most `limit` and none after `upto`, in one transaction; return their number.

    It is 0 if the tables were made by another version. Events that cannot be applied are parked. If the database itself
    fails, nothing has been changed.
    """
    began = time.perf_counter()
    cursor = await connection.execute(
        NEXT,
        {
            "name": projection.name,
            "version": projection.version,
            "families": list(projection.families),
            "limit": limit,
            "upto": upto,
        },
    )
    found = await cursor.fetchall()
    if not found:
        return 0
    position, events = found[0][0], [LoggedEvent(*row[1:]) for row in found]
    [batch] = decode([projection], events)
    move = MOVE, (events[-1].position, projection.name, projection.version, position)
    try:
        parked = await _apply_batch(connection, projection, batch, move)
    except Exception as refused:
        if not is_about_data(refused):
            raise
        parked = await _apply_batch(connection, projection, batch, move, one_by_one=True)
    if parked is None:
        return 0
    PROJECTED.labels(projection.name).inc(len(events))
    BATCH_SECONDS.labels(projection.name).observe(time.perf_counter() - began)
    for event, error in parked:
        PARKED.labels(projection.name).inc()
        log.error(
            "projection.event_parked",
            projection=projection.name,
            position=event.position,
            topic=event.topic,
            order_id=str(event.originator_id),
            error=one_line(error),
        )
    return len(events)


async def _apply_batch(
    connection: psycopg.AsyncConnection[TupleRow],
    projection: Projection,
    batch: Batch,
    move: tuple[LiteralString, tuple[Any, ...]],
    *,
    one_by_one: bool = False,
) -> Unapplied | None:
    """Apply a batch; return the events that were parked, or None if another process has moved the checkpoint.

    Args:
        one_by_one: find and park the events whose data the database refuses. Otherwise it raises, and nothing is
        changed.
    """
    if not batch.changes and not batch.parked:
        return [] if (await connection.execute(*move)).rowcount else None
    parked = batch.parked
    async with connection.transaction():
        if not (await connection.execute(*move)).rowcount:
            return None
        crash_point("projector.moved")
        if one_by_one:
            await apply(connection, projection, batch.changes, parked)
        else:
            await _write(connection, projection, batch.changes)
        for event, error in parked:
            await connection.execute(*park(projection, event, error))
        crash_point("projector.applied")
    return parked


def decode(projections: Sequence[Projection], events: Sequence[LoggedEvent]) -> list[Batch]:
    """What the events do to each of the projections; events that raise an error are to be parked."""
    batches = [Batch() for _ in projections]
    for event in events:
        if event.state is None:
            continue
        family = event.topic.partition(".")[0]
        concerned = [(p, b) for p, b in zip(projections, batches, strict=True) if family in p.families]
        try:
            fact = event.fact
        except Exception as error:  # noqa: BLE001  # whatever is wrong with an event affects only itself
            for _, batch in concerned:
                batch.parked.append((event, error))
            continue
        for projection, batch in concerned:
            try:
                batch.changes.append(Change(event, [patches_of(table, fact) for table in projection.tables]))
            except Exception as error:  # noqa: BLE001  # as above
                batch.parked.append((event, error))
    return batches


async def apply(
    connection: psycopg.AsyncConnection[TupleRow],
    projection: Projection,
    changes: Sequence[Change],
    parked: Unapplied,
) -> None:
    """Write the changes; if the database refuses their data, bisect to find the events to park."""
    if not changes:
        return
    try:
        async with connection.transaction():
            await _write(connection, projection, changes)
    except Exception as error:
        if not is_about_data(error):
            raise
        if len(changes) == 1:
            parked.append((changes[0].logged, error))
            return
        middle = len(changes) // 2
        await apply(connection, projection, changes[:middle], parked)
        await apply(connection, projection, changes[middle:], parked)


async def _write(
    connection: psycopg.AsyncConnection[TupleRow], projection: Projection, changes: Sequence[Change]
) -> None:
    for place, table in enumerate(projection.tables):
        pairs = ((each.logged.version, patch) for each in changes for patch in each.patches[place])
        totals = tuple(each for each in projection.totals if each.of is table)
        await write(connection, table=table, totals=totals, rows=merge(table, pairs))


def park(
    projection: Projection, event: LoggedEvent, error: Exception
) -> tuple[LiteralString, tuple[Any, ...]]:
    """The statement that parks an event, and its values."""
    message = one_line(error)
    return PARK, (
        projection.name,
        event.position,
        event.originator_id,
        event.version,
        event.topic,
        message,
    )
