"""`payloops audit order`: an order's trail, its state as of a version or time, and differences between two of them."""

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from uuid import UUID

from pydantic import TypeAdapter
from rich.console import Console
from rich.table import Table
from rich.text import Text

from payloops.audit.reading import facts_of, facts_up_to, merchant_of, reading
from payloops.events.event_store import EventReader
from payloops.events.money import money_text
from payloops.events.orders import Order, OrderStatus, ProcessorEventReceived
from payloops.events.stream import topic_of
from payloops.events.wakeups import Wakeups
from payloops.http.order_history import OrderAsOf, order_as_of
from payloops.http.orders import OrderEventAnswer, event_answer
from payloops.printing import WIDE, make_console, plain_table, print_json, print_plain_json, print_rows
from payloops.projections.order_events import OrderEvent, order_events
from payloops.projections.order_history import (
    Difference,
    differences,
    fold,
    order_state,
)
from payloops.projections.order_wording import (
    entity_of,
    event_details,
    event_money,
    event_references,
    exact_time,
    field_name,
    value_text,
)

WIDTHS = {
    "#": (3, 0),
    "When (UTC)": (26, 0),
    "What": (28, 0),
    "Amount": (14, 0),
    "Who": (0, 44),
    "Processor reference": (0, 35),
    "Correlation id": (0, 36),
}
"""Fixed width of each column, or its share of the rest: with 200 characters, an id fits into one line."""
FOLLOW_SECONDS = 0.25
"""Minimum pause between reads, however fast the log grows."""


async def show_trail(*, database_url: str, order_id: UUID, follow: bool, as_json: bool) -> None:
    """Print everything that happened to an order, oldest first.

    Args:
        follow: go on with new events as they happen. JSON then has one event per line.

    Raises:
        NotFound.
    """
    async with reading(database_url) as store:
        merchant_id = await merchant_of(store, order_id)
        if follow:
            with contextlib.suppress(asyncio.CancelledError):  # Ctrl-C is how it ends
                await _follow(store, database_url, order_id, merchant_id, as_json=as_json)
            return
        events = await _events(store, order_id, merchant_id)
    if as_json:
        print_json(TypeAdapter(list[OrderEventAnswer]), [event_answer(event) for event in events])
        return
    console = make_console()
    _print_heading(console, events, order_id=order_id, merchant_id=merchant_id)
    _print_events(console, events)


async def show_state(*, database_url: str, order_id: UUID, as_of: int | datetime, as_json: bool) -> None:
    """Print an order as it was at a version or time.

    Raises:
        NotFound: there is no such order or version, or the order did not exist at that time.
    """
    async with reading(database_url) as store:
        facts = await facts_of(store, order_id)
    order = fold(facts_up_to(facts, as_of))
    if as_json:
        print_json(TypeAdapter(OrderAsOf), order_as_of(order))
        return
    console = make_console()
    console.print(f"Order {order.id} at version {order.version}:\n")
    table = plain_table("Field", "Value")
    for name, value in order_state(order).items():
        if value is not None and not name.startswith("transactions."):
            table.add_row(field_name(name), value_text(name, value, order.currency))
    console.print(table)
    if order.transactions:
        console.print()
        _print_transactions(console, order)


async def show_differences(
    *, database_url: str, order_id: UUID, between: tuple[int | datetime, int | datetime], as_json: bool
) -> None:
    """Print the differences between two versions or times of an order.

    Raises:
        NotFound: there is no such order or version, or the order did not exist at that time.
    """
    async with reading(database_url) as store:
        facts = await facts_of(store, order_id)
    before, after = (fold(facts_up_to(facts, as_of)) for as_of in between)
    found = differences(order_state(before), order_state(after))
    if as_json:
        print_plain_json([asdict(each) | {"field": field_name(each.field)} for each in found])
        return
    console = make_console()
    console.print(f"Order {order_id}, from version {before.version} to version {after.version}:")
    console.print(differences_table(found, currency=after.currency) if found else "nothing changed")


async def _events(store: EventReader, order_id: UUID, merchant_id: UUID) -> list[OrderEvent]:
    events = await order_events(store, order_id=order_id, merchant_id=merchant_id)
    assert events is not None
    return events


