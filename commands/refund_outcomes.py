"""How a refund ends: succeeded, failed, or returned by the bank after it succeeded."""

from payloops.commands.refusals import ContradictsRecord
from payloops.events.metadata import Metadata
from payloops.events.orders import (
    Failure,
    Order,
    OrderStatus,
    RefundFailed,
    RefundReversed,
    RefundSucceeded,
    TransactionStatus,
)


def succeed_refund(
    order: Order, refund_id: str, *, processor_transaction_id: str | None, by: Metadata
) -> None:
    """Record that a refund was made. If it may have been reported as failed before, use `complete_refund`.

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
    order.record(
        RefundSucceeded,
        by=by,
        status=status_after(order, refunded=refunded).value,
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
    failure: Failure,
    by: Metadata,
) -> None:
    """Record that the processor refused a refund. It has no effect on one that was made: see `reverse_refund`."""
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
        error_code=failure.code,
        error_message=failure.message,
    )


def reverse_refund(
    order: Order,
    refund_id: str,
    *,
    processor_transaction_id: str | None,
    failure: Failure,
    by: Metadata,
) -> None:
    """Record that a refund was returned: the customer does not have the money, and it may be refunded again.

    It happens days after the refund was made, if a card is closed or a bank refuses:
    https://docs.stripe.com/refunds#failed-refunds. Only the processor's own events report it: a workflow that reports a
    failure after a success may have failed in its own reporting.
    """
    refund = order.transactions[refund_id]
    counted = refund.amount if refund.status is TransactionStatus.SUCCESS else 0
    refunded = order.amount_refunded - counted
    order.record(
        RefundReversed,
        by=by,
        status=(status_after(order, refunded=refunded) if counted else order.status).value,
        refund_id=refund_id,
        attempt=refund.attempt,
        amount=refund.amount,
        amount_refunded=refunded,
        processor_transaction_id=processor_transaction_id,
        error_code=failure.code,
        error_message=failure.message,
    )


def status_after(order: Order, *, captured: int | None = None, refunded: int | None = None) -> OrderStatus:
    """The status of a captured order once these sums are captured and refunded; those on record where None is given."""
    captured = order.amount_captured if captured is None else captured
    refunded = order.amount_refunded if refunded is None else refunded
    if refunded == 0:
        return OrderStatus.CAPTURED
    return OrderStatus.REFUNDED if refunded == captured else OrderStatus.PARTIALLY_REFUNDED
