"""Orders that live through everything."""

import random
from dataclasses import replace
from datetime import datetime, timedelta
from typing import get_args
from uuid import UUID

from uuid_utils.compat import uuid7

from payloops.commands.cancel_order import cancel
from payloops.commands.capture_payment import request_capture
from payloops.commands.erase_personal_data import erase
from payloops.commands.pay_order import request_payment
from payloops.commands.payment_outcomes import (
    report_action_required,
    report_authorized,
    report_cancelled,
    report_captured,
    report_failed,
    report_processing,
)
from payloops.commands.receive_processor_event import Outcome, ProcessorEvent, receive
from payloops.commands.refund_outcomes import fail_refund, succeed_refund
from payloops.commands.refund_payment import request_refund
from payloops.commands.refusals import (
    CaptureExceedsAuthorized,
    ContradictsRecord,
    InvalidStatus,
    NotResolvable,
    RefundExceedsCaptured,
)
from payloops.commands.resolve_order import RECENT, Shows, Sighting, resolve
from payloops.commands.route_payment import Route
from payloops.events.metadata import Metadata
from payloops.events.orders import (
    NO_REASON,
    NO_REFERENCES,
    Failure,
    Order,
    Payment,
    PaymentStatus,
    References,
    TransactionType,
)
from payloops.events.stream import StreamEvent
from payloops.events.timestamps import utc_now

REFUSALS = (InvalidStatus, CaptureExceedsAuthorized, RefundExceedsCaptured, ContradictsRecord, NotResolvable)


def new_order(merchant_id: UUID, *, at: datetime | None = None, **details: object) -> Order:
    by = Metadata(at=at or utc_now(), actor="system", correlation_id="test")
    given = {
        "external_id": "A-1",
        "amount": 1_000,
        "currency": "USD",
        "customer_id": None,
        "customer_email": None,
        "description": None,
        "metadata": {},
        "return_url": None,
        "cancel_url": None,
    }
    return Order.create(id=uuid7(), merchant_id=str(merchant_id), by=by, **{**given, **details})


def random_order(
    chance: random.Random,
    merchant_id: UUID,
    *,
    at: datetime | None = None,
    pace: timedelta = timedelta(milliseconds=1),
) -> Order:
    """An order after random commands and reports of its processor; what is refused is left out.

    Args:
        at: when it was created.
        pace: up to four times this lies between a step and the next.
    """
    order = new_order(
        merchant_id,
        at=at,
        external_id=f"order-{chance.randrange(1_000)}",
        currency=chance.choice(["USD", "INR"]),
        customer_email=chance.choice([None, "zoë@example.com"]),
        description=chance.choice([None, 'Ein "Tisch" \\ 机 \n']),
        metadata=chance.choice([{}, {"b": 1, "a": [1.50, None, {"ü": "\\u0041"}]}]),
    )
    if chance.random() < 0.05:
        _capture_twice(order)
    for step in range(chance.randrange(20)):
        by = Metadata(
            at=order.modified_on + chance.randrange(5) * pace,
            actor="system",
            correlation_id=f"step-{step}",
        )
        try:
            _step(chance, order, by)
        except REFUSALS:
            continue
    return order


def _capture_twice(order: Order) -> None:
    """Two attempts are reported as captured, without references: there may be one charge."""
    by = Metadata(at=order.modified_on, actor="system", correlation_id="twice")
    for n in (1, 2):
        route = Route(processor="stripe", reason="test")
        request_payment(order, route=route, payment_method=None, capture="automatic", by=by)
        if n == 1:
            report_failed(order, order.payments[n], references=NO_REFERENCES, failure=NO_REASON, by=by)
    for payment in order.payments.values():
        report_captured(order, payment, references=NO_REFERENCES, by=by)


