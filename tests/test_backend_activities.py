"""What workflows may call back: each activity is a command, run once or twice, from workers of any kind."""

import asyncio
import dataclasses
import secrets
from collections.abc import AsyncIterator
from functools import partial
from typing import Any
from uuid import UUID

import psycopg
import pytest
from calling import Merchant
from masking import CARD, shows_card
from projecting import project_orders
from temporalio.exceptions import ApplicationError
from temporalio.testing import ActivityEnvironment
from uuid_utils.compat import uuid7

from payloops.commands.cancel_order import request_void
from payloops.commands.capture_payment import request_capture
from payloops.commands.cipher import Cipher
from payloops.commands.client_secrets import ClientSecrets
from payloops.commands.configure_processor import configure_processor
from payloops.commands.create_order import create_order
from payloops.commands.hashing import Hasher
from payloops.commands.pay_order import request_payment
from payloops.commands.processors import recorded_reference
from payloops.commands.receive_processor_event import ProcessorEvent, receive
from payloops.commands.refund_payment import refund_payment
from payloops.commands.register_merchant import register_merchant
from payloops.commands.route_payment import Route
from payloops.commands.workflow_ids import payment_workflow_id
from payloops.events.event_store import EventStore
from payloops.events.merchants import ProcessorChoice
from payloops.events.metadata import Metadata
from payloops.events.orders import Order, References, RefundFailed, TransactionType
from payloops.http.orders import order_answer
from payloops.projections.orders import row_from_order
from payloops.settings import Settings
from payloops.workflows_client.activities import BackendActivities
from payloops.workflows_client.webhook_sender import open_sender


@pytest.fixture
def cipher() -> Cipher:
    return Cipher(secret="an encryption key of thirty-two characters")


@pytest.fixture
def client_secrets(store: EventStore, cipher: Cipher) -> ClientSecrets:
    return ClientSecrets(store.pool, cipher)


@pytest.fixture
async def activities(
    store: EventStore, cipher: Cipher, client_secrets: ClientSecrets
) -> AsyncIterator[BackendActivities]:
    async with open_sender(allow_loopback=False) as sender:
        yield BackendActivities(store=store, cipher=cipher, client_secrets=client_secrets, sender=sender)


@pytest.fixture
async def order_id(store: EventStore, merchant_id: UUID, by: Metadata) -> UUID:
    """An order under its first payment."""
    id = uuid7()
    await create_order(store, order_id=id, merchant_id=merchant_id, amount=5_000, currency="USD", by=by)
    await pay(store, id, by)
    return id


async def pay(store: EventStore, order_id: UUID, by: Metadata) -> None:
    route = Route(processor="stripe", reason="test")
    await store.change(
        Order,
        order_id,
        lambda order: request_payment(order, route=route, payment_method=None, capture="automatic", by=by),
    )


async def call(activity: Any, given: dict[str, Any], *, workflow_id: str = "payment-of-something") -> Any:
    """As Temporal calls it, for a workflow."""
    environment = ActivityEnvironment()
    environment.info = dataclasses.replace(environment.info, workflow_id=workflow_id)
    return await environment.run(activity, given)


async def loaded(store: EventStore, order_id: UUID) -> Order:
    order = await store.load(Order, order_id)
    assert order is not None
    return order


async def test_a_reported_capture_is_recorded_once_in_the_workflows_name(
    store: EventStore, activities: BackendActivities, order_id: UUID
) -> None:
    report = {
        "orderId": str(order_id),
        "status": "captured",
        "processorOrderId": "po",
        "processorTransactionId": "pt",
    }
    for _ in range(2):
        assert await call(activities.update_order_status, report, workflow_id=f"payment-{order_id}") is None
    order = await loaded(store, order_id)
    assert (order.status, order.version) == ("captured", 3)
    recorded = (await store.read(after=0, limit=10))[-1].event
    assert recorded.actor == f"workflow:payment-{order_id}"
    assert recorded.correlation_id == "test"  # the order's own


async def test_the_workflow_id_says_which_attempt_a_report_is_about(
    store: EventStore, activities: BackendActivities, order_id: UUID, by: Metadata
) -> None:
    """The first attempt's failure comes late, when the second has begun: it is not the second's."""
    report = {"orderId": str(order_id), "status": "failed", "errorCode": "declined"}
    await call(activities.update_order_status, report, workflow_id=f"payment-{order_id}")
    await pay(store, order_id, by)
    await call(activities.update_order_status, report, workflow_id=f"payment-{order_id}")
    assert (await loaded(store, order_id)).status == "processing"
    await call(activities.update_order_status, report, workflow_id=f"payment-{order_id}-2")
    assert (await loaded(store, order_id)).status == "failed"


