"""Records that a checkout session was completed or has expired, by whichever request looks at it next."""

from typing import NamedTuple
from uuid import UUID

from payloops.commands.refusals import CheckoutSessionNotFound
from payloops.events.checkout_sessions import (
    CheckoutSession,
    CheckoutSessionCompleted,
    CheckoutSessionExpired,
    SessionStatus,
)
from payloops.events.event_store import EventStore
from payloops.events.metadata import Metadata
from payloops.events.orders import Order, OrderStatus

MAX_ATTEMPTS = 10
"""How many payments may be attempted: anybody can open the page, and might try many cards."""

PAID = {
    *(OrderStatus.AUTHORIZED, OrderStatus.CAPTURED),
    *(OrderStatus.PARTIALLY_REFUNDED, OrderStatus.REFUNDED),
}
UNDER_WAY = {OrderStatus.PROCESSING, OrderStatus.REQUIRES_ACTION}


class Checkout(NamedTuple):
    """A session and its order, which is None before the first attempt to pay."""

    session: CheckoutSession
    order: Order | None


async def settle_checkout_session(
    store: EventStore, *, session_id: UUID, merchant_id: UUID | None, by: Metadata
) -> Checkout:
    """Record that the session is completed or has expired, where it is so by now; the session as it is.

    Args:
        merchant_id: whose session it has to be; None where the session's id is all that was asked for.

    Raises:
        CheckoutSessionNotFound: no such session, or another merchant's.
    """

    async def decide() -> tuple[list[CheckoutSession], Checkout]:
        checkout = await load_checkout(store, session_id=session_id, merchant_id=merchant_id)
        settle(checkout, by=by)
        return [checkout.session], checkout

    return await store.decide(session_id, decide)


async def load_checkout(store: EventStore, *, session_id: UUID, merchant_id: UUID | None) -> Checkout:
    """
    Raises:
        CheckoutSessionNotFound: see `settle_checkout_session`.
    """
    session = await store.load(CheckoutSession, session_id)
    if session is None or (merchant_id is not None and session.merchant_id != str(merchant_id)):
        raise CheckoutSessionNotFound(session_id)
    order = await store.load(Order, UUID(session.order_id)) if session.order_id is not None else None
    return Checkout(session, order)


def settle(checkout: Checkout, *, by: Metadata) -> None:
    """Record how the session ended, if it has. An expired session is completed if its order was paid after all."""
    session, order = checkout
    if session.status is SessionStatus.COMPLETED:
        return
    if order is not None and order.status in PAID:
        session.record(CheckoutSessionCompleted, by=by)
        return
    reason = _reason_to_expire(checkout, by=by)
    if session.status is SessionStatus.PENDING and reason is not None:
        session.record(CheckoutSessionExpired, by=by, reason=reason)


def _reason_to_expire(checkout: Checkout, *, by: Metadata) -> str | None:
    """None while a payment is under way, too: it may yet bring money."""
    session, order = checkout
    if order is not None and order.status in UNDER_WAY:
        return None
    if order is not None and order.status is OrderStatus.CANCELLED:
        return "order_cancelled"
    if by.at >= session.expires_at:
        return "time"
    if order is not None and order.attempt >= MAX_ATTEMPTS:
        return "attempts"
    return None
