"""Orders: create, list, read, and the audit trail. `/v1`, by API key."""

from operator import attrgetter
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import Field, ValidationInfo, field_validator
from pydantic.alias_generators import to_camel
from uuid_utils.compat import uuid7

from payloops.commands.create_order import create_order as create
from payloops.events.orders import Order, OrderCreated, OrderStatus
from payloops.events.timestamps import plain_timestamp
from payloops.http.fields import (
    Amount,
    Currency,
    Email,
    End,
    Identifier,
    Metadata,
    Moment,
    QueryNumber,
    Text,
    Timestamp,
    Url,
)
from payloops.http.problems import FieldError, not_found
from payloops.http.routing import AnswerModel, Call, RequestModel, route
from payloops.projections.order_events import OrderEvent, order_events
from payloops.projections.order_list import UnknownCursor, list_orders
from payloops.projections.orders import OrderRow, get_order, row_from_order

DEFAULT_CURRENCY = "USD"
PENDING = OrderStatus.PENDING.value


class NewOrder(RequestModel):
    amount: Amount
    currency: Currency | None = None
    external_id: Annotated[Identifier, Field(examples=["cart-7"])] | None = None
    customer_id: Annotated[Identifier, Field(examples=["customer-42"])] | None = None
    customer_email: Email | None = None
    description: Annotated[Text, Field(examples=["Two tickets"])] | None = None
    metadata: Metadata | None = None
    return_url: Url | None = None
    cancel_url: Url | None = None


class LastErrorAnswer(AnswerModel):
    code: Annotated[str | None, Field(examples=["card_declined"])]
    message: Annotated[str | None, Field(examples=["The card was declined"])]


class OrderAnswer(AnswerModel):
    id: UUID
    external_id: Annotated[str, Field(examples=["cart-7"])]
    amount: Annotated[int, Field(examples=[4999])]
    currency: Annotated[str, Field(examples=["USD"])]
    status: Annotated[OrderStatus, Field(examples=["captured"])]
    processor: Annotated[str | None, Field(examples=["stripe"])]
    processor_order_id: Annotated[str | None, Field(examples=["pi_3Q"])]
    metadata: Annotated[dict[str, Any], Field(examples=[{"cart": "7"}])]
    customer_id: Annotated[str | None, Field(examples=["customer-42"])]
    customer_email: Annotated[str | None, Field(examples=["ada@example.com"])]
    description: Annotated[str | None, Field(examples=["Two tickets"])]
    return_url: Annotated[str | None, Field(examples=["https://shop.example/return"])]
    cancel_url: Annotated[str | None, Field(examples=["https://shop.example/cancel"])]
    amount_captured: Annotated[int, Field(examples=[4999])]
    amount_refunded: Annotated[int, Field(examples=[0])]
    attempt: int
    last_error: Annotated[LastErrorAnswer | None, Field(examples=[None])]
    created_at: Timestamp
    updated_at: Timestamp


_COPIED = tuple(
    each for each in OrderAnswer.model_fields if each not in {"last_error", "created_at", "updated_at"}
)
"""Fields that have the same value in the row and in the response."""
_NAMES = tuple(map(to_camel, _COPIED))
_values = attrgetter(*_COPIED)


def order_answer(row: OrderRow) -> OrderAnswer:
    """The response for an order."""
    return OrderAnswer(
        **dict(zip(_COPIED, _values(row), strict=True)),
        last_error=row.last_error,
        created_at=row.created_at,
        updated_at=row.updated_at,
    )


def plain_order(row: OrderRow) -> dict[str, Any]:
    """As `order_answer`, but as a dict that serializes to the same, in a fifth of the time."""
    plain = dict(zip(_NAMES, _values(row), strict=True))
    plain["lastError"] = row.last_error
    plain["createdAt"] = plain_timestamp(row.created_at)
    plain["updatedAt"] = plain_timestamp(row.updated_at)
    return plain


def answer_from(order: Order) -> dict[str, Any]:
    """As `plain_order`, from the aggregate, right after a command."""
    return plain_order(row_from_order(order))


def created_answer(created: OrderCreated) -> dict[str, Any]:
    """As `plain_order`, for an order that was just created."""
    at = plain_timestamp(created.timestamp)
    return {
        "id": created.originator_id,
        "externalId": created.external_id,
        "amount": created.amount,
        "currency": created.currency,
        "status": PENDING,
        "processor": None,
        "processorOrderId": None,
        "metadata": created.metadata,
        "customerId": created.customer_id,
        "customerEmail": created.customer_email,
        "description": created.description,
        "returnUrl": created.return_url,
        "cancelUrl": created.cancel_url,
        "amountCaptured": 0,
        "amountRefunded": 0,
        "attempt": 0,
        "lastError": None,
        "createdAt": at,
        "updatedAt": at,
    }


