"""An order's history for the support console: its timeline, and its state after any event."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from typing import Any

from payloops.commands.workflow_ids import started_workflow_id
from payloops.events.stream import StreamEvent
from payloops.projections.order_events import OrderEvent
from payloops.projections.order_explanation import named
from payloops.projections.order_history import Step
from payloops.projections.order_wording import (
    entity_of,
    event_details,
    event_money,
    event_references,
    event_title,
    value_text,
)

GOOD = {"payment.captured", "payment.authorized", "refund.succeeded", "payment.voided"}
BAD = {"payment.failed", "payment.capture_failed", "payment.void_failed", "refund.failed", "refund.reversed"}
CONSTANT_FIELDS = {"id", "merchant_id", "external_id", "created_at"}
"""Fields of an order that never change; the page shows them elsewhere."""
WHO = {
    "api_key": "Shop, by API key",
    "merchant": "Merchant, in the dashboard",
    "workflow": "Workflow",
    "staff": "Staff",
    "system": "PayLoops",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TimelineEntry:
    """An event of an order.

    Attributes:
        tone: `good` or `bad` if money was moved or could not be moved; else empty.
        amount: empty if the event is about none.
        who: the kind of actor, in words.
        actor_id: its id, for example a workflow's; empty for processors.
    """

    version: int
    type: str
    title: str
    tone: str
    at: datetime
    recorded_at: datetime
    amount: str
    who: str
    actor_id: str
    details: list[str]
    references: list[str]
    correlation_id: str

    @property
    def workflow_id(self) -> str | None:
        """The workflow that caused the event; None if none did."""
        return self.actor_id if self.who == WHO["workflow"] else None


@dataclass(frozen=True, slots=True, kw_only=True)
class StateField:
    """A field of an order's state. `before`: its previous value, if the event changed it."""

    name: str
    value: str
    before: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderMoment:
    """The order as it was after an event.

    Attributes:
        changes: the fields that the event changed, by entity: `""` is the order itself, `payment 1` one of its
            payments.
        state: all fields that had a value then, by entity.
    """

    entry: TimelineEntry
    status: str
    changes: list[tuple[str, list[StateField]]]
    state: list[tuple[str, list[StateField]]]


def timeline_entry(event: OrderEvent, *, currency: str) -> TimelineEntry:
    """An entry of the timeline.

    Args:
        currency: of the order.
    """
    kind, _, actor_id = event.actor.partition(":")
    return TimelineEntry(
        version=event.version,
        type=event.type,
        title=event_title(event.type),
        tone="good" if event.type in GOOD else "bad" if event.type in BAD else "",
        at=event.occurred_at,
        recorded_at=event.recorded_at,
        amount=event_money(event, currency),
        who=named(actor_id) if kind == "processor" else WHO.get(kind, kind),
        actor_id="" if kind == "processor" else actor_id,
        details=list(event_details(event)),
        references=event_references(event),
        correlation_id=event.correlation_id,
    )


def moment_of(step: Step, entry: TimelineEntry) -> OrderMoment:
    """The order right after an event.

    Args:
        step: the event's effect.
        entry: the event.
    """
    state, currency = step.state, step.state["currency"]
    before = {each.field: value_text(each.field, each.before, currency) for each in step.changes}

    def field(name: str, value: Any) -> StateField:
        _, label = entity_of(name)
        return StateField(
            name=label.replace("_", " "), value=value_text(name, value, currency), before=before.get(name)
        )

    changes = {each.field: each.after for each in step.changes if entry.version > 1}
    there = {
        name: value
        for name, value in state.items()
        if value not in (None, {}, []) and name not in CONSTANT_FIELDS
    }
    return OrderMoment(
        entry=entry,
        status=state["status"],
        changes=_by_entity({name: field(name, value) for name, value in changes.items()}),
        state=_by_entity({name: field(name, value) for name, value in there.items()}),
    )


def _by_entity(fields: dict[str, StateField]) -> list[tuple[str, list[StateField]]]:
    def entity(name: str) -> str:
        return entity_of(name)[0]

    return [
        (title, [fields[name] for name in names])
        for title, names in groupby(sorted(fields, key=lambda name: entity(name) != ""), key=entity)
    ]


def workflows_of(facts: Sequence[StreamEvent]) -> Iterator[str]:
    """Ids of the workflows that an order has started, in order."""
    for fact in facts:
        workflow_id = started_workflow_id(fact)
        if workflow_id is not None:
            yield workflow_id
