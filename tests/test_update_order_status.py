"""Processors tell the truth late, twice and out of order."""

from dataclasses import replace

import pytest
from ordering import AMOUNT, BY, authorized, facts, new_order, pay, report, transactions
from uuid_utils.compat import uuid7

from payloops.commands.cancel_order import cancel
from payloops.commands.capture_payment import request_capture
from payloops.commands.create_order import create_order
from payloops.commands.pay_order import request_payment
from payloops.commands.payment_outcomes import (
    fail_payment,
    release_unwanted,
    report_action_required,
    report_authorized,
    report_captured,
    report_processing,
    report_reference,
)
from payloops.commands.receive_processor_event import ProcessorEvent, receive
from payloops.commands.refund_outcomes import succeed_refund
from payloops.commands.refund_payment import request_refund
from payloops.commands.refusals import OrderNotFound, UnknownAttempt
from payloops.commands.route_payment import Route
from payloops.commands.update_order_status import find_payment, update_order_status
from payloops.events.event_store import EventStore
from payloops.events.metadata import Metadata
from payloops.events.orders import (
    NO_REASON,
    NO_REFERENCES,
    Order,
    OrderStatus,
    PaymentVoidRequested,
    References,
    TransactionType,
)
from payloops.events.timestamps import utc_now


def after(*reports: str) -> Order:
    order = pay(new_order())
    for status in reports:
        report(order, status)
    return order


@pytest.mark.parametrize(
    "late", ["failed", "cancelled", "authorized", "requires_action", "processing", "captured"]
)
def test_captured_never_goes_back(late: str) -> None:
    order = after("captured")
    version = order.version
    report(order, late)
    assert facts(order, after=version) == []
    assert order.status is OrderStatus.CAPTURED


@pytest.mark.parametrize("before", ["failed", "cancelled", "requires_action", "authorized", "processing"])
def test_money_that_was_taken_after_all_is_recorded(before: str) -> None:
    order = report(after(before), "captured")
    assert (order.status, order.amount_captured) == (OrderStatus.CAPTURED, AMOUNT)
    assert order.last_error is None


@pytest.mark.parametrize("status", ["processing", "requires_action", "captured", "failed", "cancelled"])
def test_a_repeated_report_changes_nothing(status: str) -> None:
    order = after(status)
    version = order.version
    report(order, status)
    assert facts(order, after=version) == []


@pytest.mark.parametrize("end", ["failed", "cancelled", "authorized", "captured"])
def test_what_has_ended_is_not_under_way_again_whatever_reference_the_processor_has_for_it(end: str) -> None:
    """Else the order could neither be paid nor cancelled, and money that came would not show."""
    order = after(end)
    status, version = order.status, order.version
    payment = order.payments[1]
    report_processing(order, payment, processor_order_id="another", by=BY)
    report_action_required(
        order, payment, processor_order_id="another", redirect_url="https://other.example", by=BY
    )
    assert (facts(order, after=version), order.status) == ([], status)


@pytest.mark.parametrize("redirect_url", [None, "https://bank.example"])
def test_an_action_is_required_once_for_each_address_until_the_customer_has_acted(
    redirect_url: str | None,
) -> None:
    order = after("processing")
    version = order.version
    for url in (redirect_url, redirect_url, "https://other.example", None):
        report_action_required(order, order.payments[1], processor_order_id="po_1", redirect_url=url, by=BY)
    assert facts(order, after=version) == ["payment.action_required"] * 2
    assert order.status is OrderStatus.REQUIRES_ACTION
    assert order.payments[1].redirect_url == "https://other.example"
    assert report(order, "processing").status is OrderStatus.PROCESSING


@pytest.mark.parametrize("reference", [None, "pt_1", "another"])
def test_a_capture_that_is_told_again_is_money_once_whatever_reference_it_has_then(
    reference: str | None,
) -> None:
    order = after("captured")
    version = order.version
    report_captured(order, order.payments[1], references=References("po_1", reference), by=BY)
    assert facts(order, after=version) == []
    assert (order.amount_captured, order.refundable) == (AMOUNT, AMOUNT)


def test_a_failed_attempt_fails_its_transaction_with_the_processors_reason() -> None:
    order = after("failed")
    [transaction] = order.transactions.values()
    assert (transaction.status, transaction.error_code) == ("failed", "card_declined")
    assert order.last_error is not None
    assert order.last_error.code == "card_declined"


