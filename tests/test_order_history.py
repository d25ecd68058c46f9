"""An order as it was, step by step, and what differs between two moments."""

import random
from datetime import timedelta
from uuid import UUID

import pytest
from ordering import BY, new_order, pay, report
from projecting import append
from random_orders import random_order, recorded
from shopping import begun_session

from payloops.events.event_store import EventStore
from payloops.events.orders import Order
from payloops.projections.order_history import (
    Difference,
    NoSuchVersion,
    differences,
    facts_as_of,
    fold,
    get_order_as_of,
    last_step,
    order_facts,
    order_state,
    replay,
)


@pytest.mark.parametrize("seed", range(0, 100, 20))
async def test_each_step_is_the_order_after_its_event(
    store: EventStore, merchant_id: UUID, seed: int
) -> None:
    for number in range(seed, seed + 20):
        order = random_order(random.Random(number), merchant_id)
        await append(store, order)
        facts = await order_facts(store, order_id=order.id)
        assert facts is not None
        before: dict[str, object] = {}
        for version, step in enumerate(replay(facts), start=1):
            assert last_step(facts[:version]) == step
            loaded = await store.load(Order, order.id, up_to_version=version)
            assert loaded is not None
            assert step.state == order_state(loaded)
            applied = before | {change.field: change.after for change in step.changes}
            assert {name: value for name, value in applied.items() if value is not None} == {
                name: value for name, value in step.state.items() if value is not None
            }
            before = dict(step.state)
        assert version == order.version


def test_what_differs_between_two_versions_is_told_by_field() -> None:
    order = report(pay(new_order()), "captured")
    facts = recorded(order)
    created, requested, captured = (order_state(fold(facts[:n])) for n in (1, 2, 3))
    capture_id = next(iter(order.transactions))
    assert set(differences(requested, captured)) == {
        Difference("status", "processing", "captured"),
        Difference("processor_order_id", None, "po_1"),
        Difference("amount_captured", 0, 1_000),
        Difference("payments.1.status", "processing", "captured"),
        Difference("payments.1.processor_order_id", None, "po_1"),
        Difference("payments.1.processor_transaction_id", None, "pt_1"),
        Difference(f"transactions.{capture_id}.status", "pending", "success"),
        Difference(f"transactions.{capture_id}.processor_transaction_id", None, "pt_1"),
    }
    assert Difference(f"transactions.{capture_id}.amount", None, 1_000) in differences(created, requested)
    assert Difference(f"transactions.{capture_id}.amount", 1_000, None) in differences(requested, created)
    assert differences(captured, captured) == []
    assert not any(change.after is False for change in differences(created, requested))


def test_a_moment_holds_what_happened_until_then_and_nothing_later() -> None:
    order = report(pay(new_order()), "captured")
    facts = recorded(order)
    at = facts[0].timestamp
    for n, fact in enumerate(facts):
        fact.__dict__["timestamp"] = at + timedelta(seconds=n)
    assert len(facts_as_of(facts, at)) == 1
    assert len(facts_as_of(facts, at + timedelta(seconds=1, microseconds=-1))) == 1
    assert len(facts_as_of(facts, at + timedelta(seconds=1))) == 2
    assert len(facts_as_of(facts, at + timedelta(days=1))) == 3
    assert len(facts_as_of(facts, 2)) == 2
    for never in (0, 4, at - timedelta(microseconds=1)):
        with pytest.raises(NoSuchVersion):
            facts_as_of(facts, never)


async def test_another_merchants_order_and_what_is_no_order_have_no_history(
    store: EventStore, merchant_id: UUID
) -> None:
    order = new_order(merchant_id=merchant_id)
    await store.append(recorded(order))
    session_id = await begun_session(store, merchant_id, BY)
    assert await order_facts(store, order_id=order.id, merchant_id=merchant_id)
    assert await get_order_as_of(store, order_id=order.id, merchant_id=merchant_id, as_of=1)
    for order_id, asking in ((order.id, order.id), (merchant_id, merchant_id), (session_id, merchant_id)):
        assert await order_facts(store, order_id=order_id, merchant_id=asking) is None
        assert await get_order_as_of(store, order_id=order_id, merchant_id=asking, as_of=1) is None
    with pytest.raises(NoSuchVersion):
        await get_order_as_of(store, order_id=order.id, as_of=BY.at - timedelta(days=1))
