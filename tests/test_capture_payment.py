"""Capturing an authorized payment."""

import pytest
from ordering import AMOUNT, BY, authorized, facts, new_order, pay, report, transactions

from payloops.commands.cancel_order import cancel
from payloops.commands.capture_payment import request_capture
from payloops.commands.change_order import MAX_REQUESTS
from payloops.commands.payment_outcomes import fail_payment
from payloops.commands.refusals import CaptureExceedsAuthorized, InvalidStatus
from payloops.events.orders import NO_REFERENCES, Failure, OrderStatus, PaymentCaptureRequested


def test_a_part_of_an_authorization_is_captured() -> None:
    order = authorized()
    request_capture(order, amount=400, by=BY)
    assert order.status is OrderStatus.AUTHORIZED
    report(order, "captured")
    assert (order.status, order.amount_captured) == (OrderStatus.CAPTURED, 400)
    assert transactions(order) == [("authorization", "success", AMOUNT), ("capture", "success", 400)]


@pytest.mark.parametrize("amount", [None, AMOUNT])
def test_all_of_it_is_captured_where_no_amount_is_named_or_all_is(amount: int | None) -> None:
    order = authorized()
    request_capture(order, amount=amount, by=BY)
    assert report(order, "captured").amount_captured == AMOUNT


def test_a_payment_that_was_to_capture_itself_but_was_only_authorized_can_be_captured() -> None:
    order = report(pay(new_order()), "authorized")
    request_capture(order, amount=300, by=BY)
    report(order, "captured")
    assert transactions(order) == [("capture", "success", 300), ("authorization", "success", AMOUNT)]


def test_no_more_than_was_authorized_is_captured() -> None:
    with pytest.raises(CaptureExceedsAuthorized):
        request_capture(authorized(), amount=AMOUNT + 1, by=BY)


def test_a_second_capture_waits_for_the_first() -> None:
    order = authorized()
    request_capture(order, amount=400, by=BY)
    with pytest.raises(InvalidStatus, match="already under way"):
        request_capture(order, amount=400, by=BY)


def test_captures_that_are_refused_again_and_again_end_with_the_offer_of_a_new_order() -> None:
    order = authorized()
    for _ in range(MAX_REQUESTS):
        request_capture(order, amount=400, by=BY)
        report(order, "failed")
    with pytest.raises(InvalidStatus, match="cancel it, and create a new order"):
        request_capture(order, amount=400, by=BY)
    cancel(order, by=BY)


def test_a_refused_capture_leaves_the_authorization_to_be_captured_again() -> None:
    order = authorized()
    request_capture(order, amount=400, by=BY)
    report(order, "failed")
    assert order.status is OrderStatus.AUTHORIZED
    assert order.last_error is not None
    request_capture(order, amount=300, by=BY)
    assert order.captures_requested == 2
    report(order, "captured")
    assert transactions(order)[1:] == [("capture", "failed", 400), ("capture", "success", 300)]


def test_a_capture_that_ended_with_its_payment_does_not_stand_in_the_way_of_another() -> None:
    order = authorized()
    request_capture(order, amount=400, by=BY)
    fail_payment(
        order,
        order.payments[1],
        references=NO_REFERENCES,
        failure=Failure("expired"),
        by=BY,
    )
    assert transactions(order)[-1] == ("capture", "failed", 400)
    report(order, "authorized")
    request_capture(order, amount=300, by=BY)
    assert report(order, "captured").amount_captured == 300


@pytest.mark.parametrize("reports", [[], ["requires_action"], ["captured"], ["failed"], ["cancelled"]])
def test_only_an_authorized_order_is_captured(reports: list[str]) -> None:
    order = pay(new_order())
    for status in reports:
        report(order, status)
    version = order.version
    with pytest.raises(InvalidStatus):
        request_capture(order, amount=None, by=BY)
    assert facts(order, after=version) == []


def test_captures_are_numbered_over_all_attempts_because_their_workflows_are_named_by_the_order() -> None:
    order = authorized()
    request_capture(order, amount=None, by=BY)
    report(report(order, "failed"), "failed")
    report(pay(order, capture="manual"), "authorized")
    request_capture(order, amount=None, by=BY)
    numbers = [e.sequence for e in order.pending_events if isinstance(e, PaymentCaptureRequested)]
    assert numbers == [1, 2]


def test_an_order_that_is_being_cancelled_is_not_captured() -> None:
    order = authorized()
    cancel(order, by=BY)
    with pytest.raises(InvalidStatus, match="being cancelled"):
        request_capture(order, amount=None, by=BY)
