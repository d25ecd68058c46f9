"""Razorpay's events, translated into this service's terms: https://razorpay.com/docs/webhooks/payloads/payments/."""

from typing import Any

from payloops.commands.receive_processor_event import Outcome, ProcessorEvent
from payloops.events.orders import NO_REASON, Failure, References
from payloops.http.processor_payloads import amount, member, reference, text

PAYMENT_OUTCOMES: dict[str, Outcome] = {
    "payment.authorized": "authorized",
    "payment.captured": "captured",
    "payment.failed": "failed",
}
REFUND_OUTCOMES: dict[str, Outcome] = {"refund.processed": "refunded", "refund.failed": "refund_failed"}
RAZORPAY_TYPES = frozenset({*PAYMENT_OUTCOMES, *REFUND_OUTCOMES})
"""Types of events that are handled."""


def razorpay_labels(event: Any) -> dict[str, Any]:
    """The labels (notes) of the payment or refund that an event is about. A refund's notes override its payment's."""
    labels: dict[str, Any] = {}
    for name in ("payment", "refund"):
        notes = member(event, "payload", name, "entity", "notes")
        if isinstance(notes, dict):  # empty notes are an empty list
            labels |= notes
    return labels


def razorpay_event(event: dict[str, Any]) -> ProcessorEvent | None:
    """Translate an event; None if it is not an event of Razorpay. Its id, which is not in the body, is left empty."""
    kind = text(event.get("event"))
    if kind is None:
        return None
    payment = member(event, "payload", "payment", "entity")
    refund = member(event, "payload", "refund", "entity")
    if kind in PAYMENT_OUTCOMES:
        return _payment(kind, payment)
    if kind in REFUND_OUTCOMES:
        return _refund(kind, refund, payment)
    return ProcessorEvent(processor="razorpay", event_id="", type=kind)


def _payment(kind: str, payment: Any) -> ProcessorEvent:
    outcome = PAYMENT_OUTCOMES[kind]
    failure = NO_REASON
    if outcome == "failed":
        failure = Failure(text(member(payment, "error_code")), text(member(payment, "error_description")))
    return ProcessorEvent(
        processor="razorpay",
        event_id="",
        type=kind,
        outcome=outcome,
        references=References(reference(member(payment, "order_id")), reference(member(payment, "id"))),
        amount=amount(member(payment, "amount")),
        currency=text(member(payment, "currency")),
        failure=failure,
    )


def _refund(kind: str, refund: Any, payment: Any) -> ProcessorEvent:
    return ProcessorEvent(
        processor="razorpay",
        event_id="",
        type=kind,
        outcome=REFUND_OUTCOMES[kind],
        references=References(
            reference(member(payment, "order_id")), reference(member(refund, "payment_id"))
        ),
        amount=amount(member(refund, "amount")),
        currency=text(member(refund, "currency")),
        amount_refunded=amount(member(payment, "amount_refunded")),
        refund_reference=reference(member(refund, "id")),
        refund_id=text(member(refund, "notes", "refund_id")),
    )
