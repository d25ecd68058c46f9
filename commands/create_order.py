"""A merchant creates an order."""

from collections.abc import Callable
from typing import Any
from uuid import UUID

from payloops.events.appender import Receipt
from payloops.events.event_store import EventStore
from payloops.events.metadata import Metadata
from payloops.events.orders import Order, OrderCreated
from payloops.events.randomness import random_bytes

EXTERNAL_ID_ALPHABET = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ"
"""Crockford's Base32: without I, L, O and U, which are easily confused. An id has 60 bits."""
EXTERNAL_ID_LENGTH = 12
_EXTERNAL_ID_BYTES = EXTERNAL_ID_ALPHABET * (256 // len(EXTERNAL_ID_ALPHABET))
"""The character for each byte: each character stands for the same number of bytes."""


async def create_order(
    store: EventStore,
    *,
    order_id: UUID,
    merchant_id: UUID,
    amount: int,
    currency: str,
    external_id: str | None = None,
    customer_id: str | None = None,
    customer_email: str | None = None,
    description: str | None = None,
    metadata: dict[str, Any] | None = None,
    return_url: str | None = None,
    cancel_url: str | None = None,
    by: Metadata,
    receipt: Callable[[OrderCreated], Receipt] | None = None,
) -> OrderCreated:
    """Append the order's first event and return it.

    Args:
        order_id: a new UUID, version 7, so that orders sort by their age.
        amount: in the currency's minor unit.
        external_id: the merchant's own id of the order; 12 random characters where none is given.
    """
    details = {
        "external_id": external_id or new_external_id(),
        "amount": amount,
        "currency": currency,
        "customer_id": customer_id,
        "customer_email": customer_email,
        "description": description,
        "metadata": metadata or {},
        "return_url": return_url,
        "cancel_url": cancel_url,
    }
    created = Order.created(details, id=order_id, merchant_id=str(merchant_id), by=by)
    await store.append([created], receipt=receipt(created) if receipt is not None else None)
    return created


def new_external_id() -> str:
    """12 characters, capital letters and digits."""
    return random_bytes()[:EXTERNAL_ID_LENGTH].translate(_EXTERNAL_ID_BYTES).decode()
