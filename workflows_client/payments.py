"""Which workflow an order's event starts or signals: names, ids, queues and inputs are those of the Temporal contract.

Inputs are plain JSON in camelCase; optional fields without a value are absent.
"""

from datetime import timedelta
from typing import Any

import structlog

from payloops.commands.workflow_ids import (
    capture_workflow_id,
    payment_workflow_id,
    refund_workflow_id,
    void_workflow_id,
)
from payloops.events.event_store import EventStore, RecordedEvent
from payloops.events.orders import (
    Order,
    PaymentCancelRequested,
    PaymentCaptureRequested,
    PaymentRequested,
    PaymentStatus,
    PaymentVoidRequested,
    ProcessorEventReceived,
    RefundRequested,
    TransactionStatus,
)
from payloops.events.stream import StreamEvent, topic_of
from payloops.events.timestamps import utc_now
from payloops.workflows_client.forwardings import Forwarding, SignalWorkflow, StartWorkflow
from payloops.workflows_client.subscriber import Subscription

FRESH = timedelta(seconds=10)
"""A payment that was asked for within this is forwarded without a look at its order: it cannot have ended yet."""

MADE = {PaymentStatus.REQUIRES_ACTION, PaymentStatus.AUTHORIZED}
"""Payments under way that their processor has."""

log = structlog.get_logger(__name__)


class NothingToForwardError(Exception):
    """A fact that starts and signals nothing: it should not have been asked about."""

    def __init__(self, *, topic: str) -> None:
        super().__init__(f"{topic} starts and signals no workflow")
        self.topic = topic


READER = "temporal"
TOPICS = frozenset(
    topic_of(fact)
    for fact in (
        PaymentRequested,
        PaymentCaptureRequested,
        PaymentVoidRequested,
        PaymentCancelRequested,
        ProcessorEventReceived,
        RefundRequested,
    )
)


def payments(store: EventStore) -> Subscription:
    """The subscription that has processors move money."""

    async def plan(recorded: RecordedEvent) -> Forwarding | None:
        fact = recorded.event
        begun = begun_by(fact)
        if begun is None or (isinstance(fact, PaymentRequested) and utc_now() - fact.timestamp < FRESH):
            return forwarding_of(fact)
        order = await store.load(Order, fact.originator_id)
        assert order is not None, "orders are never deleted"
        if is_done(order, fact):
            # A person or the processor was faster than Temporal, or than a retry: it must not be done twice.
            log.info("subscriber.ended_before", position=recorded.position, topic=topic_of(fact))
            return None
        payment = order.payments[order.transactions[begun].attempt]
        return forwarding_of(fact, reference=payment.processor_order_id)

    async def strands(recorded: RecordedEvent) -> bool:
        """A cancellation that found no workflow, of a payment that is still open."""
        fact = recorded.event
        if not isinstance(fact, PaymentCancelRequested):
            return False
        order = await store.load(Order, fact.originator_id)
        return order is not None and order.payments[fact.attempt].is_open

    return Subscription(name=READER, topics=TOPICS, plan=plan, strands=strands)


def begun_by(fact: StreamEvent) -> str | None:
    """The transaction that a fact has workflows end, None where it is none."""
    match fact:
        case PaymentRequested() | PaymentCaptureRequested() | PaymentVoidRequested():
            return fact.transaction_id
        case RefundRequested():
            return fact.refund_id
        case _:
            return None


def is_done(order: Order, fact: StreamEvent) -> bool:
    """Whether a fact is to start no workflow any more: what it asks for has ended, or is a payment that was made.

    A payment may be made while the transaction that it opened is pending: the capture of one that was only authorized.
    """
    begun = begun_by(fact)
    if begun is None:
        return False
    if isinstance(fact, PaymentRequested) and order.payments[fact.attempt].status in MADE:
        return True
    return order.transactions[begun].status is not TransactionStatus.PENDING


def forwarding_of(fact: StreamEvent, *, reference: str | None = None) -> Forwarding | None:
    """What a fact of one of `TOPICS` means to Temporal; None where this one means nothing.

    Args:
        reference: the processor's, of the payment, where it was learned after the fact.

    Raises:
        NothingToForwardError: a fact of any other topic.
    """
    order_id = str(fact.originator_id)
    match fact:
        case PaymentRequested():
            return StartWorkflow(
                workflow="PaymentWorkflow",
                workflow_id=payment_workflow_id(order_id=order_id, attempt=fact.attempt),
                task_queue=_queue(fact.processor),
                input=_present(
                    orderId=order_id,
                    merchantId=fact.merchant_id,
                    amount=fact.amount,
                    currency=fact.currency,
                    returnUrl=fact.return_url,
                    paymentMethod=fact.payment_method,
                    capture=fact.capture,
                ),
            )
        case PaymentCaptureRequested():
            workflow_id = capture_workflow_id(order_id=order_id, sequence=fact.sequence)
            return _operation("CaptureWorkflow", workflow_id, fact, reference)
        case PaymentVoidRequested():
            workflow_id = void_workflow_id(order_id=order_id, sequence=fact.sequence)
            return _operation("VoidWorkflow", workflow_id, fact, reference)
        case PaymentCancelRequested():
            return SignalWorkflow(
                workflow_id=payment_workflow_id(order_id=order_id, attempt=fact.attempt),
                signal="cancelPayment",
            )
        case ProcessorEventReceived():
            if fact.attempt is None or fact.completes is None:
                return None
            return SignalWorkflow(
                workflow_id=payment_workflow_id(order_id=order_id, attempt=fact.attempt),
                signal="completePayment",
                argument=_present(
                    success=fact.completes, processorTransactionId=fact.processor_transaction_id
                ),
            )
        case RefundRequested():
            return StartWorkflow(
                workflow="RefundWorkflow",
                workflow_id=refund_workflow_id(refund_id=fact.refund_id),
                task_queue=_queue(fact.processor),
                input=_present(
                    refundId=fact.refund_id,
                    orderId=order_id,
                    merchantId=fact.merchant_id,
                    transactionId=fact.capture_id,
                    processorOrderId=_known(fact.processor_order_id or reference),
                    amount=fact.amount,
                    currency=fact.currency,
                    reason=fact.reason,
                ),
            )
        case _:
            raise NothingToForwardError(topic=topic_of(fact))


def _operation(
    workflow: str,
    workflow_id: str,
    fact: PaymentCaptureRequested | PaymentVoidRequested,
    reference: str | None,
) -> StartWorkflow:
    return StartWorkflow(
        workflow=workflow,
        workflow_id=workflow_id,
        task_queue=_queue(fact.processor),
        input={
            "orderId": str(fact.originator_id),
            "merchantId": fact.merchant_id,
            "processorOrderId": _known(fact.processor_order_id or reference),
            "amount": fact.amount,
            "currency": fact.currency,
        },
    )


class ProcessorReferenceMissingError(Exception):
    """Money is to be moved of a payment whose reference at the processor was never reported."""

    def __init__(self) -> None:
        super().__init__(
            "The processor never reported its reference of this payment. payloops reconcile asks it, and goes on where"
            " it knows; otherwise do this in the processor's dashboard: its event will end it here"
        )


def _known(processor_order_id: str | None) -> str:
    if processor_order_id is None:
        raise ProcessorReferenceMissingError
    return processor_order_id


def _queue(processor: str) -> str:
    return f"{processor}-payments"


def _present(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}
