"""What processors tell comes late, twice and in any order: the order ends in the same state."""

import itertools
import random
from dataclasses import replace
from typing import Any, cast

import pytest
from folding import folded_from_stored
from hypothesis import given
from hypothesis import strategies as st
from ordering import AMOUNT, BY, captured, facts, new_order, pay, report, transactions
from processor_events import REASONABLE, after, came_back, refunded, refunds, summed, told
from random_orders import random_order
from uuid_utils.compat import uuid7

from payloops.commands import receive_processor_event
from payloops.commands.cancel_order import cancel
from payloops.commands.capture_payment import request_capture
from payloops.commands.payment_outcomes import (
    report_authorized,
    report_captured,
    report_failed,
    report_processing,
    report_reference,
)
from payloops.commands.receive_processor_event import Outcome, ProcessorEvent, receive
from payloops.commands.refusals import TooManyProcessorEvents
from payloops.events.orders import (
    NO_REFERENCES,
    CaptureMethod,
    Failure,
    Order,
    OrderStatus,
    PaymentStatus,
    ProcessorEventReceived,
    References,
    TransactionStatus,
    TransactionType,
)

PAYMENT_OUTCOMES: tuple[Outcome, ...] = ("requires_action", "failed", "authorized", "cancelled", "captured")


def state(order: Order) -> tuple[Any, ...]:
    return (
        order.status,
        order.amount_captured,
        order.amount_refunded,
        *(
            (payment.attempt, payment.status, payment.processor_order_id)
            for payment in order.payments.values()
        ),
    )


@given(data=st.data(), capture=st.sampled_from(["automatic", "manual"]))
@REASONABLE
def test_any_order_of_arrival_with_any_duplicates_ends_in_the_same_state(
    data: st.DataObject, capture: CaptureMethod
) -> None:
    events = [told(outcome) for outcome in data.draw(st.sets(st.sampled_from(PAYMENT_OUTCOMES), min_size=1))]
    if data.draw(st.booleans()):
        events += [refunded("re_1", 300), summed(300)]
    once = after(*data.draw(st.permutations(events)), capture=capture)
    again = after(*data.draw(st.permutations(events * data.draw(st.integers(1, 10)))), capture=capture)
    assert state(once) == state(again)
    assert refunds(once) == refunds(again)
    captured = any(event.outcome == "captured" for event in events)
    assert (once.amount_captured == AMOUNT) == captured
    stored = folded_from_stored(again.pending_events)
    stored.pending_events.extend(again.pending_events)
    assert stored == again, "what is stored folds to the order that recorded it"


@pytest.mark.parametrize("capture", ["automatic", "manual"])
def test_all_orders_of_arrival_of_all_payment_events(capture: CaptureMethod) -> None:
    for number in range(1, len(PAYMENT_OUTCOMES) + 1):
        for outcomes in itertools.combinations(PAYMENT_OUTCOMES, number):
            ends = {
                state(after(*map(told, order), capture=capture)) for order in itertools.permutations(outcomes)
            }
            assert len(ends) == 1, outcomes


def test_what_the_workflow_reports_beside_the_events_changes_nothing_about_the_end() -> None:
    """The workflow's own report comes before, between or after the events of the processor."""
    for end, events in (
        ("captured", ("requires_action", "captured")),
        ("failed", ("requires_action", "failed")),
    ):
        steps = [*events, "workflow"]
        ends = set()
        for order_of_steps in itertools.permutations(steps):
            order = pay(new_order())
            for step in order_of_steps:
                if step == "workflow":
                    report(order, end)
                else:
                    receive(order, told(cast("Outcome", step)), by=BY)
            ends.add((order.status, order.amount_captured))
        assert len(ends) == 1


def test_a_captured_payment_never_goes_back() -> None:
    order = after(told("captured"))
    for outcome in PAYMENT_OUTCOMES:
        assert receive(order, told(outcome, event_id=f"late_{outcome}"), by=BY) == "none"
    assert order.status is OrderStatus.CAPTURED