async def _hold(store: EventStore, activities: BackendActivities, order_id: UUID, *, attempt: int) -> None:
    """The processor holds the money of an attempt."""
    report = {"orderId": str(order_id), "status": "authorized", "processorOrderId": f"po_{attempt}"}
    await call(
        activities.update_order_status,
        report,
        workflow_id=payment_workflow_id(order_id=str(order_id), attempt=attempt),
    )


async def test_a_void_of_an_earlier_attempt_says_nothing_about_the_one_under_way(
    store: EventStore, activities: BackendActivities, order_id: UUID, by: Metadata
) -> None:
    """References are optional in a report: the workflow's id tells which payment it is about."""
    declined = {"orderId": str(order_id), "status": "failed", "errorCode": "declined"}
    await call(activities.update_order_status, declined, workflow_id=f"payment-{order_id}")
    await pay(store, order_id, by)
    second = {"orderId": str(order_id), "status": "processing", "processorOrderId": "po_2"}
    await call(activities.update_order_status, second, workflow_id=f"payment-{order_id}-2")
    await _hold(store, activities, order_id, attempt=1)  # late, and nobody wants it any more
    report = {"orderId": str(order_id), "status": "failed", "errorCode": "not_now"}
    await call(activities.update_order_status, report, workflow_id=f"void-{order_id}")
    order = await loaded(store, order_id)
    assert (order.status, order.payments[2].status) == ("processing", "processing")
    await store.change(Order, order_id, lambda order: request_void(order, order.payments[1], by=by))
    report = {"orderId": str(order_id), "status": "cancelled"}
    await call(activities.update_order_status, report, workflow_id=f"void-{order_id}-2")
    order = await loaded(store, order_id)
    assert (order.status, order.payments[1].status) == ("processing", "cancelled")


async def test_a_capture_that_was_refused_says_nothing_about_the_next_one(
    store: EventStore, activities: BackendActivities, order_id: UUID, by: Metadata
) -> None:
    """Its report runs again when the next capture has begun, of another amount, which is then made."""
    await _hold(store, activities, order_id, attempt=1)
    refused = {"orderId": str(order_id), "status": "failed", "errorCode": "not_now"}
    for amount in (4_000, 3_000):
        await store.change(Order, order_id, partial(request_capture, amount=amount, by=by))
        await call(activities.update_order_status, refused, workflow_id=f"capture-{order_id}")
    assert (await loaded(store, order_id)).payments[1].capture_pending
    made = {"orderId": str(order_id), "status": "captured"}
    await call(activities.update_order_status, made, workflow_id=f"capture-{order_id}-2")
    assert (await loaded(store, order_id)).amount_captured == 3_000


@pytest.mark.parametrize("workflow", ["capture-{}", "payment-{}"])
async def test_a_capture_that_was_made_after_all_is_of_what_was_asked_for(
    store: EventStore, activities: BackendActivities, order_id: UUID, by: Metadata, workflow: str
) -> None:
    """A part was asked for, and said to be refused: that it was made then does not make it all."""
    await _hold(store, activities, order_id, attempt=1)
    await store.change(Order, order_id, partial(request_capture, amount=2_000, by=by))
    for status in ("failed", "captured"):
        report = {"orderId": str(order_id), "status": status}
        await call(activities.update_order_status, report, workflow_id=workflow.format(order_id))
    assert (await loaded(store, order_id)).amount_captured == 2_000


async def test_an_earlier_capture_that_was_made_after_all_is_of_its_own_amount(
    store: EventStore, activities: BackendActivities, order_id: UUID, by: Metadata
) -> None:
    await _hold(store, activities, order_id, attempt=1)
    refused = {"orderId": str(order_id), "status": "failed", "errorCode": "no_answer"}
    await store.change(Order, order_id, partial(request_capture, amount=2_000, by=by))
    await call(activities.update_order_status, refused, workflow_id=f"capture-{order_id}")
    await store.change(Order, order_id, partial(request_capture, amount=3_000, by=by))
    made = {"orderId": str(order_id), "status": "captured"}
    for suffix in ("", "-2"):
        await call(activities.update_order_status, made, workflow_id=f"capture-{order_id}{suffix}")
    assert (await loaded(store, order_id)).amount_captured == 2_000


