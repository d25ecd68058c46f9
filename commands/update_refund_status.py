"""Applies what a processor reports about a refund: through a workflow's activity, or when asked."""

from datetime import datetime
from uuid import UUID

from payloops.commands.change_order import change_order
from payloops.commands.processor_refunds import (
    complete_pending_refunds,
    complete_refund,
    find_reported_failure,
    record_processor_refunds,
    reverse_refunds_beyond,
)
from payloops.commands.refund_outcomes import fail_refund
from payloops.commands.refusals import UnknownRefund
from payloops.events.event_store import EventStore
from payloops.events.metadata import Metadata
from payloops.events.orders import NO_REASON, Failure, Order, TransactionType


async def update_refund_status(
    store: EventStore,
    *,
    order_id: UUID,
    refund_id: str,
    succeeded: bool,
    processor_transaction_id: str | None = None,
    failure: Failure = NO_REASON,
    by: Metadata,
) -> None:
    """Record what a workflow reports about the outcome of a refund. A repeated report has no effect.

    Raises:
        OrderNotFound, UnknownRefund, ContradictsRecord.
    """

    def decide(order: Order) -> None:
        refund = order.transactions.get(refund_id)
        if refund is None or refund.type is not TransactionType.REFUND:
            raise UnknownRefund(order_id, refund_id)
        report_refund(
            order,
            refund_id,
            succeeded=succeeded,
            processor_transaction_id=processor_transaction_id,
            failure=failure,
            by=refund.cause.apply_to(by),
        )

    await change_order(store, order_id=order_id, merchant_id=None, decide=decide)


async def update_refunded_amount(
    store: EventStore,
    *,
    order_id: UUID,
    attempt: int,
    amount_refunded: int,
    requested_before: datetime,
    as_of: int | None,
    by: Metadata,
) -> None:
    """Record the refunded sum of a payment, learned by asking the processor.

    Args:
        requested_before: pending refunds requested before this are recorded as made, if the sum includes all of them.
            What earlier sums showed beyond this one is reversed, if nothing was recorded since then.
        as_of: version of the order when the processor was asked: if it has changed since, nothing is reversed. None if
            the sum may be another charge's: then nothing is, either.

    Raises:
        OrderNotFound.
    """

    def decide(order: Order) -> None:
        payment = order.payments[attempt]
        if order.version == as_of and order.modified_on < requested_before:
            reverse_refunds_beyond(order, payment, amount_refunded=amount_refunded, by=by)
        record_processor_refunds(order, payment, amount_refunded=amount_refunded, by=by)
        complete_pending_refunds(
            order, payment, amount_refunded=amount_refunded, requested_before=requested_before, by=by
        )

    await change_order(store, order_id=order_id, merchant_id=None, decide=decide)


def report_refund(
    order: Order,
    refund_id: str,
    *,
    succeeded: bool,
    processor_transaction_id: str | None,
    failure: Failure,
    by: Metadata,
) -> None:
    """Record what a workflow reports about a refund, unless the processor's own event said that it failed.

    Raises:
        ContradictsRecord: more would be refunded than was captured.
    """
    reported = find_reported_failure(order, refund_id, reference=processor_transaction_id)
    if succeeded and reported is None:
        complete_refund(order, refund_id, processor_transaction_id=processor_transaction_id, by=by)
    else:
        fail_refund(
            order,
            refund_id,
            processor_transaction_id=processor_transaction_id,
            failure=failure if reported is None else Failure.of(reported),
            by=by,
        )
    payment = order.payments[order.transactions[refund_id].attempt]
    record_processor_refunds(order, payment, amount_refunded=None, by=by)
