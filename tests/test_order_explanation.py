"""Why an order stands as it does is told for every status, and nothing that matters is left out."""

import random
import re
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from uuid import uuid4

import pytest
from ordering import BY, authorized, captured, new_order, pay, report
from random_orders import new_order as an_order
from random_orders import random_order, recorded

from payloops.commands.cancel_order import cancel
from payloops.commands.capture_payment import request_capture
from payloops.commands.erase_personal_data import erase
from payloops.commands.pay_order import request_payment
from payloops.commands.payment_outcomes import report_captured, report_failed
from payloops.commands.receive_processor_event import ProcessorEvent, receive
from payloops.commands.refund_outcomes import fail_refund, succeed_refund
from payloops.commands.refund_payment import request_refund
from payloops.commands.resolve_order import RECENT, Shows, Sighting, resolve
from payloops.commands.route_payment import EnabledProcessor, Route, route_payment
from payloops.commands.update_refund_status import update_refunded_amount
from payloops.events.event_store import EventStore
from payloops.events.orders import (
    NO_REASON,
    NO_REFERENCES,
    Failure,
    Order,
    OrderStatus,
    PaymentStatus,
    References,
    TransactionStatus,
)
from payloops.projections.order_explanation import OrderExplanation, duration_text, explain_order


def explained(order: Order, *, after: timedelta = timedelta(minutes=3)) -> OrderExplanation:
    return explain_order(recorded(order), now=order.modified_on + after)


def told(order: Order, *, after: timedelta = timedelta(minutes=3)) -> str:
    """The whole explanation, without the times."""
    found = explained(order, after=after)
    text = " ".join([found.state, *found.history, *found.pending, *found.next])
    return re.sub(r" (on|since) \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC", "", text)


def capturing() -> Order:
    order = authorized()
    request_capture(order, amount=400, by=BY)
    return order


def cancelling(order: Order) -> Order:
    cancel(order, by=BY)
    return order


def refunding(amount: int | None) -> Order:
    order = captured()
    request_refund(order, amount=amount, reason="damaged", by=BY)
    return order


def captured_twice(*references: References) -> Order:
    order = pay(new_order())
    report_failed(order, order.payments[1], references=NO_REFERENCES, failure=NO_REASON, by=BY)
    pay(order)
    for attempt, each in enumerate(references, start=1):
        report_captured(order, order.payments[attempt], references=each, by=BY)
    return order


def refunding_without_reference() -> Order:
    order = pay(new_order())
    report_captured(order, order.payments[1], references=NO_REFERENCES, by=BY)
    request_refund(order, amount=300, reason="damaged", by=BY)
    return order


def looked_up(order: Order, shows: Shows, *, attempt: int | None = None) -> Order:
    """Somebody looked into the dashboard, for an attempt or for the latest refund."""
    refunds = [t.id for t in order.transactions.values() if t.refunds is not None]
    refund_id = refunds[-1] if attempt is None else None
    seen = Sighting(shows=shows, attempt=attempt, refund_id=refund_id, note="Only po_2 is there.")
    resolve(order, seen, by=replace(BY, at=BY.at + RECENT, actor="operator:ada"))
    return order


def came_back() -> Order:
    order = refunded(300)
    event = ProcessorEvent(
        processor="stripe",
        event_id="evt_1",
        type="refund.updated",
        attempt=1,
        outcome="refund_failed",
        amount=300,
        refund_reference="re_1",
        failure=Failure("expired_or_canceled_card"),
    )
    receive(order, event, by=BY)
    return order


def refunded(amount: int | None, *, succeeds: bool = True) -> Order:
    order = captured()
    refund = request_refund(order, amount=amount, reason="damaged", by=BY)
    if succeeds:
        succeed_refund(order, refund.id, processor_transaction_id="re_1", by=BY)
    else:
        fail_refund(
            order,
            refund.id,
            processor_transaction_id="re_1",
            failure=Failure("insufficient_funds", "No funds."),
            by=BY,
        )
    return order