def test_an_authorization_that_expires_at_the_processor_fails_the_order() -> None:
    order = after("authorized", "failed")
    assert order.status is OrderStatus.FAILED
    assert pay(order).attempt == 2


@pytest.mark.parametrize("end", ["cancelled", "failed"])
def test_a_capture_that_the_processor_made_after_all_is_recorded(end: str) -> None:
    order = after("authorized")
    request_capture(order, amount=400, by=BY)
    report(order, end)
    report(order, "captured")
    assert order.status is OrderStatus.CAPTURED


def test_where_nobody_says_how_much_was_captured_it_is_what_was_asked_for_of_that_attempt() -> None:
    order = authorized()
    request_capture(order, amount=400, by=BY)
    report(order, "failed")
    cancel(order, by=BY)
    again = pay(report(report(order, "failed"), "failed"), capture="manual")
    report(again, "captured", attempt=2)
    report(again, "captured", attempt=1)
    captures = [each for each in transactions(again) if each[:2] == ("capture", "success")]
    assert captures == [("capture", "success", AMOUNT), ("capture", "success", 400)]


@pytest.mark.parametrize("kind", [TransactionType.CAPTURE, TransactionType.VOID])
def test_a_request_that_is_told_to_have_ended_in_a_capture_captured_what_was_asked_for(
    kind: TransactionType,
) -> None:
    """The first request to capture, which was said to be refused; or the void after it, which came too late."""
    order = authorized()
    request_capture(order, amount=400, by=BY)
    report(order, "failed")
    if kind is TransactionType.CAPTURE:
        request_capture(order, amount=700, by=BY)
    else:
        cancel(order, by=BY)
    report(order, "captured", asked=order.requested_transaction((kind, 1)))
    assert order.amount_captured == 400


def test_news_of_an_earlier_attempt_does_not_move_an_order_that_is_being_paid_again() -> None:
    order = pay(after("failed"))
    for status in ("failed", "cancelled", "requires_action", "processing"):
        report(order, status, attempt=1)
    assert order.status is OrderStatus.PROCESSING


def test_an_earlier_attempt_that_was_captured_late_stops_the_one_under_way() -> None:
    order = after("failed")
    elsewhere = Route("razorpay", "test")
    request_payment(order, route=elsewhere, payment_method=None, capture="automatic", by=BY)
    report(order, "captured", attempt=1)
    assert (order.status, order.processor) == (OrderStatus.CAPTURED, "stripe")
    assert facts(order)[-2:] == ["payment.captured", "payment.cancel_requested"]
    report(order, "cancelled", attempt=2)
    assert (order.status, order.amount_captured) == (OrderStatus.CAPTURED, AMOUNT)


@pytest.mark.parametrize("end", ["failed", "cancelled", None])
def test_an_earlier_attempt_that_was_captured_late_stops_no_later_one_that_is_over_or_being_cancelled(
    end: str | None,
) -> None:
    order = pay(after("failed"))
    if end is None:
        cancel(order, by=BY)
    else:
        report(order, end)
    version = order.version
    report(order, "captured", attempt=1)
    assert facts(order, after=version) == ["payment.captured"]


def test_money_taken_twice_is_given_back_at_once() -> None:
    order = pay(after("failed"))
    report(order, "captured", attempt=1)
    report(order, "captured", attempt=2)
    assert facts(order)[-2:] == ["payment.captured", "refund.requested"]
    refund = list(order.transactions.values())[-1]
    assert (refund.amount, refund.reason, refund.attempt) == (AMOUNT, "duplicate payment", 2)
    assert order.refundable == AMOUNT


@pytest.mark.parametrize("given_back", [300, AMOUNT])
def test_money_taken_again_after_some_was_given_back_leaves_the_order_partially_refunded(
    given_back: int,
) -> None:
    order = report(pay(after("failed")), "captured", attempt=1)
    refund = request_refund(order, amount=given_back, reason=None, by=BY)
    succeed_refund(order, refund.id, processor_transaction_id="rt", by=BY)
    report(order, "captured", attempt=2)
    assert order.status is OrderStatus.PARTIALLY_REFUNDED
    assert (order.amount_captured, order.amount_refunded) == (2 * AMOUNT, given_back)
    duplicate = list(order.transactions.values())[-1]
    succeed_refund(order, duplicate.id, processor_transaction_id="rt_2", by=BY)
    all_of_it = OrderStatus.REFUNDED if given_back == AMOUNT else OrderStatus.PARTIALLY_REFUNDED
    assert order.status is all_of_it


