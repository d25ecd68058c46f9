"""Payments, in the order of their life: pay, capture, cancel, and the transactions they make. `/v1`, by API key."""

from typing import Annotated, Literal
from uuid import UUID

import psycopg
import structlog
from pydantic import Field

from payloops.commands.cancel_order import cancel_order as cancel
from payloops.commands.capture_payment import capture_payment as capture
from payloops.commands.client_secrets import ClientSecrets
from payloops.commands.pay_order import pay_order as pay
from payloops.commands.processors import Processor
from payloops.events.orders import Order, OrderStatus, TransactionStatus, TransactionType
from payloops.http.fields import Amount, PaymentToken, Timestamp
from payloops.http.orders import OrderAnswer, answer_from
from payloops.http.problems import not_found
from payloops.http.routing import AnswerModel, Call, Nothing, RequestModel, route
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
    processor_order_id: str | None
    processor_transaction_id: str | None


class PaymentAnswer(AnswerModel):
    order_id: UUID
    status: OrderStatus
    processor: str
    workflow_id: str
    redirect_url: str | None
    client_secret: str | None
    processor_data: ProcessorData | None


def payment_answer(order: Order, *, client_secret: str | None = None) -> PaymentAnswer:
    """The latest payment of an order, as clients see it."""
    payment = order.payment
    assert payment is not None
    known = payment.processor_order_id is not None or payment.processor_transaction_id is not None
    return PaymentAnswer(
        order_id=order.id,
        status=order.status,
        processor=payment.processor,
        workflow_id=f"payment-{order.id}" + (f"-{payment.attempt}" if payment.attempt > 1 else ""),
        redirect_url=payment.redirect_url,
        client_secret=client_secret,
        processor_data=ProcessorData(
            processor_order_id=payment.processor_order_id,
            processor_transaction_id=payment.processor_transaction_id,
        )
        if known
        else None,
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
    if not call.wait:
        return payment_answer(order)
    call.headers["Preference-Applied"] = f"wait={call.wait}"
    try:
        return await _outcome(call, order)
    except psycopg.Error as error:
        # The payment is requested, whatever became of the waiting: no answer may say that nothing was done.
        log.warning("pay.wait_failed", error=type(error).__name__)
        return payment_answer(order)


async def _outcome(call: Call[Payment], order: Order) -> PaymentAnswer:
    """The payment once it has left `processing`, or as it is when the client's patience ends."""
    services = call.services
    current = await services.watch.until(
        order, lambda seen: seen.status is not OrderStatus.PROCESSING, seconds=call.wait
    )
    secrets = ClientSecrets(services.store.pool, services.cipher)
    answer = payment_answer(current, client_secret=await secrets.find(order_id=order.id))
    if call.reserved is not None and current.version > order.version:
        await call.reserved.amend(services.store.pool, body=call.route.render(answer))
    return answer


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
    summary="Capture an authorized payment",
)
async def capture_payment(call: Call[Capture]) -> OrderAnswer:
    order = await capture(
        call.services.store,
        order_id=call.id(),
        merchant_id=call.merchant_id,
        amount=call.body.amount,
        by=call.by,
        receipt=call.receipt_of(answer_from),
    )
    return answer_from(order)


@route(
    "POST",
    "/v1/orders/{id}/cancel",
    auth="api_key",
    body=Nothing,
    body_required=False,
    answers=OrderAnswer,
    errors=("not_found", "invalid_status"),
    idempotent=True,
    summary="Cancel an order before it is captured",
)
async def cancel_order(call: Call[Nothing]) -> OrderAnswer:
    order = await cancel(
        call.services.store,
        order_id=call.id(),
        merchant_id=call.merchant_id,
        by=call.by,
        receipt=call.receipt_of(answer_from),
    )
    return answer_from(order)


class TransactionAnswer(AnswerModel):
    id: UUID
    order_id: UUID
    type: TransactionType
    amount: int
    status: TransactionStatus
    processor_transaction_id: str | None
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
    return [
        TransactionAnswer(
            id=row.id,
            order_id=row.order_id,
            type=TransactionType(row.type),
            amount=row.amount,
            status=TransactionStatus(row.status),
            processor_transaction_id=row.processor_transaction_id,
            error_code=row.error_code,
            error_message=row.error_message,
            created_at=row.created_at,
        )
        for row in rows
    ]
