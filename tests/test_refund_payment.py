"""Refunds never exceed what was captured."""

import asyncio
from uuid import UUID

import pytest
from ordering import AMOUNT, BY, captured, facts, new_order, pay, report

from payloops.commands.change_order import MAX_REQUESTS
from payloops.commands.payment_outcomes import report_captured, report_reference
from payloops.commands.refund_outcomes import fail_refund, succeed_refund
from payloops.commands.refund_payment import refund_payment, request_refund
from payloops.commands.refusals import ContradictsRecord, InvalidStatus, RefundExceedsCaptured, UnknownRefund
from payloops.commands.update_refund_status import update_refund_status
from payloops.events.event_store import EventStore
from payloops.events.metadata import Metadata
from payloops.events.orders import NO_REFERENCES, Failure, Order, OrderStatus


def refund(order: Order, amount: int | None = None) -> str:
    return request_refund(order, amount=amount, reason=None, by=BY).id


def succeed(order: Order, refund_id: str) -> None:
    succeed_refund(order, refund_id, processor_transaction_id="rt", by=BY)


def fail(order: Order, refund_id: str) -> None:
    fail_refund(order, refund_id, processor_transaction_id=None, failure=Failure("no"), by=BY)


def test_a_partly_and_then_fully_refunded_order_says_so() -> None:
    order = captured()
    succeed(order, refund(order, 300))
    assert (order.status, order.amount_refunded) == (OrderStatus.PARTIALLY_REFUNDED, 300)
    rest = refund(order)
    assert order.transactions[rest].amount == AMOUNT - 300
    succeed(order, rest)
    assert (order.status, order.amount_refunded) == (OrderStatus.REFUNDED, AMOUNT)


def test_pending_refunds_count_against_what_is_left_and_failed_ones_do_not() -> None:
    order = captured()
    pending = refund(order, 700)
    with pytest.raises(RefundExceedsCaptured, match="300 can be refunded"):
        refund(order, 301)
    fail(order, pending)
    assert order.status is OrderStatus.CAPTURED
    refund(order, AMOUNT)
    with pytest.raises(RefundExceedsCaptured):
        refund(order)


def test_refunds_are_not_requested_without_end() -> None:
    order = captured()
    for number in range(MAX_REQUESTS):
        (succeed if number % 2 else fail)(order, refund(order, 1))
    with pytest.raises(InvalidStatus, match=r"Order is partially_refunded, .* refund the rest in stripe's"):
        refund(order, 1)


def test_a_second_refund_is_refused_while_the_first_waits_for_the_reference_of_the_payment() -> None:
    order = pay(new_order())
    report_captured(order, order.payments[1], references=NO_REFERENCES, by=BY)
    first = refund(order, 300)
    with pytest.raises(InvalidStatus, match="waiting for stripe's reference"):
        refund(order, 300)
    report_reference(order, order.payments[1], processor_order_id="po_1", by=BY)
    refund(order, 300)
    fail(order, first)


@pytest.mark.parametrize("reports", [[], ["authorized"], ["failed"], ["cancelled"]])
def test_only_captured_money_is_refunded(reports: list[str]) -> None:
    order = pay(new_order())
    for status in reports:
        report(order, status)
    with pytest.raises(InvalidStatus):
        refund(order, 1)


def test_a_repeated_report_of_a_refund_changes_nothing() -> None:
    order = captured()
    done, refused = refund(order, 100), refund(order, 100)
    succeed(order, done)
    fail(order, refused)
    version = order.version
    succeed(order, done)
    fail(order, done)
    fail(order, refused)
    assert facts(order, after=version) == []


def test_a_refund_that_had_failed_is_made_when_the_processor_says_so_but_never_beyond_what_was_captured() -> (
    None
):
    order = captured()
    first = refund(order)
    fail(order, first)
    second = refund(order, 600)
    succeed(order, second)
    with pytest.raises(ContradictsRecord):
        succeed(order, first)
    assert order.amount_refunded == 600


async def stored(store: EventStore, order: Order) -> Order:
    await store.append(order.collect_events())
    return order


async def test_concurrent_refunds_never_exceed_what_was_captured(
    store: EventStore, merchant_id: UUID
) -> None:
    order = await stored(store, report(pay(new_order(merchant_id=merchant_id)), "captured"))
    outcomes = await asyncio.gather(
        *(
            refund_payment(
                store, order_id=order.id, merchant_id=merchant_id, amount=60 * AMOUNT // 100, by=BY
            )
            for _ in range(20)
        ),
        return_exceptions=True,
    )
    assert sum(not isinstance(outcome, BaseException) for outcome in outcomes) == 1
    folded = await store.load(Order, order.id)
    assert folded is not None
    assert folded.refundable == 400


async def test_many_small_refunds_at_once_are_all_taken(store: EventStore, merchant_id: UUID) -> None:
    order = await stored(store, report(pay(new_order(merchant_id=merchant_id)), "captured"))
    await asyncio.gather(
        *(
            refund_payment(store, order_id=order.id, merchant_id=merchant_id, amount=1, by=BY)
            for _ in range(50)
        )
    )
    folded = await store.load(Order, order.id)
    assert folded is not None
    assert folded.refundable == AMOUNT - 50


async def test_a_report_about_a_refund_that_does_not_exist_is_refused(
    store: EventStore, by: Metadata
) -> None:
    order = await stored(store, captured())
    with pytest.raises(UnknownRefund):
        await update_refund_status(store, order_id=order.id, refund_id="none", succeeded=True, by=by)
