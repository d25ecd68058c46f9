"""The table `processor_events`: every event that a processor sent with a valid signature, for support staff."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, get_args
from uuid import UUID

from psycopg import sql
from psycopg.rows import class_row, dict_row
from psycopg_pool import AsyncConnectionPool
from uuid_utils.compat import uuid7

from payloops.commands.personal_keys import WITH_HELD
from payloops.events.personal_data import ERASED

DONE = ("applied", "none", "contradiction", "unmatched")
"""Effects that are recorded on the order, and final."""
Effect = Literal["received", "applied", "none", "contradiction", "unmatched", "unknown_order", "unhandled"]
"""What an event led to. `none`: it said nothing new. `received`: it has not been processed yet."""
EFFECTS: tuple[str, ...] = get_args(Effect)
NOTE = f"""
    {WITH_HELD}
    UPDATE processor_events
    SET effect = %(effect)s, order_id = %(order_id)s,
        body = CASE WHEN (SELECT erased FROM held) THEN %(erased)s ELSE body END
    WHERE merchant_id = %(merchant_id)s AND processor = %(processor)s AND key = %(key)s
      AND effect <> ALL (%(done)s)
"""  # noqa: S608  # of texts of ours


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessorEventCount:
    """How many events of a processor had a certain effect."""

    processor: str
    effect: str
    events: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessorEventRow:
    """An event without its body.

    Attributes:
        event_id: the processor's.
        order_id: the merchant's order that it is about, if there is one.
        deliveries: how often it was delivered.
    """

    id: UUID
    merchant_id: UUID
    processor: str
    event_id: str
    type: str
    effect: Effect
    order_id: UUID | None
    deliveries: int
    received_at: datetime


# Ids are UUIDs of version 7, so their order is that of arrival.
LIST = sql.SQL("""
    SELECT id, merchant_id, processor, event_id, type, effect, order_id, deliveries, received_at
    FROM processor_events WHERE {conditions} ORDER BY id DESC LIMIT %(limit)s OFFSET %(skip)s
""")
EVERYTHING = sql.SQL("true")
CONDITIONS = {
    "effect": sql.SQL("effect = %(effect)s"),
    "processor": sql.SQL("processor = %(processor)s"),
    "order_id": sql.SQL("order_id = %(order_id)s"),
    "merchant_id": sql.SQL("merchant_id = %(merchant_id)s"),
}
WITH_BODY = """
    SELECT id, merchant_id, processor, event_id, type, effect, order_id, deliveries, received_at, body
    FROM processor_events
"""
FIND = WITH_BODY + "WHERE id = %s"
# How long a text is can be told without reading it.
OF_ORDER = """
    SELECT id, merchant_id, processor, event_id, type, effect, order_id, deliveries, received_at,
           CASE WHEN bytes <= %(most)s AND sum(bytes) FILTER (WHERE bytes <= %(most)s) OVER (ORDER BY id) <= %(all)s
                THEN body ELSE format('[left out: %%s bytes]', bytes) END AS body
    FROM (SELECT *, octet_length(body) AS bytes FROM processor_events WHERE order_id = %(order_id)s) events
    ORDER BY id
