"""Somebody says what the processor's dashboard shows, and what nothing else could end is over.

Whatever the processor or a worker reports afterwards, before, or twice: money counts once, and is given back once.
"""

import itertools
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from uuid import uuid4

import pytest
from ordering import AMOUNT, BY, authorized, captured, facts, new_order, pay, report
from processor_events import came_back, refunded, summed, told
from random_orders import random_order

from payloops.commands.cancel_order import cancel
from payloops.commands.capture_payment import request_capture
from payloops.commands.payment_outcomes import (
    release_unwanted,
    report_action_required,
    report_authorized,
    report_failed,
)
from payloops.commands.processor_refunds import complete_pending_refunds
from payloops.commands.receive_processor_event import receive
from payloops.commands.refund_payment import request_refund
from payloops.commands.refusals import ContradictsRecord, NotResolvable
from payloops.commands.resolve_order import RECENT, Shows, Sighting, resolve
from payloops.commands.update_order_status import report_status
from payloops.commands.update_refund_status import report_refund
from payloops.events.orders import (
    NO_REASON,
    NO_REFERENCES,
    Order,
    OrderStatus,
    PaymentStatus,
    References,
    Transaction,
    TransactionStatus,
    TransactionType,
)
from payloops.workflows_client.payment_subscription import (
    DuplicateUncertain,
    is_done,
    refuse_uncertain,
)

LATER = replace(BY, at=BY.at + RECENT, actor="operator:ada")


def see(order: Order, shows: Shows, attempt: int | None = None, refund: Transaction | None = None) -> Order:
    refund_id = None if refund is None else refund.id
    seen = Sighting(shows=shows, attempt=attempt, refund_id=refund_id, note="There is only pi_1")
    resolve(order, seen, by=LATER)
    return order


def capture_again(order: Order, attempt: int, references: References) -> None:
    """Its worker says, not for the first time, that it was captured."""
    report_status(order, order.payments[attempt], "captured", references=references, by=BY)
    release_unwanted(order, by=BY)


def authorize_again(order: Order, attempt: int, references: References) -> None:
    report_authorized(order, order.payments[attempt], references=references, by=BY)
    release_unwanted(order, by=BY)


def twice_captured(first: References, second: References) -> Order:
    order = pay(new_order())
    report_failed(order, order.payments[1], references=NO_REFERENCES, failure=NO_REASON, by=BY)
    pay(order)
    for attempt, references in enumerate((first, second), start=1):
        capture_again(order, attempt, references)
    assert (order.amount_captured, len(pending(order))) == (2 * AMOUNT, 1)
    return order


def pending(order: Order) -> list[Transaction]:
    return [t for t in order.transactions.values() if t.status is TransactionStatus.PENDING]


def made(order: Order, kind: TransactionType) -> int:
    return sum(
        t.amount
        for t in order.transactions.values()
        if t.type is kind and t.status is TransactionStatus.SUCCESS
    )


def check(order: Order) -> None:
    """The books agree with themselves."""
    assert made(order, TransactionType.CAPTURE) == order.amount_captured
    assert made(order, TransactionType.REFUND) == order.amount_refunded
    assert 0 <= order.amount_refunded <= max(order.amount_captured, 0)


ONE = References("po_1", "pt_1")
UNCERTAIN = [
    (NO_REFERENCES, NO_REFERENCES),
    (NO_REFERENCES, References("po_2")),
    (NO_REFERENCES, References("po_2", "pt_2")),
    (References(None, "pt_1"), References("po_2")),
    (References("po_1"), NO_REFERENCES),
    (ONE, NO_REFERENCES),
]


@pytest.mark.parametrize(("first", "second"), UNCERTAIN)
@pytest.mark.parametrize("named", [1, 2])
def test_a_charge_that_was_reported_for_two_attempts_counts_once_and_is_not_given_back(
    first: References, second: References, named: int
) -> None:
    order = twice_captured(first, second)
    [refund] = pending(order)
    with pytest.raises(DuplicateUncertain, match="one-charge"):
        refuse_uncertain(order, order.payments[refund.attempt])
    see(order, "one_charge", named)
    assert (order.status, order.amount_captured, order.amount_refunded) == ("captured", AMOUNT, 0)
    assert pending(order) == []
    assert (refund.status, refund.error_code) == ("failed", "same_charge")
    assert [p.status for p in order.payments.values()].count(PaymentStatus.CAPTURED) == 1
    assert order.refundable == AMOUNT
    check(order)
    # What further refunds need is kept.
    [kept] = [p for p in order.payments.values() if p.status is PaymentStatus.CAPTURED]
    assert kept.processor_order_id == (first.order_id or second.order_id)
    with pytest.raises(NotResolvable, match=r"\(captured: [12]\): only two attempts that are captured"):
        see(order, "one_charge", named)


