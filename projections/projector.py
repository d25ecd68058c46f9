"""The projector: tails the log and folds it into tables, exactly once.

A batch is one transaction that locks the projection's checkpoint, reads the events after it, applies them and
moves it: whatever is killed when, the tables and the checkpoint are of the same position. Besides, each
projection has one active projector at a time, by an advisory lock that ends with its connection; all others
stand by.
"""

import asyncio
import contextlib
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import psycopg
import structlog
from eventsourcing.persistence import StoredEvent
from psycopg.rows import TupleRow

from payloops.events.connections import connect
from payloops.events.crash_points import crash_point
from payloops.events.encoding import decode as decode_event
from payloops.events.wakeups import Wakeups
from payloops.projections import payments
from payloops.projections.orders import CHECKPOINT, ORDERS
from payloops.projections.patches import Patch, Table, merge, upsert
from payloops.projections.transactions import TRANSACTIONS

BATCH_EVENTS = 1_000
STANDBY_SECONDS = 0.5
"""Between a standby's attempts to become active."""
BATCH_TIMEOUT = "60s"
"""PostgreSQL's statement_timeout for a batch: more than for a request, which someone waits for."""
BACKOFF_SECONDS = (0.1, 5.0)
"""Before trying again after an error of the database: at first, and at most."""
log = structlog.get_logger()


@dataclass(frozen=True, kw_only=True)
class Projection:
    """Tables that share a checkpoint.

    Attributes:
        name: of the checkpoint.
        families: first parts of the topics that concern it (`payment` of `payment.captured`). An event of
            these families that cannot be applied is parked; all others are passed over.
    """

    name: str
    families: frozenset[str]
    tables: tuple[Table, ...]


PROJECTIONS = (
    Projection(
        name=CHECKPOINT, families=frozenset({"order", "payment", "refund"}), tables=(ORDERS, TRANSACTIONS)
    ),
    Projection(name=payments.CHECKPOINT, families=frozenset({"payment"}), tables=(payments.PAYMENTS,)),
)

BECOME_ACTIVE = "SELECT pg_try_advisory_lock(hashtextextended('payloops.projector.' || %s, 0))"
BEGIN_AT_ZERO = "INSERT INTO checkpoints (name) VALUES (%s) ON CONFLICT DO NOTHING"
NEXT = """
    WITH checkpoint AS (
        SELECT position FROM checkpoints
        WHERE name = %(name)s AND EXISTS (SELECT FROM stored_events WHERE notification_id > position)
        FOR UPDATE
    )
    SELECT e.notification_id, e.originator_id, e.originator_version, e.topic,
           CASE WHEN split_part(e.topic, '.', 1) = ANY(%(families)s) THEN e.state END, e.personal_key
    FROM checkpoint CROSS JOIN LATERAL (
        SELECT * FROM readable_events WHERE notification_id > checkpoint.position
        ORDER BY notification_id LIMIT %(limit)s
    ) e
    ORDER BY e.notification_id
"""
MOVE = "UPDATE checkpoints SET position = %s, updated_at = clock_timestamp() WHERE name = %s"
PARK = """
    INSERT INTO parked_events (reader, position, originator_id, originator_version, topic, error)
    VALUES (%s, %s, %s, %s, %s, %s)
    ON CONFLICT (reader, position) DO UPDATE SET error = excluded.error, parked_at = excluded.parked_at
"""


@dataclass(frozen=True, slots=True)
class LoggedEvent:
    """A row of the log. `state` is None where the event does not concern the projection."""

    position: int
    originator_id: UUID
    version: int
    topic: str
    state: bytes | None
    personal_key: bytes | None = field(repr=False)


@dataclass(slots=True)
class Change:
    """What an event does, decoded: the patches of each table, in the projection's order."""

    logged: LoggedEvent
    patches: list[list[Patch]]


@dataclass(slots=True)
class Batch:
    changes: list[Change] = field(default_factory=list)
    parked: list[tuple[LoggedEvent, Exception]] = field(default_factory=list)


async def run_projections(
    *, database_url: str, stop: asyncio.Event, projections: Sequence[Projection] = PROJECTIONS
) -> None:
    """Keep every projection up to date until `stop` is set; a batch that has begun is finished first.

    An outage of the database, however long, is waited out.
    """
    wakeups = Wakeups(database_url)
    wakeups.start()
    try:
        async with asyncio.TaskGroup() as group:
            for projection in projections:
                group.create_task(_keep_up(projection, database_url, wakeups, stop), name=projection.name)
    finally:
        await wakeups.close()


async def _keep_up(projection: Projection, database_url: str, wakeups: Wakeups, stop: asyncio.Event) -> None:
    """Stand by, become active, follow the log; again from the start whenever the database fails."""
    failures = 0
    while not stop.is_set():
        try:
            async with await connect(
                database_url, application_name=f"payloops projector {projection.name}"
            ) as connection:
                await connection.execute(f"SET statement_timeout = '{BATCH_TIMEOUT}'")
                if not await _become_active(connection, projection, stop):
                    return
                log.info("projector.active", projection=projection.name)
                async with contextlib.aclosing(wakeups.ticks()) as ticks:
                    async for _ in ticks:
                        while (
                            not stop.is_set() and await project_batch(connection, projection) == BATCH_EVENTS
                        ):
                            pass
                        failures = 0
                        if stop.is_set():
                            return
        except (psycopg.Error, OSError) as error:
            first, most = BACKOFF_SECONDS
            pause = min(first * 2**failures, most) * (0.5 + random.random() / 2)  # noqa: S311  # jitter
            failures = min(failures + 1, 10)
            log.warning(
                "projector.reconnecting",
                projection=projection.name,
                error=_message(error),
                pause_seconds=round(pause, 2),
            )
            await _stopped_within(stop, pause)


