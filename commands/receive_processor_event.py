"""Applies an event that a processor sent by webhook about a payment or refund, once its signature is verified.

Events arrive late, twice, and in any order. What an event says that is new is recorded in the order's stream, and its
consequences in the same append, so that each event takes effect once. Rules beyond those of `payment_outcomes`
make the result independent of the order of arrival:
- an event that ranks below one received earlier for the same payment changes nothing:
  captured > cancelled > authorized > failed, requires_action;
- what is reported of refunds before the capture is known waits for the capture (`record_processor_refunds`);
- another amount than is on record as captured, or than a refund was asked for, changes nothing, and is a contradiction
  for people to look at.
"""

import copy
from dataclasses import dataclass
from typing import Literal, cast
from uuid import UUID

import structlog

from payloops.commands.change_order import change_order
from payloops.commands.payment_outcomes import (
    fail_payment,
    release_unwanted,
    report_action_required,
    report_authorized,
    report_cancelled,
    report_captured,
    report_processing,
    report_reference,
)
from payloops.commands.processor_events import DONE, Effect, keep_processor_event, note_effect
from payloops.commands.processor_refunds import capture_of, record_processor_refunds
from payloops.commands.processors import CAPTURES_BY_ITSELF
from payloops.commands.refusals import OrderNotFound, TooManyProcessorEvents
from payloops.events.crash_points import crash_point
from payloops.events.event_store import EventStore
from payloops.events.metadata import Metadata
from payloops.events.orders import (
    NO_REASON,
    NO_REFERENCES,
    Failure,
    Order,
    Payment,
    PaymentStatus,
    ProcessorEventReceived,
    References,
    Transaction,
    TransactionType,
    processor_event_key,
)

Outcome = Literal[
    "requires_action", "failed", "authorized", "cancelled", "captured", "refunded", "refund_failed"
]

MAX_RECORDED = 1_000
"""Keys of processors' events that an order has at most: far more than a payment and its refunds ever cause."""
RAZORPAY_ORDER = "order_"
"""Every order's id at Razorpay begins with it; other references do not: https://razorpay.com/docs/api/orders/."""
RANK = {"requires_action": 0, "failed": 0, "authorized": 1, "cancelled": 2, "captured": 3}

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessorEvent:
    """An event of a processor, in our terms. Amounts in minor units.

    Attributes:
        event_id: the processor's.
        body_hash: SHA-256 of the body, where the signature does not cover the event's id.
        type: as the processor names it.
        order_id: ours, if the payment is labelled with it.
        attempt: ours, if the payment is labelled with it.
        outcome: what it means; None if events of this type are not handled.
        references: the payment's, at the processor.
        amount: captured or refunded by this; of Razorpay also of a payment that was authorized or failed.
        amount_refunded: of the whole payment so far, if it says so.
        refund_reference: the processor's, of the refund. refund_id: ours, if the refund is labelled with it.
    """

    processor: str
    event_id: str
    body_hash: str | None = None
    type: str
    order_id: UUID | None = None
    attempt: int | None = None
    outcome: Outcome | None = None
    references: References = NO_REFERENCES
    redirect_url: str | None = None
    amount: int | None = None
    currency: str | None = None
    amount_refunded: int | None = None
    refund_reference: str | None = None
    refund_id: str | None = None
    failure: Failure = NO_REASON

    @property
    def key(self) -> str:
        """Identifies the event by something that is covered by the signature."""
        return self.event_id if self.body_hash is None else self.body_hash


