"""Which workflow an order's event starts or signals, and with what."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import Any, cast
from uuid import UUID

import pytest
from forwarding import caught_up, exists, parked, signals, started, subscribing
from ordering import BY, new_order, pay, report
from processor_events import came_back, refunded
from telling import AMOUNT, Orders
from temporalio.client import Client

from payloops.commands.cancel_order import cancel, cancel_order, request_void
from payloops.commands.capture_payment import capture_payment, request_capture
from payloops.commands.pay_order import request_payment
from payloops.commands.payment_outcomes import report_authorized, report_captured, report_failed
from payloops.commands.receive_processor_event import Outcome, ProcessorEvent, receive
from payloops.commands.refund_payment import refund_payment, request_refund
from payloops.commands.resolve_order import Sighting, resolve_order
from payloops.commands.route_payment import Route
from payloops.commands.update_order_status import learn_reference, update_order_status
from payloops.commands.update_refund_status import update_refund_status
from payloops.commands.workflow_ids import attempt_of, payment_workflow_id
from payloops.events.event_store import EventStore
from payloops.events.metadata import Metadata
from payloops.events.orders import (
    NO_REFERENCES,
    Failure,
    Order,
    PaymentRequested,
    References,
    TransactionType,
)
from payloops.events.stream import StreamEvent, topic_of
from payloops.projections.parked import forward_again
from payloops.settings import Settings
from payloops.workflows_client import payment_subscription as module
from payloops.workflows_client.forwardings import Forwarding, SignalWorkflow, StartWorkflow
from payloops.workflows_client.payment_subscription import (
    READER,
    TOPICS,
    DuplicateUncertain,
    OtherGivenBack,
    ProcessorReferenceMissing,
    RefundUncertain,
    forwarding_of,
    is_done,
    payment_subscription,
    refuse_given_back,
)


@pytest.fixture(scope="module")
def temporal_namespace(namespaces: Iterator[str]) -> str:
    """One for all of these tests: orders of their own keep them apart."""
    return next(namespaces)


async def test_a_payment_starts_its_workflow(
    store: EventStore, settings: Settings, client: Client, orders: Orders, merchant_id: UUID
) -> None:
    method = {"type": "card", "token": "tok_visa"}
    async with subscribing(store, settings, client):
        order_id = await orders.create(return_url="https://shop.example/back")
        await orders.pay(order_id, payment_method=method, capture="manual")
        start = await started(client, f"payment-{order_id}")
    assert start["workflow"] == "PaymentWorkflow"
    assert start["queue"] == "stripe-payments"
    assert start["memo"] == {"correlationId": "test"}
    assert start["input"] == {
        "orderId": str(order_id),
        "merchantId": str(merchant_id),
        "amount": AMOUNT,
        "currency": "USD",
        "returnUrl": "https://shop.example/back",
        "paymentMethod": method,
        "capture": "manual",
    }


async def test_fields_without_a_value_are_absent(
    store: EventStore, settings: Settings, client: Client, orders: Orders, merchant_id: UUID
) -> None:
    async with subscribing(store, settings, client):
        order_id = await orders.paid(route=Route(processor="razorpay", reason="test"))
        start = await started(client, f"payment-{order_id}")
        by_upi = await orders.create()
        await orders.pay(by_upi, payment_method={"type": "upi", "token": None})  # as HTTP gives it
        without_token = await started(client, f"payment-{by_upi}")
    assert start["queue"] == "razorpay-payments"
    assert start["input"] == {
        "orderId": str(order_id),
        "merchantId": str(merchant_id),
        "amount": AMOUNT,
        "currency": "USD",
        "capture": "automatic",
    }
    assert without_token["input"]["paymentMethod"] == {"type": "upi"}


async def test_a_second_attempt_has_a_workflow_of_its_own(
    store: EventStore, settings: Settings, client: Client, orders: Orders
) -> None:
    async with subscribing(store, settings, client):
        order_id = await orders.paid()
        await orders.report(order_id, "failed")
        await orders.pay(order_id)
        first = await started(client, f"payment-{order_id}")
        second = await started(client, f"payment-{order_id}-2")
    assert first["input"] == second["input"]


async def test_captures_voids_and_refunds_start_theirs(
    store: EventStore, settings: Settings, client: Client, orders: Orders, merchant_id: UUID, by: Metadata
) -> None:
    async with subscribing(store, settings, client):
        captured, voided = await orders.authorized(), await orders.authorized()
        asks = [replace(by, correlation_id=f"of the {kind}") for kind in ("capture", "void", "refund")]
        await capture_payment(store, order_id=captured, merchant_id=merchant_id, amount=3_000, by=asks[0])
        await cancel_order(store, order_id=voided, merchant_id=merchant_id, by=asks[1])
        capture = await started(client, f"capture-{captured}")
        void = await started(client, f"void-{voided}")
        await orders.report(captured, "captured")
        refund = await refund_payment(
            store, order_id=captured, merchant_id=merchant_id, amount=1_000, reason="broken", by=asks[2]
        )
        refunded = await started(client, f"refund-{refund.id}")
    memos = [each["memo"] for each in (capture, void, refunded)]
    assert memos == [{"correlationId": each.correlation_id} for each in asks]
    expected = {"merchantId": str(merchant_id), "currency": "USD"}
    ids = {"orderId": str(captured), "processorOrderId": f"po_{captured}"}
    assert (capture["workflow"], capture["queue"]) == ("CaptureWorkflow", "stripe-payments")
    assert capture["input"] == expected | ids | {"amount": 3_000}
    assert void["workflow"] == "VoidWorkflow"
    assert void["input"] == expected | {
        "orderId": str(voided),
        "processorOrderId": f"po_{voided}",
        "amount": AMOUNT,
    }
    assert refunded["workflow"] == "RefundWorkflow"
    assert refunded["input"] == expected | ids | {
        "refundId": refund.id,
        "transactionId": refund.refunds,
        "amount": 1_000,
        "reason": "broken",
    }
    order = await store.load(Order, captured)
    assert order is not None
    assert order.transactions[cast("str", refund.refunds)].amount == 3_000


async def test_a_capture_asked_again_after_it_failed_has_a_workflow_of_its_own(
    store: EventStore, settings: Settings, client: Client, orders: Orders, merchant_id: UUID, by: Metadata
) -> None:
    async with subscribing(store, settings, client):
        order_id = await orders.authorized()
        await capture_payment(store, order_id=order_id, merchant_id=merchant_id, by=by)
        await started(client, f"capture-{order_id}")
        await orders.report(order_id, "failed")
        await capture_payment(store, order_id=order_id, merchant_id=merchant_id, amount=1_000, by=by)
        again = await started(client, f"capture-{order_id}-2")
    assert again["input"]["amount"] == 1_000


def forwarded(order: Order, *, reference: str | None = None) -> list[Forwarding | None]:
    """What the order's events mean to Temporal."""
    return [
        forwarding_of(event, reference=reference)
        for event in order.pending_events
        if isinstance(event, StreamEvent) and topic_of(event) in TOPICS
    ]


