"""A merchant requests the payment of an order. A Temporal workflow makes the payment itself: see workflows_client."""

from collections.abc import Callable
from typing import Any
from uuid import UUID

from uuid_utils.compat import uuid7

from payloops.commands.change_order import change_order, refuse_endless
from payloops.commands.refusals import InvalidStatus
from payloops.commands.route_payment import Route, enabled_processors, route_payment
from payloops.events.appender import Receipt
from payloops.events.event_store import EventStore
from payloops.events.metadata import Metadata
from payloops.events.orders import CaptureMethod, Order, OrderStatus, PaymentRequested

PAYABLE = {OrderStatus.PENDING, OrderStatus.FAILED}


async def pay_order(
    store: EventStore,
    *,
    order_id: UUID,
    merchant_id: UUID,
    processor: str | None = None,
    payment_method: dict[str, Any] | None = None,
    capture: CaptureMethod = "automatic",
    by: Metadata,
    receipt: Callable[[Order], Receipt] | None = None,
) -> Order:
    """Begin the next attempt to pay an order; return the order, now `processing`.

    Args:
        processor: the processor to use; chosen by `route_payment` if None.
        payment_method: `{type, token}`, tokens only.

    Raises:
        OrderNotFound, NoProcessor, InvalidProcessor.
        InvalidStatus: the order is neither pending nor failed, or was tried MAX_REQUESTS times. While the outcome of a
            payment is unknown, the order is `processing`, so that it is not paid twice.
    """
    enabled = await enabled_processors(store, merchant_id=merchant_id)

    def decide(order: Order) -> Order:
        refuse_unless_payable(order)
        route = route_payment(
            merchant_id=merchant_id, currency=order.currency, wanted=processor, enabled=enabled
        )
        request_payment(order, route=route, payment_method=payment_method, capture=capture, by=by)
        return order

    return await change_order(
        store, order_id=order_id, merchant_id=merchant_id, decide=decide, receipt=receipt
    )


def refuse_unless_payable(order: Order) -> None:
    """
    Raises:
        InvalidStatus: it is neither pending nor failed, or was attempted too often.
    """
    if order.status not in PAYABLE:
        raise InvalidStatus(
            order.id, order.status, f"Order is {order.status}; it can be paid when pending or failed"
        )
    refuse_endless(order, requested=order.attempt, to="pay", remedy="create a new order")


def request_payment(
    order: Order,
    *,
    route: Route,
    payment_method: dict[str, Any] | None,
    capture: CaptureMethod,
    by: Metadata,
) -> None:
    """Record the next attempt to pay an order.

    Raises:
        InvalidStatus: the order is neither pending nor failed, or was tried MAX_REQUESTS times.
    """
    refuse_unless_payable(order)
    order.record(
        PaymentRequested,
        by=by,
        status=OrderStatus.PROCESSING.value,
        attempt=order.attempt + 1,
        transaction_id=str(uuid7()),
        processor=route.processor,
        routing=route.reason,
        capture=capture,
        amount=order.amount,
        currency=order.currency,
        return_url=order.return_url,
        payment_method=payment_method,
    )
