"""Refunds that processors tell of, in any order and by whatever they are known, count once each."""

from dataclasses import replace
from datetime import timedelta
from typing import cast

import pytest
from folding import folded_from_stored
from hypothesis import given
from hypothesis import strategies as st
from ordering import AMOUNT, BY, facts, pay
from processor_events import REASONABLE, after, came_back, refunded, refunds, summed, told

from payloops.commands.processor_refunds import (
    complete_pending_refunds,
    record_processor_refunds,
    reverse_refunds_beyond,
)
from payloops.commands.receive_processor_event import ProcessorEvent, receive
from payloops.commands.refund_outcomes import fail_refund, succeed_refund
from payloops.commands.refund_payment import request_refund
from payloops.commands.update_refund_status import report_refund
from payloops.events.orders import NO_REASON, Failure, Order, OrderStatus, References, TransactionStatus


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


@pytest.mark.parametrize("reference", [None, "po_1", "pt_1"])
def test_refunds_of_ours_count_once_though_their_workers_report_the_reference_of_the_charge(
    reference: str | None,
) -> None:
    order = after(told("captured"))
    made = [request_refund(order, amount=300, reason=None, by=BY) for _ in range(2)]
    for number, succeeded in ((0, True), (1, False), (1, True)):
        report_refund(
            order,
            made[number].id,
            succeeded=succeeded,
            processor_transaction_id=reference,
            failure=NO_REASON,
            by=BY,
        )
    assert order.amount_refunded == 600
    for number in (1, 2):
        receive(order, refunded(f"re_{number}", 300), by=BY)
    receive(order, summed(600), by=BY)
    assert refunds(order) == [(300, "success"), (300, "success")]
    receive(order, came_back("re_1", 300), by=BY)
    assert refunds(order) == [(300, "failed"), (300, "success")]


@pytest.mark.parametrize(("total", "first", "second"), [(200, 300, 200), (300, 200, 200)])
def test_what_was_told_of_by_a_sum_is_taken_for_a_part_of_refunds_there_once(
    total: int, first: int, second: int
) -> None:
    order = after(told("captured"), summed(total), refunded("re_1", first), refunded("re_2", second))
    assert order.amount_refunded == first + second


def test_what_is_told_again_of_a_refund_that_was_a_part_of_a_sum_contradicts_nothing() -> None:
    order = after(told("captured"), summed(200), refunded("re_1", 300))
    assert order.amount_refunded == 300
    again = replace(refunded("re_1", 300), event_id="updated")
    assert receive(order, again, by=BY) == "none"
    assert order.amount_refunded == 300


def test_a_refund_that_was_made_counts_beside_one_that_came_back() -> None:
    """Nothing but its worker tells of it."""
    order = after(told("captured"))
    ours = [request_refund(order, amount=300, reason=None, by=BY) for _ in range(2)]
    receive(order, came_back("re_1", 300, refund_id=ours[0].id), by=BY)
    report_refund(
        order, ours[1].id, succeeded=True, processor_transaction_id="re_2", failure=NO_REASON, by=BY
    )
    assert (ours[1].status, order.amount_refunded) == (TransactionStatus.SUCCESS, 300)


def test_what_was_told_of_a_refund_is_remembered_where_a_later_event_leaves_it_out() -> None:
    order = after(told("captured"), refunded("re_1", 300))
    receive(order, told("refunded", event_id="again", refund_reference="re_1"), by=BY)
    receive(order, refunded("re_2", 300), by=BY)
    assert order.amount_refunded == 600
    ours = request_refund(order, amount=200, reason=None, by=BY)
    receive(order, told("refunded", event_id="ours", refund_reference="re_3", refund_id=ours.id), by=BY)
    assert order.amount_refunded == 800
    order, ids = two_of_ours(100)
    receive(order, refunded("re_2", 100, refund_id=ids[1]), by=BY)
    receive(order, came_back("re_2", 100), by=BY)
    assert [order.transactions[id].status for id in ids] == ["success", "failed"]


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


def test_a_refund_there_that_is_labelled_with_the_id_of_what_it_refunds_is_one_of_theirs() -> None:
    order = after(told("captured"))
    [capture] = order.transactions
    assert receive(order, refunded("re_1", 300, refund_id=capture), by=BY) == "applied"
    assert order.amount_refunded == 300


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


def test_a_refund_that_the_processor_does_not_name_contradicts_none_of_ours() -> None:
    order = after(told("captured"))
    request_refund(order, amount=500, reason=None, by=BY)
    assert receive(order, told("refunded", amount=300, amount_refunded=300), by=BY) != "contradiction"


def test_refunds_of_one_of_two_charges_are_not_counted_of_the_other() -> None:
    order = after(told("failed"))
    pay(order)
    second = References("po_2", "pt_2")
    receive(order, told("captured", event_id="evt_2", references=second), by=BY)
    receive(order, told("captured", event_id="evt_1"), by=BY)
    before = refunds(order)
    receive(order, refunded("re_2", 300, references=second), by=BY)
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