def _step(chance: random.Random, order: Order, by: Metadata) -> None:  # noqa: C901  # one per command
    references = References(
        order_id=chance.choice([None, "pi_1", "pi_2"]),
        transaction_id=chance.choice([None, "ch_1", "ch_2"]),
    )
    failure = Failure(chance.choice([None, "card_declined"]), chance.choice([None, "Your card was declined"]))
    payment = chance.choice([*order.payments.values(), order.payment])
    refunds = [t.id for t in order.transactions.values() if t.type is TransactionType.REFUND]
    match chance.randrange(16 if payment else 1):
        case 0:
            request_payment(
                order,
                route=Route(processor=chance.choice(["stripe", "razorpay"]), reason="test"),
                payment_method=None,
                capture=chance.choice(["automatic", "manual"]),
                by=by,
            )
        case 1 if payment:
            report_processing(order, payment, processor_order_id=references.order_id, by=by)
        case 2 if payment:
            report_action_required(
                order,
                payment,
                processor_order_id=references.order_id,
                redirect_url="https://3ds",
                by=by,
            )
        case 3 if payment:
            report_authorized(order, payment, references=references, by=by)
        case 4 | 5 if payment:
            report_captured(order, payment, references=references, by=by)
        case 6 if payment:
            report_failed(order, payment, references=references, failure=failure, by=by)
        case 7 if payment:
            report_cancelled(order, payment, processor_transaction_id=references.transaction_id, by=by)
        case 8:
            request_capture(order, amount=chance.choice([None, 400, 1_000]), by=by)
        case 9 if chance.random() < 0.4:  # or nothing would ever live long
            cancel(order, by=by)
        case 10:
            request_refund(
                order, amount=chance.choice([None, 100, 300]), reason=chance.choice([None, "late"]), by=by
            )
        case 11 if refunds:
            refund = order.transactions[chance.choice(refunds)]
            if chance.random() < 0.6:
                succeed_refund(order, refund.id, processor_transaction_id=references.transaction_id, by=by)
            else:
                fail_refund(order, refund.id, processor_transaction_id=None, failure=failure, by=by)
        case 12 | 13 if payment:
            _tell(chance, order, payment, references, by)
        case 14:
            erase(order, by=by)
        case 15 if payment:
            _look_up(chance, order, payment, by)


def _look_up(chance: random.Random, order: Order, payment: Payment, by: Metadata) -> None:
    """Somebody looks it up in the dashboard."""
    refunds = [t.id for t in order.transactions.values() if t.type is TransactionType.REFUND]
    captured = [each for each in order.payments.values() if each.status is PaymentStatus.CAPTURED]
    shows: Shows = "one_charge" if len(captured) > 1 else chance.choice(get_args(Shows))
    is_refund = shows.startswith("refund")
    seen = Sighting(
        shows=shows,
        attempt=None if is_refund else payment.attempt,
        refund_id=chance.choice([*refunds, "none"]) if is_refund else None,
        reference=None if is_refund else chance.choice(["pi_1", "pi_3"]),
        note="seen",
    )
    resolve(order, seen, by=replace(by, at=by.at + RECENT))


def _tell(
    chance: random.Random, order: Order, payment: Payment, references: References, by: Metadata
) -> None:
    """An event of the processor arrives."""
    outcome = chance.choice(get_args(Outcome))
    money = outcome in {"captured", "refunded", "refund_failed"}
    receive(
        order,
        ProcessorEvent(
            processor=payment.processor,
            event_id=f"evt_{chance.randrange(1_000)}",
            type=outcome,
            order_id=order.id,
            attempt=chance.choice([None, payment.attempt]),
            outcome=outcome,
            amount=chance.choice([100, 1_000]) if money else None,
            currency=order.currency if money else None,
            refund_reference=f"re_{chance.randrange(3)}" if outcome.startswith("refund") else None,
            references=references,
        ),
        by=by,
    )


def recorded(order: Order) -> list[StreamEvent]:
    """The events decided on and not yet appended."""
    return order.collect_events()
