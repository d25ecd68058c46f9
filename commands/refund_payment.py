"""A merchant refunds a captured order, in full or in part."""

from collections.abc import Callable
from uuid import UUID

from uuid_utils.compat import uuid7

from payloops.commands.change_order import change_order, refuse_endless
from payloops.commands.refusals import InvalidStatus, RefundExceedsCaptured
from payloops.events.appender import Receipt
from payloops.events.event_store import EventStore
from payloops.events.metadata import Metadata
from payloops.events.orders import Order, RefundRequested, Transaction, TransactionType


async def refund_payment(
    store: EventStore,
    *,
    order_id: UUID,
    merchant_id: UUID,
    amount: int | None = None,
    reason: str | None = None,
    by: Metadata,
    receipt: Callable[[Transaction], Receipt] | None = None,
) -> Transaction:
    """Request a refund and return it, pending until the processor has made it.

    Args:
        amount: in minor units; all that can still be refunded if None. Pending refunds count as made.

    Raises:
        OrderNotFound, RefundExceedsCaptured.
        InvalidStatus: nothing was captured; another refund is waiting for the processor's reference of the payment;
            or MAX_REQUESTS were requested.
    """
    return await change_order(
        store,
        order_id=order_id,
        merchant_id=merchant_id,
        decide=lambda order: request_refund(order, amount=amount, reason=reason, by=by),
        receipt=receipt,
    )


def request_refund(order: Order, *, amount: int | None, reason: str | None, by: Metadata) -> Transaction:
    """Record a refund of the capture with the most left to refund (usually there is only one).

    Raises:
        InvalidStatus, RefundExceedsCaptured.
    """
    if order.amount_captured == 0:
        raise InvalidStatus(
            order.id, order.status, f"Order is {order.status}; it can be refunded when captured"
        )
    source = max(order.transactions.values(), key=order.refundable_of)
    left = order.refundable_of(source)
    wanted = left if amount is None else amount
    if wanted > left or left == 0:
        raise RefundExceedsCaptured(order.id, amount, left)
    payment = order.payments[source.attempt]
    if payment.processor_order_id is None and order.pending(payment.attempt, TransactionType.REFUND):
        why = f"a refund is waiting for {payment.processor}'s reference of the payment, which was never reported"
        raise InvalidStatus(order.id, order.status, f"Order is {order.status}, and {why}")
    requested = [
        t for t in order.transactions.values() if t.type is TransactionType.REFUND and not t.discovered
    ]
    refuse_endless(
        order,
        requested=len(requested),
        to="refund",
        remedy=f"refund the rest in {payment.processor}'s dashboard",
    )
    return refund_from(order, source, amount=wanted, reason=reason, by=by)


def refund_from(
    order: Order, source: Transaction, *, amount: int, reason: str | None, by: Metadata
) -> Transaction:
    """Record a refund of a capture, of which at least this amount must be left."""
    payment = order.payments[source.attempt]
    refund_id = str(uuid7())
    order.record(
        RefundRequested,
        by=by,
        status=order.status.value,
        refund_id=refund_id,
        capture_id=source.id,
        attempt=source.attempt,
        amount=amount,
        currency=order.currency,
        reason=reason,
        processor=payment.processor,
        processor_order_id=payment.processor_order_id,
    )
    return order.transactions[refund_id]