def test_a_charge_that_is_told_of_as_two_attempts_is_money_once() -> None:
    """Else the only money that came would be given back as a duplicate."""
    order = pay(report(pay(after("failed")), "failed"))
    report(order, "captured", attempt=2)
    report_captured(order, order.payments[3], references=References("po_3", "pt_2"), by=BY)
    report_captured(order, order.payments[1], references=References("po_1", "pt_2"), by=BY)
    assert (order.status, order.amount_captured, order.refundable) == (OrderStatus.CAPTURED, AMOUNT, AMOUNT)
    assert [payment.status for payment in order.payments.values()] == ["failed", "captured", "failed"]
    assert order.last_error is None


@pytest.mark.parametrize(
    "charges",
    [(None, None), (None, "pt"), ("pt", None), ("pt", "pt"), ("po", "pt"), ("pt", "po"), (None, "po")],
)
def test_a_charge_is_money_once_where_attempts_share_its_payments_reference(
    charges: tuple[str | None, str | None],
) -> None:
    """A worker that tries again under the same reference, and need not report the charge's own."""
    order = sharing_a_reference()
    for attempt, charge in enumerate(charges, start=1):
        payment = order.payments[attempt]
        report_captured(order, payment, references=References("po", charge), by=BY)
    assert (order.status, order.amount_captured, order.refundable) == (OrderStatus.CAPTURED, AMOUNT, AMOUNT)
    assert [payment.status for payment in order.payments.values()] == ["captured", "failed"]


def test_charges_at_two_processors_are_two_though_their_references_are_the_same() -> None:
    order = pay(new_order())
    same = References("po", "pt")
    fail_payment(order, order.payments[1], references=same, failure=NO_REASON, by=BY)
    elsewhere = Route("razorpay", "test")
    request_payment(order, route=elsewhere, payment_method=None, capture="automatic", by=BY)
    for payment in order.payments.values():
        report_captured(order, payment, references=same, by=BY)
    assert (order.amount_captured, facts(order)[-1]) == (2 * AMOUNT, "refund.requested")


def test_two_charges_under_one_reference_are_two() -> None:
    order = sharing_a_reference()
    for attempt, payment in order.payments.items():
        charge = f"pt_{attempt}"
        report_captured(order, payment, references=References("po", charge), by=BY)
    assert (order.amount_captured, facts(order)[-1]) == (2 * AMOUNT, "refund.requested")


def authorize(order: Order, attempt: int, reference: str | None, charge: str | None = "pt") -> None:
    payment = order.payments[attempt]
    report_authorized(order, payment, references=References(reference, charge), by=BY)
    release_unwanted(order, by=BY)


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("first", ["po", None])
@pytest.mark.parametrize("charges", [("pt", "pt"), (None, None), ("pt_1", "pt_2")])
@pytest.mark.parametrize("attempts", [(1, 2), (2, 1)])
def test_a_late_authorization_under_the_reference_of_another_attempt_takes_no_money_from_it(
    known: bool, first: str | None, charges: tuple[str | None, str | None], attempts: tuple[int, int]
) -> None:
    """Whichever is reported first. A void would name both."""
    order = sharing_a_reference(first, known=known)
    for attempt in attempts:
        authorize(order, attempt, "po", charges[attempt - 1])
    assert [payment.status for payment in order.payments.values()] == ["failed", "authorized"]
    assert (order.status, "payment.void_requested" in facts(order)) == (OrderStatus.AUTHORIZED, False)


@pytest.mark.parametrize(("captured", "other"), [(1, 2), (2, 1)])
def test_an_authorization_is_not_voided_where_another_attempt_was_captured_under_its_reference(
    captured: int, other: int
) -> None:
    order = sharing_a_reference(known=False)
    authorize(order, other, "po")
    report_captured(order, order.payments[captured], references=References("po"), by=BY)
    release_unwanted(order, by=BY)
    authorize(order, 1, "po")
    assert (order.payments[other].status, order.payments[captured].status) == ("failed", "captured")
    assert "payment.void_requested" not in facts(order)


@pytest.mark.parametrize("latest", [None, "po_1"])
@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_late_authorization_is_voided_at_once_where_the_latest_attempt_is_at_another_processor(
    elsewhere: bool, latest: str | None
) -> None:
    """Whatever reference the latest has there."""
    order = after("failed")
    route = Route("razorpay" if elsewhere else "stripe", "test")
    request_payment(order, route=route, payment_method=None, capture="manual", by=BY)
    report_processing(order, order.payments[2], processor_order_id=latest, by=BY)
    authorize(order, 1, "po_1")
    assert ("payment.void_requested" in facts(order)) == elsewhere