async def receive_processor_event(
    store: EventStore, *, merchant_id: UUID, event: ProcessorEvent, body: str, by: Metadata
) -> Effect:
    """Store an event, and record on the merchant's order what follows from it. Both are durable on return.

    Args:
        merchant_id: whose webhook secret it is signed with: only this merchant's orders are considered.
        body: as it arrived, without card numbers.

    Returns:
        Its effect, of this delivery or of an earlier one. `received` if the order takes no more events: it is stored,
        and changes nothing. A processor that was told so would only repeat it, and in the end switch off the merchant's
        address, which a customer must not be able to bring about.
    """
    earlier = await keep_processor_event(
        store.pool,
        merchant_id=merchant_id,
        processor=event.processor,
        key=event.key,
        event_id=event.event_id,
        type=event.type,
        body=body,
        at=by.at,
    )
    if earlier in DONE:
        return earlier
    crash_point("processor_event.kept")
    effect: Effect = "unhandled" if event.outcome is None else "unknown_order"
    order_id = None
    if event.order_id is not None:
        try:
            effect = await change_order(
                store,
                order_id=event.order_id,
                merchant_id=merchant_id,
                decide=lambda order: receive(order, event, by=by),
            )
            order_id = event.order_id
        except OrderNotFound:
            pass
        except TooManyProcessorEvents:
            effect, order_id = "received", event.order_id
    if effect in {"received", "unknown_order", "contradiction", "unmatched"}:
        log.warning("processor_event.without_effect", effect=effect, type=event.type, event_id=event.event_id)
    crash_point("processor_event.recorded")
    await note_effect(
        store.pool,
        merchant_id=merchant_id,
        processor=event.processor,
        key=event.key,
        effect=effect,
        order_id=order_id,
    )
    return effect


def receive(order: Order, event: ProcessorEvent, *, by: Metadata) -> Effect:
    """Record an event on its order, and what follows from it; nothing if the order has the event already, or if it says
    of the payment only what is remembered from earlier ones.

    Raises:
        TooManyProcessorEvents: so that a stream, which is folded anew for each event, does not grow without end.
    """
    keys = [processor_event_key(event.processor, id) for id in (event.event_id, event.body_hash) if id]
    if event.outcome is None:
        return "unhandled"
    for key in keys:
        if key in order.processor_events:
            return cast("Effect", order.processor_events[key])
    payment = _find_payment(order, event)
    effect, completes, is_news = (
        ("unmatched", None, True) if payment is None else _try_on_copy(order, payment, event, by=by)
    )
    if not is_news:
        return effect
    if len(order.processor_events) >= MAX_RECORDED:
        raise TooManyProcessorEvents(order.id)
    attempt = None if payment is None else payment.attempt
    _record_event(order, event, attempt=attempt, effect=effect, completes=completes, by=by)
    if payment is not None and effect != "contradiction":
        _record_consequences(order, payment, event, by=by)
    return effect


def _try_on_copy(
    order: Order, payment: Payment, event: ProcessorEvent, *, by: Metadata
) -> tuple[Effect, bool | None, bool]:
    """The event's effect, what it tells a waiting workflow, and whether it says anything that is not remembered yet.

    Its fact carries the first two, and precedes what follows.
    """
    if not _is_plausible(order, payment, event):
        return "contradiction", None, True
    trial = copy.deepcopy(order)
    tried = trial.payments[payment.attempt]
    _record_event(trial, event, attempt=tried.attempt, effect="applied", by=by)
    is_news = (tried, trial.processor_refunds) != (payment, order.processor_refunds)
    version = trial.version
    if not _record_consequences(trial, tried, event, by=by):
        return "contradiction", None, True
    effect: Effect = "applied" if trial.version > version else "none"
    return effect, _completes(tried, event), is_news or effect == "applied"


def _find_payment(order: Order, event: ProcessorEvent) -> Payment | None:
    """The payment that an event is about: by its references, by its label, by the references of an earlier event about
    its capture; else the one that has no reference yet.

    If several have a reference, it is the one with that of the charge, else the latest, but a refund is that of the one
    that was captured. If several have none, it is the latest. But an event that ends a payment may be about an earlier
    one, whose charge is not known: then it is not taken for the latest while that is under way. A payment whose capture
    was reported already is not captured again under another reference.

    A label does not count against the order at Razorpay: it may come from the customer's browser.
    """
    payments = [p for p in reversed(order.payments.values()) if p.processor == event.processor]
    charge = event.references.transaction_id
    referred = [
        p
        for p in payments
        if p.has_reference(*event.references) or (p.processor_order_id is None and charge in p.charges)
    ]
    if referred:
        is_of_capture = event.outcome in {"refunded", "refund_failed"}
        meant = max(  # the first of several, so the latest
            referred,
            key=lambda p: (
                is_of_capture and p.status is PaymentStatus.CAPTURED,
                charge in p.charges,
            ),
        )
        others = [p for p in referred if p is not meant and not (charge and p.charges)]
        return None if others and _may_end_another(meant, event) else meant
    for payment in payments:
        if payment.attempt == event.attempt and not _pays_another_order(payment, event):
            return payment
    for payment in payments:
        if not payment.capture_references.isdisjoint(event.references):
            return payment
    unknown = [p for p in payments if p.processor_order_id is None and "captured" not in p.processor_outcomes]
    if len(unknown) > 1 and _may_end_another(unknown[0], event):
        return None
    return next(iter(unknown), None)