def test_whatever_is_asked_for_again_is_started_anew_at_the_processor_that_has_the_payment() -> None:
    """Money that is held is not given back by a workflow that ended long ago, nor by another processor's worker."""
    order = report(pay(new_order()), "failed")
    route = Route(processor="razorpay", reason="test")
    request_payment(order, route=route, payment_method=None, capture="manual", by=BY)
    payment = order.payments[2]
    report_authorized(order, payment, references=NO_REFERENCES, by=BY)
    for kind in (TransactionType.VOID, TransactionType.CAPTURE) * 2:
        if kind is TransactionType.VOID:
            request_void(order, payment, by=BY)
        else:
            request_capture(order, amount=None, by=BY)
        [asked] = order.pending(2, kind)
        report_failed(
            order, payment, references=NO_REFERENCES, failure=Failure("busy"), requested=asked, by=BY
        )
    report_captured(order, payment, references=NO_REFERENCES, by=BY)
    refund = request_refund(order, amount=None, reason=None, by=BY)
    with pytest.raises(ProcessorReferenceMissing):
        forwarded(order)
    starts = [each for each in forwarded(order, reference="order_1") if isinstance(each, StartWorkflow)]
    kinds = ("void-{}", "capture-{}", "void-{}-2", "capture-{}-2")
    assert [(each.workflow_id, each.task_queue) for each in starts] == [
        (f"payment-{order.id}", "stripe-payments"),
        (f"payment-{order.id}-2", "razorpay-payments"),
        *((kind.format(order.id), "razorpay-payments") for kind in kinds),
        (f"refund-{refund.id}", "razorpay-payments"),
    ]
    assert {each.input["processorOrderId"] for each in starts[2:]} == {"order_1"}
    assert starts[-1].input == {
        "refundId": refund.id,
        "orderId": str(order.id),
        "merchantId": order.merchant_id,
        "transactionId": refund.refunds,
        "processorOrderId": "order_1",
        "amount": order.amount,
        "currency": "USD",
    }