async def test_a_void_that_was_refused_leaves_the_capture_beside_it(
    store: EventStore, activities: BackendActivities, order_id: UUID, by: Metadata
) -> None:
    await _hold(store, activities, order_id, attempt=1)
    await store.change(Order, order_id, partial(request_capture, amount=2_000, by=by))
    await store.change(Order, order_id, lambda order: request_void(order, order.payments[1], by=by))
    report = {"orderId": str(order_id), "status": "failed", "errorCode": "not_now"}
    await call(activities.update_order_status, report, workflow_id=f"void-{order_id}")
    order = await loaded(store, order_id)
    assert order.payments[1].capture_pending
    assert order.pending(1, TransactionType.VOID) == []


@pytest.mark.parametrize("captures", [False, True])
async def test_a_workflow_that_waited_too_long_does_not_outweigh_the_processors_own_word(
    store: EventStore, activities: BackendActivities, order_id: UUID, by: Metadata, captures: bool
) -> None:
    """The customer acted in the last second: the money is held, and must not be asked for a second time."""
    event = ProcessorEvent(
        processor="stripe", event_id="evt_1", type="held", outcome="authorized", references=References("po_1")
    )
    await store.change(Order, order_id, lambda order: receive(order, event, by=by))
    if captures:
        await store.change(Order, order_id, lambda order: request_capture(order, amount=None, by=by))
    version = (await loaded(store, order_id)).version
    report = {"orderId": str(order_id), "status": "failed", "errorCode": "timed_out"}
    await call(activities.update_order_status, report, workflow_id=f"payment-{order_id}")
    order = await loaded(store, order_id)
    assert (order.status, order.version) == ("authorized", version)


async def test_a_payments_own_workflow_says_nothing_about_its_capture(
    store: EventStore, activities: BackendActivities, order_id: UUID, by: Metadata
) -> None:
    await _hold(store, activities, order_id, attempt=1)
    await store.change(Order, order_id, lambda order: request_capture(order, amount=400, by=by))
    report = {"orderId": str(order_id), "status": "failed", "errorCode": "answer_lost"}
    await call(activities.update_order_status, report, workflow_id=f"payment-{order_id}")
    order = await loaded(store, order_id)
    assert [t.status for t in order.pending(1, TransactionType.CAPTURE)] == ["pending"]
    assert order.status == "authorized"


async def test_fields_of_other_workers_are_tolerated_and_odd_text_is_made_storable(
    store: EventStore, activities: BackendActivities, order_id: UUID
) -> None:
    report = {
        "orderId": str(order_id),
        "status": "failed",
        "errorCode": "odd",
        "errorMessage": "nul \0 surrogate \ud800 " + "long " * 1_000,
        "redirectUrl": None,
        "somethingNew": {"a": 1},
    }
    await call(activities.update_order_status, report)
    error = (await loaded(store, order_id)).last_error
    assert error is not None
    assert error.message is not None
    assert error.message.startswith("nul  surrogate ? long")
    assert len(error.message) == 1_000


async def test_an_address_that_is_empty_is_none(
    store: EventStore, activities: BackendActivities, order_id: UUID
) -> None:
    report = {"orderId": str(order_id), "status": "requires_action", "redirectUrl": "\0"}
    await call(activities.update_order_status, report)
    order = await loaded(store, order_id)
    assert (order.status, order.payments[1].redirect_url) == ("requires_action", None)


async def test_a_reference_that_the_processor_expanded_is_taken_for_its_id(
    store: EventStore, activities: BackendActivities, order_id: UUID
) -> None:
    """As Stripe's library gives `latest_charge`, where it was asked to."""
    references = {"processorOrderId": "pi_1", "processorTransactionId": {"id": "ch_1", "object": "charge"}}
    await call(activities.update_order_status, {"orderId": str(order_id), "status": "captured", **references})
    payment = (await loaded(store, order_id)).payments[1]
    assert (payment.processor_order_id, payment.processor_transaction_id) == ("pi_1", "ch_1")


@pytest.mark.parametrize("before", ["The card ", "long " * 198])
async def test_a_card_number_in_a_processors_message_is_not_recorded_nor_a_part_of_it_where_it_is_cut_off(
    store: EventStore, activities: BackendActivities, order_id: UUID, before: str
) -> None:
    report = {
        "orderId": str(order_id),
        "status": "failed",
        "errorCode": "card_declined",
        "errorMessage": f"{before}{CARD} was declined",
    }
    await call(activities.update_order_status, report)
    error = (await loaded(store, order_id)).last_error
    assert error is not None
    assert error.message == f"{before}**************** was declined"[:1_000]
    events = await store.read(after=0, limit=10)
    assert not any(shows_card(event.stored.state) for event in events)


