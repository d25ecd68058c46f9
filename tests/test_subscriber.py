"""The subscriber forwards every payment to Temporal, once, whatever is killed when."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, Literal, cast
from uuid import UUID

import psycopg
import pytest
import structlog
from eventsourcing.persistence import StoredEvent
from ordering import BY, new_order, pay, report
from projecting import project_all
from telling import AMOUNT, Orders
from temporalio.client import Client, WorkflowHandle
from temporalio.service import RPCError

from payloops.cli.options import duration
from payloops.commands.cancel_order import cancel, cancel_order, request_void
from payloops.commands.capture_payment import capture_payment, request_capture
from payloops.commands.pay_order import request_payment
from payloops.commands.payment_outcomes import report_authorized, report_captured, report_failed
from payloops.commands.receive_processor_event import Outcome, ProcessorEvent, receive
from payloops.commands.refund_payment import refund_payment, request_refund
from payloops.commands.route_payment import Route
from payloops.commands.update_order_status import learn_reference, update_order_status
from payloops.commands.update_refund_status import update_refund_status
from payloops.commands.workflow_ids import attempt_of, payment_workflow_id
from payloops.embedded import EmbeddedServers
from payloops.events.event_store import EventStore, RecordedEvent
from payloops.events.metadata import Metadata
from payloops.events.orders import Failure, Order, PaymentRequested, TransactionType
from payloops.events.stream import StreamEvent, topic_of
from payloops.events.timestamps import utc_now
from payloops.processors.port import PaymentQuestion, ProcessorPayment
from payloops.projections.parked import forward_again, retry_forwarding, subscribers_to_ask
from payloops.reconcile.payments import reconcile
from payloops.settings import Settings
from payloops.workflows_client import subscriber
from payloops.workflows_client.connection import connect
from payloops.workflows_client.forwardings import Forwarding, SignalWorkflow, StartWorkflow
from payloops.workflows_client.payment_subscription import (
    READER,
    TOPICS,
    ProcessorReferenceMissingError,
    forwarding_of,
    is_done,
    payment_subscription,
)
from payloops.workflows_client.subscriber import Subscription, forward, run_subscriber

SECONDS = 60


@pytest.fixture(scope="module")
def temporal_namespace(namespaces: Iterator[str]) -> str:
    """One for all of these tests: orders of their own keep them apart."""
    return next(namespaces)


@pytest.fixture
def orders(store: EventStore, merchant_id: UUID, by: Metadata) -> Orders:
    return Orders(store, merchant_id, by)


@contextlib.asynccontextmanager
async def subscribing(
    store: EventStore, settings: Settings, client: Client, subscription: Subscription | None = None
) -> AsyncIterator[asyncio.Task[None]]:
    stop = asyncio.Event()
    task = asyncio.create_task(
        run_subscriber(
            subscription=subscription or payment_subscription(store),
            store=store,
            database_url=settings.database_url.get_secret_value(),
            client=client,
            stop=stop,
        )
    )
    try:
        yield task
    finally:
        stop.set()
        await asyncio.wait_for(task, SECONDS)


async def started(client: Client, workflow_id: str) -> dict[str, Any]:
    """Wait until a workflow was started: its type, queue, memo and input."""
    handle: WorkflowHandle[Any, Any] = client.get_workflow_handle(workflow_id)
    async with asyncio.timeout(SECONDS):
        while True:
            try:
                description = await handle.describe()
                break
            except RPCError:
                await asyncio.sleep(0.02)
    first = (await handle.fetch_history()).events[0].workflow_execution_started_event_attributes
    return {
        "workflow": description.workflow_type,
        "queue": description.task_queue,
        "memo": await description.memo(),
        "input": (await client.data_converter.decode(first.input.payloads))[0],
        "run": description.run_id,
    }


async def signals(client: Client, workflow_id: str) -> list[str]:
    history = await client.get_workflow_handle(workflow_id).fetch_history()
    return [
        event.workflow_execution_signaled_event_attributes.signal_name
        for event in history.events
        if event.HasField("workflow_execution_signaled_event_attributes")
    ]


async def position(store: EventStore, name: str = READER) -> int:
    async with store.pool.connection() as connection:
        cursor = await connection.execute("SELECT position FROM checkpoints WHERE name = %s", (name,))
        row = await cursor.fetchone()
    return 0 if row is None else cast("int", row[0])


async def caught_up(store: EventStore, name: str = READER) -> None:
    head = await store.head()
    async with asyncio.timeout(SECONDS):
        while await position(store, name) < head:
            await asyncio.sleep(0.02)


async def parked(store: EventStore) -> list[tuple[str, str]]:
    async with store.pool.connection() as connection:
        cursor = await connection.execute(
            "SELECT topic, error FROM parked_events WHERE reader = %s", (READER,)
        )
        return [(row[0], row[1]) for row in await cursor.fetchall()]


# -- what is forwarded


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
    assert start["queue"] == "razorpay-payments"
    assert start["input"] == {
        "orderId": str(order_id),
        "merchantId": str(merchant_id),
        "amount": AMOUNT,
        "currency": "USD",
        "capture": "automatic",
    }


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
    report_authorized(order, payment, processor_order_id=None, processor_transaction_id=None, by=BY)
    for kind in (TransactionType.VOID, TransactionType.CAPTURE) * 2:
        if kind is TransactionType.VOID:
            request_void(order, payment, by=BY)
        else:
            request_capture(order, amount=None, by=BY)
        [asked] = order.pending(2, kind)
        report_failed(order, payment, **NOTHING, failure=Failure("busy"), requested=asked, by=BY)
    report_captured(order, payment, **NOTHING, by=BY)
    refund = request_refund(order, amount=None, reason=None, by=BY)
    with pytest.raises(ProcessorReferenceMissingError):
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


NOTHING: dict[str, Any] = {"processor_order_id": None, "processor_transaction_id": None}


def told(outcome: Outcome, **fields: Any) -> ProcessorEvent:
    return ProcessorEvent(processor="stripe", event_id=outcome, type=outcome, outcome=outcome, **fields)


def test_a_workflow_hears_what_became_of_its_own_attempt_and_not_that_it_goes_on() -> None:
    order = pay(report(pay(new_order()), "failed"))
    cancel(order, by=BY)
    captured = told("captured", attempt=1, processor_transaction_id="pt_1")
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


async def test_what_happened_to_one_order_is_forwarded_in_its_order_however_long_each_takes(
    store: EventStore, settings: Settings, client: Client, orders: Orders, merchant_id: UUID, by: Metadata
) -> None:
    order_id = await orders.paid()
    await cancel_order(store, order_id=order_id, merchant_id=merchant_id, by=by)
    subscription = payment_subscription(store)

    async def plan(recorded: RecordedEvent) -> Forwarding | None:
        if recorded.stored.topic == "payment.requested":
            await asyncio.sleep(0.5)
        return await subscription.plan(recorded)

    async with subscribing(store, settings, client, replace(subscription, plan=plan)):
        await caught_up(store)
    assert await signals(client, f"payment-{order_id}") == ["cancelPayment"]
    assert await parked(store) == []


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


async def test_a_cancellation_of_an_open_payment_whose_workflow_is_gone_is_parked_to_be_seen(
    store: EventStore, settings: Settings, client: Client, orders: Orders, merchant_id: UUID, by: Metadata
) -> None:
    async with subscribing(store, settings, client):
        order_id = await orders.paid()
        await started(client, f"payment-{order_id}")
        await client.get_workflow_handle(f"payment-{order_id}").terminate()
        await cancel_order(store, order_id=order_id, merchant_id=merchant_id, by=by)
        await caught_up(store)
    [(topic, error)] = await parked(store)
    assert topic == "payment.cancel_requested"
    assert "payloops reconcile" in error


async def test_a_cancellation_of_a_payment_that_this_code_cannot_read_is_parked_and_stops_nothing(
    store: EventStore, settings: Settings, client: Client, orders: Orders, merchant_id: UUID, by: Metadata
) -> None:
    """Its workflow is gone, and a later version has gone on with the order: whether it is open nobody knows."""
    async with subscribing(store, settings, client):
        order_id = await orders.paid()
        await started(client, f"payment-{order_id}")
        await client.get_workflow_handle(f"payment-{order_id}").terminate()
        await caught_up(store)
    await cancel_order(store, order_id=order_id, merchant_id=merchant_id, by=by)
    event = StoredEvent(order_id, 4, "payment.teleported", b"{}")
    await store._appender.append([event], merchant_id=merchant_id)
    after = await orders.paid()
    async with subscribing(store, settings, client):
        await started(client, f"payment-{after}")
        await caught_up(store)
    [(topic, error)] = await parked(store)
    assert topic == "payment.cancel_requested"
    assert "StreamUnreadable" in error


# -- once, whatever happens


async def test_events_forwarded_again_change_nothing_even_after_their_workflows_have_closed(
    store: EventStore, settings: Settings, client: Client, orders: Orders
) -> None:
    async with subscribing(store, settings, client):
        open_order, closed_order = await orders.paid(), await orders.paid()
        before = [await started(client, f"payment-{id}") for id in (open_order, closed_order)]
        await client.get_workflow_handle(f"payment-{closed_order}").terminate()
        await caught_up(store)
    async with store.pool.connection() as connection:
        await connection.execute("UPDATE checkpoints SET position = 0 WHERE name = %s", (READER,))
    async with subscribing(store, settings, client):
        await caught_up(store)
        after = [await started(client, f"payment-{id}") for id in (open_order, closed_order)]
    assert [start["run"] for start in after] == [start["run"] for start in before]
    assert await parked(store) == []


async def test_an_event_that_cannot_be_forwarded_is_parked_and_stops_nothing(
    store: EventStore, settings: Settings, client: Client, orders: Orders
) -> None:
    """A capture of a payment whose reference the processor never told; then an order like any other."""
    await orders.captured_without_reference()
    unreadable = await orders.paid()
    async with store.pool.connection() as connection:  # as a version of tomorrow might write it
        await connection.execute("ALTER TABLE stored_events DISABLE TRIGGER stored_events_are_facts")
        await connection.execute(
            "UPDATE stored_events SET state = '{' WHERE originator_id = %s AND topic = 'payment.requested'",
            (unreadable,),
        )
    after = await orders.paid()
    async with subscribing(store, settings, client):
        await started(client, f"payment-{after}")
        await caught_up(store)
    errors = dict(await parked(store))
    assert set(errors) == {"payment.capture_requested", "payment.requested"}
    assert "ProcessorReferenceMissingError" in errors["payment.capture_requested"]


async def test_trouble_with_the_database_parks_nothing_and_what_is_refused_for_good_is_parked(
    store: EventStore, settings: Settings, client: Client, orders: Orders
) -> None:
    troubled, refused, unheard_of = [await orders.paid() for _ in range(3)]
    troubles = {
        troubled: iter([psycopg.OperationalError("the connection is lost")]),
        refused: iter([psycopg.DataError("no such text")]),
    }
    subscription = payment_subscription(store)

    async def plan(recorded: RecordedEvent) -> Forwarding | None:
        order_id = recorded.event.originator_id
        for trouble in troubles.get(order_id, ()):
            raise trouble
        planned = await subscription.plan(recorded)
        assert isinstance(planned, StartWorkflow)
        return replace(planned, workflow_id="x" * 5_000) if order_id == unheard_of else planned

    async with subscribing(store, settings, client, replace(subscription, plan=plan)):
        await started(client, f"payment-{troubled}")
        await caught_up(store)
    by_the_database, by_temporal = sorted(error for _, error in await parked(store))
    assert by_the_database == "DataError: no such text"
    assert by_temporal.startswith("RPCError: ")


async def test_one_replica_forwards_and_another_takes_over_when_its_connection_breaks(
    store: EventStore, settings: Settings, client: Client, orders: Orders
) -> None:
    async with subscribing(store, settings, client), subscribing(store, settings, client):
        await started(client, f"payment-{await orders.paid()}")
        leader = await _leader(store)
        async with store.pool.connection() as connection:
            await connection.execute("SELECT pg_terminate_backend(%s)", (leader,))
        await started(client, f"payment-{await orders.paid()}")
        assert await _leader(store) != leader


async def _leader(store: EventStore) -> int:
    """The process id of the backend that holds the subscriber's lock; there is exactly one."""
    async with asyncio.timeout(SECONDS), store.pool.connection() as connection:
        while True:
            cursor = await connection.execute(
                "SELECT l.pid FROM pg_locks l JOIN pg_stat_activity a USING (pid)"
                " WHERE l.locktype = 'advisory' AND l.granted AND a.application_name = 'payloops subscriber'"
                " AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())"
            )
            rows = await cursor.fetchall()
            if rows:
                assert len(rows) == 1
                return cast("int", rows[0][0])
            await asyncio.sleep(0.05)


