"""A merchant captures an authorized payment, or a part of it; the rest is released."""

from collections.abc import Callable
from uuid import UUID

from uuid_utils.compat import uuid7

from payloops.commands.change_order import change_order, refuse_endless
from payloops.commands.refusals import CaptureExceedsAuthorized, InvalidStatus
from payloops.events.appender import Receipt
from payloops.events.event_store import EventStore
from payloops.events.metadata import Metadata
from payloops.events.orders import Order, OrderStatus, PaymentCaptureRequested, TransactionType


async def capture_payment(
    store: EventStore,
    *,
    order_id: UUID,
    merchant_id: UUID,
    amount: int | None = None,
    by: Metadata,
    receipt: Callable[[Order], Receipt] | None = None,
) -> Order:
    """Request the capture and return the order, still `authorized` until the processor reports the capture.

    Args:
        amount: in minor units; the whole authorized amount if None.

    Raises:
        OrderNotFound, CaptureExceedsAuthorized.
        InvalidStatus: the order is not authorized, a capture or void is already under way, or MAX_REQUESTS failed.
    """

    def decide(order: Order) -> Order:
        request_capture(order, amount=amount, by=by)
        return order

    return await change_order(
        store, order_id=order_id, merchant_id=merchant_id, decide=decide, receipt=receipt
    )


def request_capture(order: Order, *, amount: int | None, by: Metadata) -> None:
    """Record that an authorized amount is to be captured.

    Raises:
        InvalidStatus, CaptureExceedsAuthorized.
    """
    payment = order.payment
    if order.status is not OrderStatus.AUTHORIZED or payment is None:
        raise InvalidStatus(
            order.id, order.status, f"Order is {order.status}; it can be captured when authorized"
        )
    if order.pending(payment.attempt, TransactionType.VOID):
        raise InvalidStatus(order.id, order.status, "Order is authorized and being cancelled")
    if payment.capture_pending:
        raise InvalidStatus(order.id, order.status, "Order is authorized and a capture is already under way")
    if amount is not None and amount > payment.amount:
        raise CaptureExceedsAuthorized(order.id, amount, payment.amount)
    refuse_endless(
        order, requested=order.captures_requested, to="capture", remedy="cancel it, and create a new order"
    )
    # An automatic payment that the processor only authorized has a pending capture already.
    opened = order.pending(payment.attempt, TransactionType.CAPTURE)
    order.record(
        PaymentCaptureRequested,
        by=by,
        status=order.status.value,
        attempt=payment.attempt,
        sequence=order.captures_requested + 1,
        transaction_id=opened[0].id if opened else str(uuid7()),
        amount=payment.amount if amount is None else amount,
        currency=order.currency,
        processor=payment.processor,
        processor_order_id=payment.processor_order_id,
    )