@pytest.mark.parametrize(
    ("make", "sentences"),
    [
        (
            new_order,
            [
                "The order of 10.00 USD has not been paid, and no payment was asked for.",
                "The merchant can have it paid, or cancel it.",
            ],
        ),
        (
            lambda: pay(new_order()),
            [
                "Attempt 1 at Stripe is under way: how it ends is not known yet.",
                "Attempt 1: Stripe's answer has been awaited, for 3 minutes.",
                "It cannot be paid again before this attempt has ended; the merchant can cancel it.",
            ],
        ),
        (
            lambda: report(pay(new_order()), "processing"),
            ["Stripe has it (reference po_1), and its answer has been awaited, for 3 minutes."],
        ),
        (
            lambda: cancelling(pay(new_order())),
            [
                "Its cancellation was asked for.",
                "its cancellation was asked for, 3 minutes ago; should Stripe have taken the money already",
                "There is nothing to do but wait: it is being cancelled.",
            ],
        ),
        (
            lambda: report(pay(new_order()), "requires_action"),
            [
                "Attempt 1 at Stripe waits for the customer to act",
                "the customer has been awaited, for 3 minutes; it fails 15 minutes after that",
            ],
        ),
        (
            authorized,
            [
                "Attempt 1 at Stripe is authorized: the money is held for the merchant, and nothing is captured",
                "Attempt 1, 10.00 USD, to be captured later, was asked for and went to Stripe",
                "Stripe authorized 10.00 USD (reference pt_1, po_1).",
                "Attempt 1: Stripe has held 10.00 USD, for 3 minutes.",
                "The merchant can capture up to 10.00 USD, or cancel the order, which releases the money.",
            ],
        ),
        (
            capturing,
            [
                "The capture of 4.00 USD was asked for, 3 minutes ago; Stripe has not answered yet.",
                "There is nothing to do but wait: the capture is under way.",
            ],
        ),
        (
            lambda: report(capturing(), "failed"),
            [
                'A capture failed: Stripe said card_declined, "The card was declined"; the authorization stood.'
            ],
        ),
        (
            lambda: cancelling(authorized()),
            [
                "The release of 10.00 USD was asked for, 3 minutes ago; Stripe has not answered yet.",
                "There is nothing to do but wait: the authorization is being released.",
            ],
        ),
        (
            lambda: report(cancelling(authorized()), "cancelled"),
            [
                "The order is cancelled, and no money was taken.",
                "Stripe released the authorization (reference pt_1, po_1).",
                "It cannot be paid any more: the merchant can create another order.",
            ],
        ),
        (
            captured,
            [
                "The order is paid: 10.00 USD is captured, and nothing was refunded.",
                "Stripe captured 10.00 USD (reference pt_1, po_1).",
                "The merchant can refund up to 10.00 USD.",
            ],
        ),
        (
            lambda: report(capturing(), "captured"),
            [
                "The order is paid: 4.00 USD of 10.00 USD is captured",
                "The merchant can refund up to 4.00 USD.",
            ],
        ),
        (
            lambda: refunding(300),
            [
                "The refund of 3.00 USD was asked for, 3 minutes ago; Stripe has not answered yet.",
                "The merchant can refund up to 7.00 USD.",
            ],
        ),
        (
            came_back,
            [
                "The order is paid: 10.00 USD is captured, and nothing was refunded.",
                'asked for with the reason "damaged", came back (reference re_1): Stripe said expired_or_',
                "canceled_card; the customer has not got the money.",
                "The merchant can refund up to 10.00 USD.",
            ],
        ),
        (lambda: refunding(None), ["All that was captured is refunded or being refunded."]),
        (
            lambda: refunded(300),
            [
                "The order is paid, and partly refunded: 3.00 USD of the 10.00 USD captured.",
                'A refund of 3.00 USD, asked for with the reason "damaged", was made by Stripe (reference re_1).',
                "The merchant can refund up to 7.00 USD.",
            ],
        ),
        (
            lambda: refunded(None),
            [
                "The order was paid, and all of the 10.00 USD captured was refunded.",
                "There is nothing left to refund.",
            ],
        ),
        (
            lambda: refunded(300, succeeds=False),
            [
                'A refund of 3.00 USD, asked for with the reason "damaged", failed: ',
                'failed: Stripe said insufficient_funds, "No funds".',
                "The merchant can refund up to 10.00 USD.",
            ],
        ),
        (
            lambda: report(pay(new_order()), "failed"),
            [
                "Attempt 1 at Stripe failed, and no money was taken.",
                'It failed (reference pt_1, po_1): Stripe said card_declined, "The card was declined".',
                "The merchant can have it paid again, which will be attempt 2, or cancel it.",
            ],
        ),
        (
            lambda: pay(report(pay(new_order()), "failed")),
            [
                "Attempt 2 at Stripe is under way",
                'Stripe said card_declined, "The card was declined".',
                "Attempt 2: Stripe's answer has been awaited",
            ],
        ),
        (
            lambda: report(report(pay(new_order()), "failed"), "captured"),
            ["Stripe captured 10.00 USD (reference pt_1, po_1), though it had been reported to be over."],
        ),
        (
            lambda: cancelling(report(pay(new_order()), "failed")),
            ["The order is cancelled, and no money was taken.", "The order was cancelled."],
        ),
        (
            lambda: report(cancelling(pay(new_order())), "cancelled"),
            ["Stripe stopped it, before any money was taken."],
        ),
        (
            lambda: report(
                report(pay(report(pay(new_order()), "failed")), "captured"), "captured", attempt=1
            ),
            [
                "Attempt 1, 10.00 USD, was asked for",
                "though it had been reported to be over.",
                "The refund of 10.00 USD was asked for, 3 minutes ago; Stripe has not answered yet.",
            ],
        ),
        (
            lambda: captured_twice(NO_REFERENCES, References("po_2")),
            ["not passed on to Stripe, because attempts 1 and 2 may be one charge: look it up there"],
        ),
        (
            lambda: captured_twice(References("po_1"), NO_REFERENCES),
            ["because attempts 1 and 2 may be one charge: look it up there, and an operator can record"],
        ),
        (
            lambda: looked_up(captured_twice(NO_REFERENCES, References("po_2")), "one_charge", attempt=2),
            [
                "The order is paid: 10.00 USD is captured, and nothing was refunded.",
                "Its charge turned out to be that of attempt 2, and counts there alone.",
                "was ended, after somebody looked it up: same_charge.",
                "operator:ada said that, by Stripe's dashboard, the charge of attempt 2 is that of another attempt",
                '"Only po_2 is there".',
            ],
        ),
        (
            lambda: looked_up(pay(new_order()), "no_money", attempt=1),
            ["It was ended, after somebody looked it up: no_money.", "there is no money for attempt 1"],
        ),
        (
            lambda: looked_up(refunding(300), "refund_not_made"),
            ["A refund of 3.00 USD", "was ended, after somebody looked it up: not_refunded."],
        ),
        (
            lambda: looked_up(refunded(300), "refund_not_made"),
            ["came back", ": not_refunded; the customer has not got the money."],
        ),
        (
            lambda: looked_up(refunding(300), "refund_made"),
            ["was made by Stripe", "partly refunded: 3.00 USD of the 10.00 USD captured."],
        ),
        (
            refunding_without_reference,
            ["it was not passed on to Stripe, whose reference of the payment is not known"],
        ),
        (
            lambda: captured_twice(References("po_1"), References("po_1")),
            ["It failed: its charge is that of another attempt.", "The order is paid: 10.00 USD is captured"],
        ),
    ],
)
def test_every_status_is_explained(make: Callable[[], Order], sentences: list[str]) -> None:
    text = told(make())
    assert [sentence for sentence in sentences if sentence not in text] == [], text


