"""Checkout sessions: merchants create them, send customers to their pages, and read their status. `/v1`, by API key."""

from typing import Annotated, Any
from uuid import UUID

from pydantic import Field, StringConstraints

from payloops.commands.create_checkout_session import create_checkout_session as create
from payloops.commands.create_checkout_session import new_session_id
from payloops.commands.settle_checkout_session import settle_checkout_session
from payloops.events.checkout_sessions import CheckoutSession, LineItem, SessionStatus
from payloops.http.fields import Amount, Currency, Email, Identifier, Metadata, Timestamp, Url
from payloops.http.orders import DEFAULT_CURRENCY
from payloops.http.routing import AnswerModel, Call, RequestModel, route
from payloops.http.services import Services

MAX_LINE_ITEMS = 100
MAX_QUANTITY = 999_999


class NewLineItem(RequestModel):
    """`amount` is the price of one item; the items' total may differ from the session's amount."""

    name: Annotated[
        str,
        StringConstraints(strip_whitespace=True, min_length=1, max_length=255),
        Field(examples=["Coffee"]),
    ]
    amount: Amount
    quantity: Annotated[int, Field(ge=1, le=MAX_QUANTITY, examples=[2])]


class NewCheckoutSession(RequestModel):
    amount: Amount
    currency: Currency | None = None
    success_url: Url
    cancel_url: Url
    customer_id: Annotated[Identifier, Field(examples=["customer-42"])] | None = None
    customer_email: Email | None = None
    metadata: Metadata | None = None
    line_items: Annotated[list[NewLineItem], Field(max_length=MAX_LINE_ITEMS)] | None = None


class NewSessionAnswer(AnswerModel):
    """What a merchant needs to send a customer to checkout: `url`, valid for 30 minutes."""

    id: UUID
    url: Annotated[str, Field(examples=["https://pay.example/checkout/019ab3c8-8f4c-7cc1-b7c1-1f0a5d9e2b64"])]
    expires_at: Timestamp


class LineItemAnswer(AnswerModel):
    name: Annotated[str, Field(examples=["Coffee"])]
    amount: int
    quantity: int


class CheckoutSessionAnswer(NewSessionAnswer):
    amount: Annotated[int, Field(examples=[4999])]
    currency: Annotated[str, Field(examples=["USD"])]
    status: Annotated[SessionStatus, Field(examples=["completed"])]
    order_id: UUID | None
    customer_id: Annotated[str | None, Field(examples=["customer-42"])]
    customer_email: Annotated[str | None, Field(examples=["ada@example.com"])]
    metadata: Annotated[dict[str, Any], Field(examples=[{"cart": "7"}])]
    line_items: list[LineItemAnswer]
    completed_at: Timestamp | None
    created_at: Timestamp


def session_url(services: Services, session_id: UUID) -> str:
    """The URL of the session's checkout page."""
    return f"{services.checkout_base_url.rstrip('/')}/checkout/{session_id}"


@route(
    "POST",
    "/v1/checkout/sessions",
    auth="api_key",
    body=NewCheckoutSession,
    answers=NewSessionAnswer,
    status=201,
    idempotent=True,
    summary="Create a checkout session, and send the customer to its url",
)
async def create_checkout_session(call: Call[NewCheckoutSession]) -> NewSessionAnswer:
    def answer(session: CheckoutSession) -> NewSessionAnswer:
        url = session_url(call.services, session.id)
        return NewSessionAnswer(id=session.id, url=url, expires_at=session.expires_at)

    body = call.body
    session = await create(
        call.services.store,
        session_id=new_session_id(at=call.by.at),
        merchant_id=call.merchant_id,
        amount=body.amount,
        currency=body.currency or DEFAULT_CURRENCY,
        success_url=body.success_url,
        cancel_url=body.cancel_url,
        customer_id=body.customer_id,
        customer_email=body.customer_email,
        metadata=body.metadata,
        line_items=[
            LineItem(name=item.name, amount=item.amount, quantity=item.quantity)
            for item in body.line_items or ()
        ],
        by=call.by,
        receipt=call.receipt_of(answer),
    )
    return answer(session)


@route(
    "GET",
    "/v1/checkout/sessions/{id}",
    auth="api_key",
    answers=CheckoutSessionAnswer,
    summary="Read a checkout session: completed once its order is paid",
)
async def read_checkout_session(call: Call[None]) -> CheckoutSessionAnswer:
    session, _ = await settle_checkout_session(
        call.services.store, session_id=call.id(), merchant_id=call.merchant_id, by=call.by
    )
    return CheckoutSessionAnswer(
        id=session.id,
        url=session_url(call.services, session.id),
        amount=session.amount,
        currency=session.currency,
        status=session.status,
        order_id=UUID(session.order_id) if session.order_id is not None else None,
        customer_id=session.customer_id,
        customer_email=session.customer_email,
        metadata=session.metadata,
        line_items=[LineItemAnswer(**item) for item in session.line_items],
        expires_at=session.expires_at,
        completed_at=session.completed_at,
        created_at=session.created_on,
    )
