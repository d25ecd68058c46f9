"""The processors are asked what became of payments; what they say is recorded, and what does not agree is shown."""

import asyncio
import json
import signal
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import UUID

import psycopg
import pytest
from aiohttp import web
from answering import answering, intent
from calling import Merchant
from masking import CARD
from processes import begin_command, run_command
from projecting import insert_raw, project_orders
from psycopg_pool import AsyncConnectionPool

from payloops.commands.change_order import change_order
from payloops.commands.processor_events import ProcessorEventCount
from payloops.commands.receive_processor_event import Outcome, ProcessorEvent, receive
from payloops.commands.update_order_status import update_order_status
from payloops.commands.update_refund_status import update_refund_status
from payloops.events.authenticity import derive_mac_key
from payloops.events.errors import OutcomeUnknown, StoreUnavailable
from payloops.events.event_store import EventStore
from payloops.events.metadata import Metadata
from payloops.events.orders import NO_REFERENCES, Failure, Order, References, TransactionType
from payloops.events.stream import S
from payloops.events.timestamps import utc_now
from payloops.processors.port import (
    PaymentQuestion,
    Processor,
    ProcessorPayment,
    ProcessorUnreachable,
    ReferenceNeeded,
)
from payloops.processors.sandbox import SandboxProcessor
from payloops.processors.stripe import StripeProcessor
from payloops.projections.parked import forward_again
from payloops.reconcile.findings import Finding, Standing, print_findings
from payloops.reconcile.payments import AT_ONCE, NOT_ASKED, reconcile, run_reconcile
from payloops.sandbox import ledger
from payloops.settings import Settings
from payloops.wiring import open_store

DAY = timedelta(days=1)
NOW = timedelta(0)


async def paying(merchant: Merchant, store: EventStore, **fields: Any) -> str:
    order_id = await merchant.order()
    paid = await merchant.shop.post(f"/v1/orders/{order_id}/pay", {"processor": "stripe", **fields})
    assert paid.status == 200
    return order_id


async def reported(
    merchant: Merchant, store: EventStore, settings: Settings, by: Metadata, *, status: str, **report: Any
) -> str:
    """The order of a payment of which a status was reported, projected."""
    order_id = await paying(merchant, store)
    await update_order_status(store, order_id=UUID(order_id), status=status, by=by, **report)
    await project_orders(settings.database_url.get_secret_value())
    return order_id


async def charged(
    store: EventStore,
    order_id: str,
    token: str | None = None,
    *,
    manual: bool = False,
    currency: str = "USD",
) -> ledger.Charge:
    await ledger.create_schema(store.pool)
    charge, _ = await ledger.charge(
        store.pool,
        order_id=order_id,
        attempt=1,
        processor="stripe",
        amount=1_000,
        currency=currency,
        token=token,
        manual_capture=manual,
    )
    return charge


async def operate_refund(store: EventStore, charge: ledger.Charge, *, order_id: str, amount: int) -> None:
    """Refund in the processor's dashboard."""
    await ledger.operate(
        store.pool,
        kind="refund",
        request_id="in the dashboard",
        order_id=order_id,
        processor_order_id=charge.processor_order_id,
        amount=amount,
        currency="USD",
    )


async def reconciled(
    store: EventStore, processor: Processor, *, older_than: timedelta = NOW
) -> dict[str, Finding]:
    """What was found, by order."""

    async def find(merchant_id: UUID, name: str) -> Processor:
        return processor

    findings = await reconcile(store, find=find, older_than=older_than, since=DAY, now=utc_now())
    return {each.order_id: each for each in findings}


async def status_of(store: EventStore, order_id: str) -> str:
    order = await store.load(Order, UUID(order_id))
    assert order is not None
    return order.status.value


async def test_what_the_sandbox_did_without_telling_is_recorded(
    merchant: Merchant, store: EventStore, settings: Settings
) -> None:
    """The workers died after they had charged."""
    orders = {token: await paying(merchant, store) for token in ("tok_visa", "tok_chargeDeclined", "tok_3ds")}
    orders["nothing"] = await paying(merchant, store)
    for token, order_id in orders.items():
        if token != "nothing":
            await charged(store, order_id, token)
    orders["manual"] = await paying(merchant, store, capture="manual")
    await charged(store, orders["manual"], manual=True)
    await project_orders(settings.database_url.get_secret_value())
    found = await reconciled(store, SandboxProcessor(store.pool))
    ended = {token: (found[id].outcome, await status_of(store, id)) for token, id in orders.items()}
    assert ended == {
        "tok_visa": ("recorded", "captured"),
        "tok_chargeDeclined": ("recorded", "failed"),
        "tok_3ds": ("recorded", "requires_action"),
        "nothing": ("unknown", "processing"),
        "manual": ("recorded", "authorized"),
    }
    order = await store.load(Order, UUID(orders["tok_visa"]))
    assert order is not None
    assert order.processor_order_id is not None
    again = await reconciled(store, SandboxProcessor(store.pool))
    assert again[orders["tok_visa"]].outcome == "agrees"
    assert again[orders["tok_3ds"]].outcome == "waits"


async def test_money_that_a_failed_payment_has_after_all_and_refunds_made_there_are_recorded(
    merchant: Merchant, store: EventStore, settings: Settings, by: Metadata
) -> None:
    order_id = await paying(merchant, store)
    charge = await charged(store, order_id)
    await update_order_status(store, order_id=UUID(order_id), status="failed", by=by)
    await operate_refund(store, charge, order_id=order_id, amount=400)
    await project_orders(settings.database_url.get_secret_value())
    found = (await reconciled(store, SandboxProcessor(store.pool)))[order_id]
    assert (found.outcome, found.ours) == ("recorded", found.theirs)
    order = await store.load(Order, UUID(order_id))
    assert order is not None
    assert (order.status, order.amount_captured, order.amount_refunded) == ("partially_refunded", 1_000, 400)


@pytest.mark.parametrize(
    ("at_the_processor", "older_than", "outcome", "statuses"),
    [
        (0, NOW, "unknown", ["pending", "pending"]),
        (300, NOW, "differs", ["pending", "pending"]),
        (300, DAY, "agrees", ["pending", "pending"]),
        (500, NOW, "recorded", ["success", "success"]),
        (500, DAY, "agrees", ["pending", "pending"]),
        (700, NOW, "recorded", ["success", "success", "success"]),
        # More than there was to refund: of ours nothing is certain.
        (1_100, NOW, "recorded", ["pending", "pending", "success"]),
    ],
)
async def test_refunds_whose_workflows_died_after_they_were_made_are_recorded(
    merchant: Merchant,
    store: EventStore,
    settings: Settings,
    by: Metadata,
    at_the_processor: int,
    older_than: timedelta,
    outcome: str,
    statuses: list[str],
) -> None:
    """Where the sum has all that are under way in it; and not while they may yet be reported."""
    order_id = await paying(merchant, store)
    await update_order_status(
        store, order_id=UUID(order_id), status="captured", references=References("pi_1"), by=by
    )
    for amount in (300, 200):
        assert (await merchant.shop.post(f"/v1/orders/{order_id}/refund", {"amount": amount})).status == 201
    await project_orders(settings.database_url.get_secret_value())
    processor = says("captured", amount_refunded=at_the_processor)
    found = (await reconciled(store, processor, older_than=older_than))[order_id]
    order = await store.load(Order, UUID(order_id))
    assert order is not None
    refunds = [t for t in order.transactions.values() if t.refunds is not None]
    assert [t.status for t in refunds] == statuses
    made = sum(t.amount for t in refunds if t.status == "success")
    assert (found.outcome, found.ours.refunded) == (outcome, made)
    if outcome == "differs":
        assert all(refund.id in (found.detail or "") for refund in refunds)
    assert made == at_the_processor or "pending" in statuses


