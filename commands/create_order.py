"""A merchant creates an order."""

import secrets
import string
from collections.abc import Callable
from typing import Any, cast
from uuid import UUID

from payloops.events.appender import Receipt
from payloops.events.event_store import EventStore
from payloops.events.metadata import Metadata
from payloops.events.orders import Order
from payloops.events.stream import StreamEvent

EXTERNAL_ID_ALPHABET = string.ascii_uppercase + string.digits
EXTERNAL_ID_LENGTH = 12


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
    receipt: Callable[[Order], Receipt] | None = None,
) -> Order:
    """Append the order's first event and return the order.

    Args:
        order_id: a new UUID, version 7, so that orders sort by their age.
        amount: in the currency's minor unit.
        external_id: the merchant's own id of the order; 12 random characters where none is given.
    """
    order = Order.create(
        id=order_id,
        merchant_id=str(merchant_id),
        by=by,
        external_id=external_id or new_external_id(),
        amount=amount,
        currency=currency,
        customer_id=customer_id,
        customer_email=customer_email,
        description=description,
        metadata=metadata or {},
        return_url=return_url,
        cancel_url=cancel_url,
    )
    events = cast("list[StreamEvent]", order.collect_events())
    await store.append(events, receipt=receipt(order) if receipt is not None else None)
    return order


def new_external_id() -> str:
    """12 characters, capital letters and digits."""
    base = len(EXTERNAL_ID_ALPHABET)
    drawn = secrets.randbelow(base**EXTERNAL_ID_LENGTH)  # one for all of them: each asks the system
    return "".join(EXTERNAL_ID_ALPHABET[drawn // base**place % base] for place in range(EXTERNAL_ID_LENGTH))
