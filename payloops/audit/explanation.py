"""`payloops audit why` and `payloops audit replay`: how an order got into its current state."""

from dataclasses import asdict
from datetime import datetime
from typing import Any
from uuid import UUID

from pydantic import TypeAdapter
from rich.table import Table

from payloops.audit.reading import facts_of, facts_up_to, reading
from payloops.audit.trail import differences_table
from payloops.events.stream import StreamEvent, topic_of
from payloops.events.timestamps import timestamp_text, utc_now
from payloops.http.order_history import OrderExplanationAnswer
from payloops.printing import make_console, print_json, print_plain_json_list
from payloops.projections.order_explanation import explain_order
from payloops.projections.order_history import Step, replay
from payloops.projections.order_wording import exact_time, field_name, value_text


async def show_explanation(*, database_url: str, order_id: UUID, as_json: bool) -> None:
    """Print an explanation of an order's state, in sentences.

    Raises:
        NotFound.
    """
    explanation = explain_order(await _facts(database_url, order_id), now=utc_now())
    if as_json:
        print_json(TypeAdapter(OrderExplanationAnswer), OrderExplanationAnswer.model_validate(explanation))
        return
    console = make_console()
    console.print(explanation.state, style="bold")
    parts = (
        ("How it came to that", explanation.history),
        ("Pending", explanation.pending),
        ("Next", explanation.next),
    )
    for title, sentences in parts:
        if not sentences:
            continue
        console.print(f"\n{title}", style="bold")
        bullets = Table.grid(padding=(0, 1, 0, 0))
        for sentence in sentences:
            bullets.add_row("-", sentence)
        console.print(bullets)


async def show_replay(
    *, database_url: str, order_id: UUID, as_of: int | datetime | None, as_json: bool
) -> None:
    """Print an order's state after each of its events.

    Args:
        as_of: stop at this version or time.

    Raises:
        NotFound: there is no such order or version, or the order did not exist at that time.
    """
    facts = await _facts(database_url, order_id)
    steps = replay(facts if as_of is None else facts_up_to(facts, as_of))
    if as_json:
        print_plain_json_list(_step_json(step) for step in steps)
        return
    console = make_console()
    for step in steps:
        state, currency = step.state, step.state["currency"]
        money = ", ".join(
            f"{value_text(name, state[name], currency)} {name.removeprefix('amount_')}"
            for name in ("amount_captured", "amount_refunded")
        )
        fact = step.fact
        console.print(
            f"{fact.originator_version}  {exact_time(fact.timestamp)}  {topic_of(fact)}", style="bold"
        )
        console.print(f"   by {fact.actor}\n   correlation {fact.correlation_id}")
        console.print(f"   → {state['status']}, {money}")
        console.print(
            differences_table(step.changes, currency=currency) if step.changes else "   changes nothing"
        )
        console.print()


def _step_json(step: Step) -> dict[str, Any]:
    return {
        "version": step.fact.originator_version,
        "type": topic_of(step.fact),
        "occurredAt": timestamp_text(step.fact.timestamp),
        "actor": step.fact.actor,
        "correlationId": step.fact.correlation_id,
        "changes": [asdict(each) | {"field": field_name(each.field)} for each in step.changes],
        "state": {field_name(name): value for name, value in step.state.items()},
    }


async def _facts(database_url: str, order_id: UUID) -> list[StreamEvent]:
    async with reading(database_url) as store:
        return await facts_of(store, order_id)