async def test_a_refund_that_a_sum_showed_and_that_came_back_whole_is_not_refunded(
    merchant: Merchant, store: EventStore, settings: Settings, by: Metadata
) -> None:
    references = References("pi_1", "ch_1")
    order_id = await reported(merchant, store, settings, by, status="captured", references=references)
    for there in (300, 0):
        found = (await reconciled(store, says("captured", amount_refunded=there)))[order_id]
        assert (found.outcome, found.ours.refunded) == ("recorded", there)


@pytest.mark.parametrize("recent", [False, True])
async def test_what_a_sum_showed_and_the_sandbox_does_not_have_is_not_refunded(
    merchant: Merchant, store: EventStore, settings: Settings, by: Metadata, recent: bool
) -> None:
    """A refund made there was returned, and nobody told. Of ours nothing is taken back by a sum alone."""
    order_id = await paying(merchant, store)
    charge = await charged(store, order_id)
    await update_order_status(
        store,
        order_id=UUID(order_id),
        status="captured",
        references=References.of(charge),
        by=by,
    )
    refund = await merchant.shop.post(f"/v1/orders/{order_id}/refund", {"amount": 200})
    await update_refund_status(
        store, order_id=UUID(order_id), refund_id=refund.json["refundId"], succeeded=True, by=by
    )
    event = ProcessorEvent(
        processor="stripe",
        event_id="evt_1",
        type="charge.refunded",
        outcome="refunded",
        references=References(charge.processor_order_id),
        amount_refunded=700,
    )
    await change_order(
        store, order_id=UUID(order_id), merchant_id=None, decide=lambda order: receive(order, event, by=by)
    )
    await operate_refund(store, charge, order_id=order_id, amount=300)
    await project_orders(settings.database_url.get_secret_value())
    processor = SandboxProcessor(store.pool)
    another = says("captured", processor_transaction_id="ch_2", amount_refunded=300)
    assert (await reconciled(store, another))[order_id].outcome == "differs"
    if recent:
        found = (await reconciled(store, processor, older_than=DAY))[order_id]
        assert (found.outcome, found.detail) == ("differs", "refunded: 7.00 USD here, 3.00 USD there")
    found = (await reconciled(store, processor))[order_id]
    assert (found.outcome, found.ours.refunded) == ("recorded", 300)
    order = await store.load(Order, UUID(order_id))
    assert order is not None
    assert (order.status, order.amount_refunded, order.refundable) == ("partially_refunded", 300, 700)
    assert order.transactions[refund.json["refundId"]].status == "success"
    assert (await reconciled(store, processor))[order_id].outcome == "agrees"


async def test_an_authorization_that_nobody_wants_and_whose_release_was_refused_is_shown(
    merchant: Merchant, store: EventStore, settings: Settings, by: Metadata
) -> None:
    """The customer's money is held, and the void is not requested a second time."""
    order_id = await paying(merchant, store, capture="manual")

    async def report(status: str, **fields: Any) -> None:
        await update_order_status(
            store,
            order_id=UUID(order_id),
            status=status,
            attempt=1,
            references=References("pi_1"),
            by=by,
            **fields,
        )

    await report("failed")
    assert (await merchant.shop.post(f"/v1/orders/{order_id}/cancel")).status == 200
    await report("authorized")
    await project_orders(settings.database_url.get_secret_value())
    assert (await reconciled(store, says("authorized")))[order_id].outcome == "unknown"
    await report("failed", operation=(TransactionType.VOID, 1))
    found = (await reconciled(store, says("authorized")))[order_id]
    assert (found.outcome, found.detail) == (
        "differs",
        "held for nothing, and its release was refused: release it in the processor's dashboard",
    )
    assert (await reconciled(store, says("cancelled")))[order_id].outcome == "recorded"
    assert (await reconciled(store, says("cancelled")))[order_id].outcome == "agrees"


class Saying:
    """A processor that says the same of every payment."""

    def __init__(self, answer: ProcessorPayment | Exception | None) -> None:
        self.answer = answer

    async def look_up(self, question: PaymentQuestion) -> ProcessorPayment | None:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def says(status: Any, **fields: Any) -> Saying:
    known: dict[str, Any] = {
        "processor_order_id": "pi_1",
        "processor_transaction_id": "ch_1",
        "currency": "USD",
        "amount_captured": 1_000 if status == "captured" else 0,
        "amount_refunded": 0,
    }
    return Saying(ProcessorPayment(status=status, **(known | fields)))


@pytest.mark.parametrize(
    ("before", "processor", "outcome", "after"),
    [
        ("processing", says("captured"), "recorded", "captured"),
        ("processing", says("captured", currency="EUR"), "differs", "processing"),
        ("processing", says("captured", amount_captured=1_001), "differs", "processing"),
        ("processing", says("captured", amount_captured=600), "recorded", "captured"),
        ("processing", says("processing"), "recorded", "processing"),
        ("processing", says("cancelled"), "recorded", "failed"),
        ("processing", Saying(None), "unknown", "processing"),
        (
            "processing",
            Saying(ProcessorUnreachable(processor="stripe", reason="x")),
            "unreachable",
            "processing",
        ),
        ("failed", Saying(None), "agrees", "failed"),
        ("failed", says("failed"), "agrees", "failed"),
        ("failed", says("captured"), "recorded", "captured"),
        ("failed", says("authorized"), "recorded", "authorized"),
        ("failed", says("authorized", processor_order_id=None), "differs", "failed"),
        ("authorized", says("cancelled"), "recorded", "failed"),
        ("authorized", says("failed"), "recorded", "failed"),
        ("authorized", says("authorized"), "agrees", "authorized"),
        ("captured", says("captured"), "agrees", "captured"),
        ("captured", says("failed"), "differs", "captured"),
        ("captured", says("captured", amount_captured=600), "differs", "captured"),
        ("captured", says("captured", amount_refunded=2_000), "differs", "captured"),
    ],
)
async def test_each_side_against_the_other(
    merchant: Merchant,
    store: EventStore,
    settings: Settings,
    by: Metadata,
    before: str,
    processor: Saying,
    outcome: str,
    after: str,
) -> None:
    order_id = await paying(merchant, store, capture="manual" if before == "authorized" else "automatic")
    if before != "processing":
        await update_order_status(store, order_id=UUID(order_id), status=before, by=by)
    await project_orders(settings.database_url.get_secret_value())
    found = (await reconciled(store, processor))[order_id]
    expected = "waits" if outcome == "recorded" and before == after else outcome
    assert (found.outcome, await status_of(store, order_id)) == (expected, after), found


