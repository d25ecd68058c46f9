"""Refunds of captured orders. `/v1`, by API key."""

from typing import Annotated
from uuid import UUID

from pydantic import Field

from payloops.commands.refund_payment import refund_payment as refund
from payloops.events.orders import Transaction, TransactionStatus
from payloops.http.fields import Amount, Text, Timestamp
from payloops.http.problems import not_found
from payloops.http.routing import AnswerModel, Call, RequestModel, route
from payloops.projections.transactions import list_refunds


class Refund(RequestModel):
    amount: Amount | None = None
    reason: Annotated[Text, Field(examples=["damaged"])] | None = None


class RefundAnswer(AnswerModel):
    refund_id: UUID
    order_id: UUID
    amount: Annotated[int, Field(examples=[1500])]
    status: TransactionStatus
    reason: Annotated[str | None, Field(examples=["damaged"])]
    created_at: Timestamp


@route(
    "POST",
    "/v1/orders/{id}/refund",
    auth="api_key",
    body=Refund,
    body_required=False,
    answers=RefundAnswer,
    status=201,
    errors=("not_found", "invalid_status", "refund_exceeds_captured"),
    idempotent=True,
    summary="Refund a captured order, in full or in part",
)
async def refund_payment(call: Call[Refund]) -> RefundAnswer:
    order_id = call.id()

    def answer(requested: Transaction) -> RefundAnswer:
        return RefundAnswer(
            refund_id=UUID(requested.id),
            order_id=order_id,
            amount=requested.amount,
            status=requested.status,
            reason=requested.reason,
            created_at=requested.created_at,
        )

    requested = await refund(
        call.services.store,
        order_id=order_id,
        merchant_id=call.merchant_id,
        amount=call.body.amount,
        reason=call.body.reason,
        by=call.by,
        receipt=call.receipt_of(answer),
    )
    return answer(requested)


@route(
    "GET",
    "/v1/orders/{id}/refunds",
    auth="api_key",
    answers=list[RefundAnswer],
    errors=("not_found",),
    summary="List an order's refunds, newest first",
)
async def read_refunds(call: Call[None]) -> list[RefundAnswer]:
    rows = await list_refunds(call.services.store, order_id=call.id(), merchant_id=call.merchant_id)
    if rows is None:
        raise not_found()
    return [
        RefundAnswer(
            refund_id=row.id,
            order_id=row.order_id,
            amount=row.amount,
            status=TransactionStatus(row.status),
            reason=row.reason,
            created_at=row.created_at,
        )
        for row in rows
    ]
