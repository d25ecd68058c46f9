"""No list reads a table from end to end, whatever it is asked for."""

from collections.abc import AsyncIterator
from contextlib import suppress

import pytest
from listing import Ask, Asked, ExplainingCursor, lists, read_whole
from projecting import append, new_order
from uuid_utils.compat import uuid7

from payloops.events.connections import connection_pool
from payloops.events.event_store import EventStore
from payloops.events.timestamps import utc_now
from payloops.projections.batches import project_batch
from payloops.projections.orders import PROJECTION as ORDERS
from payloops.projections.orders import UnknownCursor
from payloops.projections.projector import projecting

LISTS = dict(lists())


@pytest.fixture
async def explaining(database_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[EventStore]:
    """A store whose planner takes any index before it reads a table in sequence: what it still does, it has to."""
    monkeypatch.setattr(ExplainingCursor, "plans", [])
    pool = connection_pool(database_url, size=2, application_name="test")
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
            assert plan["Node Type"] == "Limit"
            assert [each for part in plan["Plans"] for each in read_whole(part)] == []


async def test_events_of_a_rare_type_are_found_by_it(explaining: EventStore) -> None:
    await whole(explaining, LISTS["events of refund.reversed"])
    assert "stored_events_by_type" in str(ExplainingCursor.plans)


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