@pytest.mark.parametrize("status", ["processing", "requires_action", "failed", "captured"])
async def test_what_can_only_be_asked_by_a_reference_is_not_taken_for_unknown_there(
    merchant: Merchant, store: EventStore, settings: Settings, by: Metadata, status: str
) -> None:
    """It may well have been charged: nothing is forwarded again."""
    order_id = await reported(merchant, store, settings, by, status=status)
    found = (await reconciled(store, Saying(ReferenceNeeded(processor="razorpay"))))[order_id]
    assert found.outcome == ("agrees" if status == "failed" else "unknown")
    assert "look it up in its dashboard" in (found.detail or "")
    assert await forwarded_again(store) == []


@pytest.mark.parametrize("status", ["requires_action", "authorized"])
async def test_a_payment_that_was_told_of_without_a_reference_is_not_made_again(
    merchant: Merchant, store: EventStore, settings: Settings, by: Metadata, status: str
) -> None:
    """The processor had it, whatever its search finds."""
    order_id = await reported(merchant, store, settings, by, status=status)
    assert (await reconciled(store, Saying(None)))[order_id].outcome == "unknown"
    assert await forwarded_again(store) == []


def told(outcome: Outcome, **fields: Any) -> ProcessorEvent:
    """An event of the only payment, by the order alone."""
    return ProcessorEvent(processor="razorpay", event_id="evt_1", type=outcome, outcome=outcome, **fields)


@pytest.mark.parametrize(
    "event",
    [
        told("authorized"),
        told("captured", amount=1_000, currency="EUR", references=References("order_1")),
        told("refunded", amount=300, refund_reference="rfnd_1", references=References("order_1")),
        told("refunded", amount_refunded=300),
    ],
)
async def test_a_payment_that_the_processor_has_told_anything_of_is_not_made_again(
    merchant: Merchant, store: EventStore, settings: Settings, by: Metadata, event: ProcessorEvent
) -> None:
    """Also where that contradicts the record, or comes before its capture: the processor had it."""
    order_id = await paying(merchant, store, processor="razorpay")
    await store.change(Order, UUID(order_id), lambda order: receive(order, event, by=by))
    await project_orders(settings.database_url.get_secret_value())
    assert (await reconciled(store, Saying(None)))[order_id].outcome == "unknown"
    assert await forwarded_again(store) == []


@pytest.mark.parametrize(("before", "outcome"), [("processing", "waits"), ("failed", "differs")])
async def test_what_razorpay_is_going_to_capture_by_itself_is_not_taken_for_held(
    merchant: Merchant, store: EventStore, settings: Settings, by: Metadata, before: str, outcome: str
) -> None:
    order_id = await paying(merchant, store, processor="razorpay")
    await update_order_status(store, order_id=UUID(order_id), status=before, by=by)
    await project_orders(settings.database_url.get_secret_value())
    found = (await reconciled(store, says("authorized")))[order_id]
    assert (found.outcome, await status_of(store, order_id)) == (outcome, before)


@pytest.mark.parametrize(
    ("known", "error", "parked_for", "retry", "outcome"),
    [
        (False, "WorkflowGone: x", timedelta(minutes=1), False, "recorded"),
        (False, "WorkflowGoneError: x", timedelta(minutes=1), False, "recorded"),
        (True, "WorkflowGone: x", timedelta(minutes=1), False, "unknown"),
        (False, "StreamUnreadable: x", timedelta(minutes=1), False, "unknown"),
        (False, "WorkflowGone: x", timedelta(minutes=1), True, "unknown"),
        (False, "WorkflowGone: x", -timedelta(hours=1), False, "unknown"),
    ],
)
async def test_a_payment_to_be_cancelled_is_over_only_where_nobody_can_have_made_it_nor_will(
    merchant: Merchant,
    store: EventStore,
    settings: Settings,
    by: Metadata,
    known: bool,
    error: str,
    parked_for: timedelta,
    retry: bool,
    outcome: str,
) -> None:
    """Not where its processor had it, whatever its search finds, nor before it is certain that its workflow is gone."""
    order_id = await paying(merchant, store)
    if known:
        await update_order_status(
            store, order_id=UUID(order_id), status="processing", references=References("pi_1"), by=by
        )
    assert (await merchant.shop.post(f"/v1/orders/{order_id}/cancel", {})).status == 200
    asked = (await store.read_stream(UUID(order_id)))[-1]
    await project_orders(settings.database_url.get_secret_value())
    async with store.pool.connection() as connection:
        await forward_again(connection, subscriber="temporal", event=asked, why=error)
        await connection.execute(
            "UPDATE parked_events SET retry = %s, parked_at = parked_at - %s", (retry, parked_for)
        )
    found = (await reconciled(store, Saying(None)))[order_id]
    assert (found.outcome, await status_of(store, order_id)) == (
        *(outcome, "cancelled" if outcome == "recorded" else "processing"),
    )
    async with store.pool.connection() as connection:
        row = await (await connection.execute("SELECT retry FROM parked_events")).fetchone()
    # Parked anew it would seem to be so only since then, each time that somebody looks.
    assert row == (retry or outcome == "recorded",)


async def test_a_payment_to_be_cancelled_that_may_still_be_begun_is_not_over(
    merchant: Merchant, store: EventStore, settings: Settings
) -> None:
    """Its request waits to be forwarded again: its processor would charge."""
    order_id = await paying(merchant, store)
    assert (await merchant.shop.post(f"/v1/orders/{order_id}/cancel", {})).status == 200
    await project_orders(settings.database_url.get_secret_value())
    async with store.pool.connection() as connection:
        for each in (await store.read_stream(UUID(order_id)))[-2:]:
            await forward_again(connection, subscriber="temporal", event=each, why="WorkflowGone: x")
        await connection.execute(
            "UPDATE parked_events SET retry = false, parked_at = parked_at - interval '1m'"
        )
    found = (await reconciled(store, Saying(None)))[order_id]
    assert (found.outcome, await status_of(store, order_id)) == ("unknown", "processing")
    assert await forwarded_again(store) == ["payment.requested", "payment.cancel_requested"]