@pytest.mark.parametrize(("first", "second"), UNCERTAIN)
def test_what_is_told_again_of_a_charge_that_counts_once_changes_nothing(
    first: References, second: References
) -> None:
    """Activities run twice, and the processor's event may come after all of it."""
    known = References(first.order_id or second.order_id, first.transaction_id or second.transaction_id)
    again: list[Callable[[Order], Any]] = [
        lambda order: capture_again(order, 1, first),
        lambda order: capture_again(order, 2, second),
        lambda order: authorize_again(order, 1, first),
        lambda order: report(order, "failed", attempt=1) if first == NO_REFERENCES else None,
    ]
    if known.order_id is not None:
        again.append(lambda order: receive(order, told("captured", references=known), by=BY))
    for some in itertools.permutations(again):
        order = see(twice_captured(first, second), "one_charge", 2)
        for each in (*some, *some):
            each(order)
        assert (order.status, order.amount_captured, pending(order)) == ("captured", AMOUNT, [])
        check(order)


def test_a_second_charge_that_its_worker_or_reconcile_finds_is_given_back() -> None:
    order = see(twice_captured(NO_REFERENCES, References("po_2", "pt_2")), "one_charge", 2)
    capture_again(order, 1, ONE)
    assert (order.amount_captured, [t.attempt for t in pending(order)]) == (2 * AMOUNT, [1])
    refuse_uncertain(order, order.payments[1])


@pytest.mark.parametrize("labelled", [True, False])
def test_a_second_charge_that_the_processor_reports_after_all_is_given_back(labelled: bool) -> None:
    """Whoever looked had overlooked one. It is told apart now, so that its refund needs nobody."""
    order = see(twice_captured(NO_REFERENCES, References("po_2", "pt_2")), "one_charge", 2)
    event = told("captured", references=ONE, attempt=1 if labelled else None)
    assert receive(order, event, by=BY) == "applied"
    assert order.amount_captured == 2 * AMOUNT
    [refund] = pending(order)
    assert (refund.attempt, refund.amount) == (1, AMOUNT)
    refuse_uncertain(order, order.payments[1])
    assert order.payments[1].processor_order_id == "po_1"
    check(order)


@pytest.mark.parametrize(
    ("first", "second"),
    [(ONE, References("po_2", "pt_2")), (References(None, "pt_1"), References(None, "pt_2"))],
)
def test_two_charges_that_references_tell_apart_are_not_taken_for_one(
    first: References, second: References
) -> None:
    order = twice_captured(first, second)
    version = order.version
    with pytest.raises(NotResolvable, match="two charges"):
        see(order, "one_charge", 2)
    assert order.version == version


def test_the_attempt_of_which_money_was_given_back_keeps_the_charge() -> None:
    order = twice_captured(NO_REFERENCES, References("po_2"))
    receive(order, refunded("re_1", 300, attempt=1, references=NO_REFERENCES), by=BY)
    assert order.amount_refunded == 300
    see(order, "one_charge", 2)
    assert (order.status, order.amount_captured, order.amount_refunded) == ("partially_refunded", AMOUNT, 300)
    assert order.payments[1].status is PaymentStatus.CAPTURED
    assert order.payments[1].processor_order_id == "po_2"
    request_refund(order, amount=None, reason=None, by=BY)
    assert (order.refundable, pending(order)[0].amount) == (0, AMOUNT - 300)
    check(order)


def test_where_both_have_refunds_nothing_is_retracted() -> None:
    order = twice_captured(NO_REFERENCES, References("po_2"))
    receive(order, refunded("re_1", 300, attempt=1, references=NO_REFERENCES), by=BY)
    [duplicate] = pending(order)
    report_refund(
        order, duplicate.id, succeeded=True, processor_transaction_id="re_2", failure=NO_REASON, by=BY
    )
    with pytest.raises(NotResolvable, match="both have refunds"):
        see(order, "one_charge", 2)


@pytest.mark.parametrize("by_hand", [True, False])
def test_a_refund_in_the_dashboard_ends_that_of_a_duplicate(by_hand: bool) -> None:
    """The other way out, where the dashboard shows two charges: the processor's sum is enough, or its word."""
    order = twice_captured(NO_REFERENCES, References("po_2", "pt_2"))
    references = References("po_2", "pt_2")
    event = told("refunded", event_id="evt", references=references, amount_refunded=AMOUNT)
    event = replace(event, refund_reference="re_1", amount=AMOUNT)
    [duplicate] = pending(order)
    receive(order, event, by=BY)
    assert pending(order) == [duplicate]  # the event does not name it: it may be another one, beside it
    if by_hand:
        see(order, "refund_made", refund=duplicate)
    else:
        complete_pending_refunds(
            order, order.payments[2], amount_refunded=AMOUNT, requested_before=LATER.at, by=BY
        )
    assert (pending(order), order.amount_refunded, order.refundable) == ([], AMOUNT, AMOUNT)
    check(order)


