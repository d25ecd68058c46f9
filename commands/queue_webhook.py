"""Something is to be told to a merchant."""

from datetime import datetime
from typing import Any
from uuid import UUID

from psycopg.types.json import Json
from psycopg_pool import AsyncConnectionPool

QUEUE = """
    INSERT INTO webhook_events (id, merchant_id, order_id, event_type, created_at, payload, source_position)
    VALUES (%s, %s, %s, %s, %s, %s, %s) ON CONFLICT DO NOTHING
"""


async def queue_webhook(
    pool: AsyncConnectionPool,
    *,
    webhook_id: UUID,
    merchant_id: UUID,
    order_id: UUID,
    event_type: str,
    payload: dict[str, Any],
    source_position: int | None,
    at: datetime,
) -> None:
    """Keep what is to be sent. The same id, or an event that was told of before, changes nothing.

    Args:
        webhook_id: made from what the webhook tells of, so that it is the same whenever it is made.
        payload: the body, as it will be sent.
        source_position: of the event that it tells of; None where it tells of none in the log.
    """
    async with pool.connection() as connection:
        await connection.execute(
            QUEUE, (webhook_id, merchant_id, order_id, event_type, at, Json(payload), source_position)
        )