async def test_a_payment_to_be_cancelled_that_its_processor_had_is_not_over(
    merchant: Merchant, store: EventStore, settings: Settings, by: Metadata
) -> None:
    """It was sent to the customer's bank, so that it is not found means something else."""
    order_id = await reported(merchant, store, settings, by, status="requires_action")
    assert (await merchant.shop.post(f"/v1/orders/{order_id}/cancel", {})).status == 200
    asked = (await store.read_stream(UUID(order_id)))[-1]
    async with store.pool.connection() as connection:
        await forward_again(connection, subscriber="temporal", event=asked, why="WorkflowGone: x")
        await connection.execute(
            "UPDATE parked_events SET retry = false, parked_at = parked_at - interval '1m'"
        )
    found = (await reconciled(store, Saying(None)))[order_id]
    assert (found.outcome, await status_of(store, order_id)) == ("unknown", "requires_action")


async def test_a_capture_that_its_processor_works_on_is_not_requested_again(
    merchant: Merchant, store: EventStore, settings: Settings, by: Metadata
) -> None:
    order_id = await paying(merchant, store, capture="manual")
    await update_order_status(
        store, order_id=UUID(order_id), status="authorized", references=References("pi_1"), by=by
    )
    assert (await merchant.shop.post(f"/v1/orders/{order_id}/capture", {})).status == 200
    await project_orders(settings.database_url.get_secret_value())
    assert (await reconciled(store, says("processing")))[order_id].outcome == "agrees"
    assert await forwarded_again(store) == []
    assert (await reconciled(store, says("authorized")))[order_id].outcome == "unknown"
    assert await forwarded_again(store) == ["payment.capture_requested"]


async def test_a_payment_to_be_cancelled_that_its_processor_does_not_know_is_not_made_after_all(
    merchant: Merchant, store: EventStore, settings: Settings
) -> None:
    order_id = await paying(merchant, store)
    assert (await merchant.shop.post(f"/v1/orders/{order_id}/cancel", {})).status == 200
    await project_orders(settings.database_url.get_secret_value())
    assert (await reconciled(store, Saying(None)))[order_id].outcome == "unknown"
    assert await forwarded_again(store) == ["payment.cancel_requested"]


async def test_a_payment_to_be_cancelled_that_its_processor_has_not_finished_needs_nobody(
    merchant: Merchant, store: EventStore, settings: Settings, by: Metadata
) -> None:
    order_id = await reported(
        merchant, store, settings, by, status="requires_action", references=References("pi_1")
    )
    assert (await merchant.shop.post(f"/v1/orders/{order_id}/cancel", {})).status == 200
    assert (await reconciled(store, says("requires_action")))[order_id].outcome == "waits"
    assert await forwarded_again(store) == ["payment.cancel_requested"]


async def test_a_cancellation_that_came_too_late_is_not_signalled_again(
    merchant: Merchant, store: EventStore, settings: Settings, by: Metadata
) -> None:
    order_id = await paying(merchant, store)
    assert (await merchant.shop.post(f"/v1/orders/{order_id}/cancel", {})).status == 200
    await update_order_status(
        store, order_id=UUID(order_id), status="authorized", references=References("pi_1"), by=by
    )
    await project_orders(settings.database_url.get_secret_value())
    assert (await reconciled(store, says("authorized")))[order_id].outcome == "unknown"
    assert await forwarded_again(store) == ["payment.void_requested"]


async def test_an_order_with_parked_events_takes_one_connection_at_a_time(
    merchant: Merchant, store: EventStore, settings: Settings, by: Metadata
) -> None:
    """Orders are reconciled side by side: if each held one while it waits for another, none would go on."""
    order_id = await reported(merchant, store, settings, by, status="captured")
    requested = (await store.read_stream(UUID(order_id)))[1]
    async with store.pool.connection() as connection:
        await forward_again(connection, subscriber="temporal", event=requested, why="x")
        await connection.execute("UPDATE parked_events SET retry = false")
    small = settings.model_copy(update={"database_pool_size": 1})
    async with open_store(small, application_name="test") as one:
        assert (await reconciled(one, says("captured")))[order_id].outcome == "agrees"
        async with one.pool.connection() as connection:
            rows = await (await connection.execute("SELECT topic, retry FROM parked_events")).fetchall()
    assert rows == [("payment.requested", True)]


async def forwarded_again(store: EventStore) -> list[str]:
    async with store.pool.connection() as connection:
        cursor = await connection.execute("SELECT topic FROM parked_events WHERE reader = 'temporal'")
        return [row[0] for row in await cursor.fetchall()]


@pytest.mark.parametrize(
    ("reported", "there", "learned"),
    [
        (None, "captured", "pi_1"),
        ("ch_1", "captured", "pi_1"),
        ("pi_1", "captured", "pi_1"),
        ("ch_other", "captured", None),
        (None, "failed", None),
    ],
)
async def test_the_reference_of_a_captured_payment_is_learned_where_it_is_the_same(
    merchant: Merchant,
    store: EventStore,
    settings: Settings,
    by: Metadata,
    reported: str | None,
    there: str,
    learned: str | None,
) -> None:
    order_id = await paying(merchant, store)
    await update_order_status(
        store, order_id=UUID(order_id), status="captured", references=References(None, reported), by=by
    )
    await project_orders(settings.database_url.get_secret_value())
    found = (await reconciled(store, says(there)))[order_id]
    assert found.outcome == ("agrees" if there == "captured" else "differs")
    order = await store.load(Order, UUID(order_id))
    assert order is not None
    assert order.payments[1].processor_order_id == learned


async def test_a_payment_stays_known_by_the_reference_that_was_reported(
    merchant: Merchant, store: EventStore, settings: Settings, by: Metadata
) -> None:
    references = References("pi_reported")
    order_id = await reported(merchant, store, settings, by, status="processing", references=references)
    assert (await reconciled(store, says("captured")))[order_id].outcome == "recorded"
    order = await store.load(Order, UUID(order_id))
    assert order is not None
    assert order.payments[1].processor_order_id == "pi_reported"


async def test_a_capture_that_was_asked_for_just_now_needs_nobody_though_its_reference_is_not_known(
    merchant: Merchant, store: EventStore, settings: Settings, by: Metadata
) -> None:
    order_id = await reported(merchant, store, settings, by, status="authorized")
    assert (await merchant.shop.post(f"/v1/orders/{order_id}/capture", {})).status == 200
    processor = says("authorized", processor_order_id=None)
    assert (await reconciled(store, processor, older_than=DAY))[order_id].outcome == "agrees"
    assert (await reconciled(store, processor))[order_id].outcome == "unknown"


async def test_money_that_the_processor_has_beyond_the_record_is_shown(
    merchant: Merchant, store: EventStore, settings: Settings, by: Metadata
) -> None:
    order_id = await reported(merchant, store, settings, by, status="captured", amount=600)
    found = (await reconciled(store, says("captured")))[order_id]
    assert (found.outcome, found.detail) == ("differs", "captured: 6.00 USD here, 10.00 USD there")


