"""A merchant cancels an order, before its money is captured."""

from collections.abc import Callable
from uuid import UUID

from uuid_utils.compat import uuid7

from payloops.commands.change_order import change_order, refuse_endless
from payloops.commands.refusals import InvalidStatus
from payloops.events.appender import Receipt
from payloops.events.event_store import EventStore
from payloops.events.metadata import Metadata
from payloops.events.orders import (
    Order,
    OrderCancelled,
    OrderStatus,
    Payment,
    PaymentCancelRequested,
    PaymentVoidRequested,
    TransactionType,
)


async def cancel_order(
    store: EventStore,
    *,
    order_id: UUID,
    merchant_id: UUID,
    by: Metadata,
    receipt: Callable[[Order], Receipt] | None = None,
) -> Order:
    """Cancel at once if no payment is under way, else request it of the processor; return the order.

    An order that is `processing`, `requires_action` or `authorized` keeps that status until its processor has
    stopped or released the payment, and becomes `captured` if the capture was faster. A second request has no effect.

    Raises:
        OrderNotFound.
        InvalidStatus: captured (refund it), refunded or cancelled already, a capture is under way, or the processor
            refused MAX_REQUESTS times to release the authorization.
    """

    def decide(order: Order) -> Order:
        cancel(order, by=by)
        return order

    return await change_order(
        store, order_id=order_id, merchant_id=merchant_id, decide=decide, receipt=receipt
    )


def cancel(order: Order, *, by: Metadata) -> None:
    """Record the cancellation, or the request for it.

    Raises:
        InvalidStatus.
    """
    payment = order.payment
    match order.status:
        case OrderStatus.PENDING | OrderStatus.FAILED:
            order.record(OrderCancelled, by=by, status=OrderStatus.CANCELLED.value)
        case OrderStatus.PROCESSING | OrderStatus.REQUIRES_ACTION:
            assert payment is not None
            if not payment.cancel_requested:
                order.record(
                    PaymentCancelRequested, by=by, status=order.status.value, attempt=payment.attempt
                )
        case OrderStatus.AUTHORIZED:
            assert payment is not None
            if payment.capture_pending:
                raise InvalidStatus(order.id, order.status, "Order is authorized and a capture is under way")
            if not order.pending(payment.attempt, TransactionType.VOID):
                remedy = f"release the authorization in {payment.processor}'s dashboard"
                refuse_endless(order, requested=order.voids_requested, to="cancel", remedy=remedy)
            request_void(order, payment, by=by)
        case OrderStatus.CANCELLED:
            raise InvalidStatus(order.id, order.status, "Order is cancelled already")
        case _:
            raise InvalidStatus(
                order.id, order.status, f"Order is {order.status}; it can be cancelled before it is captured"
            )


def request_void(order: Order, payment: Payment, *, by: Metadata) -> None:
    """Record that an authorization is to be released, unless a void is under way already."""
    if order.pending(payment.attempt, TransactionType.VOID):
        return
    order.record(
        PaymentVoidRequested,
        by=by,
        status=order.status.value,
        attempt=payment.attempt,
        sequence=order.voids_requested + 1,
        transaction_id=str(uuid7()),
        amount=payment.amount,
        currency=order.currency,
        processor=payment.processor,
        processor_order_id=payment.processor_order_id,
    )
