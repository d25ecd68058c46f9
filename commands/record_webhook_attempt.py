"""Records the result of one attempt to deliver a webhook, and switches off endpoints that keep failing."""

from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from prometheus_client import Counter, Histogram
from psycopg import AsyncConnection
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool

from payloops.commands.merchants import change_account
from payloops.commands.webhooks import (
    RecordedAttempt,
    Webhook,
    WebhookAttempt,
    find_attempt,
)
from payloops.events.event_store import EventStore
from payloops.events.merchants import Merchant, WebhooksSwitchedOff
from payloops.events.metadata import Metadata
from payloops.events.personal_data import ERASED

SWITCHED_OFF_AFTER = timedelta(days=5)
"""How long an endpoint may fail."""
GONE = 410
"""The status with which an endpoint refuses all further webhooks (Standard Webhooks, "Automatic disabling")."""

INTERRUPTED = "Interrupted on our side: it may have arrived"

ATTEMPTS = Counter(
    "payloops_webhook_attempts",
    "Webhooks sent or tried to: delivered, refused (by the answer's status), unanswered, or interrupted",
    ["outcome"],
)
ATTEMPT_SECONDS = Histogram(
    "payloops_webhook_attempt_duration_seconds",
    "How long an endpoint took, or was given",
    buckets=(0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30),
)

LOCK = """
    SELECT w.attempts, coalesce(k.key = '', false)
    FROM webhook_events w LEFT JOIN personal_keys k ON k.originator_id = w.order_id
    WHERE w.id = %s FOR UPDATE OF w
"""
INSERT = """
    WITH ended AS (DELETE FROM webhook_sendings WHERE key = %(key)s)
    INSERT INTO webhook_attempts
        (webhook_event_id, number, key, url, attempted_at, duration_ms, status_code, error, answer)
    VALUES (%(id)s, %(number)s, %(key)s, %(url)s, %(at)s, %(duration)s, %(status)s, %(error)s, %(answer)s)
    ON CONFLICT (key) DO NOTHING
"""
COUNT = """
    UPDATE webhook_events SET attempts = %(number)s, last_attempt_at = %(at)s,
        status = CASE WHEN %(delivered)s THEN 'delivered' ELSE status END,
        delivered_at = CASE WHEN %(delivered)s THEN coalesce(delivered_at, %(at)s) ELSE delivered_at END,
        error = CASE WHEN %(delivered)s THEN NULL ELSE error END
    WHERE id = %(id)s
"""
WORKS = """
    UPDATE merchants SET webhook_failing_since = NULL
    WHERE id = %(merchant)s AND webhook_url = %(url)s AND webhook_failing_since IS NOT NULL
"""
FAILS = """
    UPDATE merchants SET webhook_failing_since = %(at)s
    WHERE id = %(merchant)s AND webhook_url = %(url)s AND webhook_failing_since IS NULL
"""
FAILING_SINCE = "SELECT webhook_failing_since FROM merchants WHERE id = %s AND webhook_url = %s"
SWITCH_OFF = "UPDATE merchants SET webhook_off_at = %s, webhook_off_reason = %s WHERE id = %s"


async def record_webhook_attempt(
    store: EventStore, *, webhook: Webhook, key: str, url: str, attempt: WebhookAttempt, by: Metadata
) -> RecordedAttempt:
    """Record an attempt, once for its key, and switch the endpoint off if it is gone or has failed for days.

    Args:
        key: of whoever made it, the same when he comes again.
        url: where it went.

    Returns:
        What stands in the table: where two came under one key, the first of them.
    """
    async with store.pool.connection() as connection, connection.transaction():
        values = await _keep(connection, webhook=webhook, key=key, url=url, attempt=attempt)
        if values is not None:
            await connection.execute(WORKS if attempt.delivered else FAILS, values)
    ATTEMPTS.labels(_outcome(attempt)).inc()
    ATTEMPT_SECONDS.observe(attempt.duration_ms / 1000)
    recorded = await find_attempt(store.pool, key=key)
    assert recorded is not None
    await judge_endpoint(store, merchant_id=webhook.merchant_id, recorded=recorded, by=by)
    return recorded


async def record_interrupted_attempt(
    pool: AsyncConnectionPool,
    *,
    webhook: Webhook,
    key: str,
    url: str,
    began_at: datetime,
) -> int:
    """Record an attempt whose result is unknown, once for its key. It does not count against the endpoint.

    Returns:
        How many were kept: 1, or 0 where it was before.
    """
    attempt = WebhookAttempt(
        attempted_at=began_at, duration_ms=0, status_code=None, error=INTERRUPTED, answer=None
    )
    async with pool.connection() as connection, connection.transaction():
        values = await _keep(connection, webhook=webhook, key=key, url=url, attempt=attempt)
    if values is None:
        return 0
    ATTEMPTS.labels("interrupted").inc()
    return 1


async def judge_endpoint(
    store: EventStore, *, merchant_id: UUID, recorded: RecordedAttempt, by: Metadata
) -> None:
    """Switch the endpoint off if this attempt shows that it is gone or keeps failing. Repeatable."""
    attempt = recorded.attempt
    if attempt.delivered:
        return
    since = await _failing_since(store.pool, merchant_id=merchant_id, url=recorded.url)
    if attempt.status_code == GONE:
        reason = "The endpoint answered 410 Gone"
    elif since is not None and attempt.attempted_at - since >= SWITCHED_OFF_AFTER:
        reason = f"Every attempt has failed for {SWITCHED_OFF_AFTER.days} days"
    else:
        return

    def decide(account: Merchant) -> None:
        if account.webhook_url == recorded.url and not account.webhooks_off:
            account.record(WebhooksSwitchedOff, by=by, url=recorded.url, reason=reason)

    async def write(connection: AsyncConnection[TupleRow]) -> None:
        await connection.execute(SWITCH_OFF, (by.at, reason, merchant_id))

    await change_account(store, merchant_id=merchant_id, decide=decide, write=write)


async def _keep(
    connection: AsyncConnection[TupleRow],
    *,
    webhook: Webhook,
    key: str,
    url: str,
    attempt: WebhookAttempt,
) -> dict[str, Any] | None:
    """Store an attempt and count it; return what was stored, or None if this key has one already."""
    row = await (await connection.execute(LOCK, (webhook.id,))).fetchone()
    assert row is not None
    attempts, erased = row
    values: dict[str, Any] = {
        "id": webhook.id,
        "merchant": webhook.merchant_id,
        "number": attempts + 1,
        "key": key,
        "url": url,
        "at": attempt.attempted_at,
        "duration": attempt.duration_ms,
        "status": attempt.status_code,
        "error": attempt.error,
        "answer": ERASED if erased and attempt.answer else attempt.answer,  # it may repeat what it was told
        "delivered": attempt.delivered,
    }
    inserted = await connection.execute(INSERT, values)
    if inserted.rowcount == 0:
        return None
    await connection.execute(COUNT, values)
    return values


def _outcome(attempt: WebhookAttempt) -> str:
    if attempt.delivered:
        return "delivered"
    return "unanswered" if attempt.status_code is None else "refused"


async def _failing_since(pool: AsyncConnectionPool, *, merchant_id: UUID, url: str) -> datetime | None:
    async with pool.connection() as connection:
        row = await (await connection.execute(FAILING_SINCE, (merchant_id, url))).fetchone()
    return None if row is None else row[0]
