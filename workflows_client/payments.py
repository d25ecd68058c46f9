"""Which workflow an order's event starts or signals: names, ids, queues and inputs are those of the Temporal contract.

Inputs are plain JSON in camelCase; optional fields without a value are absent.
"""

from typing import Any

from payloops.commands.update_order_status import OPEN
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
    PaymentVoidRequested,
    ProcessorEventReceived,
    RefundRequested,
)
from payloops.events.stream import StreamEvent, topic_of
from payloops.workflows_client.forwardings import Forwarding, SignalWorkflow, StartWorkflow
from payloops.workflows_client.subscriber import Subscription


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

    async def strands(recorded: RecordedEvent) -> bool:
        """A cancellation that found no workflow, of a payment that is still open."""
        fact = recorded.event
        if not isinstance(fact, PaymentCancelRequested):
            return False
        order = await store.load(Order, fact.originator_id)
        return order is not None and order.payments[fact.attempt].status in OPEN

    return Subscription(name=READER, topics=TOPICS, plan=_plan, strands=strands)


async def _plan(recorded: RecordedEvent) -> Forwarding | None:
    return forwarding_of(recorded.event)


def forwarding_of(fact: StreamEvent) -> Forwarding | None:
    """What a fact of one of `TOPICS` means to Temporal; None where this one means nothing.

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
            return _operation(
                "CaptureWorkflow", capture_workflow_id(order_id=order_id, sequence=fact.sequence), fact
            )
        case PaymentVoidRequested():
            return _operation(
                "VoidWorkflow", void_workflow_id(order_id=order_id, sequence=fact.sequence), fact
            )
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
                    processorOrderId=_known(fact.processor_order_id),
                    amount=fact.amount,
                    currency=fact.currency,
                    reason=fact.reason,
                ),
            )
        case _:
            raise NothingToForwardError(topic=topic_of(fact))


def _operation(
    workflow: str, workflow_id: str, fact: PaymentCaptureRequested | PaymentVoidRequested
) -> StartWorkflow:
    return StartWorkflow(
        workflow=workflow,
        workflow_id=workflow_id,
        task_queue=_queue(fact.processor),
        input={
            "orderId": str(fact.originator_id),
            "merchantId": fact.merchant_id,
            "processorOrderId": _known(fact.processor_order_id),
            "amount": fact.amount,
            "currency": fact.currency,
        },
    )


class ProcessorReferenceMissingError(Exception):
    """Money is to be moved of a payment whose reference at the processor was never reported."""

    def __init__(self) -> None:
        super().__init__("The processor never reported its reference of this payment")


def _known(processor_order_id: str | None) -> str:
    if processor_order_id is None:
        raise ProcessorReferenceMissingError
    return processor_order_id


def _queue(processor: str) -> str:
    return f"{processor}-payments"


def _present(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}
