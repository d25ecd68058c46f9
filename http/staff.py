"""Support staff: they log in, and read every merchant's orders. `/api/staff`, by staff token.

Each view is recorded before the answer is sent (`endpoint`, `commands/staff_views.py`).
"""

from typing import Annotated, Any
from uuid import UUID

from pydantic import Field, StringConstraints

from payloops.commands.log_in_staff import log_in_staff as sign_in
from payloops.http.accounts import PresentedPassword
from payloops.http.fields import Currency, End, Moment, PresentedEmail, QueryAmount, QueryNumber
from payloops.http.order_history import (
    OrderAsOf,
    OrderExplanationAnswer,
    TrailQuery,
    read_explanation,
    read_trail,
)
from payloops.http.orders import OrderAnswer, OrderEventAnswer, order_answer
from payloops.http.payments import TransactionAnswer
from payloops.http.problems import not_found
from payloops.http.routing import AnswerModel, Call, RequestModel, route
from payloops.projections.orders import OrderRow, get_order
from payloops.projections.staff_orders import StaffSearch, owner_of_order, search_all_orders
from payloops.projections.transactions import list_transactions


class StaffLogin(RequestModel):
    email: PresentedEmail
    password: PresentedPassword


class StaffAnswer(AnswerModel):
    id: UUID
    name: str
    email: str


class StaffSessionAnswer(AnswerModel):
    token: str
    staff: StaffAnswer


class StaffOrderAnswer(OrderAnswer):
    merchant_id: UUID


class StaffOrderQuery(RequestModel):
    q: Annotated[
        str | None,
        StringConstraints(min_length=1, max_length=255),
        Field(
            description="An order's id or externalId, the customer's email, a reference at a processor, or a"
            " correlation id; whole"
        ),
    ] = None
    merchant_id: UUID | None = None
    amount: QueryAmount | None = None
    currency: Currency | None = None
    from_: Annotated[Moment | None, Field(alias="from", description="Created at or after this time")] = None
    to: Annotated[End | None, Field(description="Created before this time")] = None
    page: Annotated[QueryNumber, Field(ge=1, le=1_000)] = 1
    limit: Annotated[QueryNumber, Field(ge=1, le=100)] = 20


class StaffOrderList(AnswerModel):
    data: list[StaffOrderAnswer]
    page: int
    limit: int
    has_more: bool


@route(
    "POST",
    "/api/staff/login",
    auth=None,
    body=StaffLogin,
    answers=StaffSessionAnswer,
    errors=("invalid_credentials",),
    limits=("staff_login",),
    summary="Log in as support staff",
)
async def log_in_staff(call: Call[StaffLogin]) -> StaffSessionAnswer:
    member = await sign_in(
        call.services.store.pool,
        email=call.body.email,
        password=call.body.password,
        passwords=call.services.passwords,
    )
    return StaffSessionAnswer(
        token=call.services.staff_tokens.issue(member, now=call.by.at),
        staff=StaffAnswer(id=member.id, name=member.name, email=member.email),
    )


@route(
    "GET",
    "/api/staff/orders",
    auth="staff",
    long=True,
    query=StaffOrderQuery,
    answers=StaffOrderList,
    summary="Find orders of all merchants, newest first",
)
async def read_staff_orders(call: Call[None, StaffOrderQuery]) -> StaffOrderList:
    query = call.query
    call.viewed_merchant = query.merchant_id
    rows, has_more = await search_all_orders(
        call.services.store,
        StaffSearch(
            text=query.q,
            merchant_id=query.merchant_id,
            amount=query.amount,
            currency=query.currency,
            created_from=query.from_,
            created_to=query.to,
        ),
        page=query.page,
        limit=query.limit,
    )
    return StaffOrderList(
        data=[staff_order_answer(row) for row in rows], page=query.page, limit=query.limit, has_more=has_more
    )


@route(
    "GET",
    "/api/staff/orders/{id}",
    auth="staff",
    answers=StaffOrderAnswer,
    errors=("not_found",),
    summary="Read any merchant's order",
)
async def read_staff_order(call: Call[None]) -> StaffOrderAnswer:
    owner = await read_owner(call)
    row = await get_order(call.services.store, order_id=call.id(), merchant_id=owner)
    if row is None:
        raise not_found()
    return staff_order_answer(row)


@route(
    "GET",
    "/api/staff/orders/{id}/transactions",
    auth="staff",
    answers=list[TransactionAnswer],
    errors=("not_found",),
    summary="List the transactions of any merchant's order, newest first",
)
async def read_staff_transactions(call: Call[None]) -> list[TransactionAnswer]:
    owner = await read_owner(call)
    rows = await list_transactions(call.services.store, order_id=call.id(), merchant_id=owner)
    if rows is None:
        raise not_found()
    return [TransactionAnswer.model_validate(row) for row in rows]


@route(
    "GET",
    "/api/staff/orders/{id}/events",
    auth="staff",
    query=TrailQuery,
    answers=list[OrderEventAnswer] | OrderAsOf,
    errors=("not_found",),
    summary="Read the audit trail of any merchant's order, oldest first; with asOf the order as it was then",
)
async def read_staff_order_events(call: Call[None, TrailQuery]) -> list[OrderEventAnswer] | OrderAsOf:
    owner = await read_owner(call)
    return await read_trail(
        call.services.store, order_id=call.id(), merchant_id=owner, as_of=call.query.as_of
    )


@route(
    "GET",
    "/api/staff/orders/{id}/why",
    auth="staff",
    answers=OrderExplanationAnswer,
    errors=("not_found",),
    summary="Explain how any merchant's order got into its current state, and what is pending",
)
async def read_staff_order_explanation(call: Call[None]) -> OrderExplanationAnswer:
    owner = await read_owner(call)
    return await read_explanation(call.services.store, order_id=call.id(), merchant_id=owner, now=call.by.at)


async def read_owner(call: Call[None, Any]) -> UUID:
    """The merchant whose order the path names."""
    call.viewed_order = call.id()  # recorded even if there is no such order
    owner = await owner_of_order(call.services.store, order_id=call.viewed_order)
    if owner is None:
        raise not_found()
    call.viewed_merchant = owner
    return owner


def staff_order_answer(row: OrderRow) -> StaffOrderAnswer:
    return StaffOrderAnswer(**dict(order_answer(row)), merchant_id=row.merchant_id)
