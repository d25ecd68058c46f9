"""Verifying that a webhook comes from a processor: by its signature over the raw body, with the merchant's secret.

Stripe: `Stripe-Signature: t=<unix seconds>,v1=<hex HMAC-SHA256 of "t.body">`, verified by its own library
(https://docs.stripe.com/webhooks#verify-official-libraries). Razorpay: `X-Razorpay-Signature`, the hex
HMAC-SHA256 of the body (https://razorpay.com/docs/webhooks/validate-test/).
"""

import hashlib
import hmac
import re
from datetime import datetime
from uuid import UUID

from psycopg_pool import AsyncConnectionPool
from stripe import SignatureVerificationError, WebhookSignature

from payloops.commands.cipher import Cipher
from payloops.commands.credentials import get_webhook_secrets

TOLERANCE = 300
"""Seconds that a signature of Stripe's may be old, or ahead."""

_SIGNED_AT = re.compile("[0-9]{1,12}")
_HEX_DIGEST = re.compile("[0-9a-f]{64}")


class MissingSignature(Exception):
    """A webhook without a signature."""

    def __init__(self) -> None:
        super().__init__("The webhook is not signed")


class InvalidSignature(Exception):
    """A webhook whose signature is not the processor's, over this body, of this time."""

    def __init__(self) -> None:
        super().__init__("The signature is not valid for this body, or its time is too far away")


class NoWebhookSecret(Exception):
    """No merchant, or one without a webhook secret for this processor: the two are never told apart."""

    def __init__(self) -> None:
        super().__init__(
            "No webhook secret of this processor is configured for the merchant, or the event names no merchant"
        )


async def authenticate_webhook(
    pool: AsyncConnectionPool,
    *,
    merchant_id: UUID,
    processor: str,
    body: bytes,
    signature: str,
    cipher: Cipher,
    at: datetime,
) -> None:
    """Return where the body is signed under the merchant's secret, or the one before it.

    Raises:
        NoWebhookSecret, InvalidSignature, SealBroken.
    """
    secrets = await get_webhook_secrets(
        pool, merchant_id=merchant_id, processor=processor, cipher=cipher, at=at
    )
    if not secrets:
        raise NoWebhookSecret
    verify = {"stripe": is_signed_by_stripe, "razorpay": is_signed_by_razorpay}[processor]
    if not any(verify(body, signature=signature, secret=secret, at=at) for secret in secrets):
        raise InvalidSignature


def is_signed_by_stripe(body: bytes, *, signature: str, secret: str, at: datetime) -> bool:
    """Whether it is Stripe's signature, at most 300 seconds old; of the future, at most as much."""
    # The library would also read times as "1_0", and fails on what is not ASCII.
    parts = [part.partition("=") for part in signature.split(",")]
    times = [value for name, _, value in parts if name == "t"]
    if not signature.isascii() or len(times) != 1 or _SIGNED_AT.fullmatch(times[0]) is None:
        return False
    if abs(int(times[0]) - at.timestamp()) > TOLERANCE:
        return False
    try:
        WebhookSignature.verify_header(body, signature, secret, TOLERANCE)
    except (SignatureVerificationError, UnicodeDecodeError):
        return False
    return True


def is_signed_by_razorpay(body: bytes, *, signature: str, secret: str, at: datetime) -> bool:  # noqa: ARG001
    """Whether it is Razorpay's signature. It covers no time: what was seen before is known by its body."""
    if _HEX_DIGEST.fullmatch(signature) is None:
        return False
    return hmac.compare_digest(hmac.digest(secret.encode(), body, hashlib.sha256).hex(), signature)