"""
MOST_OF_ONE, MOST_OF_ALL = 64 * 1024, 16 * 1024 * 1024
"""Bytes of a body, and of all bodies of an order, that are read: a merchant can sign any number of a megabyte. What
processors send of an order has some kilobytes, and there are a thousand at most that change it."""


async def keep_processor_event(
    pool: AsyncConnectionPool,
    *,
    merchant_id: UUID,
    processor: str,
    key: str,
    event_id: str,
    type: str,
    body: str,
    at: datetime,
) -> Effect:
    """Store an event, once however often it arrives; return its effect so far.

    Args:
        key: identifies an event of the merchant's processor.
        body: without card numbers.
    """
    async with pool.connection() as connection:
        cursor = await connection.execute(
            """INSERT INTO processor_events
                   (id, merchant_id, processor, key, event_id, type, body, effect, received_at)
               VALUES (%s, %s, %s, %s, %s, %s, %s, 'received', %s)
               ON CONFLICT (merchant_id, processor, key)
                   DO UPDATE SET deliveries = processor_events.deliveries + 1
               RETURNING effect""",
            (uuid7(), merchant_id, processor, key, event_id, type, body, at),
        )
        row = await cursor.fetchone()
    assert row is not None
    effect: Effect = row[0]
    return effect


async def note_effect(
    pool: AsyncConnectionPool,
    *,
    merchant_id: UUID,
    processor: str,
    key: str,
    effect: Effect,
    order_id: UUID | None,
) -> None:
    """Store an event's effect, unless another delivery of it has led to a final one.

    Its body is erased if the order's personal data was.
    """
    async with pool.connection() as connection:
        await connection.execute(
            NOTE,
            {
                "merchant_id": merchant_id,
                "processor": processor,
                "key": key,
                "effect": effect,
                "order_id": order_id,
                "erased": ERASED,
                "done": list(DONE),
            },
        )


async def count_processor_events(pool: AsyncConnectionPool) -> list[ProcessorEventCount]:
    """How many events there are, by processor and effect."""
    async with (
        pool.connection() as connection,
        connection.cursor(row_factory=class_row(ProcessorEventCount)) as cursor,
    ):
        await cursor.execute(
            "SELECT processor, effect, count(*) AS events FROM processor_events"
            " GROUP BY processor, effect ORDER BY processor, effect"
        )
        return await cursor.fetchall()


async def list_processor_events(
    pool: AsyncConnectionPool,
    *,
    effect: str | None = None,
    processor: str | None = None,
    order_id: UUID | None = None,
    merchant_id: UUID | None = None,
    page: int = 1,
    limit: int = 20,
) -> tuple[list[ProcessorEventRow], bool]:
    """A page of events of every merchant, newest first, and whether there are more.

    Args:
        page: 1 is the first.
    """
    wanted = {"effect": effect, "processor": processor, "order_id": order_id, "merchant_id": merchant_id}
    conditions = [EVERYTHING, *(CONDITIONS[name] for name, value in wanted.items() if value is not None)]
    query = LIST.format(conditions=sql.SQL(" AND ").join(conditions))
    async with (
        pool.connection() as connection,
        connection.cursor(row_factory=class_row(ProcessorEventRow)) as cursor,
    ):
        await cursor.execute(query, {**wanted, "limit": limit + 1, "skip": (page - 1) * limit})
        found = await cursor.fetchall()
    return found[:limit], len(found) > limit


async def find_processor_event(
    pool: AsyncConnectionPool, *, id: UUID
) -> tuple[ProcessorEventRow, str] | None:
    """An event and its body; None if there is no such event."""
    async with pool.connection() as connection, connection.cursor(row_factory=dict_row) as cursor:
        found = await (await cursor.execute(FIND, (id,))).fetchone()
    return None if found is None else _with_body(found)


async def processor_events_of_order(
    pool: AsyncConnectionPool, *, order_id: UUID
) -> list[tuple[ProcessorEventRow, str]]:
    """All events about an order, in the order of arrival, each with its body; what is beyond MOST_OF_ONE or MOST_OF_ALL
    is `[left out: 1048576 bytes]`.
    """
    arguments = {"order_id": order_id, "most": MOST_OF_ONE, "all": MOST_OF_ALL}
    async with pool.connection() as connection, connection.cursor(row_factory=dict_row) as cursor:
        found = await (await cursor.execute(OF_ORDER, arguments)).fetchall()
    return [_with_body(row) for row in found]


def _with_body(row: dict[str, Any]) -> tuple[ProcessorEventRow, str]:
    body = row.pop("body")
    return ProcessorEventRow(**row), body
