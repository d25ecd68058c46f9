"""Stripe's events, translated into this service's terms: https://docs.stripe.com/api/events/types."""

from typing import Any

from payloops.commands.receive_processor_event import Outcome, ProcessorEvent
from payloops.events.orders import NO_REASON, Failure, References
from payloops.http.processor_payloads import amount, member, reference, text

PAYMENT_OUTCOMES: dict[str, Outcome] = {
    "payment_intent.succeeded": "captured",
    "payment_intent.payment_failed": "failed",
    "payment_intent.canceled": "cancelled",
    "payment_intent.requires_action": "requires_action",
    "payment_intent.amount_capturable_updated": "authorized",
}
REFUND_OUTCOMES: dict[str, Outcome] = {
    "succeeded": "refunded",
    "failed": "refund_failed",
    "canceled": "refund_failed",
}
REMAINDER_NOT_REFUNDED = "2025-03-31"
"""The version of Stripe's API from which on what a partial capture or a cancellation releases is no refund:
https://docs.stripe.com/changelog/basil/2025-03-31/remove-refund-from-partial-capture-and-payment-cancellation-flow.
An event has the version of the merchant's account, or of its endpoint there."""
STRIPE_TYPES = frozenset({*PAYMENT_OUTCOMES, "charge.refunded", "refund.updated"})
"""Types of events that are handled."""


def stripe_labels(event: Any) -> dict[str, Any]:
    """The labels (metadata) of the object that an event is about: `merchant_id`, `order_id`, …"""
    metadata = member(event, "data", "object", "metadata")
    return metadata if isinstance(metadata, dict) else {}


def stripe_event(event: dict[str, Any]) -> ProcessorEvent | None:
    """Translate an event; None if it is not an event of Stripe."""
    event_id, kind = reference(event.get("id")), text(event.get("type"))
    subject = member(event, "data", "object")
    if event_id is None or kind is None or not isinstance(subject, dict):
        return None
    match kind:
        case "charge.refunded":
            return _charge_refunded(event_id, subject, version=text(event.get("api_version")))
        case "refund.updated":
            return _refund(event_id, subject)
        case _ if kind in PAYMENT_OUTCOMES:
            return _payment(event_id, kind, subject)
    return ProcessorEvent(processor="stripe", event_id=event_id, type=kind)


def _payment(event_id: str, kind: str, intent: dict[str, Any]) -> ProcessorEvent:
    outcome: Outcome | None = PAYMENT_OUTCOMES[kind]
    if outcome == "authorized" and not amount(intent.get("amount_capturable")):
        outcome = None  # this event is also sent when nothing is left to capture
    failure = NO_REASON
    if outcome == "cancelled":
        failure = Failure("payment_cancelled", text(intent.get("cancellation_reason")))
    elif outcome == "failed":
        error = member(intent, "last_payment_error")
        failure = Failure(text(member(error, "code")), text(member(error, "message")))
    return ProcessorEvent(
        processor="stripe",
        event_id=event_id,
        type=kind,
        outcome=outcome,
        references=References(reference(intent.get("id")), reference(intent.get("latest_charge"))),
        redirect_url=text(member(intent, "next_action", "redirect_to_url", "url")),
        amount=amount(intent.get("amount_received")) if outcome == "captured" else None,
        currency=text(intent.get("currency")),
        failure=failure,
    )


def _charge_refunded(event_id: str, charge: dict[str, Any], *, version: str | None) -> ProcessorEvent:
    return ProcessorEvent(
        processor="stripe",
        event_id=event_id,
        type="charge.refunded",
        outcome="refunded",
        references=References(reference(charge.get("payment_intent")), reference(charge.get("id"))),
        currency=text(charge.get("currency")),
        amount_refunded=refunded_sum(charge, version=version),
    )


def refunded_sum(charge: dict[str, Any], *, version: str | None) -> int | None:
    """The sum of all refunds of a charge, without what was authorized and never captured, which earlier versions count.

    The version that the charge is written in need not be the one that it was captured by, so the amounts decide where
    they can: there are no more refunds than were captured, and what was not captured counts whole or not at all.

    Args:
        version: of Stripe's API, that the charge is written in.
    """
    refunded, authorized = amount(charge.get("amount_refunded")), amount(charge.get("amount"))
    captured = 0 if charge.get("captured") is False else amount(charge.get("amount_captured"))
    if refunded is None or authorized is None or captured is None:
        return refunded
    released = max(0, authorized - captured)
    counts = refunded >= released and (version or "") < REMAINDER_NOT_REFUNDED
    return refunded - released if counts or refunded > captured else refunded


def _refund(event_id: str, refund: dict[str, Any]) -> ProcessorEvent:
    return ProcessorEvent(
        processor="stripe",
        event_id=event_id,
        type="refund.updated",
        outcome=REFUND_OUTCOMES.get(text(refund.get("status")) or ""),
        references=References(reference(refund.get("payment_intent")), reference(refund.get("charge"))),
        amount=amount(refund.get("amount")),
        currency=text(refund.get("currency")),
        refund_reference=reference(refund.get("id")),
        refund_id=text(member(refund, "metadata", "refund_id")),
        failure=Failure(text(refund.get("failure_reason"))),
    )