@pytest.mark.parametrize(
    ("make", "awaited"),
    [
        (lambda: pay(new_order()), "Stripe's answer has been awaited, for 5 hours"),
        (lambda: report(pay(new_order()), "requires_action"), "where the customer does nothing"),
        (lambda: cancelling(pay(new_order())), "the order is captured all the same"),
    ],
)
def test_what_takes_long_is_said_to_and_what_can_be_done_about_it(
    make: Callable[[], Order], awaited: str
) -> None:
    """The workflow of the payment, which would end it, may be gone."""
    assert "reconcile" not in told(make())
    remark = "; that is long, and an operator can ask Stripe with `payloops reconcile`."
    assert awaited + remark in told(make(), after=timedelta(hours=5))


@pytest.mark.parametrize(
    ("wanted", "enabled", "because"),
    [
        ("stripe", {"stripe": 1}, "went to Stripe, because the request named it."),
        (None, {"stripe": 2, "razorpay": 1}, "went to Stripe, because it is preferred for USD."),
        (
            None,
            {"razorpay": 7},
            "went to Razorpay, because it comes first by priority (7), and Stripe, preferred for USD, is not enabled.",
        ),
    ],
)
def test_why_a_processor_was_chosen_is_told(
    wanted: str | None, enabled: dict[str, int], because: str
) -> None:
    route = route_payment(
        merchant_id=uuid4(),
        currency="USD",
        wanted=wanted,
        enabled=[EnabledProcessor(name, priority) for name, priority in enabled.items()],
    )
    order = new_order()
    request_payment(order, route=route, payment_method={"type": "card"}, capture="automatic", by=BY)
    assert f"Attempt 1, 10.00 USD by card, was asked for and {because}" in told(order)


