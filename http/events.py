"""The events of all of a merchant's orders, oldest first, for catching up after missed webhooks. `/v1`, by API key."""

import re
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import AfterValidator, BeforeValidator, Field

from payloops.events.event_types import fact_types
from payloops.http.fields import QueryNumber
from payloops.http.orders import OrderEventAnswer, event_answer
from payloops.http.routing import AnswerModel, Call, RequestModel, route
from payloops.projections.order_events import merchant_events

_POSITION_FORM = re.compile("[0-9]{1,18}")


def _position(text: Any) -> Any:
    if isinstance(text, str) and _POSITION_FORM.fullmatch(text) is None:
        raise ValueError("Must be the id of an event")
    return text


Position = Annotated[
    int,
    BeforeValidator(_position),
    Field(ge=0, le=10**18 - 1, description="The `id` of the last event already received; 0 for all"),
]
EVENT_TYPES = sorted(topic for topic in fact_types() if topic.startswith(("order.", "payment.", "refund.")))


def _event_type(name: str) -> str:
    # Not an empty list, because webhooks have other names for some events, which are easily confused with these.
    if name not in EVENT_TYPES:
        raise ValueError(f"Must be one of {', '.join(EVENT_TYPES)}")
    return name


EventType = Annotated[
    str,
    AfterValidator(_event_type),
    Field(examples=["payment.captured"], json_schema_extra={"enum": EVENT_TYPES}),
]


class EventQuery(RequestModel):
    after: Position = 0
    limit: Annotated[QueryNumber, Field(ge=1, le=100)] = 10
    type: EventType | None = None


class MerchantEventAnswer(OrderEventAnswer):
    order_id: UUID


class EventList(AnswerModel):
    object: Literal["list"] = "list"
    data: list[MerchantEventAnswer]
    has_more: bool


@route(
    "GET",
    "/v1/events",
    auth="api_key",
    query=EventQuery,
    answers=EventList,
    summary="List the events of all orders, oldest first, after the last one known",
)
async def read_events(call: Call[None, EventQuery]) -> EventList:
    found, has_more = await merchant_events(
        call.services.store,
        merchant_id=call.merchant_id,
        after=call.query.after,
        limit=call.query.limit,
        type=call.query.type,
    )
    return EventList(
        data=[
            MerchantEventAnswer(**event_answer(each.event).model_dump(by_alias=False), order_id=each.order_id)
            for each in found
        ],
        has_more=has_more,
    )