@pytest.mark.parametrize("status", [None, "processing", "requires_action"])
@pytest.mark.parametrize("cancelling", [False, True])
def test_a_payment_without_money_ends_and_the_order_can_be_paid_again(
    status: str | None, cancelling: bool
) -> None:
    order = pay(new_order())
    if status is not None:
        report(order, status)
    if cancelling:
        cancel(order, by=BY)
    see(order, "no_money", 1)
    assert order.status == ("cancelled" if cancelling else "failed")
    assert pending(order) == []
    with pytest.raises(NotResolvable, match="already"):
        see(order, "no_money", 1)
    if not cancelling:
        pay(order)


@pytest.mark.parametrize("asked", [None, "capture", "void"])
def test_an_authorization_that_the_dashboard_does_not_show_ends_with_what_was_asked_for_under_it(
    asked: str | None,
) -> None:
    order = authorized()
    if asked == "capture":
        request_capture(order, amount=400, by=BY)
    if asked == "void":
        cancel(order, by=BY)
    see(order, "no_money", 1)
    assert order.status == ("cancelled" if asked == "void" else "failed")
    assert pending(order) == []


def test_money_that_comes_after_all_is_recorded_and_given_back_if_the_order_was_paid_again() -> None:
    order = pay(see(pay(new_order()), "no_money", 1))
    capture_again(order, 2, References("po_2", "pt_2"))
    receive(order, told("captured", attempt=1), by=BY)
    assert (order.status, order.amount_captured) == ("captured", 2 * AMOUNT)
    assert [t.attempt for t in pending(order)] == [1]


def test_what_may_still_be_under_way_is_not_ended() -> None:
    order = pay(new_order())
    seen = Sighting(shows="no_money", attempt=1, note="nothing there")
    with pytest.raises(NotResolvable, match="10 minutes"):
        resolve(order, seen, by=BY)
    order = captured()
    refund = request_refund(order, amount=300, reason=None, by=BY)
    with pytest.raises(NotResolvable, match="10 minutes"):
        resolve(order, Sighting(shows="refund_not_made", refund_id=refund.id, note="nothing there"), by=BY)


@pytest.mark.parametrize("status", [None, "requires_action", "failed", "captured"])
def test_a_reference_that_nobody_reported_is_learned(status: str | None) -> None:
    order = pay(new_order())
    if status == "captured":
        capture_again(order, 1, NO_REFERENCES)
    elif status == "failed":
        report_failed(order, order.payments[1], references=NO_REFERENCES, failure=NO_REASON, by=BY)
    elif status is not None:
        report_action_required(order, order.payments[1], processor_order_id=None, redirect_url=None, by=BY)
    before = order.status
    seen = Sighting(shows="reference", attempt=1, reference="po_1", note="There is only po_1")
    resolve(order, seen, by=LATER)
    assert (order.status, order.payments[1].processor_order_id) == (before, "po_1")
    with pytest.raises(NotResolvable, match="has the reference po_1 already"):
        resolve(order, seen, by=LATER)


def test_one_reference_is_not_learned_for_two_attempts() -> None:
    order = twice_captured(NO_REFERENCES, References("po_2"))
    seen = Sighting(shows="reference", attempt=1, reference="po_2", note="There is only po_2")
    with pytest.raises(NotResolvable, match=r"of attempt 2.*one-charge"):
        resolve(order, seen, by=LATER)
    # Two of them are two charges, and the duplicate is given back without anybody.
    resolve(order, replace(seen, reference="po_1"), by=LATER)
    refuse_uncertain(order, order.payments[2])


def refunding(*amounts: int) -> tuple[Order, list[Transaction]]:
    order = captured()
    return order, [request_refund(order, amount=each, reason=None, by=BY) for each in amounts]


