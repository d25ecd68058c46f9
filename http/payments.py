"""Payments: pay, capture, cancel, and list the transactions. `/v1`, by API key."""

from typing import Annotated, Any, Literal
from uuid import UUID

import psycopg
import structlog
from pydantic import Field

from payloops.commands.cancel_order import cancel_order as cancel
from payloops.commands.capture_payment import capture_payment as capture
from payloops.commands.cipher import REMEDY, SealBroken
from payloops.commands.client_secrets import ClientSecrets
from payloops.commands.pay_order import pay_order as pay
from payloops.commands.processors import Processor
from payloops.commands.workflow_ids import attempt_of, payment_workflow_id
from payloops.events.orders import Order, OrderStatus, TransactionStatus, TransactionType
from payloops.http.fields import Amount, PaymentToken, Timestamp
from payloops.http.orders import OrderAnswer, answer_from
from payloops.http.problems import not_found
from payloops.http.routing import AnswerModel, Call, Nothing, RequestModel, route
from payloops.http.waiting import answer_after
from payloops.projections.transactions import list_transactions

log = structlog.get_logger()


class PaymentMethod(RequestModel):
    type: Literal["card", "upi", "netbanking", "wallet"]
    token: Annotated[PaymentToken | None, Field(repr=False)] = None


class Payment(RequestModel):
    processor: Processor | None = None
    payment_method: PaymentMethod | None = None
    capture: Literal["automatic", "manual"] | None = None


class ProcessorData(AnswerModel):
    processor_order_id: Annotated[str | None, Field(examples=["pi_3Q"])]
    processor_transaction_id: Annotated[str | None, Field(examples=["ch_3Q"])]


class PaymentAnswer(AnswerModel):
    order_id: UUID
    status: Annotated[OrderStatus, Field(examples=["processing"])]
    processor: Annotated[str, Field(examples=["stripe"])]
    workflow_id: Annotated[str, Field(examples=["payment-019ab3c8-8f4c-7cc1-b7c1-1f0a5d9e2b64"])]
    redirect_url: str | None
    client_secret: str | None
    processor_data: ProcessorData | None


def payment_answer(order: Order) -> PaymentAnswer:
    """The response for the latest payment of an order, without its client secret."""
    payment = order.payment
    assert payment is not None
    requires_action = order.status is OrderStatus.REQUIRES_ACTION
    has_reference = payment.processor_order_id is not None or payment.processor_transaction_id is not None
    return PaymentAnswer(
        order_id=order.id,
        status=order.status,
        processor=payment.processor,
        workflow_id=payment_workflow_id(order_id=str(order.id), attempt=payment.attempt),
        redirect_url=payment.redirect_url if requires_action else None,
        client_secret=None,
        processor_data=ProcessorData(
            processor_order_id=payment.processor_order_id,
            processor_transaction_id=payment.processor_transaction_id,
        )
        if has_reference
        else None,
    )


async def with_client_secret(call: Call[Any, Any], answer: PaymentAnswer) -> PaymentAnswer:
    """Add the client secret, which the customer's browser needs, and which is never stored with the response."""
    if answer.status is not OrderStatus.REQUIRES_ACTION:
        return answer
    attempt = attempt_of(answer.workflow_id, order_id=str(answer.order_id))
    assert attempt is not None
    secrets = ClientSecrets(call.services.store.pool, call.services.cipher)
    try:
        secret = await secrets.find(order_id=answer.order_id, attempt=attempt)
    except SealBroken as error:  # no retry helps, and the payment is recorded
        log.error("client_secret.unreadable", identity=error.identity, remedy=REMEDY)
        return answer
    return answer.model_copy(update={"client_secret": secret})


async def replay_payment(call: Call[Any, Any], stored: bytes) -> PaymentAnswer:
    """A response stored under an idempotency key, with its client secret."""
    return await with_client_secret(
        call, PaymentAnswer.model_validate_json(stored, by_alias=True, by_name=False)
    )


