"""Webhooks to merchants, and the attempts to deliver them: the tables `webhook_events` and `webhook_attempts`."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from psycopg import sql
from psycopg.rows import class_row
from psycopg_pool import AsyncConnectionPool

WebhookStatus = Literal["pending", "delivered", "failed"]


class WebhookNotFound(Exception):
    """No such webhook, or it is another merchant's: the two are never told apart."""

    def __init__(self, *, webhook_id: UUID) -> None:
        super().__init__(f"no webhook {webhook_id}")
        self.webhook_id = webhook_id


@dataclass(frozen=True, slots=True, kw_only=True)
class Webhook:
    """A webhook, with the payload that is sent.

    Attributes:
        attempts: how often it was sent, or tried to.
        retries: how often the merchant had its schedule begin anew.
        error: why it failed, where it has.
    """

    id: UUID
    merchant_id: UUID
    order_id: UUID
    event_type: str
    status: WebhookStatus
    attempts: int
    retries: int
    last_attempt_at: datetime | None
    delivered_at: datetime | None
    created_at: datetime
    payload: dict[str, Any]
    error: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookAttempt:
    """One attempt to send a request to the merchant's endpoint.

    Attributes:
        status_code: of the answer, None where there was none.
        error: what went wrong, None where the webhook was delivered.
        answer: the first KiB of the answer's body, as far as it came.
    """

    attempted_at: datetime
    duration_ms: int
    status_code: int | None
    error: str | None
    answer: str | None

    @property
    def delivered(self) -> bool:
        return self.error is None


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedAttempt:
    """An attempt as stored. `number`: 1 for the webhook's first. `url`: where it was sent."""

    number: int
    url: str
    attempt: WebhookAttempt


WEBHOOKS = """
    SELECT id, merchant_id, order_id, event_type, status, attempts, retries, last_attempt_at, delivered_at,
           created_at, payload, error
    FROM webhook_events
"""
FIND = WEBHOOKS + "WHERE id = %(id)s AND (%(merchant)s::uuid IS NULL OR merchant_id = %(merchant)s)"
OF_ORDER = WEBHOOKS + "WHERE order_id = %s ORDER BY created_at, id"
ATTEMPTS = """
    SELECT number, url, attempted_at, duration_ms, status_code, error, answer FROM webhook_attempts
"""
ATTEMPTS_OF = ATTEMPTS + "WHERE webhook_event_id = %s ORDER BY number"
ATTEMPTS_OF_SOME = """
    SELECT webhook_event_id, number, url, attempted_at, duration_ms, status_code, error, answer
    FROM webhook_attempts WHERE webhook_event_id = ANY (%s) ORDER BY webhook_event_id, number
"""
ATTEMPT_OF_KEY = ATTEMPTS + "WHERE key = %s"


async def find_webhook(pool: AsyncConnectionPool, *, webhook_id: UUID, merchant_id: UUID | None) -> Webhook:
    """One webhook.

    Args:
        merchant_id: whose it has to be; None: anybody's.

    Raises:
        WebhookNotFound.
    """
    async with (
        pool.connection() as connection,
        connection.cursor(row_factory=class_row(Webhook)) as cursor,
    ):
        found = await (await cursor.execute(FIND, {"id": webhook_id, "merchant": merchant_id})).fetchone()
    if found is None:
        raise WebhookNotFound(webhook_id=webhook_id)
    return found


async def list_webhooks_of_order(pool: AsyncConnectionPool, *, order_id: UUID) -> list[Webhook]:
    """The webhooks about an order, delivered or not, oldest first."""
    async with (
        pool.connection() as connection,
        connection.cursor(row_factory=class_row(Webhook)) as cursor,
    ):
        return await (await cursor.execute(OF_ORDER, (order_id,))).fetchall()


async def list_attempts(pool: AsyncConnectionPool, *, webhook_id: UUID) -> list[RecordedAttempt]:
    """All attempts to deliver a webhook, the first one first."""
    async with pool.connection() as connection:
        found = await (await connection.execute(ATTEMPTS_OF, (webhook_id,))).fetchall()
    return [_recorded(*values) for values in found]


async def list_attempts_of(
    pool: AsyncConnectionPool, *, webhook_ids: Sequence[UUID]
) -> dict[UUID, list[RecordedAttempt]]:
    """All attempts to deliver some webhooks, by webhook, the first one first."""
    async with pool.connection() as connection:
        found = await (await connection.execute(ATTEMPTS_OF_SOME, (list(webhook_ids),))).fetchall()
    attempts: dict[UUID, list[RecordedAttempt]] = {id: [] for id in webhook_ids}
    for webhook_id, *values in found:
        attempts[webhook_id].append(_recorded(*values))
    return attempts


async def find_attempt(pool: AsyncConnectionPool, *, key: str) -> RecordedAttempt | None:
    """The attempt that was recorded under this key; None if there is none."""
    async with pool.connection() as connection:
        found = await (await connection.execute(ATTEMPT_OF_KEY, (key,))).fetchone()
    return None if found is None else _recorded(*found)


def _recorded(
    number: int,
    url: str,
    attempted_at: datetime,
    duration_ms: int,
    status_code: int | None,
    error: str | None,
    answer: str | None,
) -> RecordedAttempt:
    attempt = WebhookAttempt(
        attempted_at=attempted_at,
        duration_ms=duration_ms,
        status_code=status_code,
        error=error,
        answer=answer,
    )
    return RecordedAttempt(number=number, url=url, attempt=attempt)


@dataclass(frozen=True, slots=True)
class ListedWebhook:
    """A webhook as lists show it, without what was sent. `attempts`: how many were made to send it."""

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


async def list_webhooks(
    pool: AsyncConnectionPool,
    *,
    merchant_id: UUID,
    page: int,
    limit: int,
    status: WebhookStatus | None = None,
) -> tuple[list[ListedWebhook], int]:
    """A page of the merchant's webhooks, newest first, and how many there are in all.

    Args:
        page: 1 is the first; one behind the last is empty.
        status: only of this status.
    """
    query = LIST.format(conditions=OF_MERCHANT if status is None else OF_MERCHANT_WITH_STATUS)
    arguments = {"merchant_id": merchant_id, "status": status, "limit": limit, "skip": (page - 1) * limit}
    async with pool.connection() as connection:
        found = await (await connection.execute(query, arguments, prepare=False)).fetchall()
    return [ListedWebhook(*values) for _, *values in found if values[0] is not None], found[0][0]


async def pending_webhooks(pool: AsyncConnectionPool) -> tuple[int, float]:
    """How many webhooks of all merchants are pending, and the age of the oldest in seconds."""
    async with pool.connection() as connection:
        row = await (await connection.execute(PENDING)).fetchone()
    assert row is not None
    return row[0], row[1]