@pytest.mark.parametrize("asked", [None, 600])
def test_what_was_captured_is_as_much_as_the_processor_says(asked: int | None) -> None:
    order = after(told("authorized"), capture="manual")
    if asked is not None:
        request_capture(order, amount=asked, by=BY)
    receive(order, told("captured", amount=400), by=BY)
    assert (order.status, order.amount_captured, order.refundable) == (OrderStatus.CAPTURED, 400, 400)
    assert transactions(order)[-1] == ("capture", "success", 400)
    assert not order.payments[1].capture_pending


@pytest.mark.parametrize(
    ("amount", "effect"), [(400, "applied"), (AMOUNT, "applied"), (300, "contradiction")]
)
def test_razorpay_captures_as_much_as_was_asked_for_or_all_of_it(amount: int, effect: str) -> None:
    order = pay(new_order(), capture="manual")
    order.payments[1].processor = "razorpay"
    receive(order, told("authorized", processor="razorpay", amount=AMOUNT), by=BY)
    request_capture(order, amount=400, by=BY)
    assert receive(order, told("captured", processor="razorpay", amount=amount), by=BY) == effect
    assert order.amount_captured == (amount if effect == "applied" else 0)


def test_another_amount_than_was_reported_as_captured_is_told_to_people_and_not_recorded_over() -> None:
    order = pay(new_order())
    report(order, "captured")
    assert receive(order, told("captured", amount=AMOUNT - 1), by=BY) == "contradiction"
    assert receive(order, told("captured", event_id="same"), by=BY) == "none"
    assert receive(order, told("captured", event_id="unsaid", amount=None), by=BY) == "none"
    assert (order.status, order.amount_captured, order.refundable) == (OrderStatus.CAPTURED, AMOUNT, AMOUNT)


def test_an_event_that_contradicts_the_record_outweighs_none_that_is_true() -> None:
    order = pay(new_order())
    contradictions: list[dict[str, Any]] = [{"currency": "eur"}, {"amount": AMOUNT + 1}, {"amount": 0}]
    for number, impossible in enumerate(contradictions):
        event = told("captured", event_id=f"impossible_{number}", **impossible)
        assert receive(order, event, by=BY) == "contradiction"
    assert (order.status, order.amount_captured) == (OrderStatus.PROCESSING, 0)
    assert receive(order, told("failed"), by=BY) == "applied"
    assert order.status is OrderStatus.FAILED


def test_a_repeated_event_records_nothing() -> None:
    order = after(told("captured", body_hash="b"))
    version = order.version
    assert receive(order, told("captured"), by=BY) == "applied"
    assert receive(order, told("failed", event_id="other", body_hash="b"), by=BY) == "applied"
    assert receive(order, told("captured", event_id="third", body_hash="c"), by=BY) == "none"
    assert facts(order, after=version) == []


def test_what_is_said_first_is_remembered_although_it_changes_nothing() -> None:
    """It outranks what is said later."""
    order = after(told("captured"))
    version = order.version
    assert receive(order, told("failed"), by=BY) == "none"
    assert receive(order, told("failed", event_id="again"), by=BY) == "none"
    assert facts(order, after=version) == ["order.processor_event_received"]


