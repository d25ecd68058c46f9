"""Orders as the dashboard shows them: searched, read, and as they were. `/api/orders`, by dashboard token."""

from typing import Annotated, Any

from pydantic import Field, StringConstraints

from payloops.commands.processors import Processor
from payloops.events.orders import OrderStatus
from payloops.http.fields import Currency, End, Moment
from payloops.http.order_history import OrderAsOf, TrailQuery, read_trail
from payloops.http.orders import OrderAnswer, OrderEventAnswer, plain_order
from payloops.http.pagination import PageQuery, Pagination, pagination
from payloops.http.payments import TransactionAnswer
from payloops.http.problems import not_found
from payloops.http.routing import AnswerModel, Call, route
from payloops.projections.order_search import search_orders
from payloops.projections.orders import get_order
from payloops.projections.transactions import list_transactions


class OrderSearch(PageQuery):
    status: OrderStatus | None = None
    processor: Processor | None = None
    currency: Currency | None = None
    q: Annotated[
        str | None,
        StringConstraints(strip_whitespace=True, min_length=1, max_length=255),
        Field(
            description="A part of externalId or customerEmail, or the beginning or end of id; case does not matter"
        ),
    ] = None
    from_: Annotated[Moment | None, Field(alias="from", description="Created at or after this time")] = None
    to: Annotated[End | None, Field(description="Created before this time")] = None


class OrderPage(AnswerModel):
    data: list[OrderAnswer]
    pagination: Pagination


@route(
    "GET",
    "/api/orders",
    auth="bearer",
    long=True,
    query=OrderSearch,
    answers=OrderPage,
    summary="List and search orders, newest first: q matches part of externalId or customerEmail, or an end of the id",
)
async def read_dashboard_orders(call: Call[None, OrderSearch]) -> dict[str, Any]:
    query = call.query
    rows, total = await search_orders(
        call.services.store,
        merchant_id=call.merchant_id,
        page=query.page,
        limit=query.limit,
        status=query.status,
        processor=query.processor,
        currency=query.currency,
        text=query.q,
        created_from=query.from_,
        created_to=query.to,
    )
    data = [plain_order(row) for row in rows]
    return {"data": data, "pagination": pagination(query, total=total).model_dump()}


@route(
    "GET",
    "/api/orders/{id}",
    auth="bearer",
    answers=OrderAnswer,
    errors=("not_found",),
    summary="Read an order",
)
async def read_dashboard_order(call: Call[None]) -> dict[str, Any]:
    row = await get_order(call.services.store, order_id=call.id(), merchant_id=call.merchant_id)
    if row is None:
        raise not_found()
    return plain_order(row)


@route(
    "GET",
    "/api/orders/{id}/transactions",
    auth="bearer",
    answers=list[TransactionAnswer],
    errors=("not_found",),
    summary="List an order's transactions, newest first",
)
async def read_dashboard_transactions(call: Call[None]) -> list[TransactionAnswer]:
    rows = await list_transactions(call.services.store, order_id=call.id(), merchant_id=call.merchant_id)
    if rows is None:
        raise not_found()
    return [TransactionAnswer.model_validate(row) for row in rows]


@route(
    "GET",
    "/api/orders/{id}/events",
    auth="bearer",
    query=TrailQuery,
    answers=list[OrderEventAnswer] | OrderAsOf,
    errors=("not_found",),
    summary="Read an order's audit trail, oldest first; with asOf the order itself, as it was then",
)
async def read_dashboard_order_events(call: Call[None, TrailQuery]) -> list[OrderEventAnswer] | OrderAsOf:
    return await read_trail(
        call.services.store,
        order_id=call.id(),
        merchant_id=call.merchant_id,
        as_of=call.query.as_of,
    )