def _pays_another_order(payment: Payment, event: ProcessorEvent) -> bool:
    """Whether an event is about another order at Razorpay than the payment's: what pays that one may not pay this one,
    too.
    """
    named, known = event.references.order_id or "", payment.processor_order_id or ""
    return named != known and named.startswith(RAZORPAY_ORDER) and known.startswith(RAZORPAY_ORDER)


def _may_end_another(payment: Payment, event: ProcessorEvent) -> bool:
    """Whether an event that does not name a payment that is under way says that one has ended."""
    is_end = event.outcome in {"failed", "cancelled"}
    return is_end and payment.is_under_way and not _names_payment(payment, event)


def _record_event(
    order: Order,
    event: ProcessorEvent,
    *,
    attempt: int | None,
    effect: Effect,
    completes: bool | None = None,
    by: Metadata,
) -> None:
    order.record(
        ProcessorEventReceived,
        by=by,
        status=order.status.value,
        processor=event.processor,
        event_id=event.event_id,
        body_hash=event.body_hash,
        type=event.type,
        outcome=event.outcome,
        attempt=attempt,
        processor_order_id=event.references.order_id,
        processor_transaction_id=event.references.transaction_id,
        amount=event.amount,
        currency=event.currency,
        amount_refunded=event.amount_refunded,
        refund_reference=event.refund_reference,
        refund_id=event.refund_id,
        error_code=event.failure.code,
        error_message=event.failure.message,
        completes=completes,
        effect=effect,
    )


def _is_plausible(order: Order, payment: Payment, event: ProcessorEvent) -> bool:
    """Whether an event can be true: its currency and amount agree with what is on record, or can have been captured.

    Workflows report no amounts, so for what they reported as captured or refunded, the requested amount is on record.
    """
    if event.currency is not None and event.currency.upper() != order.currency:
        return False
    if event.outcome == "captured" and event.amount is not None:
        capture = capture_of(order, payment)
        if capture is None:
            return 0 < event.amount <= payment.amount and _is_whole_amount(order, payment, event)
        return event.amount == capture.amount and not _is_another_charge(payment, event)
    if event.outcome in {"authorized", "failed"}:
        return _is_whole_amount(order, payment, event)
    if event.outcome == "refunded" and event.amount is not None:
        return all(refund.amount == event.amount for refund in _requested_refunds(order, event))
    return True


def _is_whole_amount(order: Order, payment: Payment, event: ProcessorEvent) -> bool:
    """Whether an amount can be that of this payment, at a processor that captures no less than was authorized; True of
    any other processor.

    At such a one, what names the order (Razorpay's notes) may come from the customer's browser: the order of a dearer
    thing than was paid for.
    """
    requested = {t.amount for t in order.pending(payment.attempt, TransactionType.CAPTURE)}
    return event.processor not in CAPTURES_BY_ITSELF or event.amount in {payment.amount, *requested}


def _requested_refunds(order: Order, event: ProcessorEvent) -> list[Transaction]:
    """Refunds requested here that an event is about, by our id or the processor's reference."""
    return [
        t
        for t in order.transactions.values()
        if t.type is TransactionType.REFUND
        and not t.discovered
        and (
            event.refund_id == t.id
            or (event.refund_reference is not None and event.refund_reference == t.processor_transaction_id)
        )
    ]


