"""Which webhooks merchants get, and when: from an order's events, by the HTTP contract ("Webhooks out").

A webhook is queued once for its event, under an id derived from the event's stream and version, and delivered by a
workflow with that id. It shows the order as of that event, whatever has happened since.
"""

from typing import Any
from uuid import UUID, uuid5

from payloops.commands.fail_webhook import fail_webhook
from payloops.commands.queue_webhook import queue_webhook
from payloops.commands.webhook_endpoints import find_webhook_endpoint
from payloops.commands.webhooks import Webhook, find_webhook
from payloops.events.crash_points import crash_point
from payloops.events.event_store import EventStore, RecordedEvent
from payloops.events.merchants import WebhookRetryRequested
from payloops.events.orders import (
    Order,
    OrderCancelled,
    OrderStatus,
    PaymentActionRequired,
    PaymentAuthorized,
    PaymentCancelled,
    PaymentCaptured,
    PaymentFailed,
    PaymentRequested,
    PaymentVoided,
    RefundFailed,
    RefundReversed,
    RefundSucceeded,
)
from payloops.events.stream import StreamEvent, topic_of
from payloops.events.timestamps import timestamp_text
from payloops.projections.orders import row_from_order
from payloops.workflows_client.forwardings import Forwarding, StartWorkflow
from payloops.workflows_client.order_json import order_json
from payloops.workflows_client.subscriber import Subscription
from payloops.workflows_client.webhook_delivery import NO_ENDPOINT
from payloops.workflows_client.worker import TASK_QUEUE

READER = "webhooks"
TOPICS = frozenset(
    topic_of(fact)
    for fact in (
        OrderCancelled,
        PaymentActionRequired,
        PaymentAuthorized,
        PaymentCancelled,
        PaymentCaptured,
        PaymentFailed,
        PaymentRequested,
        PaymentVoided,
        RefundFailed,
        RefundReversed,
        RefundSucceeded,
        WebhookRetryRequested,
    )
)
MADE_OF_FACTS = UUID("b4d3c1a2-0a57-5e8c-8a43-2f9c7be1d0a6")
"""Namespace of the ids of webhooks about facts. (Workflows may queue others: `activities.py`.)"""


class OrderMissing(Exception):
    """A fact of an order whose stream cannot be folded up to it."""

    def __init__(self, *, order_id: UUID, version: int) -> None:
        super().__init__(f"no order {order_id} as of version {version}")
        self.order_id = order_id
        self.version = version


def webhook_subscription(store: EventStore) -> Subscription:
    """The subscription that sends webhooks to merchants about their orders."""

    async def plan(recorded: RecordedEvent) -> Forwarding | None:
        fact = recorded.event
        if isinstance(fact, WebhookRetryRequested):
            return await _manual_retry(store, fact)
        return await _first_delivery(store, fact, position=recorded.position)

    return Subscription(name=READER, topics=TOPICS, plan=plan)


async def _first_delivery(store: EventStore, fact: StreamEvent, *, position: int) -> Forwarding | None:
    """Queue the webhook about a fact, to be delivered; None if the fact or the merchant needs none."""
    event_type = event_type_of(fact)
    if event_type is None:
        return None
    merchant_id = UUID(fact.merchant_id)
    endpoint = await find_webhook_endpoint(store.pool, merchant_id=merchant_id)
    if endpoint is None or endpoint.url_in_use is None:
        return None
    order = await store.load(Order, fact.originator_id, up_to_version=fact.originator_version)
    if order is None:
        raise OrderMissing(order_id=fact.originator_id, version=fact.originator_version)
    webhook_id = webhook_id_of(fact)
    await queue_webhook(
        store.pool,
        webhook_id=webhook_id,
        merchant_id=merchant_id,
        order_id=fact.originator_id,
        event_type=event_type,
        payload=payload_of(fact, webhook_id=webhook_id, event_type=event_type, order=order),
        source_position=position,
        at=fact.timestamp,
    )
    crash_point("webhook.queued")
    # Read back from the table: it may have been queued by an earlier version of this code, with other content.
    webhook = await find_webhook(store.pool, webhook_id=webhook_id, merchant_id=None)
    return _delivery(webhook, workflow_id=f"webhook-{webhook_id}", url=endpoint.url_in_use)


async def _manual_retry(store: EventStore, fact: WebhookRetryRequested) -> Forwarding | None:
    webhook_id = UUID(fact.webhook_event_id)
    webhook = await find_webhook(store.pool, webhook_id=webhook_id, merchant_id=None)
    endpoint = await find_webhook_endpoint(store.pool, merchant_id=webhook.merchant_id)
    if endpoint is None or endpoint.url_in_use is None:
        await fail_webhook(store.pool, webhook_id=webhook_id, retries=fact.number, error=NO_ENDPOINT)
        return None
    return _delivery(webhook, workflow_id=f"webhook-{webhook_id}-{fact.number}", url=endpoint.url_in_use)


