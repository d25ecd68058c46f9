"""The table `webhook_events`: the webhooks to be delivered to merchants."""

from dataclasses import dataclass
from datetime import datetime
from typing import Literal
from uuid import UUID

from psycopg import sql
from psycopg_pool import AsyncConnectionPool

WebhookStatus = Literal["pending", "delivered", "failed"]


@dataclass(frozen=True, slots=True)
class WebhookEventRow:
    """One webhook. `attempts`: how many were made to send it."""

    id: UUID
    order_id: UUID
    event_type: str
    status: WebhookStatus
    attempts: int
    last_attempt_at: datetime | None
    delivered_at: datetime | None
    created_at: datetime


LIST = sql.SQL("""
    SELECT matching.total, w.id, w.order_id, w.event_type, w.status, w.attempts,
           w.last_attempt_at, w.delivered_at, w.created_at
    FROM (SELECT count(*) AS total FROM webhook_events WHERE {conditions}) matching
    LEFT JOIN (
        SELECT id FROM webhook_events WHERE {conditions}
        ORDER BY created_at DESC, id DESC LIMIT %(limit)s OFFSET %(skip)s
    ) page ON true
    LEFT JOIN webhook_events w ON w.id = page.id
    ORDER BY w.created_at DESC, w.id DESC
""")
PENDING = """
    SELECT count(*), coalesce(extract(epoch FROM clock_timestamp() - min(created_at)), 0)::float8
    FROM webhook_events WHERE status = 'pending'
"""
OF_MERCHANT = sql.SQL("merchant_id = %(merchant_id)s")
OF_MERCHANT_WITH_STATUS = sql.SQL("merchant_id = %(merchant_id)s AND status = %(status)s")


async def list_webhook_events(
    pool: AsyncConnectionPool,
    *,
    merchant_id: UUID,
    page: int,
    limit: int,
    status: WebhookStatus | None = None,
) -> tuple[list[WebhookEventRow], int]:
    """A page of the merchant's webhooks, newest first, and how many there are in all.

    Args:
        page: 1 is the first; one behind the last is empty.
        status: only of this status.
    """
    query = LIST.format(conditions=OF_MERCHANT if status is None else OF_MERCHANT_WITH_STATUS)
    arguments = {"merchant_id": merchant_id, "status": status, "limit": limit, "skip": (page - 1) * limit}
    async with pool.connection() as connection:
        found = await (await connection.execute(query, arguments, prepare=False)).fetchall()
    return [WebhookEventRow(*values) for _, *values in found if values[0] is not None], found[0][0]


async def pending_webhooks(pool: AsyncConnectionPool) -> tuple[int, float]:
    """How many webhooks of all merchants are pending, and the age of the oldest in seconds."""
    async with pool.connection() as connection:
        row = await (await connection.execute(PENDING)).fetchone()
    assert row is not None
    return row[0], row[1]