def _is_another_charge(payment: Payment, event: ProcessorEvent) -> bool:
    """Whether an event reports a capture under none of the references that the payment was captured with."""
    all_known = None not in {*event.references, payment.processor_transaction_id}
    return all_known and not payment.has_reference(*event.references)


def _record_consequences(order: Order, payment: Payment, event: ProcessorEvent, *, by: Metadata) -> bool:
    """Record what follows from an event; False if it contradicts what is on record."""
    fits = _record_outcome(order, payment, event, by=by)
    if not _is_guess(order, payment, event):
        report_reference(order, payment, processor_order_id=event.references.order_id, by=by)
    release_unwanted(order, by=by)
    return fits


def _is_guess(order: Order, payment: Payment, event: ProcessorEvent) -> bool:
    """Whether an event may also be about another payment, whose reference was not reported either."""
    return bool(order.others_without_reference(payment)) and not _names_payment(payment, event)


def _names_payment(payment: Payment, event: ProcessorEvent) -> bool:
    """Whether an event names the payment: by label, or by the reference of its charge."""
    charge = event.references.transaction_id
    return event.attempt == payment.attempt or payment.has_reference(charge) or charge in payment.charges


def _record_outcome(order: Order, payment: Payment, event: ProcessorEvent, *, by: Metadata) -> bool:
    if event.outcome in {"refunded", "refund_failed"}:
        return record_processor_refunds(order, payment, amount_refunded=event.amount_refunded, by=by)
    assert event.outcome is not None
    if any(RANK[reported] > RANK[event.outcome] for reported in payment.processor_outcomes):
        return True
    # An event that is only assumed to be about this payment gives it no references, unless it is a capture: each charge
    # is reported under references of its own.
    guessed = event.outcome != "captured" and _is_guess(order, payment, event)
    # A worker may have reported another reference than the events have: it is kept.
    keeps_reference = guessed or payment.processor_order_id is not None
    references = References(
        None if keeps_reference else event.references.order_id,
        None if guessed else event.references.transaction_id,
    )
    match event.outcome:
        case "captured":
            report_captured(order, payment, captured=event.amount, references=references, by=by)
        case "authorized" if not awaits_capture(payment):
            report_processing(order, payment, processor_order_id=references.order_id, by=by)
        case "authorized":
            report_authorized(order, payment, references=references, by=by)
        case "requires_action":
            report_action_required(
                order,
                payment,
                processor_order_id=references.order_id,
                redirect_url=event.redirect_url,
                by=by,
            )
        case "cancelled" if is_cancelling(order, payment):
            transaction_id = event.references.transaction_id
            report_cancelled(order, payment, processor_transaction_id=transaction_id, by=by)
        case "cancelled" | "failed":
            # A failure is outdated once the payment is authorized; a cancellation ends that, too.
            if event.outcome == "cancelled" or payment.is_open:
                fail_payment(order, payment, references=references, failure=event.failure, by=by)
    return True


def awaits_capture(payment: Payment) -> bool:
    """Whether the payment stays authorized until it is captured, and is not captured by its processor itself."""
    return payment.capture == "manual" or payment.processor not in CAPTURES_BY_ITSELF


def is_cancelling(order: Order, payment: Payment) -> bool:
    """Whether the merchant asked to cancel. If not, a cancelled payment counts as failed, and the order can be paid.

    Also if the void was reported as refused, unless a capture was requested since then: it may have been made.
    """
    requested = [
        kind
        for (kind, _), id in order.operations.items()
        if order.transactions[id].attempt == payment.attempt
    ]
    return payment.cancel_requested or requested[-1:] == [TransactionType.VOID]


def _completes(payment: Payment, event: ProcessorEvent) -> bool | None:
    """What a workflow that waits for the customer is told, once an event was applied."""
    match event.outcome:
        case "captured" if payment.status is PaymentStatus.CAPTURED:
            return True
        case "authorized" if payment.status is PaymentStatus.AUTHORIZED:
            return True
        case "failed" | "cancelled" if payment.is_over:
            return False
        case _:
            return None