def told(outcome: Outcome, **fields: Any) -> ProcessorEvent:
    return ProcessorEvent(processor="stripe", event_id=outcome, type=outcome, outcome=outcome, **fields)


def test_a_workflow_hears_what_became_of_its_own_attempt_and_not_that_it_goes_on() -> None:
    order = pay(report(pay(new_order()), "failed"))
    cancel(order, by=BY)
    captured = told("captured", attempt=1, references=References(None, "pt_1"))
    for event in (told("requires_action"), captured, told("failed", attempt=2)):
        receive(order, event, by=BY)
    signals = [each for each in forwarded(order) if isinstance(each, SignalWorkflow)]
    first, second = f"payment-{order.id}", f"payment-{order.id}-2"
    assert [(each.workflow_id, each.signal, each.argument) for each in signals] == [
        (second, "cancelPayment", None),
        (first, "completePayment", {"success": True, "processorTransactionId": "pt_1"}),
        (second, "completePayment", {"success": False}),
    ]


@pytest.mark.parametrize(
    ("status", "done"),
    [
        ("processing", False),
        *((status, True) for status in ("requires_action", "authorized", "captured", "failed", "cancelled")),
    ],
)
def test_a_payment_that_its_processor_has_or_that_has_ended_is_not_made_again(
    status: str, done: bool
) -> None:
    order = report(pay(new_order()), status)
    [requested] = [each for each in order.pending_events if isinstance(each, PaymentRequested)]
    assert is_done(order, requested) is done


async def test_a_cancellation_signals_the_attempt_that_runs_after_its_start(
    store: EventStore, settings: Settings, client: Client, orders: Orders, merchant_id: UUID, by: Metadata
) -> None:
    """Both are in the log before the subscriber comes: in one batch, and still in their order."""
    order_ids = [await orders.paid() for _ in range(20)]
    for order_id in order_ids:
        await cancel_order(store, order_id=order_id, merchant_id=merchant_id, by=by)
    async with subscribing(store, settings, client):
        await caught_up(store)
        for order_id in order_ids:
            assert await signals(client, f"payment-{order_id}") == ["cancelPayment"]


async def test_a_payment_that_was_cancelled_before_temporal_had_it_knows_so_before_it_charges(
    store: EventStore, settings: Settings, client: Client, orders: Orders, merchant_id: UUID, by: Metadata
) -> None:
    """Temporal was away for longer than a moment. Once the workflow has ended, it is not started again either way."""
    order_id = await orders.create()
    orders.by = replace(orders.by, at=orders.by.at - timedelta(hours=1))
    await orders.pay(order_id)
    await cancel_order(store, order_id=order_id, merchant_id=merchant_id, by=by)
    handle = client.get_workflow_handle(f"payment-{order_id}")
    async with subscribing(store, settings, client):
        await caught_up(store)
        first = (await handle.fetch_history()).events[:2]
        await handle.terminate()
        async with store.pool.connection() as connection:
            await connection.execute("UPDATE checkpoints SET position = 0 WHERE name = %s", (READER,))
    assert first[1].workflow_execution_signaled_event_attributes.signal_name == "cancelPayment"
    run = (await handle.describe()).run_id
    async with subscribing(store, settings, client):
        await caught_up(store)
    assert (await handle.describe()).run_id == run
    assert [topic for topic, _ in await parked(store)] == ["payment.cancel_requested"]


async def test_a_cancellation_that_came_too_late_is_no_error(
    store: EventStore, settings: Settings, client: Client, orders: Orders, merchant_id: UUID, by: Metadata
) -> None:
    order_id = await orders.paid()
    await cancel_order(store, order_id=order_id, merchant_id=merchant_id, by=by)
    await update_order_status(store, order_id=order_id, status="captured", by=by)
    async with subscribing(store, settings, client):
        await started(client, f"payment-{order_id}")
        await client.get_workflow_handle(f"payment-{order_id}").terminate()
        await caught_up(store)
        async with store.pool.connection() as connection:
            await connection.execute("UPDATE checkpoints SET position = 0 WHERE name = %s", (READER,))
    async with subscribing(store, settings, client):
        await caught_up(store)
    assert await parked(store) == []