async def test_a_refund_of_which_the_processor_has_nothing_is_shown(
    merchant: Merchant, store: EventStore, settings: Settings, by: Metadata
) -> None:
    """A worker said that it was made."""
    order_id = await reported(merchant, store, settings, by, status="captured", references=References("pi_1"))
    refund = (await merchant.shop.post(f"/v1/orders/{order_id}/refund", {"amount": 300})).json["refundId"]
    await update_refund_status(store, order_id=UUID(order_id), refund_id=refund, succeeded=True, by=by)
    found = (await reconciled(store, says("captured")))[order_id]
    assert (found.outcome, found.detail) == ("differs", "refunded: 3.00 USD here, 0.00 USD there")


@pytest.mark.parametrize(
    ("second", "found", "outcomes"),
    [
        ("captured", "captured", {1: "agrees", 2: "agrees"}),
        ("processing", "failed", {1: "agrees", 2: "differs"}),
        ("processing", "cancelled", {1: "agrees", 2: "differs"}),
    ],
)
async def test_what_is_found_by_the_order_alone_is_not_taken_for_another_attempts(
    merchant: Merchant,
    store: EventStore,
    settings: Settings,
    by: Metadata,
    second: str,
    found: str,
    outcomes: dict[int, str],
) -> None:
    """Workers need not label what they charge, nor report references: the only charge must not be given back."""
    order_id = await reported(merchant, store, settings, by, status="failed")
    assert (await merchant.shop.post(f"/v1/orders/{order_id}/pay", {"processor": "stripe"})).status == 200
    await update_order_status(store, order_id=UUID(order_id), status=second, by=by)
    await project_orders(settings.database_url.get_secret_value())

    async def find(_: UUID, __: str) -> Processor:
        return says(found, attempt_known=False)

    findings = await reconcile(store, find=find, older_than=NOW, since=DAY, now=utc_now())
    assert {each.attempt: each.outcome for each in findings} == outcomes
    order = await store.load(Order, UUID(order_id))
    assert order is not None
    assert (order.status, [p.status for p in order.payments.values()]) == (second, ["failed", second])
    assert not [t for t in order.transactions.values() if t.refunds is not None]


async def test_of_two_that_have_money_there_none_is_said_to_be_another_attempts(
    merchant: Merchant, store: EventStore, settings: Settings, by: Metadata
) -> None:
    """The customer paid twice: somebody has to look."""
    order_id = await reported(merchant, store, settings, by, status="failed")
    assert (await merchant.shop.post(f"/v1/orders/{order_id}/pay", {"processor": "stripe"})).status == 200
    await update_order_status(store, order_id=UUID(order_id), status="captured", by=by)
    await project_orders(settings.database_url.get_secret_value())

    async def find(_: UUID, __: str) -> Processor:
        return says("captured", processor_order_id=None, attempt_known=False)

    first, second = await reconcile(store, find=find, older_than=NOW, since=DAY, now=utc_now())
    assert (first.outcome, second.outcome) == ("differs", "agrees")
    order = await store.load(Order, UUID(order_id))
    assert order is not None
    assert order.amount_captured == 1_000


class Failing(EventStore):
    """A store that fails at one order's changes."""

    failing: UUID
    error: Exception

    async def change(self, stream: type[S], id: UUID, decide: Any, **options: Any) -> Any:
        if id == self.failing:
            raise self.error
        return await super().change(stream, id, decide, **options)


@pytest.mark.parametrize(
    "error", [OutcomeUnknown(), StoreUnavailable(), psycopg.OperationalError("the connection is lost")]
)
async def test_trouble_with_one_order_keeps_none_of_the_others_from_being_recorded(
    merchant: Merchant, store: EventStore, settings: Settings, error: Exception
) -> None:
    orders = [await paying(merchant, store) for _ in range(3)]
    url = settings.database_url.get_secret_value()
    await project_orders(url)
    mac_key = derive_mac_key(settings.audit_key.get_secret_value())
    async with Failing(url, store.pool, mac_key=mac_key) as failing:
        failing.failing, failing.error = UUID(orders[0]), error
        found = await reconciled(failing, says("captured"))
    assert [found[each].outcome for each in orders] == ["busy", "recorded", "recorded"]
    assert [await status_of(store, each) for each in orders] == ["processing", "captured", "captured"]


async def test_an_answer_that_is_not_as_documented_keeps_none_of_the_others_from_being_recorded(
    merchant: Merchant, store: EventStore, settings: Settings
) -> None:
    strange: list[dict[str, Any]] = [{}]
    strange += [intent(amount_received=each) for each in ("1000", 999.5, -1, True)]
    strange += [intent(id=5), intent(latest_charge=7)]
    orders = [await paying(merchant, store) for _ in [*strange, intent()]]
    await project_orders(settings.database_url.get_secret_value())
    answers = iter([*strange, intent()])

    async def search(_: web.Request) -> web.Response:
        return web.json_response({"object": "search_result", "data": [next(answers)]})

    async with answering(("/v1/payment_intents/search", search)) as url:
        stripe = StripeProcessor(secret_key="sk_test", base_url=url)
        try:
            found = await reconciled(store, stripe)
        finally:
            await stripe.close()
    assert sorted(found[each].outcome for each in orders) == [*["busy"] * len(strange), "recorded"]


async def test_what_was_recorded_is_reported_although_the_database_fails_afterwards(
    merchant: Merchant, store: EventStore, settings: Settings
) -> None:
    order_id = await paying(merchant, store)
    await project_orders(settings.database_url.get_secret_value())

    async def find(_: UUID, __: str) -> Processor:
        async with store.pool.connection() as connection:
            await connection.execute("ALTER TABLE parked_events RENAME TO elsewhere")
        return says("captured")

    recorded, busy = await reconcile(store, find=find, older_than=NOW, since=DAY, now=utc_now())
    assert [(each.order_id, each.outcome) for each in (recorded, busy)] == [
        (order_id, "recorded"),
        (order_id, "busy"),
    ]
    assert busy.detail is not None
    assert busy.detail.startswith("UndefinedTable")


async def test_once_the_database_is_away_no_further_orders_are_asked_about(
    merchant: Merchant, store: EventStore, settings: Settings
) -> None:
    for _ in range(AT_ONCE + 2):
        await paying(merchant, store)
    await project_orders(settings.database_url.get_secret_value())
    store.pool.timeout = 1.0
    asked: list[int] = []
    held: list[psycopg.AsyncConnection[Any]] = []

    async def find(*_: object) -> Processor:
        asked.append(1)
        while len(held) < store.pool.max_size:
            held.append(await store.pool.getconn())
        return says("captured")

    found = await reconcile(store, find=find, older_than=NOW, since=DAY, now=utc_now())
    for connection in held:
        await store.pool.putconn(connection)
    assert len(asked) <= AT_ONCE
    assert [each.detail for each in found[-2:]] == [NOT_ASKED] * 2


async def test_a_card_number_in_what_a_processor_says_is_not_recorded(
    merchant: Merchant, store: EventStore, settings: Settings
) -> None:
    order_id = await paying(merchant, store)
    await project_orders(settings.database_url.get_secret_value())
    said = says("failed", failure=Failure(f"{CARD}\0", f"{CARD} was declined\0"))
    assert (await reconciled(store, said))[order_id].outcome == "recorded"
    order = await store.load(Order, UUID(order_id))
    assert order is not None
    assert order.last_error is not None
    assert order.last_error.message == "**************** was declined"
    assert order.last_error.code == "****************"


