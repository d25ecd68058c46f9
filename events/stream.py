"""Base classes of all streams and their events. An event that the domain records is also called a fact.

Aggregates, topics and versioning are the `eventsourcing` library's. An event's topic is a stable name
(`order.created`), never a Python path, and its state is plain JSON: apart from the timestamp, events hold only JSON
types, with ids as strings.
"""

import dataclasses
from collections.abc import Callable, Mapping
from functools import cache
from types import MappingProxyType
from typing import Any, ClassVar, Self, TypeVar, cast
from uuid import UUID

from eventsourcing.domain import Aggregate, AggregateCreated, AggregateEvent
from eventsourcing.utils import get_topic, register_topic

from payloops.events.metadata import Metadata

FACTS: "dict[str, type[StreamEvent]]" = {}
"""Every event class imported so far, by topic."""


class StreamEvent(AggregateEvent):
    """An event of a stream.

    Attributes:
        PERSONAL: the fields with personal data, which are stored encrypted, each with its value after erasure.
        merchant_id: the merchant it belongs to; no other merchant ever sees it.
        actor, correlation_id, causation_id: see `Metadata`.
    """

    TOPIC: ClassVar[str]
    class_version: ClassVar[int] = 1
    PERSONAL: ClassVar[Mapping[str, Any]] = MappingProxyType({})
    merchant_id: str
    actor: str
    correlation_id: str
    causation_id: str | None

    @property
    def reference(self) -> str:
        """`<stream id>:<version>`: how other events name this one as their cause."""
        return f"{self.originator_id}:{self.originator_version}"

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "TOPIC" in cls.__dict__:
            register_topic(cls.TOPIC, cls)
            FACTS[cls.TOPIC] = cls


T = TypeVar("T")


def made_of(kind: type[T], fields: dict[str, Any]) -> T:
    """Create an object of a frozen dataclass by setting all fields at once; its `__init__` would set each by a call."""
    made = object.__new__(kind)
    object.__setattr__(made, "__dict__", fields)
    return made


@cache
def _names_of(fact: type[StreamEvent]) -> frozenset[str]:
    return frozenset(each.name for each in dataclasses.fields(fact))


class StreamCreated(AggregateCreated, StreamEvent):
    """The first event of a stream."""


C = TypeVar("C", bound=StreamCreated)


class PersonalStreamCreated(StreamCreated):
    """The first event of a stream with personal data of a merchant's customer.

    Attributes:
        customer_id, customer_email: to find all streams with data of a customer. `customer_id`, the merchant's own id
            of the customer, is not erased, so that it still matches the merchant's records.
    """

    customer_id: str | None
    customer_email: str | None


class Stream(Aggregate):
    """An aggregate: the state folded from a stream's events, and the new events that are not appended yet."""

    TOPIC: ClassVar[str]
    merchant_id: str

    def record(self, fact: type[StreamEvent], *, by: Metadata, **details: Any) -> None:
        """Record a new event: it is applied to this state at once, and appended when the command is done."""
        self.trigger_event(
            fact,
            merchant_id=self.merchant_id,
            timestamp=by.at,
            actor=by.actor,
            correlation_id=by.correlation_id,
            causation_id=by.causation_id,
            **details,
        )

    def collect_events(self) -> list[StreamEvent]:
        """Take the new events out, to append them."""
        return cast("list[StreamEvent]", super().collect_events())

    @classmethod
    def first(cls, fact: type[C], details: dict[str, Any], *, id: UUID, merchant_id: str, by: Metadata) -> C:
        """Create the first event of a stream.

        Raises:
            TypeError: a field is missing, or unknown.
        """
        fields = {
            "originator_id": id,
            "originator_version": cls.INITIAL_VERSION,
            "timestamp": by.at,
            "originator_topic": cls.TOPIC,
            "merchant_id": merchant_id,
            "actor": by.actor,
            "correlation_id": by.correlation_id,
            "causation_id": by.causation_id,
            **details,
        }
        if fields.keys() != _names_of(fact):
            raise TypeError(f"not the fields of {fact.__qualname__}: {', '.join(details)}")
        return made_of(fact, fields)

    @classmethod
    def begin(
        cls, fact: type[StreamCreated], *, id: UUID, merchant_id: str, by: Metadata, **details: Any
    ) -> Self:
        """Begin a stream with its first event."""
        first = cls.first(fact, details, id=id, merchant_id=merchant_id, by=by)
        stream = cast("Self", first.mutate(None))
        stream.pending_events.append(first)
        return stream


S = TypeVar("S", bound=Stream)


def stream_topic(topic: str) -> Callable[[type[S]], type[S]]:
    """Class decorator that gives an aggregate its topic.

    A `TOPIC` in the class body would make the library require topics of the event classes that it defines inside every
    aggregate. Those are not used here: our event classes are defined outside the aggregate.
    """

    def name(cls: type[S]) -> type[S]:
        cls.TOPIC = topic
        register_topic(topic, cls)
        return cls

    return name


def topic_of(event: type[StreamEvent] | StreamEvent) -> str:
    """The topic of an event or event class: `order.created`."""
    return get_topic(event if isinstance(event, type) else type(event))
