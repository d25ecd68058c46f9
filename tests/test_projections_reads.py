"""Reads by id are never stale, lists contain the reader's own writes, and pages have no gap."""

import asyncio
import random
import time
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from projecting import append, locked, one, project_orders, projector, reached
from random_orders import new_order, random_order
from uuid_utils.compat import uuid7

from payloops.commands.cancel_order import cancel
from payloops.commands.pay_order import request_payment
from payloops.commands.payment_outcomes import report_captured
from payloops.commands.refund_payment import request_refund
from payloops.commands.route_payment import Route
from payloops.events.event_store import EventStore
from payloops.events.metadata import Metadata
from payloops.events.orders import Order, References
from payloops.projections import own_writes
from payloops.projections.order_events import order_events
from payloops.projections.order_list import UnknownCursor, list_orders
from payloops.projections.orders import OrderRow, get_order, row_from_order
from payloops.projections.transactions import list_refunds, list_transactions, rows_from_order


def pay(order: Order, *, by: Metadata) -> None:
    request_payment(
        order, route=Route(processor="stripe", reason="test"), payment_method=None, capture="automatic", by=by
    )


@pytest.mark.parametrize("projected_until", [0, 1, 2])
async def test_a_read_by_id_is_fresh_wherever_the_projection_is(
    store: EventStore, database_url: str, merchant_id: UUID, by: Metadata, projected_until: int
) -> None:
    """0: no projector has ever run. 1: it stopped before the last writes. 2: it has everything."""
    order = new_order(merchant_id)
    pay(order, by=by)
    await append(store, order)
    if projected_until >= 1:
        await project_orders(database_url)
    payment = order.payment
    assert payment is not None
    report_captured(order, payment, references=References("pi_1", "ch_1"), by=by)
    request_refund(order, amount=300, reason="late", by=by)
    await append(store, order)
    if projected_until >= 2:
        await project_orders(database_url)

    row = await get_order(store, order_id=order.id, merchant_id=merchant_id)
    assert row == row_from_order(order)
    assert row.status == "captured"
    transactions = await list_transactions(store, order_id=order.id, merchant_id=merchant_id)
    refunds = await list_refunds(store, order_id=order.id, merchant_id=merchant_id)
    assert transactions is not None
    assert refunds is not None
    assert [(t.type, t.amount, t.status) for t in transactions] == [
        ("refund", 300, "pending"),
        ("capture", 1_000, "success"),
    ]
    assert [t.id for t in transactions] == [t.id for t in rows_from_order(order)]
    assert [(r.amount, r.reason, r.refunds) for r in refunds] == [(300, "late", transactions[1].id)]


async def test_nothing_is_told_about_what_is_not_the_merchants_order(
    store: EventStore, database_url: str, merchant_id: UUID
) -> None:
    order = new_order(merchant_id)
    await append(store, order)
    for _ in range(2):
        for order_id, asking in ((order.id, uuid7()), (uuid7(), merchant_id), (merchant_id, merchant_id)):
            for read in (get_order, list_transactions, list_refunds, order_events):
                assert await read(store, order_id=order_id, merchant_id=asking) is None
        await project_orders(database_url)


async def test_reads_by_id_are_fresh_while_the_projector_is_stuck(
    store: EventStore, database_url: str, merchant_id: UUID, by: Metadata
) -> None:
    async with projector(database_url):
        order = new_order(merchant_id)
        await reached(store, await append(store, order))
        async with locked(database_url, "checkpoints"):
            pay(order, by=by)
            await append(store, order)
            row = await get_order(store, order_id=order.id, merchant_id=merchant_id)
            assert row == row_from_order(order)


async def test_a_list_contains_the_merchants_own_last_write(
    store: EventStore, database_url: str, merchant_id: UUID
) -> None:
    async with projector(database_url):
        for count in range(1, 30):
            order = new_order(merchant_id)
            await append(store, order)
            rows, _ = await list_orders(store, merchant_id=merchant_id, limit=100)
            assert len(rows) == count
            assert rows[0] == row_from_order(order)