@route(
    "POST",
    "/v1/orders",
    auth="api_key",
    body=NewOrder,
    answers=OrderAnswer,
    status=201,
    idempotent=True,
    summary="Create an order",
)
async def create_order(call: Call[NewOrder]) -> dict[str, Any]:
    body = call.body
    created = await create(
        call.services.store,
        order_id=uuid7(),
        merchant_id=call.merchant_id,
        amount=body.amount,
        currency=body.currency or DEFAULT_CURRENCY,
        external_id=body.external_id,
        customer_id=body.customer_id,
        customer_email=body.customer_email,
        description=body.description,
        metadata=body.metadata,
        return_url=body.return_url,
        cancel_url=body.cancel_url,
        by=call.by,
        receipt=call.receipt_of(created_answer),
    )
    return created_answer(created)


class OrderQuery(RequestModel):
    limit: Annotated[QueryNumber, Field(ge=1, le=100)] = 10
    starting_after: Annotated[UUID | None, Field(alias="starting_after")] = None
    ending_before: Annotated[UUID | None, Field(alias="ending_before")] = None
    status: OrderStatus | None = None
    currency: Currency | None = None
    external_id: Identifier | None = None
    created_from: Moment | None = None
    created_to: End | None = None

    @field_validator("ending_before")
    @classmethod
    def _one_direction(cls, ending_before: UUID | None, info: ValidationInfo) -> UUID | None:
        if ending_before is not None and info.data.get("starting_after") is not None:
            raise ValueError("Give starting_after or ending_before, not both")
        return ending_before


class OrderList(AnswerModel):
    object: Literal["list"] = "list"
    url: Literal["/v1/orders"] = "/v1/orders"
    data: list[OrderAnswer]
    has_more: bool


@route(
    "GET",
    "/v1/orders",
    auth="api_key",
    query=OrderQuery,
    answers=OrderList,
    errors=("not_found",),
    summary="List orders, newest first; a cursor that is not an order of the caller is answered with 404",
)
async def read_orders(call: Call[None, OrderQuery]) -> dict[str, Any]:
    query = call.query
    try:
        rows, has_more = await list_orders(
            call.services.store,
            merchant_id=call.merchant_id,
            limit=query.limit,
            starting_after=query.starting_after,
            ending_before=query.ending_before,
            status=query.status,
            currency=query.currency,
            external_id=query.external_id,
            created_from=query.created_from,
            created_to=query.created_to,
        )
    except UnknownCursor:
        cursor = "ending_before" if query.starting_after is None else "starting_after"
        raise not_found(FieldError(cursor, "Must be the id of an order")) from None
    data = [plain_order(row) for row in rows]
    return {"object": "list", "url": "/v1/orders", "data": data, "hasMore": has_more}


@route("GET", "/v1/orders/{id}", auth="api_key", answers=OrderAnswer, summary="Read an order")
async def read_order(call: Call[None]) -> dict[str, Any]:
    row = await get_order(call.services.store, order_id=call.id(), merchant_id=call.merchant_id)
    if row is None:
        raise not_found()
    return plain_order(row)


class OrderEventAnswer(AnswerModel):
    id: int
    version: int
    type: Annotated[str, Field(examples=["payment.captured"])]
    occurred_at: Timestamp
    recorded_at: Timestamp
    actor: Annotated[str, Field(examples=["workflow:payment-019ab3c8-8f4c-7cc1-b7c1-1f0a5d9e2b64"])]
    correlation_id: Annotated[str, Field(examples=["checkout-7"])]
    causation_id: Annotated[str | None, Field(examples=["pay-1"])]
    data: Annotated[dict[str, Any], Field(examples=[{"attempt": 1, "amount": 4999}])]


def event_answer(event: OrderEvent) -> OrderEventAnswer:
    """The response for an event of the audit trail."""
    return OrderEventAnswer(
        id=event.position,
        version=event.version,
        type=event.type,
        occurred_at=event.occurred_at,
        recorded_at=event.recorded_at,
        actor=event.actor,
        correlation_id=event.correlation_id,
        causation_id=event.causation_id,
        data={to_camel(name): value for name, value in event.data.items()},
    )


@route(
    "GET",
    "/v1/orders/{id}/events",
    auth="api_key",
    answers=list[OrderEventAnswer],
    summary="Read an order's audit trail, oldest first",
)
async def read_order_events(call: Call[None]) -> list[OrderEventAnswer]:
    events = await order_events(call.services.store, order_id=call.id(), merchant_id=call.merchant_id)
    if events is None:
        raise not_found()
    return [event_answer(event) for event in events]