async def _become_active(
    connection: psycopg.AsyncConnection[TupleRow], projection: Projection, stop: asyncio.Event
) -> bool:
    """Wait until no other projector is active; False when told to stop meanwhile."""
    standing_by = False
    while not stop.is_set():
        cursor = await connection.execute(BECOME_ACTIVE, (projection.name,))
        row = await cursor.fetchone()
        assert row is not None
        if row[0]:
            await connection.execute(BEGIN_AT_ZERO, (projection.name,))
            return True
        if not standing_by:
            log.info("projector.standby", projection=projection.name)
            standing_by = True
        await _stopped_within(stop, STANDBY_SECONDS * (0.5 + random.random() / 2))  # noqa: S311  # jitter
    return False


async def _stopped_within(stop: asyncio.Event, seconds: float) -> bool:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            return await stop.wait()
    return False


async def project_batch(
    connection: psycopg.AsyncConnection[TupleRow], projection: Projection, *, limit: int = BATCH_EVENTS
) -> int:
    """Apply the next events of the log, at most `limit`, in one transaction; how many there were.

    Events that cannot be applied are parked. An error of the database itself raises, and nothing has happened.
    """
    async with connection.transaction():
        cursor = await connection.execute(
            NEXT, {"name": projection.name, "families": list(projection.families), "limit": limit}
        )
        events = [LoggedEvent(*row) for row in await cursor.fetchall()]
        if not events:
            return 0
        batch = decode(projection, events)
        await _apply(connection, projection, batch.changes, batch.parked)
        for event, error in batch.parked:
            await _park(connection, projection, event, error)
        crash_point("projector.applied")
        await connection.execute(MOVE, (events[-1].position, projection.name))
        crash_point("projector.moved")
    for event, error in batch.parked:
        log.error(
            "projection.event_parked",
            projection=projection.name,
            position=event.position,
            topic=event.topic,
            order_id=str(event.originator_id),
            error=_message(error),
        )
    return len(events)


def decode(projection: Projection, events: Sequence[LoggedEvent]) -> Batch:
    """The changes of those events that concern the projection; those that raise are parked."""
    batch = Batch()
    for event in events:
        if event.state is None:
            continue
        try:
            stored = StoredEvent(event.originator_id, event.version, event.topic, event.state)
            fact = decode_event(stored, personal_key=event.personal_key)
            batch.changes.append(Change(event, [list(table.patches(fact)) for table in projection.tables]))
        except Exception as error:  # noqa: BLE001  # whatever is wrong with an event stops nothing but itself
            batch.parked.append((event, error))
    return batch


async def _apply(
    connection: psycopg.AsyncConnection[TupleRow],
    projection: Projection,
    changes: Sequence[Change],
    parked: list[tuple[LoggedEvent, Exception]],
) -> None:
    """Write the changes; where the data is refused, halve until the event that it comes from is alone."""
    if not changes:
        return
    try:
        async with connection.transaction():
            for place, table in enumerate(projection.tables):
                pairs = ((each.logged.version, patch) for each in changes for patch in each.patches[place])
                await upsert(connection, table=table, rows=merge(table, pairs))
    except Exception as error:
        if not is_about_data(error):
            raise
        if len(changes) == 1:
            parked.append((changes[0].logged, error))
            return
        middle = len(changes) // 2
        await _apply(connection, projection, changes[:middle], parked)
        await _apply(connection, projection, changes[middle:], parked)


def is_about_data(error: Exception) -> bool:
    """Whether the values are refused, rather than the database out of order.

    By SQLSTATE class: 22 data exception, 23 integrity constraint violation, 54 program limit exceeded.
    Psycopg refuses some data itself, without an SQLSTATE.
    """
    if isinstance(error, psycopg.Error):
        return isinstance(error, psycopg.DataError) or (error.sqlstate or "")[:2] in {"22", "23", "54"}
    return isinstance(error, TypeError | ValueError)


async def _park(
    connection: psycopg.AsyncConnection[TupleRow],
    projection: Projection,
    event: LoggedEvent,
    error: Exception,
) -> None:
    values: tuple[Any, ...] = (
        event.position,
        event.originator_id,
        event.version,
        event.topic,
        _message(error),
    )
    await connection.execute(PARK, (projection.name, *values))


def _message(error: Exception) -> str:
    """One line without the row: PostgreSQL's details quote personal data."""
    text = error.diag.message_primary if isinstance(error, psycopg.Error) else None
    words = f"{type(error).__name__}: {text or error}".replace("\x00", "\\0").split()
    return " ".join(words)[:1_000]