def test_of_two_refunds_one_is_said_to_be_made_and_one_not() -> None:
    """The processor's sum alone does not tell which."""
    order, (first, second) = refunding(300, 200)
    receive(order, summed(300), by=BY)
    assert len(pending(order)) == 2
    see(order, "refund_made", refund=first)
    see(order, "refund_not_made", refund=second)
    assert (order.amount_refunded, order.refundable, pending(order)) == (300, 700, [])
    assert (first.status, second.error_code) == ("success", "not_refunded")
    receive(order, summed(300), by=BY)
    assert (order.status, order.amount_refunded) == ("partially_refunded", 300)
    check(order)
    for shows, refund in (("refund_made", first), ("refund_not_made", second)):
        with pytest.raises(NotResolvable, match="already"):
            see(order, shows, refund=refund)  # type: ignore[arg-type]


def test_a_refund_that_was_ended_is_not_passed_on_any_more() -> None:
    order, [refund] = refunding(300)
    [request] = [e for e in order.pending_events if getattr(e, "refund_id", None) == refund.id]
    assert not is_done(order, request)  # type: ignore[arg-type]
    see(order, "refund_not_made", refund=refund)
    assert is_done(order, request)  # type: ignore[arg-type]


@pytest.mark.parametrize("by_event", [True, False])
def test_a_refund_that_was_made_after_all_counts_once(by_event: bool) -> None:
    """By the processor's event, by its worker, or taken back by hand."""
    order, [refund] = refunding(300)
    see(order, "refund_not_made", refund=refund)
    if by_event:
        receive(order, refunded("re_1", 300, refund_id=refund.id), by=BY)
    else:
        see(order, "refund_made", refund=refund)
    report_refund(order, refund.id, succeeded=True, processor_transaction_id="re_1", failure=NO_REASON, by=BY)
    receive(order, summed(300), by=BY)
    assert (order.amount_refunded, order.refundable) == (300, 700)
    check(order)


@pytest.mark.parametrize("by_event", [True, False])
def test_a_refund_that_was_said_to_be_made_can_turn_out_not_to_be(by_event: bool) -> None:
    order, [refund] = refunding(300)
    see(order, "refund_made", refund=refund)
    assert order.status == OrderStatus.PARTIALLY_REFUNDED
    if by_event:
        receive(order, came_back("re_1", 300, refund_id=refund.id), by=BY)
        with pytest.raises(NotResolvable, match="final"):
            see(order, "refund_made", refund=refund)
    else:
        see(order, "refund_not_made", refund=refund)
    assert (order.status, order.amount_refunded, order.refundable) == ("captured", 0, AMOUNT)
    check(order)


def test_a_refund_is_not_made_twice_under_one_reference() -> None:
    order, [first, second] = refunding(300, 300)
    seen = Sighting(shows="refund_made", refund_id=first.id, reference="re_1", note="made")
    resolve(order, seen, by=LATER)
    with pytest.raises(NotResolvable, match="re_1 is recorded already"):
        resolve(order, replace(seen, refund_id=second.id), by=LATER)


def test_no_more_is_said_to_be_refunded_than_was_captured() -> None:
    order, [refund] = refunding(AMOUNT)
    see(order, "refund_not_made", refund=refund)
    receive(order, refunded("re_1", 300), by=BY)
    again = request_refund(order, amount=700, reason=None, by=BY)
    see(order, "refund_made", refund=again)
    with pytest.raises(ContradictsRecord):
        see(order, "refund_made", refund=refund)


@pytest.mark.parametrize("shows", ["one_charge", "no_money"])
@pytest.mark.parametrize("attempt", [None, 0, 3])
def test_an_attempt_that_there_is_not_is_refused(shows: Shows, attempt: int | None) -> None:
    with pytest.raises(NotResolvable, match="no attempt"):
        see(pay(new_order()), shows, attempt)


def test_a_refund_that_there_is_not_is_refused() -> None:
    order = captured()
    [capture] = order.transactions.values()
    for id in (str(uuid4()), capture.id):
        with pytest.raises(NotResolvable, match="no refund"):
            resolve(order, Sighting(shows="refund_made", refund_id=id, note="made"), by=LATER)


def test_who_said_what_and_why_is_kept_before_what_follows_from_it() -> None:
    order = twice_captured(NO_REFERENCES, References("po_2"))
    version = order.version
    see(order, "one_charge", 2)
    assert facts(order, after=version) == [
        "order.dashboard_checked",
        "payment.capture_retracted",
        "refund.failed",
    ]
    said, *follow = order.pending_events[version:]
    assert (said.actor, said.shows, said.note) == ("operator:ada", "one_charge", "There is only pi_1")  # type: ignore[attr-defined]
    assert {each.causation_id for each in follow} == {said.reference}  # type: ignore[attr-defined]


@pytest.mark.parametrize("seed", range(300))
def test_the_books_agree_with_themselves_whatever_is_said(seed: int) -> None:
    check(random_order(random.Random(seed), uuid4()))
