"""What processors tell comes late, twice and in any order: the order ends in the same state."""

import itertools
import random
from dataclasses import replace
from datetime import timedelta
from typing import Any, cast

import pytest
from folding import folded_from_stored
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from ordering import AMOUNT, BY, facts, new_order, pay, report, transactions
from projecting import random_order
from uuid_utils.compat import uuid7

from payloops.commands import receive_processor_event
from payloops.commands.cancel_order import cancel
from payloops.commands.capture_payment import request_capture
from payloops.commands.payment_outcomes import (
    report_authorized,
    report_captured,
    report_failed,
    report_processing,
)
from payloops.commands.processor_refunds import complete_pending_refunds, record_processor_refunds
from payloops.commands.receive_processor_event import Outcome, ProcessorEvent, receive
from payloops.commands.refund_outcomes import fail_refund, succeed_refund
from payloops.commands.refund_payment import request_refund
from payloops.commands.refusals import TooManyProcessorEvents
from payloops.commands.update_refund_status import report_refund
from payloops.events.orders import (
    NO_REASON,
    CaptureMethod,
    Failure,
    Order,
    OrderStatus,
    PaymentStatus,
    ProcessorEventReceived,
    TransactionStatus,
    TransactionType,
)

PAYMENT_OUTCOMES: tuple[Outcome, ...] = ("requires_action", "failed", "authorized", "cancelled", "captured")
REASONABLE = hypothesis_settings(max_examples=300, deadline=None)


def told(outcome: Outcome, **fields: Any) -> ProcessorEvent:
    """An event of the first attempt."""
    known: dict[str, Any] = {
        "processor": "stripe",
        "event_id": f"evt_{outcome}",
        "type": outcome,
        "processor_order_id": "po_1",
        "processor_transaction_id": "pt_1",
        "currency": "usd",
        "amount": AMOUNT if outcome == "captured" else None,
    }
    return ProcessorEvent(outcome=outcome, **(known | fields))


def refunded(reference: str, amount: int, **fields: Any) -> ProcessorEvent:
    return told("refunded", event_id=f"evt_{reference}", refund_reference=reference, amount=amount, **fields)


def summed(total: int) -> ProcessorEvent:
    return told("refunded", event_id=f"evt_sum_{total}", amount_refunded=total)


def came_back(reference: str, amount: int, **fields: Any) -> ProcessorEvent:
    known = {"refund_reference": reference, "amount": amount, "failure": Failure("expired_or_canceled_card")}
    return told("refund_failed", event_id=f"evt_failed_{reference}", **(known | fields))


def after(*events: ProcessorEvent, capture: CaptureMethod = "automatic") -> Order:
    order = pay(new_order(), capture=capture)
    for event in events:
        receive(order, event, by=BY)
    return order


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