async def test_each_subscription_has_a_leader_of_its_own(
    store: EventStore, settings: Settings, client: Client, orders: Orders
) -> None:
    await orders.paid()
    another = replace(payment_subscription(store), name="another")
    async with subscribing(store, settings, client), subscribing(store, settings, client, another):
        await caught_up(store)
        await caught_up(store, another.name)


async def test_who_lost_the_lock_leads_no_longer_though_nothing_is_to_be_done(
    store: EventStore, settings: Settings, orders: Orders, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An event waits for Temporal: what is waited for needs no database."""
    monkeypatch.setattr(subscriber, "WATCH_SECONDS", 0.1)
    nobody_there = await Client.connect("127.0.0.1:1", lazy=True)
    await orders.paid()
    with structlog.testing.capture_logs() as lines:
        async with subscribing(store, settings, nobody_there), asyncio.timeout(SECONDS):
            for told in ("subscriber.temporal_unavailable", "subscriber.interrupted", "subscriber.leading"):
                while not any(line["event"] == told for line in lines):
                    await asyncio.sleep(0.02)
                if told == "subscriber.temporal_unavailable":
                    lines.clear()
                    async with store.pool.connection() as connection:
                        await connection.execute("SELECT pg_terminate_backend(%s)", (await _leader(store),))


async def test_a_replica_that_lost_its_connection_moves_no_checkpoint(
    store: EventStore, settings: Settings, client: Client, orders: Orders
) -> None:
    """Its connection ends while a workflow is started: the event is forwarded again, the workflow is the same."""
    async with subscribing(store, settings, client):
        await caught_up(store)
        async with await psycopg.AsyncConnection.connect(
            settings.database_url.get_secret_value()
        ) as blocking:
            await blocking.execute("SELECT 1 FROM checkpoints WHERE name = %s FOR UPDATE", (READER,))
            order_id = await orders.paid()
            first = await started(client, f"payment-{order_id}")
            held = await position(store)
            leader = await _leader(store)
            await blocking.execute("SELECT pg_terminate_backend(%s)", (leader,))
            await asyncio.sleep(0.2)
            assert await position(store) == held
            await blocking.rollback()
        await caught_up(store)
        assert (await started(client, f"payment-{order_id}"))["run"] == first["run"]


@pytest.mark.parametrize(("settled", "grows"), [(60.0, True), (0.0, False)])
async def test_trouble_that_lasts_is_met_at_ever_longer_intervals_and_says_what_to_do(
    store: EventStore,
    settings: Settings,
    client: Client,
    orders: Orders,
    monkeypatch: pytest.MonkeyPatch,
    settled: float,
    grows: bool,
) -> None:
    """A database whose migrations are yet to be applied: the lock is to be had, and nothing else."""
    monkeypatch.setattr(subscriber, "SETTLED_SECONDS", settled)
    order_id = await orders.paid()
    async with store.pool.connection() as connection:
        await connection.execute("ALTER TABLE checkpoints RENAME TO later")
    with structlog.testing.capture_logs() as lines:
        async with subscribing(store, settings, client):
            async with asyncio.timeout(SECONDS):
                while len(told := [line for line in lines if line["event"] == "subscriber.interrupted"]) < 5:
                    await asyncio.sleep(0.05)
            async with store.pool.connection() as connection:
                await connection.execute("ALTER TABLE later RENAME TO checkpoints")
            await started(client, f"payment-{order_id}")
    assert (told[4]["retry_in"] > told[0]["retry_in"] * 4) == grows
    [error] = told[0]["errors"]
    assert error.endswith("run `payloops migrate`")


async def test_while_temporal_is_down_nothing_is_skipped_and_stopping_works(
    store: EventStore, settings: Settings, orders: Orders
) -> None:
    nobody_there = await Client.connect("127.0.0.1:1", lazy=True)
    await orders.paid()
    async with subscribing(store, settings, nobody_there):
        await asyncio.sleep(1)
    assert await position(store) == 0
    assert await parked(store) == []


async def test_while_the_namespace_is_missing_nothing_is_skipped_nor_taken_for_gone(
    store: EventStore, settings: Settings, servers: EmbeddedServers, orders: Orders
) -> None:
    """Temporal answers, and refuses: it is being set up, or restored."""
    nowhere = await Client.connect(servers.temporal_address, namespace="nowhere")
    order_id = await orders.paid()
    with structlog.testing.capture_logs() as lines:
        async with subscribing(store, settings, nowhere), asyncio.timeout(SECONDS):
            while not any(line["event"] == "subscriber.temporal_unavailable" for line in lines):
                await asyncio.sleep(0.02)
    assert await position(store) == 0
    assert await parked(store) == []
    signal = SignalWorkflow(workflow_id=f"payment-{order_id}", signal="cancelPayment")
    with pytest.raises(RPCError):
        await forward(signal, client=nowhere, correlation_id="")


@pytest.mark.parametrize(
    ("suffix", "attempt"), [("", 1), ("-2", 2), ("-10", 10), ("-x", None), ("2", None), ("-", None)]
)
def test_the_attempt_is_read_from_a_workflow_id(suffix: str, attempt: int | None) -> None:
    order_id = "01900000-0000-7000-8000-000000000001"
    assert attempt_of(f"payment-{order_id}{suffix}", order_id=order_id) == attempt
    assert attempt_of(f"capture-{order_id}{suffix}", order_id=order_id) is None
    if attempt is not None:
        assert payment_workflow_id(order_id=order_id, attempt=attempt) == f"payment-{order_id}{suffix}"


async def test_what_was_parked_is_forwarded_once_it_can_be_and_somebody_asks(
    store: EventStore, settings: Settings, client: Client, orders: Orders
) -> None:
    order_id = await orders.paid()
    change = "UPDATE stored_events SET state = %s WHERE originator_id = %s AND topic = 'payment.requested'"

    async def ask() -> tuple[int, int, int]:
        async with store.pool.connection() as connection:
            found = await subscribers_to_ask(connection, projections=["orders"], names=[])
            assert found == [READER]
            retried = await retry_forwarding(connection, subscriber=READER, seconds=SECONDS)
        return retried.applied, retried.parked, retried.waiting

    async with store.pool.connection() as connection:
        await connection.execute("ALTER TABLE stored_events DISABLE TRIGGER stored_events_are_facts")
        query = "SELECT state FROM stored_events WHERE originator_id = %s AND topic = 'payment.requested'"
        row = await (await connection.execute(query, (order_id,))).fetchone()
        assert row is not None
        await connection.execute(change, (b"{", order_id))
    async with subscribing(store, settings, client):
        await caught_up(store)
        before = await parked_at(store)
        assert await ask() == (0, 1, 0)
        assert before < await parked_at(store)
        async with store.pool.connection() as connection:
            await connection.execute(change, (row[0], order_id))
        await orders.paid()
        await caught_up(store)
        assert await exists(client, f"payment-{order_id}") is False
        assert await ask() == (1, 0, 0)
        assert (await started(client, f"payment-{order_id}"))["memo"] == {"correlationId": "test"}
    assert await parked(store) == []


async def parked_at(store: EventStore) -> datetime:
    async with store.pool.connection() as connection:
        row = await (await connection.execute("SELECT max(parked_at) FROM parked_events")).fetchone()
    assert row is not None
    return cast("datetime", row[0])


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


async def exists(client: Client, workflow_id: str) -> bool:
    try:
        await client.get_workflow_handle(workflow_id).describe()
    except RPCError:
        return False
    return True


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


async def test_a_capture_is_forwarded_once_the_reference_of_its_payment_is_known(
    store: EventStore, settings: Settings, client: Client, orders: Orders
) -> None:
    order_id = await orders.captured_without_reference()
    await project_all(settings.database_url.get_secret_value())
    books = Books({})

    async def find(_: UUID, __: str) -> Books:
        return books

    async def look() -> str:
        [found] = await reconcile(
            store, find=find, older_than=duration("0s"), since=duration("0s"), now=utc_now()
        )
        return f"{found.outcome}: {found.detail}"

    async with subscribing(store, settings, client):
        await caught_up(store)
        [(_, why)] = await parked(store)
        assert "payloops reconcile asks it" in why
        books.known[order_id] = replace(known(order_id, "authorized"), processor_order_id=None)
        assert (await look()).startswith("unknown: the processor's reference of the payment is not certain")
        assert await parked(store) == [("payment.capture_requested", why)]
        books.known[order_id] = replace(known(order_id, "authorized"), processor_transaction_id=None)
        assert (await look()).startswith("unknown: payment.capture_requested: unknown to the processor")
        capture = await started(client, f"capture-{order_id}")
        assert capture["input"]["processorOrderId"] == f"po_{order_id}"
        await until_nothing_is_parked(store)


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


async def until_nothing_is_parked(store: EventStore) -> None:
    async with asyncio.timeout(SECONDS):
        while await parked(store):
            await asyncio.sleep(0.02)


async def test_a_payment_to_be_cancelled_that_nobody_works_on_and_no_processor_knows_is_cancelled(
    store: EventStore,
    settings: Settings,
    servers: EmbeddedServers,
    namespaces: Iterator[str],
    client: Client,
    orders: Orders,
    merchant_id: UUID,
    by: Metadata,
) -> None:
    """Temporal began anew after the cancellation had been signalled: that the workflow is gone is found out first."""
    unknown, waiting = await orders.paid(), await orders.paid()
    await orders.report(waiting, "processing")
    for each in (unknown, waiting):
        await cancel_order(store, order_id=each, merchant_id=merchant_id, by=by)
    async with subscribing(store, settings, client):
        await caught_up(store)
    await project_all(settings.database_url.get_secret_value())
    books = Books({waiting: replace(known(waiting, "authorized"), status="processing")})

    async def find(_: UUID, __: str) -> Books:
        return books

    async def look(older_than: str = "0s") -> list[str]:
        found = await reconcile(
            store, find=find, older_than=duration(older_than), since=duration("1d"), now=utc_now()
        )
        outcomes = {each.order_id: each.outcome for each in found}
        return [outcomes[str(each)] for each in (unknown, waiting)]

    async with subscribing(store, settings, client):
        assert await look() == ["unknown", "waits"]  # its workflow is there, and told again
        await until_nothing_is_parked(store)
    other = await connect(address=servers.temporal_address, namespace=next(namespaces), codec_key=None)
    async with subscribing(store, settings, other):
        assert await look() == ["unknown", "waits"]
        async with asyncio.timeout(SECONDS):
            while [error[:17] for _, error in await parked(store)] != ["WorkflowGoneError"] * 2:
                await asyncio.sleep(0.02)
        assert await look(older_than="1h") == ["unknown", "waits"]  # what it asked for may still arrive
        assert await look() == ["recorded", "differs"]
        async with asyncio.timeout(SECONDS):
            while len(await parked(store)) != 1:
                await asyncio.sleep(0.02)
    order = await store.load(Order, unknown)
    assert order is not None
    assert order.status == "cancelled"


# -- where Temporal has lost what it knew


class Books:
    """A processor that knows some payments, by order."""

    def __init__(self, known: dict[UUID, ProcessorPayment]) -> None:
        self.known = known

    async def look_up(self, question: PaymentQuestion) -> ProcessorPayment | None:
        return self.known.get(UUID(question.order_id))


def known(
    order_id: UUID, status: Literal["authorized", "captured"], *, refunded: int = 0
) -> ProcessorPayment:
    return ProcessorPayment(
        status=status,
        processor_order_id=f"po_{order_id}",
        processor_transaction_id=f"pt_{order_id}",
        currency="USD",
        amount_captured=AMOUNT if status == "captured" else 0,
        amount_refunded=refunded,
    )


async def test_what_temporal_has_lost_is_started_again_where_the_processor_knows_nothing_of_it(
    store: EventStore,
    settings: Settings,
    servers: EmbeddedServers,
    namespaces: Iterator[str],
    client: Client,
    orders: Orders,
    merchant_id: UUID,
    by: Metadata,
) -> None:
    """Another namespace is a Temporal that began anew: the log was forwarded, and nobody works on it."""

    async def refunding() -> tuple[UUID, str]:
        order_id = await orders.paid()
        await orders.report(order_id, "captured")
        refund = await refund_payment(
            store, order_id=order_id, merchant_id=merchant_id, amount=1_000, reason=None, by=by
        )
        return order_id, f"refund-{refund.id}"

    capturing, voiding = await orders.authorized(), await orders.authorized()
    await capture_payment(store, order_id=capturing, merchant_id=merchant_id, by=by)
    await cancel_order(store, order_id=voiding, merchant_id=merchant_id, by=by)
    (refunded_not, refund), (refunded_there, other_refund) = await refunding(), await refunding()
    paid, cancelled, elsewhere = [await orders.paid() for _ in range(3)]
    await cancel_order(store, order_id=cancelled, merchant_id=merchant_id, by=by)
    await orders.report(
        elsewhere, "processing"
    )  # under a reference that the processor does not know any more
    async with subscribing(store, settings, client):
        await caught_up(store)
    await project_all(settings.database_url.get_secret_value())
    books = Books(
        {
            capturing: known(capturing, "authorized"),
            voiding: known(voiding, "authorized"),
            refunded_not: known(refunded_not, "captured"),
            refunded_there: known(refunded_there, "captured", refunded=1_000),
        }
    )

    async def find(_: UUID, __: str) -> Books:
        return books

    async def look(*, older_than: str) -> dict[str, str]:
        found = await reconcile(
            store, find=find, older_than=duration(older_than), since=duration("1d"), now=utc_now()
        )
        return {each.order_id: each.outcome for each in found}

    url, anew = servers.temporal_address, next(namespaces)
    other = await connect(address=url, namespace=anew, codec_key=None)
    async with subscribing(store, settings, other):
        await look(older_than="1h")
        assert await parked(store) == []  # it may well be under way
        outcomes = await look(older_than="0s")
        wanted = [f"payment-{paid}", f"capture-{capturing}", f"void-{voiding}", refund]
        for workflow_id in wanted:
            await started(other, workflow_id)
        async with asyncio.timeout(SECONDS):
            while [error[:17] for _, error in await parked(store)] != ["WorkflowGoneError"]:
                await asyncio.sleep(0.02)
        later = {str(refunded_there): "agrees", str(cancelled): "recorded"}
        assert await look(older_than="0s") == outcomes | later
        await until_nothing_is_parked(store)
    assert outcomes == {
        **{str(each): "unknown" for each in (paid, cancelled, elsewhere, capturing, voiding, refunded_not)},
        str(refunded_there): "recorded",
    }
    runs = [each.id async for each in other.list_workflows()]
    assert sorted(runs) == sorted(wanted)
    assert other_refund not in runs


async def test_a_payment_that_was_only_authorized_is_not_made_anew_where_temporal_has_lost_it(
    store: EventStore, settings: Settings, client: Client, orders: Orders, merchant_id: UUID, by: Metadata
) -> None:
    """Its capture was opened by the payment's own request, which is no reason to charge once more."""
    orders.by = replace(by, at=by.at - timedelta(hours=1))
    alone, capturing = await orders.paid(), await orders.paid()
    for each in (alone, capturing):
        await orders.report(each, "authorized")
    await capture_payment(store, order_id=capturing, merchant_id=merchant_id, by=by)
    await project_all(settings.database_url.get_secret_value())
    books = Books({each: known(each, "authorized") for each in (alone, capturing)})

    async def find(_: UUID, __: str) -> Books:
        return books

    found = await reconcile(store, find=find, older_than=duration("0s"), since=duration("1d"), now=utc_now())
    assert [each.outcome for each in found] == ["agrees", "unknown"]
    assert [topic for topic, _ in await parked(store)] == ["payment.capture_requested"]
    [requested] = [e for e in await store.read_stream(alone) if e.stored.topic == "payment.requested"]
    async with store.pool.connection() as connection:
        await forward_again(connection, subscriber=READER, event=requested, why="somebody asked for it")
    async with subscribing(store, settings, client):
        await started(client, f"capture-{capturing}")
        await until_nothing_is_parked(store)
        await caught_up(store)
        assert [await exists(client, f"payment-{each}") for each in (alone, capturing)] == [False, False]
