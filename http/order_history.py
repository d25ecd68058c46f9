"""An order's audit trail, its state as of a time, and the explanation of its state: shared by several APIs."""

from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from pydantic import Field, PlainSerializer, PlainValidator, TypeAdapter, ValidationError, WithJsonSchema

from payloops.events.event_store import EventStore
from payloops.events.orders import Order, OrderStatus
from payloops.events.timestamps import timestamp_text
from payloops.http.fields import A_TIME, Moment, QueryNumber, Timestamp
from payloops.http.orders import OrderAnswer, OrderEventAnswer, event_answer, order_answer
from payloops.http.payments import TransactionAnswer
from payloops.http.problems import FieldError, not_found, validation_error
from payloops.http.routing import AnswerModel, RequestModel
from payloops.projections.order_events import order_events
from payloops.projections.order_explanation import explain_order
from payloops.projections.order_history import NoSuchVersion, get_order_as_of, order_facts
from payloops.projections.orders import row_from_order
from payloops.projections.transactions import rows_from_order

_version = TypeAdapter(QueryNumber)
_moment = TypeAdapter(Moment)


def _as_of(text: Any) -> int | datetime:
    for form in (_version, _moment):
        try:
            return form.validate_strings(text)
        except ValidationError:
            continue
    raise ValueError(f"Must be a version, or {A_TIME}")


def _as_text(as_of: int | datetime) -> str:
    return str(as_of) if isinstance(as_of, int) else timestamp_text(as_of)


AsOf = Annotated[
    int | datetime,
    PlainValidator(_as_of),
    PlainSerializer(_as_text),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "integer", "minimum": 1, "maximum": 999_999_999},
                {"type": "string", "format": "date-time"},
            ],
            "description": "A version of the order, or a time: ISO 8601 with a time zone",
            "examples": [3, "2027-01-31T00:00:00Z"],
        }
    ),
]


class TrailQuery(RequestModel):
    as_of: AsOf | None = None


class OrderAsOf(OrderAnswer):
    """The order after its first `version` events, and its transactions then, newest first."""

    version: int
    transactions: list[TransactionAnswer]


def order_as_of(order: Order) -> OrderAsOf:
    """The response for an order that was folded up to some version."""
    return OrderAsOf(
        **dict(order_answer(row_from_order(order))),
        version=order.version,
        transactions=[TransactionAnswer.model_validate(row) for row in rows_from_order(order)],
    )


class OrderExplanationAnswer(AnswerModel):
    """Sentences. `history` is oldest first; `pending` is empty where nothing is under way."""

    order_id: UUID
    version: int
    status: OrderStatus
    as_of: Annotated[Timestamp, Field(description="The moment up to which durations are counted")]
    state: Annotated[str, Field(examples=["Attempt 1 at Stripe is under way: how it ends is not known yet."])]
    history: list[str]
    pending: list[str]
    next: Annotated[list[str], Field(description="What the merchant can do now")]


async def read_trail(
    store: EventStore, *, order_id: UUID, merchant_id: UUID, as_of: int | datetime | None
) -> list[OrderEventAnswer] | OrderAsOf:
    """The audit trail, oldest first; with `as_of` the order itself, as it was then.

    Raises:
        Problem: the order is unknown or another merchant's, or has no such version, or did not exist at that time.
    """
    if as_of is None:
        events = await order_events(store, order_id=order_id, merchant_id=merchant_id)
        if events is None:
            raise not_found()
        return [event_answer(event) for event in events]
    try:
        order = await get_order_as_of(store, order_id=order_id, merchant_id=merchant_id, as_of=as_of)
    except NoSuchVersion:
        missing = (
            "The order has no such version" if isinstance(as_of, int) else "The order did not exist then"
        )
        raise validation_error(FieldError("asOf", missing)) from None
    if order is None:
        raise not_found()
    return order_as_of(order)


async def read_explanation(
    store: EventStore, *, order_id: UUID, merchant_id: UUID, now: datetime
) -> OrderExplanationAnswer:
    """How the order got into its current state.

    Raises:
        Problem: the order is unknown or another merchant's.
    """
    facts = await order_facts(store, order_id=order_id, merchant_id=merchant_id)
    if facts is None:
        raise not_found()
    return OrderExplanationAnswer.model_validate(explain_order(facts, now=now))
