"""An order through time: its state as of a moment, after each event, and the differences between two moments.

Made from its events alone, so that the command line, the API and the console say the same.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from enum import Enum
from typing import Any
from uuid import UUID

from payloops.events.event_store import EventReader
from payloops.events.orders import Order, OrderCreated
from payloops.events.stream import StreamEvent
from payloops.projections.orders import row_from_order

State = Mapping[str, Any]
"""The whole state of an order, by field: `status`, `payments.1.status`, `transactions.<id>.amount`."""
NOT_STATE = {"version", "updated_at"}
"""Columns of an order's row that change with every event."""
OF_PAYMENT = (
    *("processor", "capture", "amount", "status", "processor_order_id", "processor_transaction_id"),
    *("redirect_url", "cancel_requested", "capture_pending"),
)
OF_TRANSACTION = (
    *("type", "attempt", "amount", "status", "processor_transaction_id", "error_code", "error_message"),
    *("reason", "refunds", "discovered"),
)


class NoSuchVersion(Exception):
    """The order had no state at that version or moment."""

    def __init__(self, order_id: UUID, as_of: int | datetime) -> None:
        super().__init__(f"order {order_id} has no state as of {as_of}")
        self.order_id = order_id
        self.as_of = as_of


@dataclass(frozen=True, slots=True)
class Difference:
    """A field of the order's state that changed. None: it was not there, or had no value."""

    field: str
    before: Any
    after: Any


@dataclass(frozen=True, slots=True)
class Step:
    """The effect of one event on an order."""

    fact: StreamEvent
    changes: list[Difference]
    state: State


async def order_facts(
    store: EventReader, *, order_id: UUID, merchant_id: UUID | None = None
) -> list[StreamEvent] | None:
    """All that happened to an order, oldest first; None where it is unknown or another merchant's.

    Args:
        merchant_id: whose it has to be; None: anybody's.

    Raises:
        StreamUnreadable: see there.
    """
    facts = await store.read_facts(order_id)
    if not facts or not isinstance(facts[0], OrderCreated):
        return None
    if merchant_id is not None and facts[0].merchant_id != str(merchant_id):
        return None
    return facts


async def get_order_as_of(
    store: EventReader, *, order_id: UUID, merchant_id: UUID | None = None, as_of: int | datetime
) -> Order | None:
    """The order as it was, folded from its facts; None where it is unknown or another merchant's.

    Args:
        merchant_id: whose it has to be; None: anybody's.
        as_of: a version of its stream, or a moment: then nothing that happened later is in it.

    Raises:
        NoSuchVersion: it has not come to that version yet, or did not exist at that moment.
    """
    facts = await order_facts(store, order_id=order_id, merchant_id=merchant_id)
    return fold(facts_as_of(facts, as_of)) if facts is not None else None


def facts_as_of(facts: Sequence[StreamEvent], as_of: int | datetime) -> Sequence[StreamEvent]:
    """The facts of an order up to a version or a moment.

    Raises:
        NoSuchVersion: it has not come to that version yet, or did not exist at that moment.
    """
    if isinstance(as_of, int):
        version = as_of
    else:
        later = (n for n, fact in enumerate(facts) if fact.timestamp > as_of)
        version = next(later, len(facts))
    if not 1 <= version <= len(facts):
        raise NoSuchVersion(facts[0].originator_id, as_of)
    return facts[:version]


def fold(facts: Sequence[StreamEvent]) -> Order:
    """The order after these facts, the first of which created it."""
    order: Order | None = None
    for fact in facts:
        order = fact.mutate(order)
    assert order is not None, "an order begins with a fact"
    return order


def replay(facts: Sequence[StreamEvent]) -> Iterator[Step]:
    """The order after each of its facts, which begin with the one that created it."""
    order: Order | None = None
    state: State = {}
    for fact in facts:
        order = fact.mutate(order)
        assert order is not None
        before, state = state, order_state(order)
        yield Step(fact, differences(before, state), state)


def last_step(facts: Sequence[StreamEvent]) -> Step:
    """The effect of the last of an order's facts, which begin with the one that created it."""
    before = order_state(fold(facts[:-1])) if len(facts) > 1 else {}
    state = order_state(fold(facts))
    return Step(facts[-1], differences(before, state), state)


def order_state(order: Order) -> State:
    """The order's state, flat."""
    state = {name: value for name, value in asdict(row_from_order(order)).items() if name not in NOT_STATE}
    for payment in order.payments.values():
        state |= {f"payments.{payment.attempt}.{name}": _plain(payment, name) for name in OF_PAYMENT}
    for transaction in order.transactions.values():
        state |= {
            f"transactions.{transaction.id}.{name}": _plain(transaction, name) for name in OF_TRANSACTION
        }
    return state


def differences(before: State, after: State) -> list[Difference]:
    """What changed from one state of an order to another, which may be an earlier one."""
    return [
        Difference(name, before.get(name), after.get(name))
        for name in dict.fromkeys((*before, *after))
        if before.get(name) != after.get(name)
    ]


def _plain(entity: object, name: str) -> Any:
    value = getattr(entity, name)
    if value is False:
        return None  # what was not asked for, or did not happen, is no news
    return value.value if isinstance(value, Enum) else value