async def _follow(
    store: EventReader, database_url: str, order_id: UUID, merchant_id: UUID, *, as_json: bool
) -> None:
    console = make_console()
    shown = 0
    wakeups = Wakeups(database_url)
    wakeups.start()
    try:
        async with contextlib.aclosing(wakeups.ticks()) as ticks:
            async for _ in ticks:
                events = await _events(store, order_id, merchant_id)
                if as_json:
                    for event in events[shown:]:
                        console.out(event_answer(event).model_dump_json(by_alias=True))
                else:
                    if shown == 0:
                        _print_heading(console, events, order_id=order_id, merchant_id=merchant_id)
                    _print_events(console, events, after=shown)
                shown = len(events)
                await asyncio.sleep(FOLLOW_SECONDS)
    finally:
        await wakeups.close()


def _print_heading(
    console: Console, events: Sequence[OrderEvent], *, order_id: UUID, merchant_id: UUID
) -> None:
    """Print a summary of the order, from its trail: unlike the fold, that may contain types of events unknown here."""
    first = events[0].data
    ours = [event.data for event in events if event.type != topic_of(ProcessorEventReceived)]
    now = {name: value for data in ours for name, value in data.items()}
    amounts = (first["amount"], now.get("amount_captured", 0), now.get("amount_refunded", 0))
    ordered, captured, refunded = (money_text(amount, first["currency"]) for amount in amounts)
    console.print(f"Order {order_id}, {first['external_id']} of merchant {merchant_id}:")
    status = now.get("status", OrderStatus.PENDING.value)
    console.print(f"{status}, {ordered} ordered, {captured} captured, {refunded} refunded\n")


def _print_events(console: Console, events: Sequence[OrderEvent], *, after: int = 0) -> None:
    """Print the events after a version, below those printed before."""
    currency = str(events[0].data["currency"])
    if len(events) == after:
        return
    if console.width >= WIDE:
        console.print(trail_table(events[after:], currency=currency, width=console.width, header=after == 0))
        return
    for event in events[after:]:
        console.print(event_block(event, currency=currency))


def trail_table(events: Sequence[OrderEvent], *, currency: str, width: int, header: bool = True) -> Table:
    """The trail as a table. Column widths depend only on the terminal's, so that consecutive tables are aligned."""
    table = plain_table(show_header=header)
    shares = sum(share for _, share in WIDTHS.values())
    rest = width - 2 * len(WIDTHS) - sum(fixed for fixed, _ in WIDTHS.values())
    for name, (fixed, share) in WIDTHS.items():
        table.add_column(name, width=fixed or rest * share // shares, overflow="fold")
    for event in events:
        what = Text(event.type, style="bold")
        what.append("".join(f"\n{line}" for line in event_details(event)), style="not bold")
        table.add_row(
            str(event.version),
            exact_time(event.occurred_at),
            what,
            event_money(event, currency),
            event.actor,
            "\n".join(event_references(event)),
            event.correlation_id,
        )
    return table


def event_block(event: OrderEvent, *, currency: str) -> Text:
    """An event in several lines, for narrow terminals."""
    head = (str(event.version), exact_time(event.occurred_at), event.type, event_money(event, currency))
    block = Text("  ".join(head).rstrip(), style="bold")
    lines = [", ".join(event_details(event)), ", ".join(event_references(event))]
    lines += [f"by {event.actor}", f"correlation {event.correlation_id}"]
    return block.append("".join(f"\n   {line}" for line in lines if line), style="not bold")


def differences_table(found: Sequence[Difference], *, currency: str) -> Table:
    """A row for each field that changed; those of a payment or transaction are below its number or id."""
    table = plain_table("Field", "Before", "After")
    shown = ""
    for each in found:
        entity, field = entity_of(field_name(each.field))
        if entity != shown:
            kind, _, id = entity.partition(" ")
            table.add_row(kind, "", id)  # where there is the most room
            shown = entity
        values = (value_text(each.field, value, currency) for value in (each.before, each.after))
        table.add_row(f"  {field}" if entity else field, *values)
    return table


def _print_transactions(console: Console, order: Order) -> None:
    """Print the order's transactions, oldest first."""
    cells = [
        (
            each.id,
            each.type.value,
            str(each.attempt),
            money_text(each.amount, order.currency),
            each.status.value,
            each.processor_transaction_id or "",
            ": ".join(part for part in (each.error_code, each.error_message) if part),
        )
        for each in order.transactions.values()
    ]
    columns = ("Transaction", "Type", "Attempt", "Amount", "Status", "Reference", "Error")
    print_rows(console, *columns, rows=cells)
