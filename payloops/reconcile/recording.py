"""Recording what a processor answers about a payment, as far as it is news."""

from datetime import datetime

from payloops.commands.receive_processor_event import awaits_capture, is_cancelling
from payloops.commands.update_order_status import learn_reference, update_order_status
from payloops.commands.update_refund_status import update_refunded_amount
from payloops.events.event_store import EventStore
from payloops.events.metadata import Metadata
from payloops.events.orders import Failure, Order, Payment, PaymentStatus, References
from payloops.events.timestamps import utc_now
from payloops.http.processor_payloads import text
from payloops.processors.port import ProcessorPayment


async def record(
    store: EventStore, order: Order, payment: Payment, theirs: ProcessorPayment, *, stuck_before: datetime
) -> None:
    """Record the processor's answer, as far as it is news."""
    await _record_status(store, order, payment, theirs, stuck_before=stuck_before)
    by = _metadata(order, payment)
    reference = _reference_of(payment, theirs)
    if reference is not None:
        await learn_reference(
            store, order_id=order.id, attempt=payment.attempt, processor_order_id=reference, by=by
        )
    if theirs.amount_refunded or order.amount_refunded:
        same_charge = payment.has_reference(theirs.processor_transaction_id)
        await update_refunded_amount(
            store,
            order_id=order.id,
            attempt=payment.attempt,
            amount_refunded=theirs.amount_refunded,
            requested_before=stuck_before,
            as_of=order.version if same_charge else None,
            by=by,
        )


async def _record_status(
    store: EventStore, order: Order, payment: Payment, theirs: ProcessorPayment, *, stuck_before: datetime
) -> None:
    """Record any status of an open payment, the end of an authorization, and a capture in any case."""
    expired = payment.status is PaymentStatus.AUTHORIZED and theirs.status in {"failed", "cancelled"}
    held = _is_held_after_all(order, payment, theirs, before=stuck_before)
    if not (payment.is_open or expired or held or theirs.status == "captured"):
        return
    status = _status_to_report(order, payment, theirs)
    # A capture is final. Other answers may be outdated if anything was recorded since the processor was asked.
    as_of = None if status == "captured" else order.version
    references = References.of(theirs)
    if payment.processor_order_id is not None:
        references = references._replace(order_id=None)
    await update_order_status(
        store,
        order_id=order.id,
        attempt=payment.attempt,
        status=status,
        references=references,
        amount=theirs.amount_captured,
        failure=Failure(text(theirs.failure.code), text(theirs.failure.message)),
        as_of=as_of,
        by=_metadata(order, payment),
    )


def _status_to_report(order: Order, payment: Payment, theirs: ProcessorPayment) -> str:
    """The processor's status, as `update_order_status` takes it."""
    match theirs.status:
        case "authorized" if not awaits_capture(payment):
            return "processing"
        case "cancelled" if is_cancelling(order, payment):
            return "cancelled"
        case "failed" | "cancelled":  # not at the merchant's request: the order can be paid again
            return "expired" if payment.status is PaymentStatus.AUTHORIZED else "failed"
        case status:
            return status


async def record_cancelled(store: EventStore, order: Order, payment: Payment) -> None:
    await update_order_status(
        store,
        order_id=order.id,
        attempt=payment.attempt,
        status="cancelled",
        as_of=order.version,
        by=_metadata(order, payment),
    )


def _is_held_after_all(order: Order, payment: Payment, theirs: ProcessorPayment, *, before: datetime) -> bool:
    """Whether the processor holds the money of a payment that failed here, and it is certain to be this payment.

    It is then recorded as authorized, as an event of the processor would have: the merchant can capture or cancel it,
    or it is voided at once, if the order was cancelled or paid by another attempt. A void names a payment by its
    reference alone, so no other attempt may have the same reference, or one that is not known. Whatever its workflow
    last requested of the processor must have been done, so the order must not have changed recently.
    """
    reference = payment.processor_order_id or theirs.processor_order_id
    others = order.other_payments(payment)
    return (
        payment.status is PaymentStatus.FAILED
        and theirs.status == "authorized"
        and awaits_capture(payment)
        and reference is not None
        and not any(each.processor_order_id is None or each.has_reference(reference) for each in others)
        and order.modified_on < before
    )


def _metadata(order: Order, payment: Payment) -> Metadata:
    return Metadata(
        at=utc_now(),
        actor=f"processor:{payment.processor}",
        correlation_id=order.correlation_id,
        causation_id="reconcile",
    )


def _reference_of(payment: Payment, theirs: ProcessorPayment) -> str | None:
    """The processor's reference of a payment that has none here, if the payment is certainly the same one there."""
    if payment.processor_order_id is not None:
        return None
    same = payment.processor_transaction_id in {
        None,
        theirs.processor_transaction_id,
        theirs.processor_order_id,
    }
    return theirs.processor_order_id if same and payment.status == theirs.status else None
