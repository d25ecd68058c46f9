"""Which workflow an order's event starts or signals. Names, ids, queues and inputs are those of the Temporal contract.

Inputs are plain JSON in camelCase; optional fields without a value are absent.
"""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import structlog

from payloops.commands.processor_refunds import may_be_made
from payloops.commands.workflow_ids import payment_workflow_id, started_workflow_id
from payloops.events.event_store import EventStore, RecordedEvent
from payloops.events.orders import (
    DUPLICATE_REASON,
    Order,
    Payment,
    PaymentCancelRequested,
    PaymentCaptureRequested,
    PaymentRequested,
    PaymentStatus,
    PaymentVoidRequested,
    ProcessorEventReceived,
    RefundRequested,
    Transaction,
    TransactionStatus,
)
from payloops.events.stream import StreamEvent, topic_of
from payloops.events.timestamps import utc_now
from payloops.workflows_client.forwardings import Forwarding, SignalWorkflow, StartWorkflow
from payloops.workflows_client.subscriber import Subscription

FRESH = timedelta(seconds=10)
"""What was requested more recently than this nobody can have done by hand yet. By the clocks of two processes, so what
seems to be requested later than now may be old."""

AT_PROCESSOR = {PaymentStatus.REQUIRES_ACTION, PaymentStatus.AUTHORIZED}
"""Payments that are under way and that their processor certainly has."""

log = structlog.get_logger(__name__)


class NothingToForward(Exception):
    """A fact of a type that no workflow depends on."""

    def __init__(self, *, topic: str) -> None:
        super().__init__(f"{topic} starts and signals no workflow")
        self.topic = topic


CANCEL = "cancelPayment"
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


def payment_subscription(store: EventStore) -> Subscription:
    """The subscription that starts the workflows which move money at processors."""

    async def plan(recorded: RecordedEvent) -> Forwarding | None:
        fact = recorded.event
        transaction_id = transaction_of(fact)
        fresh = abs(utc_now() - fact.timestamp) < FRESH
        if transaction_id is None or (isinstance(fact, PaymentRequested) and fresh):
            return forwarding_of(fact)
        order = await store.load(Order, fact.originator_id)
        assert order is not None, "orders are never deleted"
        if is_done(order, fact):
            # A person or the processor was faster than this (after an outage, or a retry): it must not be done twice.
            log.info("subscriber.ended_before", position=recorded.position, topic=topic_of(fact))
            return None
        payment = order.payments[order.transactions[transaction_id].attempt]
        if isinstance(fact, RefundRequested):
            await refuse_made_by_hand(store, order, fact, fresh=fresh)
        forwarding = forwarding_of(fact, reference=payment.processor_order_id)
        if isinstance(fact, PaymentRequested) and payment.cancel_requested:
            assert isinstance(forwarding, StartWorkflow)
            # Signalled afterwards, it might have charged by then.
            return replace(forwarding, signal=CANCEL)
        return forwarding

    async def strands(recorded: RecordedEvent) -> bool:
        """Whether it is a cancellation of a payment that is still open."""
        fact = recorded.event
        if not isinstance(fact, PaymentCancelRequested):
            return False
        order = await store.load(Order, fact.originator_id)
        return order is not None and order.payments[fact.attempt].is_open

    return Subscription(name=READER, topics=TOPICS, plan=plan, strands=strands)


def transaction_of(fact: StreamEvent) -> str | None:
    """Id of the transaction that a fact requests a workflow for; None if it requests none."""
    match fact:
        case PaymentRequested() | PaymentCaptureRequested() | PaymentVoidRequested():
            return fact.transaction_id
        case RefundRequested():
            return fact.refund_id
        case _:
            return None


def is_done(order: Order, fact: StreamEvent) -> bool:
    """Whether a fact must not start its workflow any more, since what it requests was done or has failed.

    A payment may be at the processor while its transaction is pending: the capture, if it was only authorized so far.
    """
    transaction_id = transaction_of(fact)
    if transaction_id is None:
        return False
    if isinstance(fact, PaymentRequested) and order.payments[fact.attempt].status in AT_PROCESSOR:
        return True
    return order.transactions[transaction_id].status is not TransactionStatus.PENDING


def forwarding_of(fact: StreamEvent, *, reference: str | None = None) -> Forwarding | None:
    """The workflow to start or signal for a fact of one of `TOPICS`; None if there is none.

    Args:
        reference: the processor's reference of the payment, if it became known after the fact.

    Raises:
        NothingToForward: a fact of any other topic.
    """
    order_id = str(fact.originator_id)
    match fact:
        case PaymentRequested(payment_method=method):
            return _start(
                "PaymentWorkflow",
                fact,
                returnUrl=fact.return_url,
                paymentMethod=None if method is None else _without_nulls(**method),
                capture=fact.capture,
            )
        case PaymentCaptureRequested():
            return _start("CaptureWorkflow", fact, processorOrderId=_reference(fact, reference))
        case PaymentVoidRequested():
            return _start("VoidWorkflow", fact, processorOrderId=_reference(fact, reference))
        case RefundRequested():
            return _start(
                "RefundWorkflow",
                fact,
                refundId=fact.refund_id,
                transactionId=fact.capture_id,
                processorOrderId=_reference(fact, reference),
                reason=fact.reason,
            )
        case PaymentCancelRequested():
            return SignalWorkflow(
                workflow_id=payment_workflow_id(order_id=order_id, attempt=fact.attempt),
                signal=CANCEL,
            )
        case ProcessorEventReceived():
            if fact.attempt is None or fact.completes is None:
                return None
            return SignalWorkflow(
                workflow_id=payment_workflow_id(order_id=order_id, attempt=fact.attempt),
                signal="completePayment",
                argument=_without_nulls(
                    success=fact.completes, processorTransactionId=fact.processor_transaction_id
                ),
            )
        case _:
            raise NothingToForward(topic=topic_of(fact))