@pytest.mark.parametrize(
    ("suffix", "attempt"), [("", 1), ("-2", 2), ("-10", 10), ("-x", None), ("2", None), ("-", None)]
)
def test_the_attempt_is_read_from_a_workflow_id(suffix: str, attempt: int | None) -> None:
    order_id = "01900000-0000-7000-8000-000000000001"
    assert attempt_of(f"payment-{order_id}{suffix}", order_id=order_id) == attempt
    assert attempt_of(f"capture-{order_id}{suffix}", order_id=order_id) is None
    if attempt is not None:
        assert payment_workflow_id(order_id=order_id, attempt=attempt) == f"payment-{order_id}{suffix}"


async def test_a_refund_that_ended_before_temporal_had_it_is_not_made_again(
    store: EventStore, settings: Settings, client: Client, orders: Orders, merchant_id: UUID, by: Metadata
) -> None:
    """Temporal was away, somebody made it in the processor's dashboard, and its event was taken for ours."""
    order_id = await orders.paid()
    await orders.report(order_id, "captured")
    refund = await refund_payment(store, order_id=order_id, merchant_id=merchant_id, by=by)
    await update_refund_status(
        store, order_id=order_id, refund_id=refund.id, succeeded=True, processor_transaction_id="re_1", by=by
    )
    async with subscribing(store, settings, client):
        await caught_up(store)
        assert await exists(client, f"refund-{refund.id}") is False
    assert await parked(store) == []


@pytest.mark.parametrize("hours", [-1, 1])
async def test_a_payment_that_was_parked_and_has_failed_since_is_not_made(
    store: EventStore, settings: Settings, client: Client, orders: Orders, hours: int
) -> None:
    """Also if it was requested by a process whose clock was ahead."""
    order_id = await orders.create()
    orders.by = replace(orders.by, at=orders.by.at + timedelta(hours=hours))
    await orders.pay(order_id)
    [recorded] = [e for e in await store.read_stream(order_id) if e.stored.topic == "payment.requested"]
    await orders.report(order_id, "failed")
    async with store.pool.connection() as connection:
        await forward_again(connection, subscriber=READER, event=recorded, why="it was parked")
    async with subscribing(store, settings, client):
        await caught_up(store)
        assert await exists(client, f"payment-{order_id}") is False
        assert await parked(store) == []


async def test_a_charge_is_given_back_under_its_own_reference_though_it_became_known_later(
    store: EventStore, orders: Orders, by: Metadata
) -> None:
    """The second attempt was captured, then the first, which is refunded: nobody knew its reference then."""
    order_id = await orders.paid()
    for status, attempt in (("failed", 1), ("captured", 2), ("captured", 1)):
        if attempt == 2:
            await orders.pay(order_id)
            await orders.report(order_id, status, attempt=attempt)
        else:
            await update_order_status(store, order_id=order_id, status=status, attempt=attempt, by=by)
    await learn_reference(store, order_id=order_id, attempt=1, processor_order_id="po_first", by=by)
    [refund] = [e for e in await store.read_stream(order_id) if e.stored.topic == "refund.requested"]
    start = await payment_subscription(store).plan(refund)
    assert isinstance(start, StartWorkflow)
    assert start.input["processorOrderId"] == "po_first"


@pytest.mark.parametrize(
    ("references", "told", "certain"),
    [
        (NO_REFERENCES, None, False),
        (References(None, "pt_second"), None, False),  # of the first, only that of the payment is known
        (References("po_second"), None, True),
        (NO_REFERENCES, References("po_second", "pt_second"), True),
        (NO_REFERENCES, References("po_first", "pt_first"), False),  # the only event that came
    ],
)
async def test_a_charge_is_given_back_as_a_duplicate_only_where_it_is_certain_that_there_are_two(
    store: EventStore,
    orders: Orders,
    by: Metadata,
    references: References,
    told: References | None,
    certain: bool,
) -> None:
    """Workers need not report references, and may have reported one charge for both attempts."""
    order_id = await orders.paid()
    await update_order_status(store, order_id=order_id, status="failed", attempt=1, by=by)
    await orders.pay(order_id)
    await update_order_status(
        store, order_id=order_id, status="captured", attempt=2, references=references, by=by
    )
    await update_order_status(store, order_id=order_id, status="captured", attempt=1, by=by)
    if told is not None:
        event = ProcessorEvent(
            processor="stripe", event_id="evt", type="captured", outcome="captured", references=told
        )
        await store.change(Order, order_id, partial(receive, event=event, by=by))
    await learn_reference(store, order_id=order_id, attempt=1, processor_order_id="po_first", by=by)
    [refund] = [e for e in await store.read_stream(order_id) if e.stored.topic == "refund.requested"]
    if certain:
        assert isinstance(await payment_subscription(store).plan(refund), StartWorkflow)
    else:
        with pytest.raises(DuplicateUncertain, match="attempts 2 and 1"):
            await payment_subscription(store).plan(refund)


