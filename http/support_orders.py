"""Orders of all merchants, for support staff in a browser. `/support`."""

from datetime import date, timedelta
from typing import Annotated
from uuid import UUID

from pydantic import Field, StringConstraints

from payloops.commands.merchants import merchant_names
from payloops.commands.processor_events import find_processor_event, list_processor_events
from payloops.commands.webhooks import list_attempts_of, list_webhooks_of_order
from payloops.events.errors import StreamUnreadable
from payloops.events.event_store import EventReader
from payloops.events.money import parse_money
from payloops.events.stream import StreamEvent
from payloops.events.timestamps import midnight
from payloops.http.fields import Day, LastDay, QueryNumber, WrittenAmount
from payloops.http.problems import FieldError, Problem, not_found, validation_error
from payloops.http.routing import Call, Nothing, page
from payloops.http.staff import read_owner
from payloops.http.support import SupportQuery, support_page
from payloops.http.support_timeline import moment_of, timeline_entry, workflows_of
from payloops.projections.order_events import OrderEvent, order_events
from payloops.projections.order_explanation import explain_order
from payloops.projections.order_history import fold, last_step, order_facts
from payloops.projections.orders import row_from_order
from payloops.projections.staff_orders import StaffSearch, search_all_orders
from payloops.projections.transactions import rows_from_order

DAY = timedelta(days=1)
PER_PAGE = 25
MESSAGES = 100
"""Maximum number of processor messages on an order's page, the newest ones."""


class SupportSearch(SupportQuery):
    q: Annotated[str | None, StringConstraints(strip_whitespace=True, max_length=255)] = None
    merchant_id: UUID | None = None
    amount: WrittenAmount | None = None
    from_: Annotated[Day | None, Field(alias="from", description="The first day, in UTC")] = None
    to: Annotated[LastDay | None, Field(description="The last day, in UTC")] = None
    page: Annotated[QueryNumber, Field(ge=1, le=1_000)] = 1


@page(
    "GET",
    "/support",
    auth="staff_session",
    long=True,
    query=SupportSearch,
    summary="Find orders of all merchants",
)
async def read_support_orders(call: Call[None, SupportSearch]) -> bytes:
    query = call.query
    call.viewed_merchant = query.merchant_id
    minor, currency = (None, None) if query.amount is None else parse_money(query.amount)
    search = StaffSearch(
        text=query.q,
        merchant_id=query.merchant_id,
        amount=minor,
        currency=currency,
        created_from=None if query.from_ is None else midnight(query.from_),
        created_to=None if query.to is None else midnight(min(query.to, date.max - DAY) + DAY),
    )
    rows, has_more = await search_all_orders(call.services.store, search, page=query.page, limit=PER_PAGE)
    names = await merchant_names(call.services.store.pool, merchant_ids={row.merchant_id for row in rows})
    asked = query.model_dump(mode="json", by_alias=True, exclude_none=True, exclude={"page"})
    return support_page(
        call, "support_orders.html", query=query, asked=asked, rows=rows, has_more=has_more, merchants=names
    )


class MomentQuery(SupportQuery):
    version: Annotated[
        QueryNumber | None,
        Field(ge=1, le=999_999_999, description="Show the order as it was after its event with this version"),
    ] = None


@page(
    "GET",
    "/support/orders/{id}",
    auth="staff_session",
    query=MomentQuery,
    errors=("not_found",),
    summary="Show everything about any merchant's order, as it is and as it was",
)
async def read_support_order(call: Call[None, MomentQuery]) -> bytes:
    store = call.services.store
    owner = await read_owner(call)
    facts, events = await _history(store, order_id=call.id(), merchant_id=owner)
    order = fold(facts)
    timeline = [timeline_entry(event, currency=order.currency) for event in events]
    version = call.query.version or len(timeline)
    if version > len(timeline):
        raise validation_error(FieldError("version", "The order has no such version"))
    messages, _ = await list_processor_events(store.pool, order_id=order.id, limit=MESSAGES)
    webhooks = await list_webhooks_of_order(store.pool, order_id=order.id)
    return support_page(
        call,
        "support_order.html",
        order=row_from_order(order),
        merchants=await merchant_names(store.pool, merchant_ids=[owner]),
        explanation=explain_order(facts, now=call.by.at),
        timeline=timeline,
        moment=moment_of(last_step(facts[:version]), timeline[version - 1]),
        transactions=rows_from_order(order),
        messages=messages,
        webhooks=webhooks,
        attempts=await list_attempts_of(store.pool, webhook_ids=[each.id for each in webhooks]),
        workflows=list(workflows_of(facts)),
        workflow_url=call.services.workflow_url,
    )


async def _history(
    store: EventReader, *, order_id: UUID, merchant_id: UUID
) -> tuple[list[StreamEvent], list[OrderEvent]]:
    """The order's events: as facts, and as entries of its audit trail."""
    try:
        facts = await order_facts(store, order_id=order_id, merchant_id=merchant_id)
        events = await order_events(store, order_id=order_id, merchant_id=merchant_id)
    except StreamUnreadable:
        # During a deployment, a process of the newer version can read them.
        raise Problem(503, "unavailable", "The order has events that this version cannot read") from None
    if facts is None or events is None:
        raise not_found()
    return facts, events[: len(facts)]


@page(
    "GET",
    "/support/processor-events/{id}",
    auth="staff_session",
    query=Nothing,
    errors=("not_found",),
    summary="Show an event received from a processor, with its body",
)
async def read_support_processor_event(call: Call[None]) -> bytes:
    pool = call.services.store.pool
    found = await find_processor_event(pool, id=call.id())
    if found is None:
        raise not_found()
    event, body = found
    call.viewed_merchant, call.viewed_order = event.merchant_id, event.order_id
    return support_page(
        call,
        "support_processor_event.html",
        event=event,
        body=body,
        merchants=await merchant_names(pool, merchant_ids=[event.merchant_id]),
    )