@pytest.mark.parametrize(
    ("code", "message", "recorded"),
    [
        (400, {"description": "No."}, ("400", '{"description": "No."}')),
        (f"odd {CARD}", True, (f"odd {'*' * 16}", "true")),
        ("long " * 1_000, "", (("long " * 200), None)),
        ("", None, (None, None)),
        (None, "No.", (None, "No.")),
    ],
)
async def test_whatever_a_worker_passes_on_as_an_error_is_recorded_as_text(
    store: EventStore,
    activities: BackendActivities,
    order_id: UUID,
    merchant_id: UUID,
    by: Metadata,
    code: Any,
    message: Any,
    recorded: tuple[str | None, str | None],
) -> None:
    """It is in the report that ends a payment: without it, the order would wait for ever."""
    error = {"orderId": str(order_id), "status": "failed", "errorCode": code, "errorMessage": message}
    await call(activities.update_order_status, error)
    order = await loaded(store, order_id)
    assert order.status == "failed"
    found = order.last_error
    assert found is not None
    assert (found.code, found.message) == recorded
    await pay(store, order_id, by)
    await call(activities.update_order_status, {"orderId": str(order_id), "status": "captured"})
    refund = await refund_payment(store, order_id=order_id, merchant_id=merchant_id, by=by)
    await call(activities.update_refund_status, error | {"refundId": refund.id})
    failed = (await store.read(after=0, limit=10))[-1].event
    assert isinstance(failed, RefundFailed)
    assert (failed.error_code, failed.error_message) == recorded


async def test_references_that_no_processor_makes_are_recorded_in_a_form_that_can_be_searched(
    store: EventStore, settings: Settings, activities: BackendActivities, order_id: UUID
) -> None:
    long = secrets.token_urlsafe(5_000)
    report = {"orderId": str(order_id), "processorOrderId": 17, "processorTransactionId": long}
    for status in ("authorized", "captured"):
        await call(activities.update_order_status, report | {"status": status})
    await project_orders(settings.database_url.get_secret_value())
    async with store.pool.connection() as connection:
        found = await connection.execute(
            "SELECT processor_order_id, processor_transaction_id, t.status, o.status"
            " FROM orders o JOIN transactions t ON t.order_id = o.id WHERE type = 'capture'"
        )
        assert await found.fetchall() == [("17", recorded_reference(long), "success", "captured")]


def test_references_that_are_too_long_are_cut_to_the_same_form_in_every_version_of_this_code() -> None:
    """Others that begin with the same 500 characters are others."""
    assert recorded_reference("x" * 500) == "x" * 500
    cut = recorded_reference("x" * 501)
    assert cut == "x" * 464 + "5b3bbe90-557d-5fdc-91c0-9120f5563e00"
    assert len({cut, recorded_reference("x" * 502), recorded_reference("x" * 500 + "y")}) == 3


@pytest.mark.parametrize("none", ["", "\0"])
async def test_two_charges_without_references_are_two_charges(
    store: EventStore, activities: BackendActivities, order_id: UUID, by: Metadata, none: str
) -> None:
    """An empty reference is none: the second charge is not taken for the first, and is given back."""
    report = {"orderId": str(order_id), "processorOrderId": none, "processorTransactionId": none}
    first, second = f"payment-{order_id}", f"payment-{order_id}-2"
    await call(activities.update_order_status, report | {"status": "failed"}, workflow_id=first)
    await pay(store, order_id, by)
    for workflow_id in (second, first):
        await call(activities.update_order_status, report | {"status": "captured"}, workflow_id=workflow_id)
    order = await loaded(store, order_id)
    assert order.amount_captured == 10_000
    assert [refund.amount for refund in order.pending(1, TransactionType.REFUND)] == [5_000]
    assert order.payments[1].processor_order_id is None


async def test_reports_that_come_late_twice_and_together_change_nothing(
    store: EventStore, activities: BackendActivities, order_id: UUID
) -> None:
    """Captured before the customer was said to be needed, and failed after it; each of them five times at once."""
    workflow_id = f"payment-{order_id}"
    for status in ("captured", "requires_action", "processing", "authorized", "failed", "cancelled"):
        report = {"orderId": str(order_id), "status": status, "redirectUrl": "https://bank.example"}
        calls = (call(activities.update_order_status, report, workflow_id=workflow_id) for _ in range(5))
        assert await asyncio.gather(*calls) == [None] * 5
    order = await loaded(store, order_id)
    assert (order.status, order.version, order.amount_captured) == ("captured", 3, 5_000)


