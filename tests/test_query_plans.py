"""No list reads a table from end to end, whatever it is asked for."""

from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import UTC, datetime, time, timedelta

import pytest
from listing import Ask, Asked, ExplainingCursor, lists, read_whole
from projecting import append, project_orders
from random_orders import new_order
from uuid_utils.compat import uuid7

from payloops.events.event_store import EventStore
from payloops.events.pools import connection_pool
from payloops.events.timestamps import utc_now
from payloops.projections import staff_orders
from payloops.projections.batches import project_batch
from payloops.projections.order_list import UnknownCursor, list_orders
from payloops.projections.order_search import search_orders
from payloops.projections.orders import PROJECTION as ORDERS
from payloops.projections.projector import projecting
from payloops.projections.staff_orders import StaffSearch
from payloops.projections.stats import payment_figures

LISTS = dict(lists())


@pytest.fixture
async def explaining(database_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[EventStore]:
    """A store whose planner takes any index before it reads a table in sequence: what it still does, it has to."""
    monkeypatch.setattr(ExplainingCursor, "plans", [])
    pool = connection_pool(database_url, size=2, application_name="test")
    assert isinstance(pool.kwargs, dict)
    options = f"{pool.kwargs['options']} -c enable_seqscan=off"
    pool.kwargs = {**pool.kwargs, "options": options, "cursor_factory": ExplainingCursor}
    await pool.open()
    yield EventStore(database_url, pool, mac_key=bytes(32))
    await pool.close()


async def test_no_list_reads_a_growing_table_as_a_whole(
    explaining: EventStore, subtests: pytest.Subtests
) -> None:
    for name, ask in LISTS.items():
        with subtests.test(list=name):
            assert await whole(explaining, ask) == []


async def test_what_has_no_index_would_be_found(explaining: EventStore) -> None:
    async with explaining.pool.connection() as connection:
        await connection.execute("DROP INDEX processor_events_by_order")
    assert await whole(explaining, LISTS["processor events of an order"]) == [
        "Index Scan of processor_events"
    ]


RARE = ("text", "external_id", "email", "reference", "correlation_id", "id")
"""What staff look for by these is on few orders, or on none: no page of it is ever full."""


async def test_staff_find_one_order_without_going_through_all(
    explaining: EventStore, subtests: pytest.Subtests
) -> None:
    for name in RARE:
        with subtests.test(by=name):
            await whole(explaining, LISTS[f"staff's orders by {name}"])
            [plan] = ExplainingCursor.plans
            while plan["Node Type"] in {"Limit", "Subquery Scan"}:
                [plan, *others] = plan["Plans"]
                assert [each for part in others for each in read_whole(part)] == []
            assert list(read_whole(plan)) == []


async def test_events_of_a_rare_type_are_found_by_it(explaining: EventStore) -> None:
    await whole(explaining, LISTS["events of refund.reversed"])
    assert "stored_events_by_type" in str(ExplainingCursor.plans)


def _midnight(moment: datetime) -> datetime:
    return datetime.combine(moment.date(), time(), UTC)


PLANNED_ONCE: dict[str, Ask] = {
    "first page": lambda s, a: list_orders(s, merchant_id=a.merchant_id, limit=10),
    "page after an order": lambda s, a: list_orders(
        s, merchant_id=a.merchant_id, limit=10, starting_after=a.order_id
    ),
    "page of a state": lambda s, a: list_orders(s, merchant_id=a.merchant_id, limit=10, status=a.status),
    "dashboard's page": lambda s, a: search_orders(s, merchant_id=a.merchant_id, page=1, limit=20),
    "dashboard's page of a state": lambda s, a: search_orders(
        s, merchant_id=a.merchant_id, page=1, limit=20, status=a.status
    ),
    "staff's email": lambda s, a: staff_orders.search_all_orders(
        s, StaffSearch(email=a.email), page=1, limit=20
    ),
    "figures": lambda s, a: payment_figures(
        s, merchant_id=a.merchant_id, begin=_midnight(a.now) - timedelta(days=30), end=_midnight(a.now)
    ),
}
MANY = """
    INSERT INTO orders (id, merchant_id, external_id, amount, currency, status, metadata,
                        amount_captured, amount_refunded, attempt, created_at, updated_at, version)
    SELECT gen_random_uuid(), %s, 'order-' || n, 1, 'USD', (ARRAY['captured', 'failed'])[1 + mod(n, 2)], '{}',
           0, 0, 1, now() - n * interval '1 minute', now(), 1
    FROM generate_series(1, 20000) n
"""


@pytest.mark.parametrize("name", PLANNED_ONCE)
async def test_what_is_asked_most_is_not_planned_each_time(
    name: str, store: EventStore, database_url: str
) -> None:
    order = new_order(merchant_id := uuid7())
    await append(store, order)
    await project_orders(database_url)
    asked = Asked(merchant_id=merchant_id, order_id=order.id, now=utc_now())
    pool = connection_pool(database_url, size=1, application_name="test")
    await pool.open()
    async with pool.connection() as connection:
        await connection.execute("SET statement_timeout = 0")
        await connection.execute(MANY, (merchant_id,))
        await connection.execute("ANALYZE")
    reader = EventStore(database_url, pool, mac_key=bytes(32))
    for _ in range(10):
        await PLANNED_ONCE[name](reader, asked)
    async with pool.connection() as connection:
        cursor = await connection.execute(
            "SELECT custom_plans FROM pg_prepared_statements WHERE statement ~ 'LIMIT|GROUPING'",
            prepare=False,
        )
        assert await cursor.fetchall() == [(5,)]  # so many PostgreSQL makes to compare with
    await pool.close()


async def whole(store: EventStore, ask: Ask) -> list[str]:
    ExplainingCursor.plans.clear()
    with suppress(UnknownCursor):
        await ask(store, Asked(merchant_id=uuid7(), order_id=uuid7(), now=utc_now()))
    assert ExplainingCursor.plans
    return [each for plan in ExplainingCursor.plans for each in read_whole(plan)]


async def test_projectors_read_by_index_what_was_almost_empty_when_it_was_counted(
    store: EventStore, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ExplainingCursor, "plans", [])
    await append(store, new_order(uuid7()))
    async with projecting(database_url, ORDERS) as connection:
        await connection.execute("ANALYZE stored_events, personal_keys, orders")
        connection.cursor_factory = ExplainingCursor
        assert await project_batch(connection, ORDERS) == 1
    assert ExplainingCursor.plans
    assert [each for plan in ExplainingCursor.plans for each in read_whole(plan)] == []