@pytest.mark.parametrize("told", ["by reference", "by a sum", "beside it", "before", "named", "just now"])
async def test_a_refund_that_somebody_may_have_made_in_the_dashboard_is_not_made_again(
    store: EventStore,
    orders: Orders,
    merchant_id: UUID,
    by: Metadata,
    told: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It waited, for Temporal or for a reference, and the processor reported one that does not name ours."""
    if told != "just now":
        monkeypatch.setattr(module, "FRESH", timedelta(0))
    order_id = await orders.paid()
    await orders.report(order_id, "captured")
    first = ProcessorEvent(
        processor="stripe",
        event_id="evt",
        type="refunded",
        outcome="refunded",
        references=References(f"po_{order_id}"),
        amount=700 if told == "beside it" else 300,
        refund_reference="re_1",
    )
    if told == "before":
        await refund_payment(store, order_id=order_id, merchant_id=merchant_id, amount=300, by=by)
        await store.change(Order, order_id, partial(receive, event=first, by=by))
    refund = await refund_payment(store, order_id=order_id, merchant_id=merchant_id, amount=300, by=by)
    if told == "by a sum":
        first = replace(first, amount=None, refund_reference=None, amount_refunded=300)
    if told == "named":
        first = replace(first, refund_id=refund.id)
    if told != "before":
        await store.change(Order, order_id, partial(receive, event=first, by=by))
    [*_, request] = [e for e in await store.read_stream(order_id) if e.stored.topic == "refund.requested"]
    await refund_payment(store, order_id=order_id, merchant_id=merchant_id, amount=100, by=by)
    plan = payment_subscription(store).plan
    match told:
        case "beside it" | "before" | "just now":
            assert isinstance(await plan(request), StartWorkflow)
        case "named":
            assert await plan(request) is None
        case _:
            with pytest.raises(RefundUncertain, match="refund-made"):
                await plan(request)
            seen = Sighting(shows="refund_made", refund_id=refund.id, note="re_1")
            await resolve_order(store, order_id=order_id, seen=seen, by=by)
            assert await plan(request) is None


async def test_a_duplicate_is_not_given_back_where_somebody_gave_back_the_other_charge(
    store: EventStore, orders: Orders, by: Metadata
) -> None:
    order_id = await orders.paid()
    await update_order_status(store, order_id=order_id, status="failed", attempt=1, by=by)
    await orders.pay(order_id)
    for attempt, references in ((1, NO_REFERENCES), (2, References("po_2"))):
        await update_order_status(
            store, order_id=order_id, status="captured", attempt=attempt, references=references, by=by
        )
    event = ProcessorEvent(
        processor="stripe",
        event_id="evt",
        type="refunded",
        outcome="refunded",
        attempt=1,
        references=References("po_1"),
        amount=AMOUNT,
        refund_reference="re_1",
    )
    await store.change(Order, order_id, partial(receive, event=event, by=by))
    order = await store.load(Order, order_id)
    assert order is not None
    assert order.payments[1].processor_order_id == "po_1"  # so there are two
    [refund] = [e for e in await store.read_stream(order_id) if e.stored.topic == "refund.requested"]
    with pytest.raises(OtherGivenBack, match="refund-not-made"):
        await payment_subscription(store).plan(refund)


EARLIER = replace(BY, at=BY.at - timedelta(minutes=1))
GIVEN_BACK = refunded("re_1", 300)


@pytest.mark.parametrize(
    ("before", "since"),
    [
        (GIVEN_BACK, ()),
        (None, (GIVEN_BACK, came_back("re_1", 300))),
        (None, (refunded("re_1", 300, references=References("po_2", "pt_2")),)),
    ],
    ids=["before there were two", "came back", "of the duplicate"],
)
def test_a_duplicate_is_given_back_though_somebody_gave_back_money_that_is_not_in_its_place(
    before: ProcessorEvent | None, since: tuple[ProcessorEvent, ...]
) -> None:
    order = pay(report(pay(new_order()), "failed"))
    report(order, "captured", attempt=1)
    if before is not None:
        assert receive(order, before, by=EARLIER) == "applied"
    report(order, "captured", attempt=2)
    for event in since:
        assert receive(order, event, by=BY) == "applied"
    [refund] = [
        t for t in order.transactions.values() if t.type is TransactionType.REFUND and not t.discovered
    ]
    refuse_given_back(order, refund)