def test_an_authorization_is_voided_where_the_attempt_that_might_have_had_its_money_ends_without() -> None:
    order = sharing_a_reference(known=False)
    authorize(order, 1, "po")
    assert "payment.void_requested" not in facts(order)
    fail_payment(order, order.payments[2], references=NO_REFERENCES, failure=NO_REASON, by=BY)
    release_unwanted(order, by=replace(BY, correlation_id=""))
    assert (facts(order)[-1], order.status) == ("payment.void_requested", OrderStatus.FAILED)
    [void] = order.pending(1, TransactionType.VOID)
    assert void.cause.correlation_id == "test", "that of the request to pay"
    report(order, "failed", attempt=1, asked=void)
    assert facts(order)[-1] == "payment.void_failed", "it is not requested again and again"


def test_an_authorization_is_not_voided_once_the_latest_attempt_is_known_to_share_its_reference() -> None:
    order = sharing_a_reference(known=False)
    authorize(order, 1, "po")
    report_processing(order, order.payments[2], processor_order_id="po", by=BY)
    release_unwanted(order, by=BY)
    assert "payment.void_requested" not in facts(order)


def test_an_authorization_is_voided_once_that_of_the_latest_attempt_is_known_to_be_another() -> None:
    order = sharing_a_reference(known=False)
    authorize(order, 1, "po")
    authorize(order, 2, None, None)
    assert "payment.void_requested" not in facts(order)
    report_reference(order, order.payments[2], processor_order_id="po_2", by=BY)
    release_unwanted(order, by=BY)
    assert [t.attempt for t in order.transactions.values() if t.type is TransactionType.VOID] == [1]


def sharing_a_reference(first: str | None = "po", *, known: bool = True) -> Order:
    """Of two attempts, the first has failed.

    Args:
        first: its reference, as far as it was reported.
        known: it was reported that the second has the same reference.
    """
    order = pay(new_order(), capture="manual")
    fail_payment(
        order,
        order.payments[1],
        references=References(first),
        failure=NO_REASON,
        by=BY,
    )
    pay(order, capture="manual")
    if known:
        report_processing(order, order.payments[2], processor_order_id="po", by=BY)
    return order


def test_a_late_authorization_that_nobody_wants_is_voided_once_the_latest_attempt_cannot_have_its_money() -> (
    None
):
    """Workers may pay again under the same reference, by which the void names the payment."""
    order = report(pay(after("failed")), "authorized", attempt=1)
    assert (facts(order)[-1], order.status) == ("payment.authorized", OrderStatus.PROCESSING)
    version = order.version
    report(order, "processing", attempt=2)
    report(order, "requires_action", attempt=2)
    expected = ["payment.processing", "payment.void_requested", "payment.action_required"]
    assert facts(order, after=version) == expected
    report(order, "cancelled", attempt=1)
    assert order.status is OrderStatus.REQUIRES_ACTION
    assert transactions(order)[-1] == ("void", "success", AMOUNT)


def test_a_late_authorization_of_an_order_that_was_cancelled_is_voided() -> None:
    order = after("failed")
    cancel(order, by=BY)
    report(order, "authorized")
    assert facts(order)[-2:] == ["payment.authorized", "payment.void_requested"]
    assert order.status is OrderStatus.CANCELLED
    assert report(order, "cancelled").status is OrderStatus.CANCELLED


def test_voids_are_numbered_over_all_attempts_because_their_workflows_are_named_by_the_order() -> None:
    order = report(pay(after("failed")), "authorized", attempt=1)
    cancel(report(order, "authorized", attempt=2), by=BY)
    voids = [event.sequence for event in order.pending_events if isinstance(event, PaymentVoidRequested)]
    assert voids == [1, 2]


def test_an_authorization_beside_a_captured_attempt_is_voided() -> None:
    order = report(pay(after("failed")), "captured", attempt=1)
    report(order, "authorized", attempt=2)
    assert order.status is OrderStatus.CAPTURED
    assert facts(order)[-1] == "payment.void_requested"


def test_a_void_that_came_too_late_ends_and_the_authorization_is_proved() -> None:
    order = authorized()
    cancel(order, by=BY)
    report(order, "captured")
    assert transactions(order) == [
        *(("authorization", "success", AMOUNT), ("void", "failed", AMOUNT), ("capture", "success", AMOUNT))
    ]
    directly = report(pay(new_order(), capture="manual"), "captured")
    assert transactions(directly) == [("authorization", "success", AMOUNT), ("capture", "success", AMOUNT)]


