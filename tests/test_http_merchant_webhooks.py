"""The list of webhooks: pages, filters, totals, and nobody else's."""

from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlencode
from uuid import UUID

import pytest
from calling import Api, Merchant
from psycopg_pool import AsyncConnectionPool
from uuid_utils.compat import uuid7

from payloops.commands.webhooks import LIST, OF_MERCHANT, OF_MERCHANT_WITH_STATUS
from payloops.events.timestamps import timestamp_text

BEGIN = datetime(2026, 3, 1, tzinfo=UTC)
STATUSES = ("pending", "delivered", "failed")


@pytest.fixture
async def merchant(api: Api) -> Merchant:
    return await api.merchant(processors=False)


INSERT = """
    INSERT INTO webhook_events (id, merchant_id, order_id, event_type, status, attempts, last_attempt_at,
                                delivered_at, created_at, source_position{more})
    SELECT w.id, %s, w.order_id, w.event_type, w.status, w.attempts, w.last_attempt_at, w.delivered_at,
           w.created_at, w.source_position{value}
    FROM unnest(%s::uuid[], %s::uuid[], %s::text[], %s::text[], %s::int[], %s::timestamptz[], %s::timestamptz[],
                %s::timestamptz[], %s::bigint[])
        AS w (id, order_id, event_type, status, attempts, last_attempt_at, delivered_at, created_at, source_position)
"""
"""``more``: columns of later migrations that have no default."""


async def told(
    pool: AsyncConnectionPool, *, merchant_id: UUID, count: int, first: int = 1
) -> list[dict[str, Any]]:
    """Webhooks of a merchant, as the answer should have them, newest first; three of an hour."""
    rows = []
    for number in range(count):
        status = STATUSES[number % 3]
        created_at = BEGIN + timedelta(hours=number // 3)
        rows.append(
            (
                *(uuid7(), uuid7(), "payment.captured", status, number % 3),
                created_at + timedelta(minutes=1) if status != "pending" else None,
                created_at + timedelta(minutes=1) if status == "delivered" else None,
                *(created_at, first + number),
            )
        )
    async with pool.connection() as connection:
        cursor = await connection.execute(
            "SELECT 1 FROM information_schema.columns WHERE table_name = 'webhook_events' AND column_name = 'payload'"
        )
        with_payload = await cursor.fetchone() is not None
        query = INSERT.format(
            more=", payload" if with_payload else "", value=", '{}'" if with_payload else ""
        )
        await connection.execute(query, (merchant_id, *(list(column) for column in zip(*rows, strict=True))))

    def text(moment: datetime | None) -> str | None:
        return None if moment is None else timestamp_text(moment)

    return [
        {
            "id": str(id),
            "orderId": str(order_id),
            "eventType": event_type,
            "status": status,
            "attempts": attempts,
            "lastAttemptAt": text(last_attempt_at),
            "deliveredAt": text(delivered_at),
            "createdAt": text(created_at),
        }
        for id, order_id, event_type, status, attempts, last_attempt_at, delivered_at, created_at, _ in sorted(
            rows, key=lambda row: (row[7], row[0]), reverse=True
        )
    ]


async def listed(merchant: Merchant, **query: Any) -> dict[str, Any]:
    answer = await merchant.dashboard.get(f"/api/webhooks?{urlencode(query)}")
    assert answer.status == 200, answer.raw
    body: dict[str, Any] = answer.json
    return body


async def test_who_was_told_nothing_has_an_empty_list(merchant: Merchant) -> None:
    assert await listed(merchant) == {
        "data": [],
        "pagination": {"page": 1, "limit": 20, "total": 0, "totalPages": 0},
    }


async def test_pages_together_are_the_whole_list(merchant: Merchant, pool: AsyncConnectionPool) -> None:
    expected = await told(pool, merchant_id=merchant.id, count=23)
    pages = [await listed(merchant, page=page, limit=5) for page in range(1, 7)]
    assert [webhook for page in pages for webhook in page["data"]] == expected
    assert [page["pagination"] for page in pages] == [
        {"page": number, "limit": 5, "total": 23, "totalPages": 5} for number in range(1, 7)
    ]


async def test_totals_are_those_of_the_filter(merchant: Merchant, pool: AsyncConnectionPool) -> None:
    everything = await told(pool, merchant_id=merchant.id, count=23)
    for status in STATUSES:
        expected = [webhook for webhook in everything if webhook["status"] == status]
        found = await listed(merchant, status=status, limit=3)
        assert found["data"] == expected[:3]
        assert found["pagination"] == {"page": 1, "limit": 3, "total": len(expected), "totalPages": 3}


async def test_nobody_sees_anothers_webhooks(api: Api, merchant: Merchant, pool: AsyncConnectionPool) -> None:
    other = await api.merchant(processors=False)
    await told(pool, merchant_id=other.id, count=4)
    mine = await told(pool, merchant_id=merchant.id, count=2, first=100)
    assert (await listed(merchant))["data"] == mine
    assert (await listed(merchant))["pagination"]["total"] == 2


async def test_a_query_that_does_not_fit_is_refused(merchant: Merchant, subtests: pytest.Subtests) -> None:
    assert (await listed(merchant, page=999_999_999, limit=100))["data"] == []
    for name, value in [
        ("page", "0"),
        ("page", "9" * 10),
        ("limit", "101"),
        ("limit", "x"),
        ("status", "sent"),
        ("status", "Pending"),
        ("orderId", "x"),
    ]:
        with subtests.test(name=name, value=value):
            answer = await merchant.dashboard.get(f"/api/webhooks?{urlencode({name: value})}")
            assert answer.fields == {name}


async def test_no_page_reads_the_whole_table(merchant: Merchant, pool: AsyncConnectionPool) -> None:
    await told(pool, merchant_id=merchant.id, count=2_000)
    await told(pool, merchant_id=uuid7(), count=8_000, first=10_000)
    arguments = {"merchant_id": merchant.id, "status": "failed", "limit": 20, "skip": 40}
    async with pool.connection() as connection:
        await connection.execute("ANALYZE webhook_events")
        for conditions in (OF_MERCHANT, OF_MERCHANT_WITH_STATUS):
            cursor = await connection.execute(
                b"EXPLAIN " + LIST.format(conditions=conditions).as_bytes(None), arguments
            )
            plan = "\n".join(line for (line,) in await cursor.fetchall())
            assert "Seq Scan" not in plan, plan
