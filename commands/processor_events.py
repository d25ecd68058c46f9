"""The table `processor_events`: every event that a processor sent under a right signature, for support."""

from dataclasses import dataclass
from datetime import datetime
from typing import Literal
from uuid import UUID

from psycopg.rows import class_row
from psycopg_pool import AsyncConnectionPool
from uuid_utils.compat import uuid7

from payloops.commands.personal_keys import WITH_HELD
from payloops.events.personal_data import ERASED

Effect = Literal["received", "applied", "none", "contradiction", "unmatched", "unknown_order", "unhandled"]
"""What became of an event: `none`: it told nothing new; `received`: it is not dealt with yet."""
NOTE = f"""
    {WITH_HELD}
    UPDATE processor_events
    SET effect = %(effect)s, order_id = %(order_id)s,
        body = CASE WHEN (SELECT erased FROM held) THEN %(erased)s ELSE body END
    WHERE merchant_id = %(merchant_id)s AND processor = %(processor)s AND key = %(key)s
"""  # noqa: S608  # of texts of ours


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessorEventCount:
    """How many events of a processor had an effect."""

    processor: str
    effect: str
    events: int


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
    """Keep an event as it arrived, once; what became of it so far.

    Args:
        key: tells one event of the merchant's processor from another.
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
    """Keep with an event what became of it; its body only where the order's personal data is not erased."""
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
