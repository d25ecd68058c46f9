"""The sandbox's webhooks to merchants: in the format, and with the signature, of the processor it simulates.

Stripe: https://docs.stripe.com/api/events/object and https://docs.stripe.com/webhooks#verify-manually. Razorpay:
https://razorpay.com/docs/webhooks/payloads/payments/ and https://razorpay.com/docs/webhooks/validate-test/.
"""

import hashlib
import hmac
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import orjson

from payloops.sandbox.ledger import Charge

STRIPE_EVENTS = {
    "captured": "payment_intent.succeeded",
    "authorized": "payment_intent.amount_capturable_updated",
    "declined": "payment_intent.payment_failed",
    "cancelled": "payment_intent.canceled",
}
RAZORPAY_EVENTS = {
    "captured": "payment.captured",
    "authorized": "payment.authorized",
    "declined": "payment.failed",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedWebhook:
    """A request's body, and its headers with the signature."""

    body: bytes
    headers: dict[str, str]


def signed_webhook(charge: Charge, *, secret: str, at: datetime) -> SignedWebhook | None:
    """A webhook with the status of a charge; None if its processor has no event for that status.

    The same charge with the same status always makes the same event.

    Args:
        secret: the merchant's webhook secret for the processor.
        at: when it is sent; a part of Stripe's signature.
    """
    match charge.processor:
        case "stripe" if charge.status in STRIPE_EVENTS:
            body = orjson.dumps(_stripe_event(charge, STRIPE_EVENTS[charge.status]))
            moment = int(at.timestamp())
            digest = _hmac(secret, f"{moment}.".encode() + body)
            headers = {"Stripe-Signature": f"t={moment},v1={digest}"}
        case "razorpay" if charge.status in RAZORPAY_EVENTS:
            body = orjson.dumps(_razorpay_event(charge, RAZORPAY_EVENTS[charge.status]))
            headers = {"X-Razorpay-Signature": _hmac(secret, body), "X-Razorpay-Event-Id": _event_id(charge)}
        case _:
            return None
    return SignedWebhook(body=body, headers={"Content-Type": "application/json", **headers})


def _hmac(secret: str, signed: bytes) -> str:
    return hmac.digest(secret.encode(), signed, hashlib.sha256).hex()


def _event_id(charge: Charge) -> str:
    return f"evt_{charge.processor_order_id}_{charge.status}"


def _labels(charge: Charge) -> dict[str, str]:
    return {
        "merchant_id": charge.merchant_id or "",
        "order_id": charge.order_id,
        "attempt": str(charge.attempt),
    }


def _stripe_event(charge: Charge, kind: str) -> dict[str, Any]:
    intent = {
        "id": charge.processor_order_id,
        "object": "payment_intent",
        "amount": charge.amount,
        "amount_received": charge.amount_captured,
        "amount_capturable": charge.amount if charge.status == "authorized" else 0,
        "currency": charge.currency.lower(),
        "latest_charge": charge.processor_transaction_id,
        "metadata": _labels(charge),
        "last_payment_error": {"code": charge.error_code, "message": charge.error_message}
        if charge.error_code is not None
        else None,
    }
    return {
        "id": _event_id(charge),
        "object": "event",
        "type": kind,
        "created": _seconds(charge),
        "data": {"object": intent},
    }


def _razorpay_event(charge: Charge, kind: str) -> dict[str, Any]:
    payment = {
        "id": charge.processor_transaction_id,
        "entity": "payment",
        "order_id": charge.processor_order_id,
        "amount": charge.amount,
        "currency": charge.currency,
        "status": kind.removeprefix("payment."),
        "notes": _labels(charge),
        "error_code": charge.error_code,
        "error_description": charge.error_message,
    }
    return {
        "entity": "event",
        "event": kind,
        "contains": ["payment"],
        "payload": {"payment": {"entity": payment}},
        "created_at": _seconds(charge),
    }


def _seconds(charge: Charge) -> int:
    return int((charge.decided_at or charge.created_at).timestamp())