def refunds(order: Order) -> list[tuple[int, str]]:
    return sorted(
        (t.amount, t.status.value) for t in order.transactions.values() if t.type is TransactionType.REFUND
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


def test_what_is_late_does_not_bring_back_an_authorization_that_is_over() -> None:
    order = after(told("cancelled"), capture="manual")
    report(order, "authorized")
    assert order.status is OrderStatus.FAILED


def test_a_payment_that_the_merchant_cancelled_is_cancelled_when_the_processor_says_so() -> None:
    order = pay(new_order())
    cancel(order, by=BY)
    receive(order, told("cancelled"), by=BY)
    assert order.status is OrderStatus.CANCELLED
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

    other = told("captured", processor_order_id="po_2", processor_transaction_id="pt_2")
    assert receive(order, told("failed", event_id="again"), by=BY) == "none"
    assert status(2) is PaymentStatus.PROCESSING
    assert receive(order, replace(other, processor="razorpay"), by=BY) == "unmatched"
    assert receive(order, other, by=BY) == "applied"
    assert status(2) is PaymentStatus.CAPTURED
    third = told("captured", event_id="third", processor_order_id="po_3", processor_transaction_id=None)
    assert receive(order, third, by=BY) == "unmatched"
    assert receive(order, replace(third, event_id="fourth", attempt=1), by=BY) == "applied"
    assert status(1) is PaymentStatus.CAPTURED


@pytest.mark.parametrize("outcome", ["failed", "cancelled"])
def test_the_end_of_an_earlier_attempt_that_is_told_late_does_not_end_the_one_under_way(
    outcome: Outcome,
) -> None:
    """Workers need not report references nor label payments: nobody knows whose end it is."""
    order = pay(new_order())
    nameless: dict[str, Any] = {"processor_order_id": None, "processor_transaction_id": None}
    report_failed(order, order.payments[1], **nameless, failure=Failure("card_declined"), by=BY)
    pay(order)
    assert receive(order, told(outcome), by=BY) == "unmatched"
    assert order.status == "processing"
    assert receive(order, told(outcome, event_id="labelled", attempt=2), by=BY) == "applied"
    assert order.status == "failed"


def test_an_earlier_attempt_that_the_processor_has_cancelled_leaves_the_money_that_it_holds_for_the_latest() -> (
    None
):
    """Else the order could be paid once more."""
    order = pay(new_order())
    nameless: dict[str, Any] = {"processor_order_id": None, "processor_transaction_id": None}
    report_failed(order, order.payments[1], **nameless, failure=Failure("lost"), by=BY)
    pay(order, capture="manual")
    report_authorized(order, order.payments[2], **nameless, by=BY)
    assert receive(order, told("cancelled"), by=BY) == "unmatched"
    assert order.status is OrderStatus.AUTHORIZED


def test_a_capture_names_the_payment_that_it_is_taken_to_be_of() -> None:
    """Without its reference it could not be refunded."""
    order = pay(new_order())
    nameless: dict[str, Any] = {"processor_order_id": None, "processor_transaction_id": None}
    report_failed(order, order.payments[1], **nameless, failure=Failure("lost"), by=BY)
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
    nameless: dict[str, Any] = {"processor_order_id": None, "processor_transaction_id": None}
    report_failed(order, order.payments[1], **nameless, failure=Failure("lost"), by=BY)
    report_captured(pay(order), order.payments[2], **nameless, by=BY)
    for number in (1, 2, 1, 2):
        charge = {"processor_order_id": f"po_{number}", "processor_transaction_id": f"pt_{number}"}
        receive(order, told("captured", event_id=f"{number}-{order.version}", **charge), by=BY)
    assert (order.amount_captured, refunds(order)) == (2 * AMOUNT, [(AMOUNT, "pending")])


def test_a_charge_is_one_though_an_earlier_attempts_authorization_was_taken_for_its_own() -> None:
    """Else the only charge would be given back as a duplicate."""
    order = pay(new_order(), capture="manual")
    nameless: dict[str, Any] = {"processor_order_id": None, "processor_transaction_id": None}
    report_failed(order, order.payments[1], **nameless, failure=Failure("lost"), by=BY)
    pay(order, capture="manual")
    for number in (1, 2):
        names = {"processor_order_id": f"po_{number}", "processor_transaction_id": f"pt_{number}"}
        receive(order, told("authorized", event_id=f"authorized {number}", **names), by=BY)
    report_authorized(order, order.payments[1], **nameless, by=BY)
    request_capture(order, amount=400, by=BY)
    report_captured(order, order.payments[2], **nameless, by=BY)
    receive(order, told("captured", amount=400, **names), by=BY)
    assert (order.amount_captured, refunds(order)) == (400, [])


def test_a_refund_is_that_of_the_charge_whose_capture_was_told_under_its_references() -> None:
    """The worker knows the payment by another reference than the events do, and nobody that of an earlier attempt."""
    order = pay(new_order())
    nameless: dict[str, Any] = {"processor_order_id": None, "processor_transaction_id": None}
    report_failed(order, order.payments[1], **nameless, failure=Failure("lost"), by=BY)
    named: dict[str, Any] = nameless | {"processor_order_id": "of the worker"}
    report_captured(pay(order), order.payments[2], **named, by=BY)
    assert receive(order, told("captured", attempt=2), by=BY) == "none"
    assert receive(order, refunded("re_1", 300), by=BY) == "applied"
    assert (order.amount_refunded, order.payments[2].processor_order_id) == (300, "of the worker")


def test_a_refund_is_that_of_the_captured_one_of_attempts_that_share_a_reference() -> None:
    order = pay(after(told("failed")))
    report_processing(order, order.payments[2], processor_order_id="po_1", by=BY)
    known: dict[str, Any] = {"processor_order_id": "po_1", "processor_transaction_id": "pt_1"}
    report_captured(order, order.payments[1], **known, by=BY)
    report_captured(order, order.payments[2], **known, by=BY)
    assert receive(order, refunded("re_1", 400), by=BY) == "applied"
    assert (order.amount_captured, order.amount_refunded) == (AMOUNT, 400)


def test_another_charge_of_the_same_attempt_is_told_to_people() -> None:
    """A worker that charges twice: the books have it once."""
    order = report(pay(new_order()), "captured")
    same = told("captured", attempt=1, processor_order_id="elsewhere")
    assert receive(order, same, by=BY) == "none"
    known_by_charge: dict[str, Any] = {"processor_order_id": None, "processor_transaction_id": "pt_1"}
    other = {"processor_order_id": "po_9", "processor_transaction_id": "pt_9"}
    assert receive(order, told("captured", event_id="other", attempt=1, **other), by=BY) == "contradiction"
    report_captured(other_order := pay(new_order()), other_order.payments[1], **known_by_charge, by=BY)
    assert receive(other_order, told("captured", **other), by=BY) == "contradiction"
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


# -- refunds


def test_of_sums_that_came_before_the_capture_the_largest_counts() -> None:
    order = after(summed(500), summed(300), told("captured"))
    assert (order.status, order.amount_refunded) == (OrderStatus.PARTIALLY_REFUNDED, 500)


@given(data=st.data())
@REASONABLE
def test_refunds_made_at_the_processor_appear_exactly_once_in_any_order(data: st.DataObject) -> None:
    """Each refund is told by reference, and as the sum so far; the capture is told at some time among them."""
    amounts = data.draw(
        st.lists(st.integers(1, 400), min_size=1, max_size=4).filter(lambda a: sum(a) <= AMOUNT)
    )
    events = [told("captured")]
    total = 0
    for number, amount in enumerate(amounts):
        total += amount
        events += [refunded(f"re_{number}", amount), summed(total)]
    order = after(*data.draw(st.permutations(events * 2)))
    assert order.amount_refunded == total
    assert sum(amount for amount, _ in refunds(order)) == total
    assert order.status is (OrderStatus.REFUNDED if total == AMOUNT else OrderStatus.PARTIALLY_REFUNDED)


@given(data=st.data(), labelled=st.booleans(), referenced=st.booleans())
@REASONABLE
def test_refunds_made_there_and_refunds_that_started_here_are_told_apart(
    data: st.DataObject, labelled: bool, referenced: bool
) -> None:
    """One refund of ours and one of theirs, perhaps of equal amounts; our workflow reports at some time."""
    ours_amount, theirs = data.draw(st.integers(1, 500)), data.draw(st.integers(1, 500))
    order = after(told("captured"))
    ours = request_refund(order, amount=ours_amount, reason=None, by=BY)
    sums = data.draw(st.sampled_from([(ours_amount, ours_amount + theirs), (theirs, ours_amount + theirs)]))
    steps = [
        refunded("re_ours", ours_amount, refund_id=ours.id if labelled else None),
        refunded("re_theirs", theirs),
        *map(summed, sums),
        "workflow",
    ]
    for step in data.draw(st.permutations(steps)):
        if step == "workflow":
            reference = "re_ours" if referenced else None
            succeed_refund(order, ours.id, processor_transaction_id=reference, by=BY)
            record_processor_refunds(order, order.payments[1], amount_refunded=None, by=BY)
        else:
            receive(order, cast("ProcessorEvent", step), by=BY)
    assert order.amount_refunded == ours_amount + theirs
    assert {status for _, status in refunds(order)} == {"success"}


MADE = st.tuples(st.sampled_from([100, 200, 300]), st.booleans(), st.booleans(), st.booleans())
"""A refund: its amount, whether it is ours, and of one of ours whether the processor has our id and its worker reports
the processor's."""


@given(
    data=st.data(),
    made=st.lists(MADE, min_size=2, max_size=4).filter(lambda made: sum(each[0] for each in made) <= AMOUNT),
    summing=st.booleans(),
)
@REASONABLE
def test_several_refunds_of_ours_and_of_theirs_count_once_each_in_whatever_order_they_are_told(
    data: st.DataObject, made: list[tuple[int, bool, bool, bool]], summing: bool
) -> None:
    """Never more than was made meanwhile, and in the end all of it."""
    order = after(told("captured"))
    steps: list[ProcessorEvent | tuple[str, str | None]] = []
    ours = []
    total = 0
    for number, (amount, is_ours, labelled, referenced) in enumerate(made):
        reference, label = f"re_{number}", None
        total += amount
        if is_ours:
            refund = request_refund(order, amount=amount, reason=None, by=BY)
            ours.append(refund)
            label = refund.id if labelled else None
            steps.append((refund.id, reference if referenced else None))
        steps.append(refunded(reference, amount, refund_id=label))
        if summing:
            steps.append(summed(total))
    for step in data.draw(st.permutations(steps)):
        if isinstance(step, ProcessorEvent):
            assert receive(order, step, by=BY) != "contradiction"
        else:
            refund_id, known = step
            report_refund(
                order, refund_id, succeeded=True, processor_transaction_id=known, failure=NO_REASON, by=BY
            )
        assert order.amount_refunded <= total
    assert order.amount_refunded == total
    assert {status for _, status in refunds(order)} == {"success"}
    assert {each.status for each in ours} <= {TransactionStatus.SUCCESS}


def test_a_refund_of_ours_stands_for_one_there_of_its_amount_and_for_no_second() -> None:
    """Known by our id, or presumed to be ours: what is told beside it is money besides."""
    order = after(told("captured"))
    ours = request_refund(order, amount=200, reason=None, by=BY)
    succeed_refund(order, ours.id, processor_transaction_id=None, by=BY)
    receive(order, refunded("re_ours", 200, refund_id=ours.id), by=BY)
    receive(order, refunded("re_1", 200), by=BY)
    assert (order.amount_refunded, order.refundable) == (400, 600)
    request_refund(order, amount=300, reason=None, by=BY)
    for reference in ("re_2", "re_3"):
        receive(order, refunded(reference, 300), by=BY)
    assert (order.amount_refunded, order.refundable) == (700, 0)


def test_what_was_told_of_by_a_sum_is_taken_for_a_part_of_refunds_there_once() -> None:
    order = after(told("captured"), summed(200), refunded("re_1", 300), refunded("re_2", 200))
    assert order.amount_refunded == 500


def test_what_is_told_again_of_a_refund_that_was_a_part_of_a_sum_contradicts_nothing() -> None:
    order = after(told("captured"), summed(200), refunded("re_1", 300))
    assert order.amount_refunded == 300
    again = replace(refunded("re_1", 300), event_id="updated")
    assert receive(order, again, by=BY) == "none"
    assert order.amount_refunded == 300


@pytest.mark.parametrize("labelled", [True, False])
def test_a_refund_of_ours_that_failed_for_good_is_never_said_to_have_been_made(labelled: bool) -> None:
    """Its merchant would be told so, and then that it failed."""
    order = after(told("captured"))
    ours = request_refund(order, amount=300, reason=None, by=BY)
    receive(order, came_back("re_1", 300, refund_id=ours.id if labelled else None), by=BY)
    reference = None if labelled else "re_1"
    report_refund(
        order, ours.id, succeeded=True, processor_transaction_id=reference, failure=NO_REASON, by=BY
    )
    assert (order.transactions[ours.id].status, "refund.succeeded" in facts(order)) == ("failed", False)


def test_a_refund_there_that_was_taken_for_ours_comes_out_when_ours_fails() -> None:
    order = after(told("captured"))
    ours = request_refund(order, amount=300, reason=None, by=BY)
    receive(order, refunded("re_theirs", 300), by=BY)
    assert order.amount_refunded == 0
    fail_refund(order, ours.id, processor_transaction_id=None, failure=Failure("no"), by=BY)
    record_processor_refunds(order, order.payments[1], amount_refunded=None, by=BY)
    assert refunds(order) == [(300, "failed"), (300, "success")]


@pytest.mark.parametrize("reported", [False, True])
def test_another_amount_than_a_refund_was_asked_for_is_told_to_people(reported: bool) -> None:
    """Workers report no amounts: the processor's own event is what shows that it gave back something else."""
    order = after(told("captured"))
    refund = request_refund(order, amount=500, reason=None, by=BY)
    if reported:
        succeed_refund(order, refund.id, processor_transaction_id="re_1", by=BY)
    before = refunds(order)
    given = refunded("re_1", 300, refund_id=None if reported else refund.id)
    assert receive(order, given, by=BY) == "contradiction"
    assert refunds(order) == before
    right = replace(given, event_id="right", amount=500)
    assert receive(order, right, by=BY) == ("none" if reported else "applied")
    assert order.amount_refunded == 500


def test_refunds_of_one_of_two_charges_are_not_counted_of_the_other() -> None:
    order = after(told("failed"))
    pay(order)
    second = {"processor_order_id": "po_2", "processor_transaction_id": "pt_2"}
    receive(order, told("captured", event_id="evt_2", **second), by=BY)
    receive(order, told("captured", event_id="evt_1"), by=BY)
    before = refunds(order)
    receive(order, refunded("re_2", 300, **second), by=BY)
    assert refunds(order) == sorted([*before, (300, "success")])
    for payment in order.payments.values():
        record_processor_refunds(order, payment, amount_refunded=None, by=BY)
    assert refunds(order) == sorted([*before, (300, "success")])


def test_a_sum_makes_no_refund_of_ours_where_one_failed_that_may_be_in_it() -> None:
    order = after(told("captured"))
    ours = request_refund(order, amount=300, reason=None, by=BY)
    failed = told("refund_failed", event_id="evt_failed", refund_reference="re_1", amount=300)
    receive(order, failed, by=BY)
    later = ours.created_at + timedelta(hours=1)
    complete_pending_refunds(order, order.payments[1], amount_refunded=300, requested_before=later, by=BY)
    assert order.amount_refunded == 0


def test_more_refunds_than_money_are_not_recorded_and_leave_nothing_to_refund() -> None:
    order = after(told("captured"))
    request_refund(order, amount=700, reason=None, by=BY)
    assert receive(order, refunded("re_1", 600), by=BY) == "applied"
    assert order.refundable == 0
    assert receive(order, refunded("re_2", 500), by=BY) == "contradiction"
    [ours] = [t for t in order.transactions.values() if t.amount == 700]
    assert receive(order, refunded("re_3", 700, refund_id=ours.id), by=BY) == "contradiction"
    assert order.amount_refunded == 600


@pytest.mark.parametrize(("back", "left"), [(300, 200), (500, 0), (200, 300)])
def test_what_came_back_of_a_sum_leaves_the_rest_of_it(back: int, left: int) -> None:
    order = after(told("captured"), summed(500), came_back("re_1", back))
    assert (order.amount_refunded, order.refundable) == (left, AMOUNT - left)


def test_more_that_came_back_than_there_was_is_told_to_people() -> None:
    order = after(told("captured"))
    assert receive(order, came_back("re_1", AMOUNT + 1), by=BY) == "contradiction"
    assert refunds(order) == []


def test_a_refund_of_ours_is_not_free_to_be_made_again_where_another_may_have_failed() -> None:
    """One of the same amount, which the processor told of by its own reference only."""
    order = after(told("captured"))
    ours = request_refund(order, amount=300, reason=None, by=BY)
    receive(order, came_back("re_1", 300), by=BY)
    assert (order.transactions[ours.id].status, order.refundable) == ("pending", 700)


def test_a_refund_that_failed_there_frees_its_amount() -> None:
    order = after(told("captured"))
    ours = request_refund(order, amount=None, reason=None, by=BY)
    failed = told(
        "refund_failed", refund_reference="re_1", refund_id=ours.id, amount=AMOUNT, failure=Failure("no")
    )
    receive(order, failed, by=BY)
    assert order.transactions[ours.id].status is TransactionStatus.FAILED
    assert order.refundable == AMOUNT


# -- refunds that come back


def test_a_refund_that_comes_back_is_not_given_and_can_be_made_again() -> None:
    order = after(told("captured"))
    first = request_refund(order, amount=300, reason=None, by=BY)
    succeed_refund(order, first.id, processor_transaction_id="re_1", by=BY)
    second = request_refund(order, amount=700, reason=None, by=BY)
    succeed_refund(order, second.id, processor_transaction_id="re_2", by=BY)
    assert order.status is OrderStatus.REFUNDED
    version = order.version
    assert receive(order, came_back("re_2", 700), by=BY) == "applied"
    assert facts(order, after=version) == ["order.processor_event_received", "refund.reversed"]
    assert (order.status, order.amount_refunded) == (OrderStatus.PARTIALLY_REFUNDED, 300)
    assert refunds(order) == [(300, "success"), (700, "failed")]
    assert order.transactions[second.id].error_code == "expired_or_canceled_card"
    assert receive(order, came_back("re_1", 300), by=BY) == "applied"
    assert (order.status, order.amount_refunded) == (OrderStatus.CAPTURED, 0)
    again = request_refund(order, amount=None, reason=None, by=BY)
    assert again.amount == AMOUNT
    succeed_refund(order, again.id, processor_transaction_id="re_3", by=BY)
    assert order.status is OrderStatus.REFUNDED


def test_what_is_told_after_a_refund_came_back_does_not_make_it_again() -> None:
    order = after(told("captured"), refunded("re_1", 300), came_back("re_1", 300))
    version = order.version
    assert receive(order, replace(refunded("re_1", 300), event_id="again"), by=BY) == "none"
    assert receive(order, summed(300), by=BY) == "none"
    assert receive(order, replace(came_back("re_1", 300), event_id="thrice"), by=BY) == "none"
    assert facts(order, after=version) == ["order.processor_event_received"]
    assert (order.status, order.amount_refunded) == (OrderStatus.CAPTURED, 0)


@given(data=st.data())
@REASONABLE
def test_refunds_that_came_back_do_not_count_in_whatever_order_they_are_told(data: st.DataObject) -> None:
    """Some of them come back; all is told twice, by reference and as the sum so far, in any order."""
    amounts = data.draw(
        st.lists(st.sampled_from([100, 200, 300, 400]), min_size=1, max_size=4).filter(
            lambda a: sum(a) <= AMOUNT
        )
    )
    back = data.draw(st.sets(st.integers(0, len(amounts) - 1), min_size=1))
    events = [told("captured"), *(came_back(f"re_{number}", amounts[number]) for number in back)]
    total = 0
    for number, amount in enumerate(amounts):
        total += amount
        events += [refunded(f"re_{number}", amount), summed(total)]
    order = after(*data.draw(st.permutations(events * 2)))
    given = sum(amount for number, amount in enumerate(amounts) if number not in back)
    assert order.amount_refunded == given
    assert sum(amount for amount, status in refunds(order) if status == "success") == given
    assert order.refundable == AMOUNT - given
    stored = folded_from_stored(order.pending_events)
    stored.pending_events.extend(order.pending_events)
    assert stored == order


@given(data=st.data(), labelled=st.booleans(), reported=st.booleans(), referenced=st.booleans())
@REASONABLE
def test_a_refund_of_ours_that_came_back_has_failed_whatever_our_workflow_reports_when(
    data: st.DataObject, labelled: bool, reported: bool, referenced: bool
) -> None:
    order = after(told("captured"))
    ours = request_refund(order, amount=300, reason=None, by=BY)
    label = ours.id if labelled else None
    steps = [
        refunded("re_ours", 300, refund_id=label),
        came_back("re_ours", 300, refund_id=label),
        summed(300),
        "workflow",
    ]
    for step in data.draw(st.permutations(steps)):
        if step != "workflow":
            receive(order, cast("ProcessorEvent", step), by=BY)
            continue
        report_refund(
            order,
            ours.id,
            succeeded=reported,
            processor_transaction_id="re_ours" if referenced else None,
            failure=NO_REASON,
            by=BY,
        )
    # A failure that is reported without a reference may be another refund's than the one told of.
    assert set(refunds(order)) == {(300, "failed")}
    assert len(refunds(order)) == 1 or not reported
    assert (order.status, order.amount_refunded) == (OrderStatus.CAPTURED, 0)
    assert order.refundable == AMOUNT


def test_a_refund_at_the_processor_that_failed_before_anybody_heard_of_it_is_shown_as_failed() -> None:
    order = after(told("captured"), came_back("re_1", 300))
    assert refunds(order) == [(300, "failed")]
    assert (order.status, order.refundable) == (OrderStatus.CAPTURED, AMOUNT)


@pytest.mark.parametrize("told_as", ["sum", "reference", "both"])
@pytest.mark.parametrize("known_by", ["label", "report"])
def test_a_refund_of_ours_that_was_reported_failed_and_discovered_counts_once_when_it_is_known(
    told_as: str, known_by: str
) -> None:
    """A worker gave up on a refund that the processor had made."""
    order = after(told("captured"))
    ours = request_refund(order, amount=300, reason=None, by=BY)
    report_refund(order, ours.id, succeeded=False, processor_transaction_id=None, failure=NO_REASON, by=BY)
    if told_as in {"reference", "both"}:
        receive(order, refunded("re_ours", 300), by=BY)
    if told_as in {"sum", "both"}:
        receive(order, summed(300), by=BY)
    assert order.amount_refunded == 300
    if known_by == "label":
        receive(order, replace(refunded("re_ours", 300, refund_id=ours.id), event_id="labelled"), by=BY)
    else:
        report_refund(
            order, ours.id, succeeded=True, processor_transaction_id="re_ours", failure=NO_REASON, by=BY
        )
    assert order.amount_refunded == 300
    assert refunds(order) == [(300, "failed"), (300, "success")]
    assert order.transactions[ours.id].status is TransactionStatus.SUCCESS


@pytest.mark.parametrize("told_as", ["sum", "reference"])
def test_a_failure_that_a_worker_takes_back_without_a_reference_leaves_each_refund_counted_once(
    told_as: str,
) -> None:
    """One of ours and one of theirs, of the same amount: what the processor told of ours was taken for theirs."""
    order = after(told("captured"))
    ours = request_refund(order, amount=300, reason=None, by=BY)
    report_refund(order, ours.id, succeeded=False, processor_transaction_id=None, failure=NO_REASON, by=BY)
    receive(order, refunded("re_theirs", 300), by=BY)
    receive(order, summed(600) if told_as == "sum" else refunded("re_ours", 300), by=BY)
    assert order.amount_refunded == 600
    report_refund(order, ours.id, succeeded=True, processor_transaction_id=None, failure=NO_REASON, by=BY)
    assert order.amount_refunded == 600
    assert order.transactions[ours.id].status is TransactionStatus.SUCCESS


def test_a_refund_besides_one_whose_failure_was_taken_back_counts_where_a_sum_shows_both() -> None:
    order = after(told("captured"))
    ours = request_refund(order, amount=300, reason=None, by=BY)
    report_refund(order, ours.id, succeeded=False, processor_transaction_id=None, failure=NO_REASON, by=BY)
    receive(order, refunded("re_1", 300), by=BY)
    receive(order, summed(600), by=BY)
    receive(order, refunded("re_2", 300), by=BY)
    receive(order, summed(900), by=BY)
    assert order.amount_refunded == 900
    report_refund(order, ours.id, succeeded=True, processor_transaction_id=None, failure=NO_REASON, by=BY)
    assert order.amount_refunded == 900
    receive(order, refunded("re_3", 300), by=BY)
    assert order.amount_refunded == 900


def test_a_refund_that_came_back_comes_off_the_sum_that_it_was_partly_known_by() -> None:
    """Beside one of ours of the same amount that has no reference: it is not that one."""
    order = after(told("captured"), summed(200))
    ours = request_refund(order, amount=300, reason=None, by=BY)
    receive(order, refunded("re_ours", 300), by=BY)
    receive(order, refunded("re_theirs", 300), by=BY)
    report_refund(
        order,
        ours.id,
        succeeded=True,
        processor_transaction_id=None,
        failure=NO_REASON,
        by=BY,
    )
    receive(order, summed(800), by=BY)
    assert order.amount_refunded == 800
    receive(order, came_back("re_theirs", 300), by=BY)
    assert order.amount_refunded == 500


def two_of_ours(amount: int) -> tuple[Order, list[str]]:
    """An order with two refunds of ours, of which workers reported no references; and their ids."""
    order = after(told("captured"))
    made = [request_refund(order, amount=amount, reason=None, by=BY) for _ in range(2)]
    for refund in made:
        succeed_refund(order, refund.id, processor_transaction_id=None, by=BY)
    return order, [refund.id for refund in made]


@pytest.mark.parametrize("named", [0, 1])
@pytest.mark.parametrize("named_first", [True, False])
def test_a_refund_that_came_back_is_not_one_that_the_processor_names_by_our_id(
    named: int, named_first: bool
) -> None:
    order, ids = two_of_ours(100)
    events = [refunded("re_1", 100, refund_id=ids[named]), came_back("re_2", 100)]
    for event in events if named_first else reversed(events):
        receive(order, event, by=BY)
    assert (order.transactions[ids[named]].status, order.amount_refunded) == (TransactionStatus.SUCCESS, 100)
    assert refunds(order) == [(100, "failed"), (100, "success")]


@pytest.mark.parametrize("named", [0, 1])
def test_two_refunds_that_came_back_are_two_though_the_second_is_the_one_that_the_first_was_taken_for(
    named: int,
) -> None:
    order, ids = two_of_ours(100)
    receive(order, came_back("re_1", 100), by=BY)
    receive(order, came_back("re_2", 100, refund_id=ids[named]), by=BY)
    assert refunds(order) == [(100, "failed"), (100, "failed")]
    assert (order.amount_refunded, order.refundable) == (0, AMOUNT)


@pytest.mark.parametrize(
    ("event", "learned"),
    [
        (told("captured"), "po_1"),
        (summed(300), "po_1"),
        (told("captured", processor_order_id=None), None),
        (told("captured", currency="eur"), None),
    ],
)
def test_the_reference_of_a_captured_payment_is_learned_from_its_events(
    event: ProcessorEvent, learned: str | None
) -> None:
    """Its worker reported none, so it could not be refunded."""
    order = pay(new_order())
    report_captured(order, order.payments[1], processor_order_id=None, processor_transaction_id=None, by=BY)
    receive(order, event, by=BY)
    assert order.payments[1].processor_order_id == learned
    assert facts(order).count("payment.reference_found") == (learned is not None)


@pytest.mark.parametrize(("label", "learned"), [(None, None), (1, "po_1"), (2, None)])
def test_an_event_that_may_be_of_another_attempt_gives_no_reference(
    label: int | None, learned: str | None
) -> None:
    order = pay(new_order())
    report_captured(order, order.payments[1], processor_order_id=None, processor_transaction_id=None, by=BY)
    first = order.payments[1]
    order.payments[2] = replace(first, attempt=2, status=PaymentStatus.FAILED)
    receive(order, told("captured", attempt=label), by=BY)
    assert first.processor_order_id == learned