async def test_a_client_secret_is_kept_beside_the_log_and_not_in_it(
    store: EventStore, activities: BackendActivities, client_secrets: ClientSecrets, order_id: UUID
) -> None:
    report = {
        "orderId": str(order_id),
        "status": "requires_action",
        "redirectUrl": "https://bank.example/" + "x" * 2_000,
        "clientSecret": "only for the browser",
    }
    await call(activities.update_order_status, report)
    assert await client_secrets.find(order_id=order_id, attempt=1) == "only for the browser"
    events = await store.read(after=0, limit=10)
    assert not any(b"only for the browser" in event.stored.state for event in events)
    payment = (await loaded(store, order_id)).payment
    assert payment is not None
    assert payment.redirect_url == report["redirectUrl"]


@pytest.mark.parametrize(
    "change",
    [
        {"orderId": "no uuid"},
        {"status": "rich"},
        {"status": None},
        {"orderId": "01900000-0000-7000-8000-00000000dead"},
        {"clientSecret": ["hidden"]},
    ],
)
async def test_what_can_never_succeed_is_not_tried_again(
    activities: BackendActivities, order_id: UUID, change: dict[str, Any]
) -> None:
    report = {"orderId": str(order_id), "status": "captured", "clientSecret": "hidden"}
    with pytest.raises(ApplicationError) as failed:
        await call(activities.update_order_status, report | change)
    assert failed.value.non_retryable
    assert "hidden" not in str(failed.value)


@pytest.mark.parametrize("given", ["hidden", ["hidden"], 5, None, {"clientSecret": "hidden"}])
async def test_an_argument_that_is_no_object_or_lacks_what_is_needed_is_not_tried_again(
    activities: BackendActivities, given: Any
) -> None:
    for activity in activities.all():
        with pytest.raises(ApplicationError) as failed:
            await call(activity, given)
        assert (failed.value.type, failed.value.non_retryable) == ("InvalidInput", True)
        assert "hidden" not in str(failed.value)


async def test_what_is_reported_while_the_database_fails_is_reported_again(
    store: EventStore, activities: BackendActivities, order_id: UUID
) -> None:
    report = {"orderId": str(order_id), "status": "captured"}
    async with store.pool.connection() as connection:
        await connection.execute("ALTER TABLE stored_events RENAME TO away")
    with pytest.raises(psycopg.Error):  # no refusal, which would be final
        await call(activities.update_order_status, report)
    async with store.pool.connection() as connection:
        await connection.execute("ALTER TABLE away RENAME TO stored_events")
    await call(activities.update_order_status, report)
    assert (await loaded(store, order_id)).status == "captured"


async def test_a_refund_is_recorded_once(
    store: EventStore, activities: BackendActivities, order_id: UUID, merchant_id: UUID, by: Metadata
) -> None:
    await call(activities.update_order_status, {"orderId": str(order_id), "status": "captured"})
    refund = await refund_payment(store, order_id=order_id, merchant_id=merchant_id, amount=2_000, by=by)
    report = {
        "orderId": str(order_id),
        "refundId": refund.id,
        "status": "success",
        "processorTransactionId": "re_1",
    }
    for status in ("success", "success", "failed"):
        again = report | {"status": status}
        assert await call(activities.update_refund_status, again, workflow_id=f"refund-{refund.id}") is None
    order = await loaded(store, order_id)
    assert (order.status, order.amount_refunded) == ("partially_refunded", 2_000)
    assert order.transactions[refund.id].processor_transaction_id == "re_1"
    with pytest.raises(ApplicationError) as unknown:
        await call(activities.update_refund_status, report | {"refundId": str(uuid7())})
    assert unknown.value.non_retryable


