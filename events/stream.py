"""What all streams and all events have in common.

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
"""Every type of fact that was imported, by its topic."""


class StreamEvent(AggregateEvent):
    """A fact.

    Attributes:
        merchant_id: the merchant that it belongs to: no other ever sees it.
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
    """An object of a frozen dataclass, made at once: its own `__init__` calls `object.__setattr__` for each field."""
    made = object.__new__(kind)
    object.__setattr__(made, "__dict__", fields)
    return made


@cache
def _names_of(fact: type[StreamEvent]) -> frozenset[str]:
    return frozenset(each.name for each in dataclasses.fields(fact))


class StreamCreated(AggregateCreated, StreamEvent):
    """The first fact of a stream."""


C = TypeVar("C", bound=StreamCreated)


class PersonalStreamCreated(StreamCreated):
    """The first fact of a stream that holds personal data of a merchant's customer.

    Attributes:
        PERSONAL: the fields that are stored encrypted, each with the value that it has once it is erased.
        customer_id, customer_email: by these, all streams of a customer are found. `customer_id`, the merchant's own id
            of the customer, is no personal field: it is not erased, since the merchant's accounts refer to it.
    """

    customer_id: str | None
    customer_email: str | None


class Stream(Aggregate):
    """An aggregate: the fold of a stream's events, and the events decided on but not yet appended."""

    TOPIC: ClassVar[str]
    merchant_id: str

    def record(self, fact: type[StreamEvent], *, by: Metadata, **details: Any) -> None:
        """Record a fact: it is folded at once, and appended with the others of the command."""
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
        """Take the recorded facts, to append them."""
        return cast("list[StreamEvent]", super().collect_events())

    @classmethod
    def first(cls, fact: type[C], details: dict[str, Any], *, id: UUID, merchant_id: str, by: Metadata) -> C:
        """The fact that a stream begins with.

        Raises:
            TypeError: a field is missing, or the fact has no such field.
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
        """Start a stream with its first fact."""
        first = cls.first(fact, details, id=id, merchant_id=merchant_id, by=by)
        stream = cast("Self", first.mutate(None))
        stream.pending_events.append(first)
        return stream


S = TypeVar("S", bound=Stream)


def stream_topic(topic: str) -> Callable[[type[S]], type[S]]:
    """Give an aggregate class its stable name.

    After the class is made, because the library would otherwise ask a topic of the event classes that it
    defines inside every aggregate, which we do not use: our facts stand beside the aggregate.
    """

    def name(cls: type[S]) -> type[S]:
        cls.TOPIC = topic
        register_topic(topic, cls)
        return cls

    return name


def topic_of(event: type[StreamEvent] | StreamEvent) -> str:
    """The stable name of an event's type: `order.created`."""
    return get_topic(event if isinstance(event, type) else type(event))
