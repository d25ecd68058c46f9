"""Restarting workflows that Temporal has lost: what `payloops reconcile` does once the processor has been asked.

The active subscriber forwards the events again, as it does with parked events: decision 17 in docs/decisions.
"""

from datetime import datetime
from uuid import UUID

from payloops.commands.change_order import load_order
from payloops.commands.receive_processor_event import is_cancelling
from payloops.events.event_store import EventStore
from payloops.events.orders import (
    Order,
    Payment,
    PaymentCancelRequested,
    PaymentRequested,
    PaymentStatus,
    References,
    TransactionStatus,
    TransactionType,
)
from payloops.events.stream import StreamEvent, topic_of
from payloops.processors.port import ProcessorPayment
from payloops.projections.parked import Parked, forward_again, parked_of
from payloops.workflows_client.payment_subscription import READER, is_done, transaction_of
from payloops.workflows_client.subscriber import WorkflowGone

UNKNOWN_THERE = "the processor knows nothing of it: payloops reconcile has it forwarded again"
REFERENCE_MISSING = (
    "the processor's reference of the payment is not certain: do it in the processor's dashboard; its webhook then"
    " completes it here"
)


async def restart_workflows(
    store: EventStore, order: Order, payment: Payment, theirs: ProcessorPayment | None, *, before: datetime
) -> str | None:
    """Restart the workflows of what was requested and the processor knows nothing of. What it may have done is left.

    Starting a workflow that still exists has no effect. A requested cancellation is signalled again, which shows
    whether the payment's workflow still exists: see `is_stranded`.

    Args:
        before: only what was requested before this.

    Returns:
        What is restarted, or why it is not, for the report; None if there is nothing to restart.
    """
    undone = _undone(order, payment, theirs)
    cancelling = payment.is_open and payment.cancel_requested
    if not undone and not cancelling:
        return None
    requests = [
        each
        for each in await store.read_stream(order.id)
        if (transaction_of(each.event) in undone or (cancelling and _is_cancellation(each.event, payment)))
        and not is_done(order, each.event)
        and each.event.timestamp < before
    ]
    if undone and requests and theirs is not None and payment.processor_order_id is None:
        return REFERENCE_MISSING
    async with store.pool.connection() as connection:
        parked = await parked_of(connection, subscriber=READER, stream=order.id)
        for each in requests:
            if not cancelling or each.stored.originator_version not in parked:
                await forward_again(connection, subscriber=READER, event=each, why=UNKNOWN_THERE)
    if not requests or not undone:
        return None
    topics = ", ".join(each.stored.topic for each in requests)
    return f"{topics}: unknown to the processor; the workflow is started again if it is gone"


def _undone(order: Order, payment: Payment, theirs: ProcessorPayment | None) -> set[str]:
    """Ids of the payment's pending transactions that the processor knows nothing of."""
    types: list[TransactionType] = []
    if theirs is None:
        # A payment that the processor once knew may belong to an account that the merchant had before; one that is to
        # be cancelled is not made after all.
        if is_unheard_of(payment) and not is_cancelling(order, payment):
            types = [TransactionType.AUTHORIZATION, TransactionType.CAPTURE]
    else:
        if payment.status is PaymentStatus.AUTHORIZED and theirs.status == "authorized":
            types = [TransactionType.CAPTURE, TransactionType.VOID]
        if theirs.amount_refunded == order.total(payment, TransactionType.REFUND, TransactionStatus.SUCCESS):
            types.append(TransactionType.REFUND)
    return {each.id for each in order.pending(payment.attempt, *types)}


def is_unheard_of(payment: Payment) -> bool:
    """Whether nothing was ever reported of the payment. Only then does the processor's not knowing it mean that it was
    never made.
    """
    told = any(References.of(payment)) or payment.processor_reported
    return payment.status is PaymentStatus.PROCESSING and not told


async def is_stranded(store: EventStore, order: Order, payment: Payment, *, before: datetime) -> bool:
    """Whether a payment is to be cancelled, but its workflow is gone, as Temporal said before a time.

    Whatever that workflow requested of the processor has arrived since, and nothing will restart it.
    """
    if not payment.is_open or not payment.cancel_requested:
        return False
    parked = await _parked_of(store, order.id)
    if any(each.topic == topic_of(PaymentRequested) for each in parked.values()):
        return False
    versions = [
        each.stored.originator_version
        for each in await store.read_stream(order.id)
        if _is_cancellation(each.event, payment)
    ]
    return any(  # a row may be of an earlier version, which wrote WorkflowGoneError
        each.error.startswith(WorkflowGone.__name__) and each.parked_at < before and not each.retry
        for version, each in parked.items()
        if version in versions
    )


async def clear_parked(store: EventStore, order_id: UUID) -> None:
    """Have an order's parked events forwarded that have nothing left to do: that unparks them."""
    parked = await _parked_of(store, order_id)
    if not parked:
        return
    order = await load_order(store, order_id=order_id)
    over = [
        each
        for each in await store.read_stream(order_id)
        if each.stored.originator_version in parked and _has_ended(order, each.event)
    ]
    # Only now: orders are reconciled side by side, and each that held a connection while it reads needs two.
    async with store.pool.connection() as connection:
        for each in over:
            await forward_again(connection, subscriber=READER, event=each, why="it is over")


async def _parked_of(store: EventStore, order_id: UUID) -> dict[int, Parked]:
    """The order's events that the subscriber has parked, by version."""
    async with store.pool.connection() as connection:
        return await parked_of(connection, subscriber=READER, stream=order_id)


def _is_cancellation(fact: StreamEvent, payment: Payment) -> bool:
    return isinstance(fact, PaymentCancelRequested) and fact.attempt == payment.attempt


def _has_ended(order: Order, fact: StreamEvent) -> bool:
    if isinstance(fact, PaymentCancelRequested):
        return not order.payments[fact.attempt].is_open
    return is_done(order, fact)