def _start(
    workflow: str,
    fact: PaymentRequested | PaymentCaptureRequested | PaymentVoidRequested | RefundRequested,
    **further: Any,
) -> StartWorkflow:
    """Start the workflow that a fact requests of its processor. `further`: what its input has beside the amount."""
    workflow_id = started_workflow_id(fact)
    assert workflow_id is not None
    return StartWorkflow(
        workflow=workflow,
        workflow_id=workflow_id,
        task_queue=f"{fact.processor}-payments",
        input=_without_nulls(
            orderId=str(fact.originator_id),
            merchantId=fact.merchant_id,
            amount=fact.amount,
            currency=fact.currency,
            **further,
        ),
    )


def _reference(
    fact: PaymentCaptureRequested | PaymentVoidRequested | RefundRequested, later: str | None
) -> str:
    """The processor's reference of the payment. `later`: the one that became known after the fact, if there is one.

    Raises:
        ProcessorReferenceMissing: it was never reported.
    """
    reference = fact.processor_order_id or later
    if reference is None:
        raise ProcessorReferenceMissing
    return reference


def _without_nulls(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


class ProcessorReferenceMissing(Exception):
    """A capture, void or refund of a payment whose reference at the processor was never reported."""

    def __init__(self) -> None:
        super().__init__(
            "The processor never reported its reference of this payment. payloops reconcile asks it, and goes on where"
            " it knows; otherwise do this in the processor's dashboard: its event, or payloops reconcile, will end it"
            " here. If neither does: payloops resolve"
        )


class DuplicateUncertain(Exception):
    """The refund of a duplicate payment, which may be the same charge as the other one."""

    def __init__(self, *, attempt: int, duplicate: int) -> None:
        super().__init__(
            f"As far as references tell, attempts {attempt} and {duplicate} may be one charge, which"
            f" is not to be given back. If the processor's dashboard shows two, refund attempt {duplicate} there, and"
            " payloops reconcile will end it here. If it shows one: payloops resolve one-charge"
        )


class RefundUncertain(Exception):
    """A refund whose workflow was not started, and that somebody may have made in the processor's dashboard."""

    def __init__(self) -> None:
        super().__init__(
            "The processor reported a refund that may be this one, so it is not requested of it as well. payloops"
            " reconcile ends it here if the processor's sum includes it; otherwise: payloops resolve refund-made or"
            " refund-not-made"
        )


class OtherGivenBack(Exception):
    """The refund of a duplicate payment, after the other one was refunded in the processor's dashboard."""

    def __init__(self, *, attempt: int) -> None:
        super().__init__(
            f"Attempt {attempt} was refunded in the processor's dashboard since this was requested, perhaps in its"
            " place. If one charge is to stay: payloops resolve refund-not-made. If neither: refund this one there, too"
        )


def refuse_given_back(order: Order, refund: Transaction) -> None:
    """Refuse the refund of a duplicate payment after somebody refunded another charge of the order by hand.

    Raises:
        OtherGivenBack.
    """
    for other in order.transactions.values():
        by_hand = other.discovered and other.status is TransactionStatus.SUCCESS
        if by_hand and other.attempt != refund.attempt and other.created_at >= refund.created_at:
            raise OtherGivenBack(attempt=other.attempt)


def refuse_uncertain(order: Order, duplicate: Payment) -> None:
    """Refuse the refund of a duplicate payment that no reference tells apart from the other captured ones.

    Raises:
        DuplicateUncertain.
    """
    uncertain = order.not_told_apart(duplicate)
    if uncertain:
        raise DuplicateUncertain(attempt=uncertain[0].attempt, duplicate=duplicate.attempt)


async def refuse_made_by_hand(store: EventStore, order: Order, fact: RefundRequested, *, fresh: bool) -> None:
    """Refuse a refund that somebody may have made in the processor's dashboard, or that may be of the only charge.

    Args:
        fresh: it was requested just now. A reported refund that it may be is another one then.

    Raises:
        DuplicateUncertain, OtherGivenBack, RefundUncertain.
    """
    refund = order.transactions[fact.refund_id]
    if fact.reason == DUPLICATE_REASON:
        refuse_uncertain(order, order.payments[refund.attempt])
        refuse_given_back(order, refund)
    if not fresh and order.version > fact.originator_version:
        version = fact.originator_version
        requested = await store.load(Order, fact.originator_id, up_to_version=version)
        assert requested is not None
        if may_be_made(order, refund, when_requested=requested):
            raise RefundUncertain
