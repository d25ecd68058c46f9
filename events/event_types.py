"""The types of events: those that this code knows, and those in a log, counted by version."""

import importlib
import pkgutil
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import cache

from psycopg_pool import AsyncConnectionPool

import payloops.events
from payloops.events.stream import FACTS, StreamEvent

BATCH = 50_000
"""Positions per query."""
HEAD = "SELECT coalesce(max(notification_id), 0) FROM stored_events"
# Most states have version 1, and no `class_version`: they are not parsed.
COUNT = """
    SELECT topic,
           CASE WHEN position('"class_version"'::bytea IN state) = 0 THEN 1
                ELSE coalesce((convert_from(state, 'UTF8')::json ->> 'class_version')::int, 1) END AS version,
           count(*)
    FROM stored_events WHERE notification_id > %(after)s AND notification_id <= %(upto)s
    GROUP BY topic, version
"""


@dataclass(frozen=True, slots=True)
class EventType:
    """A type of event, in one version of its shape."""

    topic: str
    version: int


@cache
def fact_types() -> dict[str, type[StreamEvent]]:
    """Every event class that this code knows, by topic."""
    for module in pkgutil.iter_modules(payloops.events.__path__):
        importlib.import_module(f"payloops.events.{module.name}")
    return {topic: fact for topic, fact in FACTS.items() if fact.__module__.startswith("payloops.")}


async def count_event_types(
    pool: AsyncConnectionPool, counts: Counter[EventType]
) -> AsyncIterator[tuple[int, int]]:
    """Count all events of the log into `counts`. Yields its progress: the position reached, and the last position."""
    async with pool.connection() as connection:
        row = await (await connection.execute(HEAD)).fetchone()
    assert row is not None
    head: int = row[0]
    for after in range(0, head, BATCH):
        upto = min(after + BATCH, head)
        async with pool.connection() as connection:
            cursor = await connection.execute(COUNT, {"after": after, "upto": upto})
            counts.update({EventType(topic, version): n for topic, version, n in await cursor.fetchall()})
        yield upto, head
