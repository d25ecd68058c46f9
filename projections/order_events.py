"""The events of orders, as the API, the command line and the console list them: read from the log, not from a table.

They are read as stored, so that event types that this version does not know are listed too.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from eventsourcing.persistence import StoredEvent
from psycopg import sql

from payloops.events.encoding import open_state
from payloops.events.errors import StreamUnreadable
from payloops.events.event_store import EventReader, EventStore
from payloops.events.orders import OrderCreated
from payloops.events.stream import topic_of


@dataclass(frozen=True, slots=True)
class OrderEvent:
    """One event of an order's audit trail.

    Attributes:
        position: in the global order of all events; the event's id.
        version: in the order's stream, 1, 2, 3 …
        type: the topic, `payment.captured`.
        occurred_at: when it was decided. recorded_at: when the database stored it.
        data: the fields of this type of event, in snake case, amounts in the minor unit.
    """

    position: int
    version: int
    type: str
    occurred_at: datetime
    recorded_at: datetime
    actor: str
    correlation_id: str
    causation_id: str | None
    data: dict[str, Any]


EVENTS = """
    SELECT originator_id, notification_id, originator_version, topic, recorded_at, state, personal_key
    FROM readable_events
    WHERE originator_id = %s AND merchant_id = %s ORDER BY originator_version
"""
ENVELOPE = frozenset(
    {
        *("timestamp", "actor", "correlation_id", "causation_id"),
        *("merchant_id", "originator_topic", "class_version"),
    }
)


async def order_events(store: EventReader, *, order_id: UUID, merchant_id: UUID) -> list[OrderEvent] | None:
    """The order's audit trail, oldest first; None where the order is unknown or another merchant's.

    Raises:
        StreamUnreadable: an event cannot be read at all: it was altered.
    """
    async with store.pool.connection() as connection:
        found = await (await connection.execute(EVENTS, (order_id, merchant_id))).fetchall()
    if not found or found[0][3] != topic_of(OrderCreated):
        return None
    events = []
    for values in found:
        try:
            events.append(_order_event(*values))
        except Exception as error:
            raise StreamUnreadable(order_id, version=values[2], topic=values[3]) from error
    return events


@dataclass(frozen=True, slots=True)
class MerchantEvent:
    """An event, and the order that it belongs to."""

    order_id: UUID
    event: OrderEvent


class EventUnreadable(Exception):
    """An event was altered and cannot be read. Left out silently, it would be missed by clients that catch up."""

    def __init__(self, position: int) -> None:
        super().__init__(
            f"Event {position} cannot be read; the events after it are listed with after={position}"
        )


MERCHANT_EVENTS = sql.SQL("""
    SELECT originator_id, notification_id, originator_version, topic, recorded_at, state, personal_key
    FROM readable_events
    WHERE merchant_id = %(merchant_id)s AND notification_id > %(after)s
      AND (topic LIKE 'order.%%' OR topic LIKE 'payment.%%' OR topic LIKE 'refund.%%') AND {of_type}
    ORDER BY notification_id LIMIT %(limit)s
""")
EVENTS_OF_ALL_TYPES = MERCHANT_EVENTS.format(of_type=sql.SQL("true"))
EVENTS_OF_ONE_TYPE = MERCHANT_EVENTS.format(of_type=sql.SQL("topic = %(type)s"))


async def merchant_events(
    store: EventStore, *, merchant_id: UUID, after: int, limit: int, type: str | None = None
) -> tuple[list[MerchantEvent], bool]:
    """The events of a merchant's orders after a position, in the order of the log, and whether there are more.

    No event ever appears before one that was listed already: positions follow the order of commits.

    Args:
        after: position of the last known event, 0 for all.
        type: only events of this type.

    Raises:
        EventUnreadable: the first event cannot be read. If a later one cannot, the list ends before it.
    """
    arguments = {"merchant_id": merchant_id, "after": after, "type": type, "limit": limit + 1}
    async with store.pool.connection() as connection:
        query = EVENTS_OF_ALL_TYPES if type is None else EVENTS_OF_ONE_TYPE
        found = await (await connection.execute(query, arguments)).fetchall()
    events: list[MerchantEvent] = []
    for order_id, position, *values in found[:limit]:
        try:
            event = _order_event(order_id, position, *values)
        except Exception as error:
            if events:
                return events, True
            raise EventUnreadable(position) from error
        events.append(MerchantEvent(order_id, event))
    return events, len(found) > limit


def _order_event(
    order_id: UUID,
    position: int,
    version: int,
    topic: str,
    recorded_at: datetime,
    stored: bytes,
    personal_key: bytes | None,
) -> OrderEvent:
    state = open_state(StoredEvent(order_id, version, topic, stored), personal_key=personal_key)
    return OrderEvent(
        position=position,
        version=version,
        type=topic,
        occurred_at=datetime.fromisoformat(state["timestamp"]),
        recorded_at=recorded_at,
        actor=state["actor"],
        correlation_id=state["correlation_id"],
        causation_id=state["causation_id"],
        data={name: value for name, value in state.items() if name not in ENVELOPE},
    )