@pytest.mark.parametrize("reported", [References(CARD, f"ch_{CARD}"), NO_REFERENCES])
async def test_a_payment_whose_reference_looks_like_a_card_number_is_recorded(
    merchant: Merchant, store: EventStore, settings: Settings, by: Metadata, reported: References
) -> None:
    """What its worker reported stays on record; what the processor answers is not taken over."""
    order_id = await paying(merchant, store)
    await update_order_status(store, order_id=UUID(order_id), status="processing", references=reported, by=by)
    await project_orders(settings.database_url.get_secret_value())
    said = says("captured", processor_order_id=CARD, processor_transaction_id=f"ch_{CARD}")
    assert (await reconciled(store, said))[order_id].outcome == "recorded"
    order = await store.load(Order, UUID(order_id))
    assert order is not None
    assert (order.status, order.processor_order_id) == ("captured", reported.order_id)
    assert (await reconciled(store, said))[order_id].outcome == "agrees"


class Contended(EventStore):
    """A store whose orders another process changes between being loaded here and being appended to, so many times."""

    rival: EventStore
    times: int

    async def load(self, stream: type[S], id: UUID, *, up_to_version: int | None = None) -> S | None:
        loaded = await super().load(stream, id, up_to_version=up_to_version)
        if self.times > 0:
            self.times -= 1
            by = Metadata(at=utc_now(), actor="system", correlation_id="rival")
            reference = f"pi_{self.times}"
            await update_order_status(
                self.rival, order_id=id, status="processing", references=References(reference), by=by
            )
        return loaded


@pytest.mark.parametrize(("times", "outcome"), [(9, "recorded"), (1_000, "busy")])
async def test_an_order_that_keeps_changing_is_tried_again_and_in_the_end_does_not_keep_the_others_waiting(
    merchant: Merchant, store: EventStore, settings: Settings, times: int, outcome: str
) -> None:
    order_id = await paying(merchant, store)
    url = settings.database_url.get_secret_value()
    await project_orders(url)
    mac_key = derive_mac_key(settings.audit_key.get_secret_value())
    async with Contended(url, store.pool, mac_key=mac_key, patience=60.0) as contended:
        contended.rival, contended.times = store, times
        found = (await reconciled(contended, says("captured")))[order_id]
    assert found.outcome == outcome
    assert await status_of(store, order_id) == ("captured" if outcome == "recorded" else "processing")


@pytest.mark.parametrize("captured", [1, 2])
async def test_attempts_that_share_a_reference_are_money_once(
    merchant: Merchant, store: EventStore, settings: Settings, by: Metadata, captured: int
) -> None:
    """A worker that tries again under the same reference: there is one payment at the processor.

    It is that of the attempt that was captured; of the later, where none was.
    """
    order_id = await paying(merchant, store)
    await update_order_status(
        store, order_id=UUID(order_id), status="failed", references=References("pi_1"), by=by
    )
    await merchant.shop.post(f"/v1/orders/{order_id}/pay", {"processor": "stripe"})
    await update_order_status(
        store, order_id=UUID(order_id), attempt=2, status="processing", references=References("pi_1"), by=by
    )
    if captured == 1:
        await update_order_status(
            store, order_id=UUID(order_id), attempt=1, status="captured", references=References("pi_1"), by=by
        )
    await project_orders(settings.database_url.get_secret_value())
    found = (await reconciled(store, says("captured")))[order_id]
    assert (found.attempt, found.outcome) == (captured, "recorded" if captured == 2 else "agrees")
    order = await store.load(Order, UUID(order_id))
    assert order is not None
    assert [transaction.type for transaction in order.transactions.values() if transaction.refunds] == []
    assert (order.amount_captured, order.payments[captured].status) == (1_000, "captured")


@pytest.mark.parametrize(
    ("operation", "after", "transaction"),
    [("cancel", "cancelled", ("void", "success")), ("capture", "failed", ("capture", "failed"))],
)
async def test_an_authorization_that_is_over_ends_what_was_asked_for_under_it(
    merchant: Merchant,
    store: EventStore,
    settings: Settings,
    by: Metadata,
    operation: str,
    after: str,
    transaction: tuple[str, str],
) -> None:
    """The workflow of a void or capture died: the processor has released the money, by our wish or by its own."""
    order_id = await paying(merchant, store, capture="manual")
    await update_order_status(store, order_id=UUID(order_id), status="authorized", by=by)
    assert (await merchant.shop.post(f"/v1/orders/{order_id}/{operation}", {})).status == 200
    await project_orders(settings.database_url.get_secret_value())
    found = (await reconciled(store, says("cancelled")))[order_id]
    assert (found.outcome, await status_of(store, order_id)) == ("recorded", after)
    order = await store.load(Order, UUID(order_id))
    assert order is not None
    assert [(t.type, t.status) for t in order.transactions.values()][1:] == [transaction]


class Holding:
    """A processor that holds the money of some payments, and has the others as failed; by their references."""

    def __init__(self, *references: str) -> None:
        self.references = references

    async def look_up(self, question: PaymentQuestion) -> ProcessorPayment | None:
        reference = question.processor_order_id
        return ProcessorPayment(
            status="authorized" if reference in self.references else "failed",
            processor_order_id=reference,
            processor_transaction_id=None,
            currency="USD",
            amount_captured=0,
            amount_refunded=0,
        )


async def failed_attempts(
    merchant: Merchant, store: EventStore, by: Metadata, *references: str | None
) -> UUID:
    """An order whose payments were each said to have failed by their workflows."""
    order_id = UUID(await paying(merchant, store))
    for attempt, reference in enumerate(references, start=1):
        if attempt > 1:
            paid = await merchant.shop.post(f"/v1/orders/{order_id}/pay", {"processor": "stripe"})
            assert paid.status == 200
        await update_order_status(
            store,
            order_id=order_id,
            attempt=attempt,
            status="failed",
            references=References(reference),
            failure=Failure("timeout"),
            by=by,
        )
    return order_id


def voids(order: Order) -> list[tuple[int, str]]:
    return [(t.attempt, t.status) for t in order.transactions.values() if t.type is TransactionType.VOID]


async def test_money_that_is_held_for_a_payment_that_failed_can_be_captured_or_given_back(
    merchant: Merchant, store: EventStore, settings: Settings, by: Metadata
) -> None:
    """Its workflow failed, and the processor's own event was lost."""
    order_id = await failed_attempts(merchant, store, by, "pi_1")
    await project_orders(settings.database_url.get_secret_value())
    early = (await reconciled(store, Holding("pi_1"), older_than=DAY))[str(order_id)]
    assert (early.outcome, await status_of(store, str(order_id))) == ("differs", "failed")
    found = (await reconciled(store, Holding("pi_1")))[str(order_id)]
    assert (found.outcome, await status_of(store, str(order_id))) == ("recorded", "authorized")
    assert (await merchant.shop.post(f"/v1/orders/{order_id}/cancel")).status == 200
    for _ in range(2):
        await reconciled(store, Holding("pi_1"))
        order = await store.load(Order, order_id)
        assert order is not None
        assert (voids(order), order.amount_captured) == ([(1, "pending")], 0)