def _delivery(webhook: Webhook, *, workflow_id: str, url: str) -> StartWorkflow:
    return StartWorkflow(
        workflow="WebhookDeliveryWorkflow",
        workflow_id=workflow_id,
        task_queue=TASK_QUEUE,
        input={
            "webhookEventId": str(webhook.id),
            "merchantId": str(webhook.merchant_id),
            "webhookUrl": url,
            "payload": webhook.payload,
        },
    )


def webhook_id_of(fact: StreamEvent) -> UUID:
    """Always the same for the same fact."""
    return uuid5(MADE_OF_FACTS, f"{fact.originator_id}:{fact.originator_version}")


def event_type_of(fact: StreamEvent) -> str | None:
    """The type of the webhook about a fact; None if there is none.

    There is none about an attempt that does not decide the order's status: one that fails after another attempt was
    captured, or whose authorization is released because of that.
    """
    match fact:
        case PaymentRequested():
            return "payment.processing"
        case PaymentActionRequired(status=OrderStatus.REQUIRES_ACTION):
            return "payment.requires_action"
        case PaymentAuthorized(status=OrderStatus.AUTHORIZED):
            return "payment.authorized"
        case PaymentCaptured():
            return "payment.captured"
        case PaymentFailed(status=OrderStatus.FAILED):
            return "payment.failed"
        case (
            OrderCancelled()
            | PaymentCancelled(status=OrderStatus.CANCELLED)
            | PaymentVoided(status=OrderStatus.CANCELLED)
        ):
            return "payment.cancelled"
        case RefundSucceeded():
            return "refund.processed"
        case RefundFailed() | RefundReversed():
            return "refund.failed"
        case _:
            return None


def payload_of(fact: StreamEvent, *, webhook_id: UUID, event_type: str, order: Order) -> dict[str, Any]:
    """The body of the webhook. `order`: as of the fact."""
    data = order_json(row_from_order(order))
    shared = ("externalId", "amount", "currency", "status", "processor")
    return {
        "id": str(webhook_id),
        "type": event_type,
        "eventType": event_type,
        "createdAt": timestamp_text(fact.timestamp),
        "sequence": fact.originator_version,
        "orderId": data["id"],
        **{name: data[name] for name in shared},
        "data": data,
        "payload": details_of(fact, order=order),
    }


def details_of(fact: StreamEvent, *, order: Order) -> dict[str, Any]:  # noqa: C901  # a branch for each kind of fact
    """The details of this type of fact; amounts in the currency's minor unit."""
    match fact:
        case PaymentRequested():
            return {
                "attempt": fact.attempt,
                "transactionId": fact.transaction_id,
                "capture": fact.capture,
                "amount": fact.amount,
            }
        case PaymentActionRequired():
            return {"attempt": fact.attempt, "redirectUrl": fact.redirect_url}
        case PaymentAuthorized():
            return {
                "attempt": fact.attempt,
                "transactionId": fact.transaction_id,
                "amount": fact.amount,
                "processorTransactionId": fact.processor_transaction_id,
            }
        case PaymentCaptured():
            return {
                "attempt": fact.attempt,
                "transactionId": fact.transaction_id,
                "amount": fact.amount,
                "amountCaptured": fact.amount_captured,
                "processorTransactionId": fact.processor_transaction_id,
            }
        case PaymentFailed():
            return {
                "attempt": fact.attempt,
                "errorCode": fact.error_code,
                "errorMessage": fact.error_message,
                "processorTransactionId": fact.processor_transaction_id,
            }
        case PaymentCancelled():
            return {"attempt": fact.attempt}
        case PaymentVoided():
            return {"attempt": fact.attempt, "transactionId": fact.transaction_id, "amount": fact.amount}
        case RefundSucceeded() | RefundReversed():
            refund = {
                "refundId": fact.refund_id,
                "amount": fact.amount,
                "amountRefunded": fact.amount_refunded,
                "reason": order.transactions[fact.refund_id].reason,
                "processorTransactionId": fact.processor_transaction_id,
            }
            if isinstance(fact, RefundReversed):
                refund |= {"errorCode": fact.error_code, "errorMessage": fact.error_message}
            return refund
        case RefundFailed():
            failed = order.transactions[fact.refund_id]
            return {
                "refundId": fact.refund_id,
                "amount": failed.amount,
                "reason": failed.reason,
                "errorCode": fact.error_code,
                "errorMessage": fact.error_message,
            }
        case _:
            return {}