@route(
    "POST",
    "/v1/orders/{id}/pay",
    auth="api_key",
    body=Payment,
    body_required=False,
    answers=PaymentAnswer,
    errors=("not_found", "invalid_status", "no_processor", "invalid_processor"),
    idempotent=True,
    waits=True,
    replays=replay_payment,
    summary="Pay an order",
)
async def pay_order(call: Call[Payment]) -> PaymentAnswer:
    body = call.body
    order = await pay(
        call.services.store,
        order_id=call.id(),
        merchant_id=call.merchant_id,
        processor=body.processor,
        payment_method=body.payment_method.model_dump(by_alias=True) if body.payment_method else None,
        capture=body.capture or "automatic",
        by=call.by,
        receipt=call.receipt_of(payment_answer),
    )

    async def answer(seen: Order) -> PaymentAnswer:
        return payment_answer(seen)

    answered = await answer_after(call, order, lambda seen: seen.status is not OrderStatus.PROCESSING, answer)
    try:
        return await with_client_secret(call, answered)
    except psycopg.Error as error:
        # The payment is recorded, so no response may say that nothing was done.
        log.warning("client_secret.unreadable", error=type(error).__name__)
        return payment_answer(order)


class Capture(RequestModel):
    amount: Amount | None = None


@route(
    "POST",
    "/v1/orders/{id}/capture",
    auth="api_key",
    body=Capture,
    body_required=False,
    answers=OrderAnswer,
    errors=("not_found", "invalid_status", "capture_exceeds_authorized"),
    idempotent=True,
    waits=True,
    summary="Capture an authorized payment",
)
async def capture_payment(call: Call[Capture]) -> dict[str, Any]:
    order = await capture(
        call.services.store,
        order_id=call.id(),
        merchant_id=call.merchant_id,
        amount=call.body.amount,
        by=call.by,
        receipt=call.receipt_of(answer_from),
    )
    return await answer_after(call, order, is_captured_or_refused, order_answer_of)


@route(
    "POST",
    "/v1/orders/{id}/cancel",
    auth="api_key",
    body=Nothing,
    body_required=False,
    answers=OrderAnswer,
    errors=("not_found", "invalid_status"),
    idempotent=True,
    waits=True,
    summary="Cancel an order before it is captured",
)
async def cancel_order(call: Call[Nothing]) -> dict[str, Any]:
    order = await cancel(
        call.services.store,
        order_id=call.id(),
        merchant_id=call.merchant_id,
        by=call.by,
        receipt=call.receipt_of(answer_from),
    )
    return await answer_after(call, order, is_cancelled_or_refused, order_answer_of)


async def order_answer_of(order: Order) -> dict[str, Any]:
    return answer_from(order)


def is_captured_or_refused(order: Order) -> bool:
    """Whether no capture is under way."""
    return order.payment is None or not order.payment.capture_pending


def is_cancelled_or_refused(order: Order) -> bool:
    """Whether no cancellation is under way: the payment has ended, or stays authorized because the void was refused."""
    match order.status:
        case OrderStatus.PROCESSING | OrderStatus.REQUIRES_ACTION:
            return False
        case OrderStatus.AUTHORIZED:
            return not order.pending(order.attempt, TransactionType.VOID)
        case _:
            return True


class TransactionAnswer(AnswerModel):
    id: UUID
    order_id: UUID
    type: Annotated[TransactionType, Field(examples=["capture"])]
    amount: Annotated[int, Field(examples=[4999])]
    status: Annotated[TransactionStatus, Field(examples=["success"])]
    processor_transaction_id: Annotated[str | None, Field(examples=["ch_3Q"])]
    error_code: str | None
    error_message: str | None
    created_at: Timestamp


@route(
    "GET",
    "/v1/orders/{id}/transactions",
    auth="api_key",
    answers=list[TransactionAnswer],
    errors=("not_found",),
    summary="List an order's transactions, newest first",
)
async def read_transactions(call: Call[None]) -> list[TransactionAnswer]:
    rows = await list_transactions(call.services.store, order_id=call.id(), merchant_id=call.merchant_id)
    if rows is None:
        raise not_found()
    return [TransactionAnswer.model_validate(row) for row in rows]
