"""`payloops webhooks`: shows events received from processors, and their effects."""

from uuid import UUID

from pydantic import TypeAdapter

from payloops.commands.processor_events import find_processor_event, list_processor_events
from payloops.events.pools import command_pool
from payloops.http.staff_processor_events import (
    ProcessorEventAnswer,
    WholeProcessorEventAnswer,
    whole_processor_event_answer,
)
from payloops.printing import make_console, plain_table, print_json, print_rows
from payloops.projections.order_wording import exact_time


class NoSuchEvent(Exception):
    """There is no processor event with this id."""

    def __init__(self, id: UUID) -> None:
        super().__init__(f"no event {id}: `payloops webhooks received` lists the events")


async def show_received(
    *,
    database_url: str,
    effect: str | None,
    processor: str | None,
    order_id: UUID | None,
    merchant_id: UUID | None,
    limit: int,
    as_json: bool,
) -> None:
    """Print events, newest first."""
    async with command_pool(database_url, application_name="payloops webhooks") as pool:
        rows, more = await list_processor_events(
            pool,
            effect=effect,
            processor=processor,
            order_id=order_id,
            merchant_id=merchant_id,
            limit=limit,
        )
    answers = [ProcessorEventAnswer.model_validate(row) for row in rows]
    if as_json:
        print_json(TypeAdapter(list[ProcessorEventAnswer]), answers)
        return
    cells = [
        (
            exact_time(each.received_at),
            each.processor,
            each.type,
            each.effect,
            str(each.deliveries),
            str(each.order_id or "-"),
            str(each.merchant_id),
            str(each.id),
        )
        for each in answers
    ]
    console = make_console()
    if cells:
        columns = ("Received (UTC)", "Processor", "Type", "Effect", "Times", "Order", "Merchant", "Id")
        print_rows(console, *columns, rows=cells)
    else:
        console.print("none")
    if more:
        console.print(f"and more: --limit {limit * 10}")


async def show_event(*, database_url: str, id: UUID, as_json: bool) -> None:
    """Print an event, its body last.

    Raises:
        NoSuchEvent: see there.
    """
    async with command_pool(database_url, application_name="payloops webhooks") as pool:
        found = await find_processor_event(pool, id=id)
    if found is None:
        raise NoSuchEvent(id)
    answer = whole_processor_event_answer(*found)
    if as_json:
        print_json(TypeAdapter(WholeProcessorEventAnswer), answer)
        return
    console = make_console()
    table = plain_table("", "", show_header=False)
    for name, value in answer.model_dump(mode="json", by_alias=True, exclude={"body"}).items():
        table.add_row(name, "-" if value is None else str(value))
    console.print(table)
    console.print(answer.body, soft_wrap=True)