def test_a_reason_that_is_not_known_is_quoted() -> None:
    order = new_order()
    route = Route(processor="stripe", reason="drawn by lot")
    request_payment(order, route=route, payment_method=None, capture="automatic", by=BY)
    assert "went to Stripe, for this reason: drawn by lot." in told(order)


def test_it_is_told_why_an_order_names_its_customer_no_more() -> None:
    order = an_order(uuid4(), customer_email="ada@example.com")
    erase(order, by=BY)
    assert "What it held of its customer was erased." in told(order)


def test_events_of_a_processor_that_cannot_be_true_are_told() -> None:
    order = report(pay(new_order()), "processing")
    event = ProcessorEvent(
        processor="stripe",
        event_id="evt_1",
        type="payment_intent.succeeded",
        order_id=order.id,
        outcome="captured",
        references=References("po_1"),
        amount=1_000,
        currency="EUR",
    )
    assert receive(order, event, by=BY) == "contradiction"
    assert (
        "Stripe sent payment_intent.succeeded (evt_1), which contradicts what is on record: it changed nothing."
        in told(order)
    )


async def test_a_refund_made_at_the_processor_is_told_to_be_one(store: EventStore) -> None:
    order = captured()
    await store.append(recorded(order))
    await update_refunded_amount(
        store,
        order_id=order.id,
        attempt=1,
        amount_refunded=300,
        requested_before=BY.at,
        as_of=order.version,
        by=BY,
    )
    loaded = await store.load(Order, order.id)
    assert loaded is not None
    facts = [each.event for each in await store.read_stream(order.id)]
    history = explain_order(facts, now=BY.at).history
    assert any(
        line.startswith("3.00 USD was refunded at Stripe itself, which was learned on") for line in history
    )


@pytest.mark.parametrize("seed", range(0, 400, 40))
def test_whatever_happens_to_an_order_is_explained_in_whole_sentences(seed: int) -> None:
    seen = set()
    for number in range(seed, seed + 40):
        order = random_order(random.Random(number), uuid4())
        found = explained(order)
        seen.add(found.status)
        for sentence in (found.state, *found.history, *found.pending, *found.next):
            assert re.fullmatch(r"[A-Z0-9].*\.", sentence), sentence
            assert "None" not in sentence
            assert ".." not in sentence
        assert len(found.next) == 1
        assert bool(found.pending) == is_pending(order), number
    assert len(seen) > 3


def is_pending(order: Order) -> bool:
    under_way = {PaymentStatus.PROCESSING, PaymentStatus.REQUIRES_ACTION, PaymentStatus.AUTHORIZED}
    return any(payment.status in under_way for payment in order.payments.values()) or any(
        transaction.status is TransactionStatus.PENDING for transaction in order.transactions.values()
    )


def test_no_status_is_without_an_explanation() -> None:
    """The random orders come to all of them."""
    seen = {explained(random_order(random.Random(number), uuid4())).status for number in range(400)}
    assert seen == set(OrderStatus)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        *((-5, "0 seconds"), (0, "0 seconds"), (1.9, "1 second"), (119, "119 seconds"), (120, "2 minutes")),
        *((7_199, "119 minutes"), (7_200, "2 hours"), (172_799, "47 hours"), (172_800, "2 days")),
    ],
)
def test_durations_are_in_units_of_which_there_are_several(seconds: float, text: str) -> None:
    assert duration_text(timedelta(seconds=seconds)) == text