def test_a_sum_makes_all_refunds_of_ours_or_none_while_the_result_of_one_may_be_on_its_way() -> None:
    order = after(told("captured"))
    hour = timedelta(hours=1)
    for amount, by in ((AMOUNT - 300, BY), (300, replace(BY, at=BY.at + hour))):
        request_refund(order, amount=amount, reason=None, by=by)
    for asked_at, made in ((BY.at + hour, 0), (BY.at + 2 * hour, AMOUNT)):
        complete_pending_refunds(
            order, order.payments[1], amount_refunded=AMOUNT, requested_before=asked_at, by=BY
        )
        assert order.amount_refunded == made


def test_a_sum_that_exceeds_what_was_captured_makes_no_refund_of_ours() -> None:
    order = after(told("captured"))
    ours = request_refund(order, amount=700, reason=None, by=BY)
    receive(order, refunded("re_1", 600), by=BY)
    later = ours.created_at + timedelta(hours=1)
    complete_pending_refunds(order, order.payments[1], amount_refunded=1_300, requested_before=later, by=BY)
    assert (ours.status, order.amount_refunded) == (TransactionStatus.PENDING, 600)


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


def test_what_came_back_is_the_refund_of_its_amount_of_those_that_sums_showed() -> None:
    order = after(told("captured"), summed(500), summed(800), came_back("re_1", 300))
    assert refunds(order) == [(300, "failed"), (500, "success")]


def test_an_attempt_that_was_not_captured_has_no_refunds_to_reverse() -> None:
    order = pay(after(told("failed")))
    second = References("po_2", "pt_2")
    receive(order, told("captured", references=second), by=BY)
    receive(order, replace(summed(300), references=second), by=BY)
    for payment in order.payments.values():
        reverse_refunds_beyond(order, payment, amount_refunded=300 * (payment.attempt == 2), by=BY)
    assert order.amount_refunded == 300


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


def test_a_failure_that_a_worker_takes_back_is_not_that_of_another_refund_of_ours() -> None:
    order = after(told("captured"))
    made, lost = [request_refund(order, amount=300, reason=None, by=BY) for _ in range(2)]
    for refund, reference in ((made, "re_made"), (lost, None)):
        report_refund(
            order,
            refund.id,
            succeeded=reference is not None,
            processor_transaction_id=reference,
            failure=NO_REASON,
            by=BY,
        )
    receive(order, refunded("re_lost", 300), by=BY)
    assert order.amount_refunded == 600
    report_refund(order, lost.id, succeeded=True, processor_transaction_id=None, failure=NO_REASON, by=BY)
    assert (order.amount_refunded, lost.processor_transaction_id) == (600, "re_lost")


def test_a_failure_that_a_worker_takes_back_is_not_that_of_a_refund_there_where_a_sum_had_both() -> None:
    order = after(told("captured"), refunded("re_theirs", 300))
    ours = request_refund(order, amount=300, reason=None, by=BY)
    receive(order, summed(600), by=BY)
    for succeeded in (False, True):
        version = order.version
        report_refund(
            order, ours.id, succeeded=succeeded, processor_transaction_id=None, failure=NO_REASON, by=BY
        )
    assert (order.amount_refunded, facts(order, after=version)) == (600, ["refund.succeeded"])


@pytest.mark.parametrize("sum_first", [True, False])
def test_a_failure_that_a_worker_takes_back_is_of_the_refund_that_a_sum_and_a_reference_told_of(
    sum_first: bool,
) -> None:
    order = after(told("captured"))
    ours = request_refund(order, amount=300, reason=None, by=BY)
    report_refund(order, ours.id, succeeded=False, processor_transaction_id=None, failure=NO_REASON, by=BY)
    events = [summed(300), refunded("re_1", 300)]
    for event in events if sum_first else reversed(events):
        receive(order, event, by=BY)
    report_refund(order, ours.id, succeeded=True, processor_transaction_id=None, failure=NO_REASON, by=BY)
    assert (order.amount_refunded, refunds(order)) == (300, [(300, "failed"), (300, "success")])


def test_a_refund_there_that_was_taken_for_one_of_ours_is_the_one_that_a_sum_showed_meanwhile() -> None:
    order = after(told("captured"))
    ours = request_refund(order, amount=100, reason=None, by=BY)
    for number in (0, 1):
        receive(order, refunded(f"re_{number}", 100), by=BY)
        receive(order, summed(100 * (number + 1)), by=BY)
    for succeeded in (False, True):
        report_refund(
            order, ours.id, succeeded=succeeded, processor_transaction_id=None, failure=NO_REASON, by=BY
        )
    receive(order, summed(300), by=BY)
    receive(order, refunded("re_ours", 100, refund_id=ours.id), by=BY)
    assert (order.amount_refunded, order.refundable) == (300, AMOUNT - 300)


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


def test_a_refund_that_came_back_leaves_the_sum_to_one_of_its_amount_that_was_made() -> None:
    order = after(told("captured"), summed(500), refunded("re_1", 500), came_back("re_2", 500))
    assert refunds(order) == [(500, "failed"), (500, "success")]
    assert order.amount_refunded == 500


def test_a_refund_of_which_nobody_says_how_much_it_was_is_not_shown_as_one_of_nothing() -> None:
    order = after(told("captured"), told("refund_failed", refund_reference="re_1"))
    assert refunds(order) == []


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
