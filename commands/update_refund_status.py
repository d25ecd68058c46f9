"""A processor says how a refund ended."""

from uuid import UUID

from uuid_utils.compat import uuid7

from payloops.commands.acting_for import answering
from payloops.commands.change_order import change_order
from payloops.commands.refusals import ContradictsRecord, UnknownRefund
from payloops.events.event_store import EventStore
from payloops.events.metadata import Metadata
from payloops.events.orders import (
    Order,
    OrderStatus,
    Payment,
    RefundDiscovered,
    RefundFailed,
    RefundSucceeded,
    ToldRefund,
    Transaction,
    TransactionStatus,
    TransactionType,
)

DISCOVERED_REASON = "refunded at the processor"


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
        who = answering(refund.asked, by)
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
        settle_told_refunds(order, order.payments[refund.attempt], amount_refunded=None, by=who)

    await change_order(store, order_id=order_id, merchant_id=None, decide=decide)


async def update_refunded_amount(
    store: EventStore, *, order_id: UUID, attempt: int, amount_refunded: int, by: Metadata
) -> None:
    """Record what a processor, when asked, says was refunded of a payment in all, where that is more than known.

    Raises:
        OrderNotFound.
    """

    def decide(order: Order) -> None:
        settle_told_refunds(order, order.payments[attempt], amount_refunded=amount_refunded, by=by)

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


def settle_told_refunds(order: Order, payment: Payment, *, amount_refunded: int | None, by: Metadata) -> bool:
    """Record what the processor told by itself of a payment's refunds, as far as it is not recorded yet.

    A refund that it tells of is ours where it names our id, or where its reference is known here. A reference
    that is not known may still be that of a refund of ours whose own report is under way, or of a part of a sum
    that was discovered before: where the amounts allow it, it is taken for that. What is left was made in the
    processor's own dashboard. So a refund is never counted twice, in whatever order its news come; one that was
    taken for another comes out with the next sum that the processor tells.

    Before the capture is known, nothing is recorded: the capture calls this again.

    Args:
        amount_refunded: the processor's sum of all refunds of the payment as of now, where it tells one.

    Returns:
        False where more would be refunded than was captured: that much was not recorded.
    """
    capture = _capture_of(order, payment)
    if capture is None:
        return True
    fits = True
    told = {name: each for name, each in order.told_refunds.items() if each.attempt == payment.attempt}
    matched: dict[str, int] = {}
    unknown = []
    for reference, each in told.items():
        refund = _refund_told(order, capture, reference, each)
        if refund is not None:
            matched[refund.id] = each.amount
            fits &= _settle(order, refund, reference, each, by=by)
        elif each.succeeded:
            unknown.append((reference, each.amount))
    unmatched = [t for t in _refunds_of(order, capture) if t.id not in matched]
    ours = [t.amount for t in unmatched if not t.discovered and t.processor_transaction_id is None]
    # What was discovered by sums alone; of it, some may be known by reference since.
    nameless = sum(t.amount for t in unmatched if t.discovered) - sum(
        amount - order.transactions[id].amount
        for id, amount in matched.items()
        if order.transactions[id].discovered
    )
    for reference, amount in unknown:
        if amount in ours:
            ours.remove(amount)
            continue
        part = min(amount, nameless)
        nameless -= part
        if amount > part:
            fits &= _discover(order, capture, amount=amount - part, reference=reference, by=by)
    known = sum(t.amount for t in _refunds_of(order, capture))
    if amount_refunded is not None and amount_refunded > known:
        fits &= _discover(order, capture, amount=amount_refunded - known, reference=None, by=by)
    return fits


def _capture_of(order: Order, payment: Payment) -> Transaction | None:
    return next(
        (
            t
            for t in order.transactions.values()
            if t.attempt == payment.attempt
            and t.type is TransactionType.CAPTURE
            and t.status is TransactionStatus.SUCCESS
        ),
        None,
    )


def _refunds_of(order: Order, capture: Transaction) -> list[Transaction]:
    """Refunds of a capture that were made, or may have been."""
    return [
        t
        for t in order.transactions.values()
        if t.refunds == capture.id and t.status is not TransactionStatus.FAILED
    ]


def _refund_told(order: Order, capture: Transaction, reference: str, told: ToldRefund) -> Transaction | None:
    return next(
        (
            t
            for t in order.transactions.values()
            if t.refunds == capture.id and (t.id == told.refund_id or t.processor_transaction_id == reference)
        ),
        None,
    )


def _settle(order: Order, refund: Transaction, reference: str, told: ToldRefund, *, by: Metadata) -> bool:
    """Record the end of a refund that is known here; whether that could be."""
    if not told.succeeded:
        fail_refund(
            order,
            refund.id,
            processor_transaction_id=reference,
            error_code=told.error_code,
            error_message=told.error_message,
            by=by,
        )
        return True
    try:
        succeed_refund(order, refund.id, processor_transaction_id=reference, by=by)
    except ContradictsRecord:
        return False
    return True


def _discover(
    order: Order, capture: Transaction, *, amount: int, reference: str | None, by: Metadata
) -> bool:
    """Record a refund that did not start here; whether that could be."""
    made = sum(t.amount for t in _refunds_of(order, capture) if t.status is TransactionStatus.SUCCESS)
    if amount > capture.amount - made or amount <= 0:
        return False
    refund_id = str(uuid7())
    order.record(
        RefundDiscovered,
        by=by,
        status=order.status.value,
        refund_id=refund_id,
        capture_id=capture.id,
        attempt=capture.attempt,
        amount=amount,
        currency=order.currency,
        processor=order.payments[capture.attempt].processor,
        reason=DISCOVERED_REASON,
    )
    succeed_refund(order, refund_id, processor_transaction_id=reference, by=by)
    return True