async def test_money_that_is_held_for_an_order_that_was_cancelled_is_given_back_once(
    merchant: Merchant, store: EventStore, settings: Settings, by: Metadata
) -> None:
    order_id = await failed_attempts(merchant, store, by, "pi_1")
    assert (await merchant.shop.post(f"/v1/orders/{order_id}/cancel")).status == 200
    await project_orders(settings.database_url.get_secret_value())
    for status in ("pending", "pending", "failed"):
        await reconciled(store, Holding("pi_1"))
        order = await store.load(Order, order_id)
        assert order is not None
        assert (order.status, voids(order)) == ("cancelled", [(1, "pending")])
        if status == "failed":
            await update_order_status(
                store, order_id=order_id, status="failed", operation=(TransactionType.VOID, 1), by=by
            )
    await reconciled(store, Holding("pi_1"))
    order = await store.load(Order, order_id)
    assert order is not None
    assert (order.status, voids(order)) == ("cancelled", [(1, "failed")])


@pytest.mark.parametrize(
    ("references", "held", "voided"),
    [
        (("pi_1", "pi_2"), "pi_1", [(1, "pending")]),
        (("pi_1", None), "pi_1", []),
        (("pi_1", "pi_1"), "pi_1", []),
        ((None, "pi_2"), "pi_2", []),
    ],
)
async def test_no_money_is_given_back_that_may_be_another_attempts(
    merchant: Merchant,
    store: EventStore,
    settings: Settings,
    by: Metadata,
    references: tuple[str | None, ...],
    held: str,
    voided: list[tuple[int, str]],
) -> None:
    """A worker may use a reference again, and a reference that nobody reported may be the same."""
    order_id = await failed_attempts(merchant, store, by, *references)
    await project_orders(settings.database_url.get_secret_value())
    await reconciled(store, Holding(held))
    order = await store.load(Order, order_id)
    assert order is not None
    assert (order.status, voids(order)) == ("failed", voided)


class Overtaken:
    """A processor whose answer is under way while it tells something newer by itself."""

    def __init__(self, answer: ProcessorPayment | None, tell: Callable[[], Awaitable[None]]) -> None:
        self.answer = answer
        self.tell = tell

    async def look_up(self, question: PaymentQuestion) -> ProcessorPayment | None:
        await self.tell()
        return self.answer


async def test_a_payment_that_is_made_again_meanwhile_keeps_what_its_processor_holds_for_the_first(
    merchant: Merchant, store: EventStore, settings: Settings, by: Metadata
) -> None:
    """The second may be made under the reference of the first: a void would take its money."""
    order_id = await failed_attempts(merchant, store, by, "pi_1")
    await project_orders(settings.database_url.get_secret_value())

    async def pay_again() -> None:
        assert (await merchant.shop.post(f"/v1/orders/{order_id}/pay", {"processor": "stripe"})).status == 200

    said = says("authorized").answer
    assert isinstance(said, ProcessorPayment)
    found = (await reconciled(store, Overtaken(said, pay_again)))[str(order_id)]
    order = await store.load(Order, order_id)
    assert order is not None
    assert (found.outcome, order.status, voids(order)) == ("busy", "processing", [])


@pytest.mark.parametrize("answer", ["failed", "cancelled", None])
async def test_an_answer_that_was_overtaken_ends_no_payment(
    merchant: Merchant, store: EventStore, settings: Settings, by: Metadata, answer: str | None
) -> None:
    """The customer's second card was accepted after the first was declined, or the charge arrived just now."""
    order_id = await paying(merchant, store, capture="manual")
    if answer != "failed":
        assert (await merchant.shop.post(f"/v1/orders/{order_id}/cancel", {})).status == 200
    if answer is None:
        [_, _, asked] = await store.read_stream(UUID(order_id))
        async with store.pool.connection() as connection:
            await forward_again(connection, subscriber="temporal", event=asked, why="WorkflowGone: …")
            await connection.execute("UPDATE parked_events SET retry = false")
    await project_orders(settings.database_url.get_secret_value())

    async def tell() -> None:
        await update_order_status(
            store, order_id=UUID(order_id), status="authorized", references=References("pi_1"), by=by
        )

    said = None if answer is None else says(answer).answer
    assert not isinstance(said, Exception)
    found = (await reconciled(store, Overtaken(said, tell)))[order_id]
    assert (found.outcome, await status_of(store, order_id)) == ("busy", "authorized")
    order = await store.load(Order, UUID(order_id))
    assert order is not None
    voids = [] if answer == "failed" else ["pending"]
    assert [t.status for t in order.transactions.values()] == ["success", *voids]


@pytest.mark.parametrize(("answer", "told"), [("processing", "requires_action"), ("authorized", "failed")])
async def test_an_answer_that_was_overtaken_does_not_bring_back_how_a_payment_stood(
    merchant: Merchant, store: EventStore, settings: Settings, by: Metadata, answer: str, told: str
) -> None:
    """The customer is sent to the bank just now, or the authorization was refused there."""
    order_id = await paying(merchant, store, capture="manual")
    await project_orders(settings.database_url.get_secret_value())

    async def tell() -> None:
        await update_order_status(
            store, order_id=UUID(order_id), status=told, references=References("pi_1"), by=by
        )

    said = says(answer).answer
    assert isinstance(said, ProcessorPayment)
    found = (await reconciled(store, Overtaken(said, tell)))[order_id]
    assert (found.outcome, await status_of(store, order_id)) == ("busy", told)


async def test_an_answer_from_before_a_capture_was_asked_for_ends_no_authorization(
    merchant: Merchant, store: EventStore, settings: Settings, by: Metadata
) -> None:
    order_id = await paying(merchant, store, capture="manual")
    await update_order_status(store, order_id=UUID(order_id), status="authorized", by=by)
    await project_orders(settings.database_url.get_secret_value())

    async def capture() -> None:
        assert (await merchant.shop.post(f"/v1/orders/{order_id}/capture", {})).status == 200

    said = says("failed").answer
    assert isinstance(said, ProcessorPayment)
    found = (await reconciled(store, Overtaken(said, capture)))[order_id]
    assert (found.outcome, await status_of(store, order_id)) == ("busy", "authorized")