@pytest.mark.parametrize("status", ["processing", "requires_action", "authorized", "captured", "failed"])
def test_a_payment_is_known_from_then_on_by_the_reference_that_a_report_brings(status: str) -> None:
    order = pay(after(status)) if status == "failed" else after(status)
    found = find_payment(order, attempt=None, references=References("po_1"))
    assert (found.attempt, found.processor_order_id) == (1, "po_1")
    if status in {"authorized", "captured"}:
        assert find_payment(order, attempt=None, references=References(None, "pt_1")) is found
        assert "pt_1" in {each.processor_transaction_id for each in order.transactions.values()}


def test_a_reference_that_a_later_report_leaves_out_is_not_forgotten() -> None:
    order = authorized()
    payment = order.payments[1]
    report_captured(order, payment, references=NO_REFERENCES, by=BY)
    assert (payment.processor_order_id, payment.processor_transaction_id) == ("po_1", "pt_1")


def test_the_payment_meant_is_found_by_its_references() -> None:
    order = pay(after("failed"))
    assert find_payment(order, attempt=None, references=References("po_1")).attempt == 1
    assert find_payment(order, attempt=None, references=References(None, "unknown")).attempt == 2
    with pytest.raises(UnknownAttempt):
        find_payment(order, attempt=3)


async def test_a_report_without_a_request_of_its_own_belongs_to_the_request_it_answers(
    store: EventStore,
) -> None:
    order = new_order()
    request_payment(
        order,
        route=Route("stripe", "test"),
        payment_method=None,
        capture="automatic",
        by=replace(BY, correlation_id="the request to pay"),
    )
    await store.append(order.collect_events())
    worker = Metadata(at=utc_now(), actor="workflow:payment-1", correlation_id="")
    await update_order_status(store, order_id=order.id, status="captured", by=worker)
    captured = (await store.read(after=2, limit=1))[0].event
    assert (captured.correlation_id, captured.causation_id) == ("the request to pay", f"{order.id}:2")


@pytest.mark.parametrize("charge", [None, "pt_2"])
async def test_a_report_names_a_payment_that_an_event_which_may_be_of_another_one_told_of_first(
    store: EventStore, charge: str | None
) -> None:
    """Without its reference the authorization could be neither captured nor released."""
    order = pay(new_order(), capture="manual")
    fail_payment(order, order.payments[1], references=NO_REFERENCES, failure=NO_REASON, by=BY)
    pay(order, capture="manual")
    told = ProcessorEvent(
        processor="stripe", event_id="evt", type="held", outcome="authorized", references=References("po_2")
    )
    receive(order, told, by=BY)
    await store.append(order.collect_events())
    for _ in range(2):
        await update_order_status(
            store,
            order_id=order.id,
            status="authorized",
            attempt=2,
            references=References("po_2", charge),
            by=BY,
        )
    loaded = await store.load(Order, order.id)
    assert loaded is not None
    assert loaded.payments[2].processor_order_id == "po_2"
    assert [e.stored.topic for e in await store.read_stream(order.id)][-2:] == [
        "payment.authorized",
        "payment.reference_found",
    ]


async def test_a_report_about_another_charge_names_no_payment(store: EventStore) -> None:
    """A refund would be made of that charge."""
    order = pay(new_order())
    report_captured(order, order.payments[1], references=References(None, "pt_1"), by=BY)
    await store.append(order.collect_events())
    for charge, learned in (("pt_2", None), ("pt_1", "po_1")):
        references = References("po_1", charge)
        await update_order_status(
            store, order_id=order.id, status="captured", attempt=1, references=references, by=BY
        )
        loaded = await store.load(Order, order.id)
        assert loaded is not None
        assert loaded.payments[1].processor_order_id == learned


async def test_a_report_about_what_does_not_exist_is_refused(store: EventStore, by: Metadata) -> None:
    created = await create_order(
        store, order_id=uuid7(), merchant_id=uuid7(), amount=5, currency="USD", by=by
    )
    with pytest.raises(UnknownAttempt):
        await update_order_status(store, order_id=created.originator_id, status="captured", by=by)
    with pytest.raises(OrderNotFound):
        await update_order_status(store, order_id=uuid7(), status="captured", by=by)
