"""Cancelling an order before its money is captured."""

import pytest
from ordering import AMOUNT, BY, authorized, facts, new_order, pay, report, transactions

from payloops.commands.cancel_order import cancel
from payloops.commands.capture_payment import request_capture
from payloops.commands.change_order import MAX_REQUESTS
from payloops.commands.refusals import InvalidStatus
from payloops.events.orders import Order, OrderStatus


@pytest.mark.parametrize("order", [new_order(), report(pay(new_order()), "failed")])
def test_an_order_without_a_payment_under_way_is_cancelled_at_once(order: Order) -> None:
    cancel(order, by=BY)
    assert order.status is OrderStatus.CANCELLED
    with pytest.raises(InvalidStatus):
        pay(order)


@pytest.mark.parametrize("reports", [[], ["requires_action"]])
def test_a_payment_under_way_is_asked_to_stop_once(reports: list[str]) -> None:
    order = pay(new_order())
    for status in reports:
        report(order, status)
    status, version = order.status, order.version
    cancel(order, by=BY)
    cancel(order, by=BY)
    assert facts(order, after=version) == ["payment.cancel_requested"]
    assert order.status is status, "the processor says how it ended"
    report(order, "cancelled")
    assert order.status is OrderStatus.CANCELLED
    assert transactions(order) == [("capture", "failed", AMOUNT)]


def test_a_payment_that_failed_after_it_was_asked_to_stop_ends_the_order_as_cancelled() -> None:
    order = pay(new_order())
    cancel(order, by=BY)
    assert report(order, "failed").status is OrderStatus.CANCELLED


def test_a_processor_that_was_faster_than_the_cancellation_has_captured() -> None:
    order = pay(new_order())
    cancel(order, by=BY)
    assert report(order, "captured").status is OrderStatus.CAPTURED


def test_an_authorization_that_came_while_cancelling_is_voided() -> None:
    order = pay(new_order(), capture="manual")
    cancel(order, by=BY)
    report(order, "authorized")
    assert facts(order)[-1] == "payment.void_requested"


def test_an_authorization_is_voided_once() -> None:
    order = authorized()
    version = order.version
    cancel(order, by=BY)
    cancel(order, by=BY)
    assert facts(order, after=version) == ["payment.void_requested"]
    report(order, "cancelled")
    assert order.status is OrderStatus.CANCELLED
    assert transactions(order) == [("authorization", "success", AMOUNT), ("void", "success", AMOUNT)]


def test_a_refused_void_leaves_the_authorization_to_be_voided_again() -> None:
    order = authorized()
    cancel(order, by=BY)
    report(order, "failed")
    assert order.status is OrderStatus.AUTHORIZED
    cancel(order, by=BY)
    assert order.voids_requested == 2


def test_an_authorization_that_is_never_released_is_not_asked_for_without_end() -> None:
    order = authorized()
    for _ in range(MAX_REQUESTS):
        cancel(order, by=BY)
        cancel(order, by=BY)  # has no effect while the first is under way
        report(order, "failed")
    with pytest.raises(InvalidStatus, match="release the authorization in stripe's dashboard"):
        cancel(order, by=BY)
    request_capture(order, amount=None, by=BY)


@pytest.mark.parametrize("reports", [["captured"], ["cancelled"]])
def test_what_is_captured_or_cancelled_is_not_cancelled(reports: list[str]) -> None:
    order = pay(new_order())
    for status in reports:
        report(order, status)
    with pytest.raises(InvalidStatus, match=f"Order is {reports[-1]}"):
        cancel(order, by=BY)


def test_an_order_that_is_cancelled_already_is_said_to_be() -> None:
    order = new_order()
    cancel(order, by=BY)
    with pytest.raises(InvalidStatus, match="cancelled already"):
        cancel(order, by=BY)


def test_an_order_that_is_being_captured_is_not_cancelled() -> None:
    order = authorized()
    request_capture(order, amount=None, by=BY)
    with pytest.raises(InvalidStatus, match="capture is under way"):
        cancel(order, by=BY)