async def test_a_list_without_a_projector_answers_what_there_is(
    store: EventStore, database_url: str, merchant_id: UUID, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = new_order(merchant_id), new_order(merchant_id)
    await append(store, first)
    await project_orders(database_url)
    await append(store, second)
    rows, has_more = await list_orders(store, merchant_id=merchant_id, limit=10)
    assert rows == [row_from_order(first)]
    assert not has_more
    monkeypatch.setattr(own_writes, "WAIT_SECONDS", 60)
    begun = time.monotonic()
    assert await list_orders(store, merchant_id=uuid7(), limit=10) == ([], False)
    assert time.monotonic() - begun < 60, "another merchant has nothing to wait for"


async def test_nobody_waits_long_for_a_projector_that_stands_still_until_it_moves(
    store: EventStore, database_url: str, merchant_id: UUID, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def listed() -> int:
        rows, _ = await list_orders(store, merchant_id=merchant_id, limit=100)
        return len(rows)

    async def waits_for(seconds: float) -> bool:
        """Whether a list takes as long as it is worth to wait for a projector that may move."""
        monkeypatch.setattr(own_writes, "WAIT_SECONDS", seconds)
        begun = time.monotonic()
        count = await listed()
        assert count == projected
        return time.monotonic() - begun >= seconds

    projected = 0
    await append(store, new_order(merchant_id))
    assert await waits_for(1)
    for _ in range(3):
        await append(store, new_order(merchant_id))
        assert not await waits_for(60)
    async with projector(database_url):
        while await listed() < 4:
            await asyncio.sleep(0.01)
        for projected in range(5, 15):
            await append(store, new_order(merchant_id))
            assert await listed() == projected
    await append(store, new_order(merchant_id))
    assert await waits_for(1), "it was seen to move, and may move again"
    assert not await waits_for(60)


async def test_pages_have_no_gap_and_no_double_while_orders_are_made(
    store: EventStore, database_url: str, merchant_id: UUID
) -> None:
    """23 orders are paged through, forward and back, while newer ones arrive; some were made at the same time."""
    now = new_order(merchant_id).created_on
    orders = [new_order(merchant_id) for _ in range(23)]
    for number, order in enumerate(orders):
        order.__dict__["_created_on"] = now - timedelta(seconds=number // 3)
        for event in order.pending_events:
            object.__setattr__(event, "timestamp", order.created_on)
    await append(store, *orders, new_order(uuid7()))
    await project_orders(database_url)
    expected = [o.id for o in sorted(orders, key=lambda o: (o.created_on, o.id), reverse=True)]

    forward: list[OrderRow] = []
    has_more = True
    while has_more:
        after = forward[-1].id if forward else None
        page, has_more = await list_orders(store, merchant_id=merchant_id, limit=5, starting_after=after)
        assert len(page) == 5 or not has_more
        forward += page
        await append(store, new_order(merchant_id))
        await project_orders(database_url)
    assert [row.id for row in forward] == expected

    backward: list[OrderRow] = [forward[-1]]
    while len(backward) < 23:
        page, has_more = await list_orders(
            store, merchant_id=merchant_id, limit=4, ending_before=backward[0].id
        )
        assert has_more, "the newer ones that came meanwhile"
        backward = page + backward
    assert [row.id for row in backward][-23:] == expected

    newest, _ = await list_orders(store, merchant_id=merchant_id, limit=1)
    assert await list_orders(store, merchant_id=merchant_id, limit=5, ending_before=newest[0].id) == (
        [],
        False,
    )
    assert await list_orders(store, merchant_id=merchant_id, limit=5, starting_after=expected[-1]) == (
        [],
        False,
    )


async def test_a_page_may_end_exactly_at_the_limit(
    store: EventStore, database_url: str, merchant_id: UUID
) -> None:
    await append(store, *(new_order(merchant_id) for _ in range(4)))
    await project_orders(database_url)
    rows, has_more = await list_orders(store, merchant_id=merchant_id, limit=4)
    assert (len(rows), has_more) == (4, False)
    rows, has_more = await list_orders(store, merchant_id=merchant_id, limit=3)
    assert (len(rows), has_more) == (3, True)


async def test_an_order_can_be_paged_from_before_it_is_projected(
    store: EventStore, database_url: str, merchant_id: UUID
) -> None:
    older = new_order(merchant_id)
    await append(store, older)
    await project_orders(database_url)
    newer = new_order(merchant_id)
    await append(store, newer)
    rows, _ = await list_orders(store, merchant_id=merchant_id, limit=5, starting_after=newer.id)
    assert rows == [row_from_order(older)]


async def test_nobody_pages_from_an_order_that_is_not_theirs(store: EventStore, merchant_id: UUID) -> None:
    foreign = new_order(uuid7())
    await append(store, foreign)
    for cursor in (foreign.id, uuid7()):
        with pytest.raises(UnknownCursor) as refused:
            await list_orders(store, merchant_id=merchant_id, limit=5, starting_after=cursor)
        assert refused.value.cursor == cursor
        with pytest.raises(UnknownCursor):
            await list_orders(store, merchant_id=merchant_id, limit=5, ending_before=cursor)


async def test_lists_are_filtered(store: EventStore, database_url: str, merchant_id: UUID) -> None:
    chance = random.Random(5)
    orders = [random_order(chance, merchant_id) for _ in range(60)]
    await append(store, *orders)
    await project_orders(database_url)
    newest_first = [
        row_from_order(o) for o in sorted(orders, key=lambda o: (o.created_on, o.id), reverse=True)
    ]
    middle = newest_first[30].created_at

    async def listed(**filters: Any) -> list[OrderRow]:
        rows, _ = await list_orders(store, merchant_id=merchant_id, limit=100, **filters)
        return rows

    for status in {row.status for row in newest_first}:
        assert await listed(status=status) == [row for row in newest_first if row.status == status]
    assert await listed(currency="INR") == [row for row in newest_first if row.currency == "INR"]
    some = newest_first[7].external_id
    assert await listed(external_id=some) == [row for row in newest_first if row.external_id == some]
    assert await listed(created_from=middle) == [row for row in newest_first if row.created_at >= middle]
    assert await listed(created_to=middle) == [row for row in newest_first if row.created_at < middle]
    assert await listed(status="captured", currency="USD", created_to=middle) == [
        row
        for row in newest_first
        if row.status == "captured" and row.currency == "USD" and row.created_at < middle
    ]
    assert await listed(status="no such") == []


async def test_the_audit_trail_tells_who_did_what_when(
    store: EventStore, merchant_id: UUID, by: Metadata
) -> None:
    order = new_order(merchant_id, metadata={"a": 1})
    cancel(order, by=by)
    position = await append(store, order)
    trail = await order_events(store, order_id=order.id, merchant_id=merchant_id)
    assert trail is not None
    created, cancelled = trail
    assert (created.type, created.version, created.position) == ("order.created", 1, position - 1)
    assert (cancelled.type, cancelled.version, cancelled.position) == ("order.cancelled", 2, position)
    assert cancelled.occurred_at == by.at
    assert (cancelled.actor, cancelled.correlation_id, cancelled.causation_id) == ("system", "test", None)
    assert cancelled.data == {"status": "cancelled"}
    assert created.data["metadata"] == {"a": 1}
    assert not {"merchant_id", "timestamp", "originator_topic"} & set(created.data)


async def test_many_lists_at_once_wait_together(
    store: EventStore, database_url: str, merchant_id: UUID
) -> None:
    async with projector(database_url):
        async with locked(database_url, "checkpoints"):
            pass
        for _ in range(5):
            await append(store, *(new_order(merchant_id) for _ in range(20)))
            answers = await asyncio.gather(
                *(list_orders(store, merchant_id=merchant_id, limit=100) for _ in range(20))
            )
            assert all(answer == answers[0] for answer in answers)
    assert await one(store, "SELECT count(*) FROM orders") == 100