@pytest.mark.parametrize(
    ("older_than", "asked_about"),
    [(NOW, {"processing", "requires_action", "captured"}), (DAY, {"captured"})],
)
async def test_what_is_under_way_for_longer_or_parked_is_asked_about_however_long_ago_it_changed(
    merchant: Merchant,
    store: EventStore,
    settings: Settings,
    by: Metadata,
    older_than: timedelta,
    asked_about: set[str],
) -> None:
    statuses = ("processing", "requires_action", "captured", "failed")
    orders = {await reported(merchant, store, settings, by, status=each): each for each in statuses}
    of = {status: order_id for order_id, status in orders.items()}
    for status, reader in (("captured", "temporal"), ("failed", "orders")):
        parked = (await store.read_stream(UUID(of[status])))[-1]
        async with store.pool.connection() as connection:
            await forward_again(connection, subscriber=reader, event=parked, why="x")

    async def find(merchant_id: UUID, name: str) -> Processor:
        return Saying(None)

    found = await reconcile(store, find=find, older_than=older_than, since=NOW, now=utc_now())
    assert {orders[each.order_id] for each in found} == asked_about


class Asked(Saying):
    """Keeps what it was asked, by attempt."""

    def __init__(self, answer: ProcessorPayment | Exception | None) -> None:
        super().__init__(answer)
        self.questions: dict[int, PaymentQuestion] = {}

    async def look_up(self, question: PaymentQuestion) -> ProcessorPayment | None:
        self.questions[question.attempt] = question
        return await super().look_up(question)


async def test_the_money_of_one_attempt_is_not_taken_for_anothers(
    merchant: Merchant, store: EventStore, settings: Settings, by: Metadata
) -> None:
    """Neither there, where each is asked for beside the others' references, nor here."""
    order_id = await paying(merchant, store)
    for attempt, status in ((1, "failed"), (2, "captured")):
        if attempt > 1:
            await merchant.shop.post(f"/v1/orders/{order_id}/pay", {"processor": "stripe"})
        reference = f"pi_{attempt}"
        await update_order_status(
            store,
            order_id=UUID(order_id),
            attempt=attempt,
            status=status,
            references=References(reference),
            by=by,
        )
    await project_orders(settings.database_url.get_secret_value())
    failed = Asked(says("failed").answer)

    async def find(merchant_id: UUID, name: str) -> Processor:
        return failed

    first, second = await reconcile(store, find=find, older_than=NOW, since=DAY, now=utc_now())
    assert {n: each.others for n, each in failed.questions.items()} == {1: {"pi_2"}, 2: {"pi_1"}}
    assert (first.outcome, first.ours.captured) == ("agrees", 0)
    assert (second.outcome, second.ours.captured) == ("differs", 1_000)


# -- the command


async def test_the_command_reports_and_says_by_its_status_whether_all_agrees(
    merchant: Merchant, store: EventStore, settings: Settings, pool: AsyncConnectionPool
) -> None:
    order_id = await paying(merchant, store)
    await charged(store, order_id)
    lost = await paying(merchant, store)
    await project_orders(settings.database_url.get_secret_value())
    status, report, _ = await run(settings, "--sandbox", "--json", "--older-than", "0s")
    assert status == 1
    outcomes = {each["orderId"]: each["outcome"] for each in json.loads(report)["payments"]}
    assert outcomes == {order_id: "recorded", lost: "unknown"}
    await charged(store, lost, "tok_chargeDeclined")
    await project_orders(settings.database_url.get_secret_value())
    assert (await run(settings, "--sandbox", "--older-than", "0s"))[0] == 0
    status, report, _ = await run(settings, "--sandbox")
    assert (status, "2 payments: 2 agree" in report) == (0, True)
    assert (await merchant.dashboard.call("DELETE", "/api/processors/stripe")).status == 204
    status, report, _ = await run(settings, "--json")  # of a merchant that can be asked in nobody's name
    assert status == 1
    assert {each["outcome"] for each in json.loads(report)["payments"]} == {"unreachable"}
    status, _, said = await run(settings, "--older-than", "soon")
    assert (status, "no duration" in said) == (2, True)


@pytest.mark.parametrize("trouble", ["differs", "unreadable", "busy"])
async def test_the_command_says_that_not_all_agrees_where_somebody_has_to_look(
    merchant: Merchant,
    store: EventStore,
    settings: Settings,
    trouble: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    order_id = await paying(merchant, store)
    await charged(store, order_id, currency="EUR")
    await project_orders(settings.database_url.get_secret_value())
    if trouble == "unreadable":
        await insert_raw(store, merchant.id, topic="payment.teleported", state=b"{}", stream=UUID(order_id))
    if trouble == "busy":
        async with store.pool.connection() as connection:
            await connection.execute("ALTER TABLE sandbox.charges RENAME currency TO money")
    assert not await run_reconcile(settings, older_than=NOW, since=DAY, sandbox=True, as_json=True)
    assert f'"outcome": "{trouble}"' in capsys.readouterr().out


@pytest.mark.parametrize("told", [signal.SIGINT, signal.SIGTERM])
async def test_the_command_tells_what_it_has_found_where_it_is_interrupted(
    merchant: Merchant, store: EventStore, settings: Settings, told: signal.Signals
) -> None:
    unreadable = await paying(merchant, store)
    await charged(store, await paying(merchant, store))
    await project_orders(settings.database_url.get_secret_value())
    await insert_raw(store, merchant.id, topic="payment.teleported", state=b"{}", stream=UUID(unreadable))
    async with store.pool.connection() as connection, connection.transaction():
        await connection.execute("LOCK TABLE sandbox.charges")
        child = await begin_command(settings, "reconcile", "--sandbox", "--json", "--older-than", "0s")
        async with asyncio.timeout(120):
            while await (await connection.execute(LOOKED_UP)).fetchone() is None:
                await asyncio.sleep(0.05)
        child.send_signal(told)
        output, errors = await asyncio.wait_for(child.communicate(), 120)
    assert child.returncode == 128 + told
    found = [(each["orderId"], each["outcome"]) for each in json.loads(output)["payments"]]
    assert found == [(unreadable, "unreadable")]
    assert b"payloops: interrupted: " in errors


def test_what_agrees_is_counted_and_what_does_not_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    agreeing = Finding(
        order_id="first",
        merchant_id="m",
        attempt=1,
        processor="stripe",
        currency="USD",
        outcome="agrees",
        ours=Standing(status="captured", captured=1_000, refunded=0),
        theirs=None,
        detail=None,
    )
    findings = [agreeing, replace(agreeing, order_id="second", outcome="unknown")]
    received = [
        ProcessorEventCount(processor="stripe", effect=effect, events=number)
        for number, effect in enumerate(("applied", "contradiction"), start=7)
    ]
    print_findings(findings, received)
    shown = capsys.readouterr().out
    assert ("first" in shown, "second" in shown) == (False, True)
    assert "2 payments: 1 agree, " in shown
    assert ("7 events" in shown, "8 events of stripe without effect: contradiction" in shown) == (False, True)


LOOKED_UP = "SELECT FROM pg_locks WHERE NOT granted AND relation = 'sandbox.charges'::regclass"


async def run(settings: Settings, *arguments: str) -> tuple[int, str, str]:
    return await run_command(settings, "reconcile", *arguments)