async def test_what_contradicts_the_record_is_not_reported_again_and_again(
    store: EventStore, activities: BackendActivities, order_id: UUID, merchant_id: UUID, by: Metadata
) -> None:
    """More given back than there was, beside what somebody gave back in the dashboard; an attempt that never was."""
    report = {"orderId": str(order_id), "status": "captured", "processorOrderId": "po_1"}
    await call(activities.update_order_status, report)
    refund = await refund_payment(store, order_id=order_id, merchant_id=merchant_id, amount=3_000, by=by)
    there = ProcessorEvent(
        processor="stripe",
        event_id="evt_1",
        type="refund.created",
        outcome="refunded",
        references=References("po_1"),
        refund_reference="re_1",
        amount=4_000,
    )
    await store.change(Order, order_id, lambda order: receive(order, there, by=by))
    version = (await loaded(store, order_id)).version
    made = {"orderId": str(order_id), "refundId": refund.id, "status": "success"}
    for activity, given, workflow_id, type in (
        (activities.update_refund_status, made, f"refund-{refund.id}", "ContradictsRecord"),
        (activities.update_order_status, report, f"payment-{order_id}-9", "UnknownAttempt"),
    ):
        with pytest.raises(ApplicationError) as failed:
            await call(activity, given, workflow_id=workflow_id)
        assert (failed.value.type, failed.value.non_retryable) == (type, True)
    assert (await loaded(store, order_id)).version == version


async def test_a_processors_configuration_comes_with_the_merchants_own_credentials(
    store: EventStore, activities: BackendActivities, cipher: Cipher, by: Metadata
) -> None:
    """Also where it is disabled: what is under way has to end."""
    async with Hasher(rounds=4) as passwords:
        first, second, third = [
            await register_merchant(
                store, name="Shop", email=f"{name}@example.com", password="p" * 12, passwords=passwords, by=by
            )
            for name in ("first", "second", "third")
        ]
    for merchant in (first, second):
        for processor in ("stripe", "razorpay"):
            await configure_processor(
                store,
                merchant_id=merchant.id,
                processor=processor,
                credentials={"secretKey": f"{processor} {merchant.email}"},
                choice=ProcessorChoice(enabled=merchant is first, priority=1, test_mode=True),
                cipher=cipher,
                by=by,
            )
    for merchant in (first, second, third):
        for processor in ("stripe", "razorpay"):
            asked = {"merchantId": str(merchant.id), "processor": processor}
            credentials = {"secretKey": f"{processor} {merchant.email}"}
            expected = (
                asked | {"testMode": True, "credentials": credentials} if merchant is not third else None
            )
            assert await call(activities.get_processor_config, asked) == expected


async def test_a_webhook_of_a_workflow_has_the_same_id_in_every_version_of_this_code(
    activities: BackendActivities, store: EventStore, by: Metadata
) -> None:
    """Also where its members come in another order: the call is repeated, and nothing is queued twice."""
    id = "01900000-0000-7000-8000-000000000001"
    await create_order(store, order_id=UUID(id), merchant_id=UUID(id), amount=5_000, currency="USD", by=by)
    given = {"merchantId": id, "orderId": id, "eventType": "t", "payload": {"b": [1, 0.5, "é"], "a": {}}}
    for payload in (given["payload"], {"a": {}, "b": [1, 0.5, "é"]}):
        made = await call(activities.create_webhook_event, given | {"payload": payload}, workflow_id="theirs")
        assert made == "8c749b17-2791-5f45-95e2-11c5c85d5153"


async def test_an_order_is_given_as_the_http_api_gives_it(
    store: EventStore, activities: BackendActivities, order_id: UUID
) -> None:
    for status in ("failed", "captured"):
        report = {"orderId": str(order_id), "status": status, "errorCode": "declined"}
        await call(activities.update_order_status, report)
        answer = order_answer(row_from_order(await loaded(store, order_id)))
        assert await call(activities.get_order, {"orderId": str(order_id)}) == answer.model_dump(
            mode="json", by_alias=True
        )
    assert await call(activities.get_order, {"orderId": str(uuid7())}) is None


async def test_an_order_with_all_its_details_is_given_as_it_is_read_over_http(
    activities: BackendActivities, merchant: Merchant
) -> None:
    order_id = await merchant.order(
        amount=99_999_999_999,
        currency="jpy",
        externalId="order-1",
        customerId="ada",
        customerEmail="ada@example.com",
        description="é \u2028",
        metadata={"z": 1, "a": [None, {"é": 1.5}], "large": 2**53 + 1},
        returnUrl="https://shop.example/back",
        cancelUrl="https://shop.example/cart",
    )
    read = (await merchant.shop.get(f"/v1/orders/{order_id}")).json
    assert [name for name, value in read.items() if value is None] == [
        *("processor", "processorOrderId", "lastError")
    ]
    assert await call(activities.get_order, {"orderId": order_id}) == read
