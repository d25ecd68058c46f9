"""Events received from processors, for support staff, including those that had no effect. `/api/staff`."""

from typing import Annotated
from uuid import UUID

from pydantic import Field

from payloops.commands.processor_events import (
    Effect,
    ProcessorEventRow,
    find_processor_event,
    list_processor_events,
)
from payloops.commands.processors import Processor
from payloops.http.fields import QueryNumber, Timestamp
from payloops.http.problems import not_found
from payloops.http.routing import AnswerModel, Call, RequestModel, route


class ProcessorEventQuery(RequestModel):
    effect: Annotated[
        Effect | None,
        Field(
            description="`unhandled`: events of this type are ignored; `unknown_order`, `unmatched`: it fits no order,"
            " or none of the order's payments; `contradiction`: it contradicts what is on record"
        ),
    ] = None
    processor: Processor | None = None
    order_id: UUID | None = None
    merchant_id: UUID | None = None
    page: Annotated[QueryNumber, Field(ge=1, le=1_000)] = 1
    limit: Annotated[QueryNumber, Field(ge=1, le=100)] = 20


class ProcessorEventAnswer(AnswerModel):
    """`eventId` is the processor's; `deliveries` is how often it was delivered."""

    id: UUID
    merchant_id: UUID
    processor: str
    event_id: str
    type: str
    effect: Effect
    order_id: UUID | None
    deliveries: int
    received_at: Timestamp


class WholeProcessorEventAnswer(ProcessorEventAnswer):
    """`body`: as it arrived, without card numbers and secrets; `[erased]` after the customer's data was erased."""

    body: str


class ProcessorEventList(AnswerModel):
    data: list[ProcessorEventAnswer]
    page: int
    limit: int
    has_more: bool


@route(
    "GET",
    "/api/staff/processor-events",
    auth="staff",
    long=True,
    query=ProcessorEventQuery,
    answers=ProcessorEventList,
    summary="List events received from processors for all merchants, newest first",
)
async def read_processor_events(call: Call[None, ProcessorEventQuery]) -> ProcessorEventList:
    query = call.query
    call.viewed_merchant, call.viewed_order = query.merchant_id, query.order_id
    rows, has_more = await list_processor_events(call.services.store.pool, **query.model_dump())
    return ProcessorEventList(
        data=[ProcessorEventAnswer.model_validate(row) for row in rows],
        page=query.page,
        limit=query.limit,
        has_more=has_more,
    )


@route(
    "GET",
    "/api/staff/processor-events/{id}",
    auth="staff",
    answers=WholeProcessorEventAnswer,
    errors=("not_found",),
    summary="Read an event received from a processor, with its body",
)
async def read_processor_event(call: Call[None]) -> WholeProcessorEventAnswer:
    found = await find_processor_event(call.services.store.pool, id=call.id())
    if found is None:
        raise not_found()
    call.viewed_merchant, call.viewed_order = found[0].merchant_id, found[0].order_id
    return whole_processor_event_answer(*found)


def whole_processor_event_answer(row: ProcessorEventRow, body: str) -> WholeProcessorEventAnswer:
    return WholeProcessorEventAnswer(**dict(ProcessorEventAnswer.model_validate(row)), body=body)
