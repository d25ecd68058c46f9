"""A merchant sends a customer to checkout."""

import secrets
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from payloops.events.appender import Receipt
from payloops.events.checkout_sessions import CheckoutSession, CheckoutSessionCreated, LineItem
from payloops.events.event_store import EventStore
from payloops.events.metadata import Metadata
from payloops.events.timestamps import timestamp_text

LIFE = timedelta(minutes=30)


async def create_checkout_session(
    store: EventStore,
    *,
    session_id: UUID,
    merchant_id: UUID,
    amount: int,
    currency: str,
    success_url: str,
    cancel_url: str,
    customer_id: str | None = None,
    customer_email: str | None = None,
    metadata: dict[str, Any] | None = None,
    line_items: list[LineItem] | None = None,
    by: Metadata,
    receipt: Callable[[CheckoutSession], Receipt] | None = None,
) -> CheckoutSession:
    """Append the session's first event and return the session.

    Args:
        session_id: from `new_session_id`: whoever knows it is the customer.
        amount: in the currency's minor unit.
        line_items: what is bought; may sum to anything, since taxes and discounts are the merchant's business.
    """
    session = CheckoutSession.begin(
        CheckoutSessionCreated,
        id=session_id,
        merchant_id=str(merchant_id),
        by=by,
        amount=amount,
        currency=currency,
        success_url=success_url,
        cancel_url=cancel_url,
        customer_id=customer_id,
        customer_email=customer_email,
        metadata=metadata or {},
        line_items=line_items or [],
        expires_at=timestamp_text(by.at + LIFE),
    )
    await store.append(session.collect_events(), receipt=receipt(session) if receipt is not None else None)
    return session


def new_session_id(*, at: datetime) -> UUID:
    """A UUID of version 7 whose 74 random bits nobody can guess.

    It is the customer's key to the session, and those of the library count up within a millisecond.
    """
    milliseconds = int(at.timestamp() * 1000)
    number = milliseconds << 80 | secrets.randbits(80)
    number = number & ~(0xF << 76) | 7 << 76  # RFC 9562: the version,
    number = number & ~(0b11 << 62) | 0b10 << 62  # and the variant
    return UUID(int=number)
