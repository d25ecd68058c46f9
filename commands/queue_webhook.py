"""Queues a webhook to a merchant."""

from datetime import datetime
from typing import Any
from uuid import UUID

from psycopg.types.json import Json
from psycopg_pool import AsyncConnectionPool

from payloops.commands.personal_copies import erased_in
from payloops.commands.personal_keys import WITH_HELD

QUEUE = f"""
    {WITH_HELD}
    INSERT INTO webhook_events (id, merchant_id, order_id, event_type, created_at, payload, source_position)
    SELECT %(id)s, %(merchant_id)s, %(order_id)s, %(event_type)s, %(at)s,
           CASE WHEN (SELECT erased FROM held) THEN %(erased)s::json ELSE %(payload)s::json END,
           %(source_position)s::bigint
    ON CONFLICT DO NOTHING
"""  # noqa: S608  # of texts of ours


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
    """Store a webhook to be sent. It has no effect if the id, or the event, was queued before.

    Args:
        webhook_id: made from what the webhook tells of, so that it is the same whenever it is made.
        payload: the body, as it will be sent; what was erased of the order since it was made is erased in it.
        source_position: of the event that it tells of; None where it tells of none in the log.
    """
    async with pool.connection() as connection:
        await connection.execute(
            QUEUE,
            {
                "id": webhook_id,
                "merchant_id": merchant_id,
                "order_id": order_id,
                "event_type": event_type,
                "at": at,
                "payload": Json(payload),
                "erased": Json(erased_in(payload)),
                "source_position": source_position,
            },
        )
