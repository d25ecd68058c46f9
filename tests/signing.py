"""Processors for tests: what they send and how they sign it, written from their documentation alone."""

import hashlib
import hmac
import time
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import orjson
from calling import Answer, Api, Merchant
from uuid_utils.compat import uuid7

STRIPE_SECRET = "whsec_of_tests"
RAZORPAY_SECRET = "a razorpay secret"


def stripe_header(body: bytes, *, secret: str = STRIPE_SECRET, at: float | None = None) -> str:
    """https://docs.stripe.com/webhooks#verify-manually"""
    moment = int(time.time() if at is None else at)
    signed = str(moment).encode() + b"." + body
    return f"t={moment},v1={hmac.new(secret.encode(), signed, hashlib.sha256).hexdigest()}"


def razorpay_header(body: bytes, *, secret: str = RAZORPAY_SECRET) -> str:
    """https://razorpay.com/docs/webhooks/validate-test/"""
    return hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()


@dataclass(frozen=True)
class Labels:
    """What a payment is labelled with at its processor."""

    merchant_id: UUID
    order_id: str

    @property
    def json(self) -> dict[str, str]:
        return {"merchant_id": str(self.merchant_id), "order_id": self.order_id}


def stripe_payment(
    kind: str, labels: Labels, *, event_id: str | None = None, **fields: Any
) -> dict[str, Any]:
    intent = {
        "id": "pi_1",
        "object": "payment_intent",
        "amount": 1_000,
        "amount_received": 1_000 if kind == "succeeded" else 0,
        "amount_capturable": 1_000 if kind == "amount_capturable_updated" else 0,
        "currency": "usd",
        "latest_charge": "ch_1",
        "metadata": labels.json,
        **fields,
    }
    return stripe_event(f"payment_intent.{kind}", intent, id=event_id)


def stripe_event(kind: str, subject: dict[str, Any], *, id: str | None = None) -> dict[str, Any]:
    return {
        "id": id or f"evt_{uuid7()}",
        "object": "event",
        "type": kind,
        "created": int(time.time()),
        "data": {"object": subject},
    }


def charge_refunded(labels: Labels, total: int, **fields: Any) -> dict[str, Any]:
    charge = {
        "id": "ch_1",
        "object": "charge",
        "amount": 1_000,
        "amount_refunded": total,
        "currency": "usd",
        "payment_intent": "pi_1",
        "metadata": labels.json,
        **fields,
    }
    return stripe_event("charge.refunded", charge)


def stripe_refund(
    reference: str,
    amount: int,
    *,
    status: str = "succeeded",
    metadata: dict[str, str] | None = None,
    **fields: Any,
) -> dict[str, Any]:
    refund = {
        "id": reference,
        "object": "refund",
        "amount": amount,
        "status": status,
        "charge": "ch_1",
        "payment_intent": "pi_1",
        "currency": "usd",
        "metadata": metadata or {},
        **fields,
    }
    return stripe_event("refund.updated", refund)


def razorpay_payment(kind: str, labels: Labels, **fields: Any) -> dict[str, Any]:
    payment = {
        "id": "pay_1",
        "entity": "payment",
        "order_id": "order_1",
        "amount": 1_000,
        "currency": "INR",
        "status": kind,
        "notes": labels.json,
        **fields,
    }
    return {"event": f"payment.{kind}", "entity": "event", "payload": {"payment": {"entity": payment}}}


def razorpay_refund(
    kind: str, labels: Labels, *, reference: str, amount: int, total: int, notes: Any = ()
) -> dict[str, Any]:
    event = razorpay_payment("captured", labels, amount_refunded=total)
    refund = {
        "id": reference,
        "entity": "refund",
        "payment_id": "pay_1",
        "amount": amount,
        "currency": "INR",
        "notes": notes or [],
    }
    event["payload"]["refund"] = {"entity": refund}
    return event | {"event": f"refund.{kind}"}


@dataclass(frozen=True)
class Processors:
    """Stripe and Razorpay, as they call the API."""

    api: Api

    async def stripe(self, event: Any, *, path: str = "/webhooks/stripe", **signing: Any) -> Answer:
        body = event if isinstance(event, bytes) else orjson.dumps(event)
        return await self.api.anyone.call(
            "POST", path, data=body, headers={"Stripe-Signature": stripe_header(body, **signing)}
        )

    async def razorpay(
        self, event: Any, *, id: str | None = None, path: str = "/webhooks/razorpay", **signing: Any
    ) -> Answer:
        body = event if isinstance(event, bytes) else orjson.dumps(event)
        headers = {"X-Razorpay-Signature": razorpay_header(body, **signing)}
        if id is not None:
            headers["X-Razorpay-Event-Id"] = id
        return await self.api.anyone.call("POST", path, data=body, headers=headers)


async def merchant_with_secrets(api: Api) -> Merchant:
    merchant = await api.merchant(processors=False)
    await set_secret(merchant, "stripe", STRIPE_SECRET)
    await set_secret(merchant, "razorpay", RAZORPAY_SECRET)
    return merchant


async def set_secret(merchant: Merchant, processor: str, secret: str | None) -> None:
    keys = {"stripe": {"secretKey": "sk"}, "razorpay": {"keyId": "id", "keySecret": "secret"}}[processor]
    body = {"credentials": keys | ({"webhookSecret": secret} if secret is not None else {})}
    assert (await merchant.dashboard.post(f"/api/processors/{processor}", body)).status == 200
