"""A processor says how a refund ended."""

from uuid import UUID

from payloops.commands.acting_for import in_the_name_of
from payloops.commands.change_order import change_order
from payloops.commands.refusals import ContradictsRecord, UnknownRefund
from payloops.events.event_store import EventStore
from payloops.events.metadata import Metadata
from payloops.events.orders import (
    Order,
    OrderStatus,
    RefundFailed,
    RefundSucceeded,
    TransactionStatus,
    TransactionType,
)


async def update_refund_status(
    store: EventStore,
    *,
    order_id: UUID,
    refund_id: str,
    succeeded: bool,
    processor_transaction_id: str | None = None,
    error_code: str | None = None,
    error_message: str | None = None,
    by: Metadata,
) -> None:
    """Record the end of a refund. A repeated report changes nothing.

    Raises:
        OrderNotFound, UnknownRefund, ContradictsRecord.
    """

    def decide(order: Order) -> None:
        refund = order.transactions.get(refund_id)
        if refund is None or refund.type is not TransactionType.REFUND:
            raise UnknownRefund(order_id, refund_id)
        who = in_the_name_of(order, by)
        if succeeded:
            succeed_refund(order, refund_id, processor_transaction_id=processor_transaction_id, by=who)
        else:
            fail_refund(
                order,
                refund_id,
                processor_transaction_id=processor_transaction_id,
                error_code=error_code,
                error_message=error_message,
                by=who,
            )

    await change_order(store, order_id=order_id, merchant_id=None, decide=decide)


def succeed_refund(
    order: Order, refund_id: str, *, processor_transaction_id: str | None, by: Metadata
) -> None:
    """Record that money was given back, also where the refund had been reported failed before.

    Raises:
        ContradictsRecord: more would be refunded than was captured.
    """
    refund = order.transactions[refund_id]
    if refund.status is TransactionStatus.SUCCESS:
        return
    refunded = order.amount_refunded + refund.amount
    if refunded > order.amount_captured:
        raise ContradictsRecord(
            f"refund {refund_id} of order {order.id}: {refunded} refunded of {order.amount_captured} captured"
        )
    complete = refunded == order.amount_captured
    order.record(
        RefundSucceeded,
        by=by,
        status=(OrderStatus.REFUNDED if complete else OrderStatus.PARTIALLY_REFUNDED).value,
        refund_id=refund_id,
        attempt=refund.attempt,
        amount=refund.amount,
        amount_refunded=refunded,
        processor_transaction_id=processor_transaction_id,
    )


def fail_refund(
    order: Order,
    refund_id: str,
    *,
    processor_transaction_id: str | None,
    error_code: str | None,
    error_message: str | None,
    by: Metadata,
) -> None:
    """Record that the processor refused a refund. One that was made is never taken back."""
    refund = order.transactions[refund_id]
    if refund.status is not TransactionStatus.PENDING:
        return
    order.record(
        RefundFailed,
        by=by,
        status=order.status.value,
        refund_id=refund_id,
        attempt=refund.attempt,
        processor_transaction_id=processor_transaction_id,
        error_code=error_code,
        error_message=error_message,
    )