@pytest.mark.parametrize(
    "event", [told("captured", currency="eur"), told("captured", processor="razorpay"), came_back("re", 1)]
)
def test_a_stream_does_not_grow_without_end_by_events(
    event: ProcessorEvent, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of these says something new: a contradiction, an unmatched one, a refund that was not heard of."""
    monkeypatch.setattr(receive_processor_event, "MAX_RECORDED", 20)
    order = after(told("captured"))
    for number in range(19):
        reference = f"re_{number}" if event.refund_reference else None
        receive(order, replace(event, event_id=f"evt_{number}", refund_reference=reference), by=BY)
    version = order.version
    with pytest.raises(TooManyProcessorEvents):
        receive(order, replace(event, event_id="evt_20", refund_reference="re_20"), by=BY)
    assert (order.version, order.status) == (version, OrderStatus.CAPTURED)
    assert receive(order, told("captured"), by=BY) == "applied"
    assert receive(order, told("captured", event_id="again"), by=BY) == "none"


def test_an_authorization_that_an_event_tells_of_after_the_order_was_cancelled_is_voided() -> None:
    order = after(told("failed"), capture="manual")
    cancel(order, by=BY)
    receive(order, told("authorized"), by=BY)
    assert facts(order)[-2:] == ["payment.authorized", "payment.void_requested"]


def test_what_is_late_does_not_bring_back_an_authorization_that_is_over() -> None:
    order = after(told("cancelled"), capture="manual")
    report(order, "authorized")
    assert order.status is OrderStatus.FAILED


def test_a_payment_that_the_merchant_cancelled_is_cancelled_when_the_processor_says_so() -> None:
    order = pay(new_order())
    cancel(order, by=BY)
    receive(order, told("cancelled"), by=BY)
    assert (order.status, facts(order)[-1]) == (OrderStatus.CANCELLED, "payment.cancelled")
    authorized = after(told("authorized"), capture="manual")
    cancel(authorized, by=BY)
    receive(authorized, told("cancelled"), by=BY)
    assert authorized.status is OrderStatus.CANCELLED
    assert transactions(authorized)[-1] == ("void", "success", AMOUNT)


@pytest.mark.parametrize(
    ("outcome", "capture", "completes"),
    [
        ("captured", "automatic", True),
        ("authorized", "manual", True),
        ("failed", "automatic", False),
        ("cancelled", "automatic", False),
        ("requires_action", "automatic", None),
    ],
)
def test_the_fact_says_what_a_waiting_workflow_is_to_know(
    outcome: Outcome, capture: CaptureMethod, completes: bool | None
) -> None:
    order = after(told(outcome), capture=capture)
    [fact] = [event for event in order.pending_events if isinstance(event, ProcessorEventReceived)]
    assert fact.completes is completes


@pytest.mark.parametrize(
    ("capture", "status", "completes"), [("automatic", "processing", None), ("manual", "authorized", True)]
)
def test_razorpays_authorization_completes_what_it_does_not_capture_by_itself(
    capture: CaptureMethod, status: str, completes: bool | None
) -> None:
    order = pay(new_order(), capture=capture)
    order.payments[1].processor = "razorpay"
    receive(order, told("authorized", processor="razorpay", amount=AMOUNT), by=BY)
    assert order.status == status
    assert isinstance(order.pending_events[-2], ProcessorEventReceived)
    assert order.pending_events[-2].completes is completes


@pytest.mark.parametrize("held", ["authorized", "captured"])
def test_a_failure_that_is_told_late_is_not_told_to_the_workflow_of_a_payment_that_has_money(
    held: str,
) -> None:
    order = report(pay(new_order(), capture="manual"), held)
    receive(order, told("failed"), by=BY)
    [fact] = [event for event in order.pending_events if isinstance(event, ProcessorEventReceived)]
    assert (fact.completes, order.status) == (None, held)


def test_the_payment_meant_is_found_by_reference_by_label_and_else_is_the_one_without_a_reference() -> None:
    order = pay(after(told("failed")))

    def status(attempt: int) -> PaymentStatus:
        return order.payments[attempt].status

    other = told("captured", references=References("po_2", "pt_2"))
    assert receive(order, told("failed", event_id="again"), by=BY) == "none"
    assert status(2) is PaymentStatus.PROCESSING
    assert receive(order, replace(other, processor="razorpay"), by=BY) == "unmatched"
    assert receive(order, other, by=BY) == "applied"
    assert status(2) is PaymentStatus.CAPTURED
    third = told("captured", event_id="third", references=References("po_3"))
    assert receive(order, third, by=BY) == "unmatched"
    assert receive(order, replace(third, event_id="fourth", attempt=1), by=BY) == "applied"
    assert status(1) is PaymentStatus.CAPTURED


@pytest.mark.parametrize("outcome", ["failed", "cancelled"])
def test_the_end_of_an_earlier_attempt_that_is_told_late_does_not_end_the_one_under_way(
    outcome: Outcome,
) -> None:
    """Workers need not report references nor label payments: nobody knows whose end it is."""
    order = pay(new_order())
    report_failed(order, order.payments[1], references=NO_REFERENCES, failure=Failure("card_declined"), by=BY)
    pay(order)
    assert receive(order, told(outcome), by=BY) == "unmatched"
    assert order.status == "processing"
    assert receive(order, told(outcome, event_id="labelled", attempt=2), by=BY) == "applied"
    assert order.status == "failed"


def test_an_end_that_may_be_of_one_of_two_attempts_that_are_over_is_no_news() -> None:
    """Nobody has to look at it."""
    order = pay(new_order())
    for attempt in (1, 2):
        payment = order.payments[attempt]
        report_failed(order, payment, references=NO_REFERENCES, failure=Failure("card_declined"), by=BY)
        if attempt == 1:
            pay(order)
    assert receive(order, told("failed"), by=BY) == "none"


def test_an_earlier_attempt_that_the_processor_has_cancelled_leaves_the_money_that_it_holds_for_the_latest() -> (
    None
):
    """Else the order could be paid once more."""
    order = pay(new_order())
    report_failed(order, order.payments[1], references=NO_REFERENCES, failure=Failure("lost"), by=BY)
    pay(order, capture="manual")
    report_authorized(order, order.payments[2], references=NO_REFERENCES, by=BY)
    assert receive(order, told("cancelled"), by=BY) == "unmatched"
    assert order.status is OrderStatus.AUTHORIZED


def test_a_capture_names_the_payment_that_it_is_taken_to_be_of() -> None:
    """Without its reference it could not be refunded."""
    order = pay(new_order())
    report_failed(order, order.payments[1], references=NO_REFERENCES, failure=Failure("lost"), by=BY)
    receive(pay(order), told("captured"), by=BY)
    assert (order.payments[2].status, order.payments[2].processor_order_id) == ("captured", "po_1")


def test_a_payment_stays_known_by_the_reference_that_its_worker_reported() -> None:
    """By which its worker captures, voids and refunds it."""
    order = pay(new_order())
    report_processing(order, order.payments[1], processor_order_id="of the worker", by=BY)
    assert receive(order, told("captured", attempt=1), by=BY) == "applied"
    assert order.payments[1].processor_order_id == "of the worker"


def test_two_charges_are_two_though_no_worker_reported_a_reference() -> None:
    """The first was reported as failed, and was made; its customer gets one of them back."""
    order = pay(new_order())
    report_failed(order, order.payments[1], references=NO_REFERENCES, failure=Failure("lost"), by=BY)
    report_captured(pay(order), order.payments[2], references=NO_REFERENCES, by=BY)
    for number in (1, 2, 1, 2):
        charge = References(f"po_{number}", f"pt_{number}")
        receive(order, told("captured", event_id=f"{number}-{order.version}", references=charge), by=BY)
    assert (order.amount_captured, refunds(order)) == (2 * AMOUNT, [(AMOUNT, "pending")])


@pytest.mark.parametrize("charge", [None, "po_1", "pt_1"])
def test_a_charge_is_one_though_its_event_was_taken_for_that_of_an_attempt_without_references(
    charge: str | None,
) -> None:
    """Else the only charge would be given back as a duplicate."""
    order = pay(new_order())
    report_failed(order, order.payments[1], references=NO_REFERENCES, failure=Failure("lost"), by=BY)
    report_captured(pay(order), order.payments[2], references=NO_REFERENCES, by=BY)
    assert receive(order, told("captured"), by=BY) == "none"
    report_captured(order, order.payments[1], references=References("po_1", charge), by=BY)
    assert (order.amount_captured, refunds(order)) == (AMOUNT, [])
    second = told("captured", event_id="second", references=References("po_2", "pt_2"))
    assert receive(order, second, by=BY) == "applied"
    assert (order.amount_captured, refunds(order)) == (2 * AMOUNT, [(AMOUNT, "pending")])


@pytest.mark.parametrize(
    ("first", "second"), [(None, "pt_2"), ("pt_1", None), ("pt_1", "pt_2"), (None, None)]
)
def test_two_charges_are_two_though_workers_report_no_reference_of_their_payments(
    first: str | None, second: str | None
) -> None:
    order = pay(new_order())
    report_failed(order, order.payments[1], references=NO_REFERENCES, failure=Failure("lost"), by=BY)
    report_captured(pay(order), order.payments[2], references=References(None, second), by=BY)
    report_captured(order, order.payments[1], references=References(None, first), by=BY)
    assert (order.amount_captured, refunds(order)) == (2 * AMOUNT, [(AMOUNT, "pending")])


def test_a_charge_is_one_though_an_earlier_attempts_authorization_was_taken_for_its_own() -> None:
    """Else the only charge would be given back as a duplicate."""
    order = pay(new_order(), capture="manual")
    report_failed(order, order.payments[1], references=NO_REFERENCES, failure=Failure("lost"), by=BY)
    pay(order, capture="manual")
    for number in (1, 2):
        names = References(f"po_{number}", f"pt_{number}")
        receive(order, told("authorized", event_id=f"authorized {number}", references=names), by=BY)
    report_authorized(order, order.payments[1], references=NO_REFERENCES, by=BY)
    request_capture(order, amount=400, by=BY)
    report_captured(order, order.payments[2], references=NO_REFERENCES, by=BY)
    receive(order, told("captured", amount=400, references=names), by=BY)
    assert (order.amount_captured, refunds(order)) == (400, [])


def test_a_refund_is_that_of_the_charge_whose_capture_was_told_under_its_references() -> None:
    """The worker knows the payment by another reference than the events do, and nobody that of an earlier attempt."""
    order = pay(new_order())
    report_failed(order, order.payments[1], references=NO_REFERENCES, failure=Failure("lost"), by=BY)
    report_captured(pay(order), order.payments[2], references=References("of the worker"), by=BY)
    assert receive(order, told("captured", attempt=2), by=BY) == "none"
    assert receive(order, refunded("re_1", 300), by=BY) == "applied"
    assert (order.amount_refunded, order.payments[2].processor_order_id) == (300, "of the worker")


@pytest.mark.parametrize(("reported", "charge"), [("pt_1", "pt_1"), (None, "pt_2")])
def test_a_refund_is_that_of_the_captured_one_of_attempts_that_share_a_reference(
    reported: str | None, charge: str
) -> None:
    """Whether or not its worker reported the charge."""
    order = pay(after(told("failed")))
    report_processing(order, order.payments[2], processor_order_id="po_1", by=BY)
    known = References("po_1", reported)
    report_captured(order, order.payments[1], references=known, by=BY)
    report_captured(order, order.payments[2], references=known, by=BY)
    references = References("po_1", charge)
    assert receive(order, refunded("re_1", 400, references=references), by=BY) == "applied"
    assert (order.amount_captured, order.amount_refunded) == (AMOUNT, 400)
    assert receive(order, came_back("re_1", 400, references=references), by=BY) == "applied"
    assert (order.amount_captured, order.amount_refunded) == (AMOUNT, 0)


def test_the_end_of_a_charge_ends_no_later_attempt_that_shares_the_reference_of_its_payment() -> None:
    order = after(told("authorized"), capture="manual")
    known = References("po_1")
    report_failed(order, order.payments[1], references=known, failure=Failure("expired"), by=BY)
    report_processing(pay(order), order.payments[2], processor_order_id="po_1", by=BY)
    ends = []
    for charge in ("pt_1", "pt_2"):
        receive(order, told("cancelled", event_id=charge, references=References("po_1", charge)), by=BY)
        ends.append(order.status)
    assert ends == [OrderStatus.PROCESSING, OrderStatus.FAILED]


@pytest.mark.parametrize("outcome", ["failed", "cancelled"])
@pytest.mark.parametrize(
    ("reported", "charge", "attempt", "ends"),
    [
        (None, "pt_1", None, False),  # whose charge it is, nobody knows
        (None, None, None, False),
        ("pt_1", None, None, False),
        ("pt_1", "pt_1", None, False),
        ("po", "pt_1", None, False),  # that of the payment in its place
        ("pt_1", "pt_2", None, True),
        (None, "pt_2", 2, True),
    ],
)
def test_the_end_of_an_earlier_charge_does_not_end_a_later_attempt_that_shares_its_reference(
    outcome: Outcome, reported: str | None, charge: str | None, attempt: int | None, ends: bool
) -> None:
    """Else the order could be paid a third time while the second payment is under way."""
    order = pay(new_order())
    known = References("po", reported)
    report_failed(order, order.payments[1], references=known, failure=Failure("card_declined"), by=BY)
    report_processing(pay(order), order.payments[2], processor_order_id="po", by=BY)
    receive(order, told(outcome, attempt=attempt, references=References("po", charge)), by=BY)
    assert order.status is (OrderStatus.FAILED if ends else OrderStatus.PROCESSING)
    receive(order, told("captured", references=References("po", charge)), by=BY)
    assert (order.status, order.amount_captured) == (OrderStatus.CAPTURED, AMOUNT)


def test_the_end_of_a_charge_that_is_known_ends_its_attempt_though_an_earlier_one_shares_its_reference() -> (
    None
):
    order = pay(new_order())
    known = References("po")
    report_failed(order, order.payments[1], references=known, failure=Failure("card_declined"), by=BY)
    report_authorized(pay(order), order.payments[2], references=References("po", "pt_2"), by=BY)
    receive(order, told("cancelled", references=References("po", "pt_2")), by=BY)
    assert order.status is OrderStatus.FAILED


def test_a_payment_of_another_reference_is_another_though_its_charge_is_named_like_one_that_failed() -> None:
    order = pay(after(told("failed")))
    receive(order, told("captured", references=References("po_2", "pt_1")), by=BY)
    assert [payment.status for payment in order.payments.values()] == ["failed", "captured"]


def test_a_failed_charge_that_is_captured_after_all_is_that_of_its_attempt() -> None:
    order = after(told("failed"))
    report_processing(pay(order), order.payments[2], processor_order_id="po_1", by=BY)
    assert receive(order, told("captured"), by=BY) == "applied"
    assert [payment.status for payment in order.payments.values()] == ["captured", "processing"]
    assert order.payments[2].cancel_requested


def test_another_charge_of_the_same_attempt_is_told_to_people() -> None:
    """A worker that charges twice: the books have it once."""
    order = captured()
    same = told("captured", attempt=1, references=References("elsewhere", "pt_1"))
    assert receive(order, same, by=BY) == "none"
    known_by_charge = References(None, "pt_1")
    other = References("po_9", "pt_9")
    assert (
        receive(order, told("captured", event_id="other", attempt=1, references=other), by=BY)
        == "contradiction"
    )
    report_captured(
        other_order := pay(new_order()), other_order.payments[1], references=known_by_charge, by=BY
    )
    assert receive(other_order, told("captured", references=other), by=BY) == "contradiction"
    assert order.amount_captured == other_order.amount_captured == AMOUNT


def test_whatever_merchants_ask_workflows_report_and_processors_tell_the_books_agree() -> None:
    has_money = {OrderStatus.CAPTURED, OrderStatus.PARTIALLY_REFUNDED, OrderStatus.REFUNDED}
    for seed in range(600):
        order = random_order(random.Random(seed), uuid7())
        made = [t for t in order.transactions.values() if t.status is TransactionStatus.SUCCESS]
        captures = [t for t in made if t.type is TransactionType.CAPTURE]
        given_back = [t for t in made if t.type is TransactionType.REFUND]
        assert order.amount_captured == sum(t.amount for t in captures), seed
        assert order.amount_refunded == sum(t.amount for t in given_back), seed
        assert (order.status in has_money) == bool(captures), seed
        for capture in captures:
            assert sum(t.amount for t in given_back if t.refunds == capture.id) <= capture.amount, seed


@pytest.mark.parametrize(
    ("event", "learned"),
    [
        (told("captured"), "po_1"),
        (summed(300), "po_1"),
        (told("captured", references=References(None, "pt_1")), None),
        (told("captured", currency="eur"), None),
    ],
)
def test_the_reference_of_a_captured_payment_is_learned_from_its_events(
    event: ProcessorEvent, learned: str | None
) -> None:
    """Its worker reported none, so it could not be refunded."""
    order = pay(new_order())
    report_captured(order, order.payments[1], references=NO_REFERENCES, by=BY)
    receive(order, event, by=BY)
    assert order.payments[1].processor_order_id == learned
    assert facts(order).count("payment.reference_found") == (learned is not None)


@pytest.mark.parametrize(
    ("charge", "label", "learned"),
    [(None, None, None), (None, 1, "po_1"), (None, 2, None), ("pt_1", None, "po_1")],
)
def test_an_event_that_may_be_of_another_attempt_gives_no_reference(
    charge: str | None, label: int | None, learned: str | None
) -> None:
    order = pay(new_order())
    report_captured(order, order.payments[1], references=References(None, charge), by=BY)
    first = order.payments[1]
    order.payments[2] = replace(first, attempt=2, status=PaymentStatus.FAILED, processor_transaction_id=None)
    receive(order, told("captured", attempt=label), by=BY)
    assert first.processor_order_id == learned


@pytest.mark.parametrize("told_first", [True, False])
@pytest.mark.parametrize("held", ["authorized", "captured"])
def test_the_reference_is_learned_before_or_after_the_report_without_it(
    held: Outcome, told_first: bool
) -> None:
    """Every other attempt has its own. Without it, the money could be neither captured nor given back."""
    order = pay(after(told("failed")), capture="manual")
    event = told(held, references=References("po_2", "pt_2"))
    if told_first:
        receive(order, event, by=BY)
    outcome = report_authorized if held == "authorized" else report_captured
    outcome(order, order.payments[2], references=NO_REFERENCES, by=BY)
    if not told_first:
        receive(order, event, by=BY)
    assert (order.payments[2].status, order.payments[2].processor_order_id) == (held, "po_2")


def test_a_reference_is_that_of_one_payment_only() -> None:
    """The processor was asked about the first while the second was reported under it."""
    order = pay(new_order())
    report_captured(order, order.payments[1], references=NO_REFERENCES, by=BY)
    first = order.payments[1]
    order.payments[2] = replace(first, attempt=2, status=PaymentStatus.FAILED, processor_order_id="po_1")
    report_reference(order, first, processor_order_id="po_1", by=BY)
    assert first.processor_order_id is None


@pytest.mark.parametrize(
    ("outcome", "statuses"),
    [
        ("failed", ["failed", "processing"]),
        ("authorized", ["authorized", "processing"]),
        ("captured", ["captured", "processing"]),
    ],
)
def test_what_becomes_of_a_charge_that_failed_is_of_its_attempt_though_the_charge_alone_was_reported(
    outcome: Outcome, statuses: list[str]
) -> None:
    """Taken for the latest, which may be charged besides, its money would count as that one's."""
    order = pay(new_order(), capture="manual")
    first = order.payments[1]
    failed = References(None, "pt_1")
    report_failed(order, first, references=failed, failure=Failure("card_declined"), by=BY)
    pay(order, capture="manual")
    assert receive(order, told(outcome), by=BY) == ("none" if outcome == "failed" else "applied")
    assert [payment.status for payment in order.payments.values()] == statuses
    assert first.processor_order_id == (None if outcome == "failed" else "po_1")
