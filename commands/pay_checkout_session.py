"""A customer pays on the checkout page.

The order, its payment and the session's event are one append, so none of them ever exists without the others. The form
names the attempt it means, so submitting it twice pays once.
"""

from collections.abc import Sequence
from dataclasses import replace
from uuid import UUID

from uuid_utils.compat import uuid7

from payloops.commands.create_order import new_external_id
from payloops.commands.pay_order import PAYABLE, request_payment
from payloops.commands.refusals import WayToPayNotOffered
from payloops.commands.route_payment import WayToPay, enabled_processors, ways_to_pay
from payloops.commands.settle_checkout_session import Checkout, load_checkout, settle
from payloops.events.checkout_sessions import CheckoutOrderPlaced, CheckoutPaymentRetried, SessionStatus
from payloops.events.event_store import EventStore
from payloops.events.metadata import Metadata
from payloops.events.orders import Order
from payloops.events.stream import Stream


async def pay_checkout_session(
    store: EventStore,
    *,
    session_id: UUID,
    attempt: int,
    method: str,
    token: str | None,
    return_url: str,
    by: Metadata,
) -> None:
    """Place the session's order and request its first payment, or request the next one after one that failed.

    Nothing is done where the attempt was made before, or the session has ended: who asks is shown how it stands.

    Args:
        attempt: which payment of the order this is to be: 1, one more after each that failed.
        method: `card`, `upi`, `netbanking` or `wallet`.
        token: a processor's token, in test mode only; without one the processor asks the customer itself.
        return_url: where a processor sends the customer back to.

    Raises:
        CheckoutSessionNotFound.
        WayToPayNotOffered: none of the merchant's processors takes the method, or the token.
    """

    async def decide() -> tuple[Sequence[Stream], None]:
        checkout = await load_checkout(store, session_id=session_id, merchant_id=None)
        settle(checkout, by=by)
        session, order = checkout
        if not _is_due(checkout, attempt=attempt):
            return [session], None
        merchant_id = UUID(session.merchant_id)
        enabled = await enabled_processors(store, merchant_id=merchant_id)
        ways = ways_to_pay(merchant_id=merchant_id, currency=session.currency, enabled=enabled)
        way = _chosen(ways, session_id=session_id, method=method, token=token)
        if order is None:
            order = _place_order(checkout, return_url=return_url, by=by)
        else:
            session.record(CheckoutPaymentRetried, by=by, attempt=attempt)
        request_payment(
            order,
            route=way.route,
            payment_method={"type": method, "token": token},
            capture="automatic",
            by=_because_of(session, by),
        )
        return [session, order], None

    await store.decide(session_id, decide)


def _is_due(checkout: Checkout, *, attempt: int) -> bool:
    session, order = checkout
    if session.status is not SessionStatus.PENDING:
        return False
    return attempt == 1 if order is None else order.status in PAYABLE and attempt == order.attempt + 1


def _chosen(ways: Sequence[WayToPay], *, session_id: UUID, method: str, token: str | None) -> WayToPay:
    way = next((each for each in ways if each.method == method), None)
    if way is None or (token is not None and not way.test_mode):
        raise WayToPayNotOffered(session_id, method)
    return way


def _place_order(checkout: Checkout, *, return_url: str, by: Metadata) -> Order:
    session = checkout.session
    order_id = uuid7()
    session.record(CheckoutOrderPlaced, by=by, order_id=str(order_id))
    return Order.create(
        id=order_id,
        merchant_id=session.merchant_id,
        by=_because_of(session, by),
        external_id=new_external_id(),
        amount=session.amount,
        currency=session.currency,
        customer_id=session.customer_id,
        customer_email=session.customer_email,
        description=None,
        metadata=session.metadata,
        return_url=return_url,
        cancel_url=session.cancel_url,
    )


def _because_of(session: Stream, by: Metadata) -> Metadata:
    """`by`, as a consequence of what was just recorded of the session."""
    return replace(by, causation_id=f"{session.id}:{session.version}")
