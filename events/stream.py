"""What every stream and every event of it has in common.

Aggregates, topics and mapping are the `eventsourcing` library's. An event's topic is a stable name
(`order.created`), never a Python path, and its state is plain JSON: apart from the timestamp, facts hold only
what JSON has, with ids as strings.
"""

from collections.abc import Callable
from typing import Any, ClassVar, Self, TypeVar
from uuid import UUID

import orjson
from eventsourcing.domain import Aggregate, AggregateCreated, AggregateEvent
from eventsourcing.persistence import Mapper, Transcoder
from eventsourcing.utils import get_topic, register_topic

from payloops.events.metadata import Metadata
from payloops.events.timestamps import parse_timestamp, timestamp_text


class StreamEvent(AggregateEvent):
    """A fact.

    Attributes:
        merchant_id: whose fact it is: nobody else ever sees it.
        actor, correlation_id, causation_id: see `Metadata`.
    """

    TOPIC: ClassVar[str]
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


class StreamCreated(AggregateCreated, StreamEvent):
    """The first fact of a stream."""


class Stream(Aggregate):
    """An aggregate: the fold of a stream's events, and the events decided on but not yet appended."""

    merchant_id: str

    def record(self, fact: type[StreamEvent], *, by: Metadata, **details: Any) -> None:
        """Decide that something happened: the fact is folded at once and appended with the command."""
        self.trigger_event(
            fact,
            merchant_id=self.merchant_id,
            timestamp=by.at,
            actor=by.actor,
            correlation_id=by.correlation_id,
            causation_id=by.causation_id,
            **details,
        )

    @classmethod
    def begin(
        cls, fact: type[StreamCreated], *, id: UUID, merchant_id: str, by: Metadata, **details: Any
    ) -> Self:
        """Start a stream with its first fact."""
        return cls._create(
            fact,
            id=id,
            merchant_id=merchant_id,
            timestamp=by.at,
            actor=by.actor,
            correlation_id=by.correlation_id,
            causation_id=by.causation_id,
            **details,
        )


S = TypeVar("S", bound=Stream)


def stream_topic(topic: str) -> Callable[[type[S]], type[S]]:
    """Give an aggregate class its stable name.

    After the class is made, because the library would otherwise ask a topic of the event classes that it
    defines inside every aggregate, which we do not use: our facts stand beside the aggregate.
    """

    def name(cls: type[S]) -> type[S]:
        cls.TOPIC = topic  # type: ignore[attr-defined]
        register_topic(topic, cls)
        return cls

    return name


class PlainJSON(Transcoder):
    """Events as readable JSON; the timestamp, ISO 8601 in UTC, is the only value that JSON does not have."""

    def encode(self, obj: Any) -> bytes:
        obj["timestamp"] = timestamp_text(obj["timestamp"])
        return orjson.dumps(obj)

    def decode(self, data: bytes) -> Any:
        state = orjson.loads(data)
        state["timestamp"] = parse_timestamp(state["timestamp"])
        return state


mapper: Mapper[UUID] = Mapper(transcoder=PlainJSON())


def topic_of(event: type[StreamEvent] | StreamEvent) -> str:
    """The stable name of an event's type: `order.created`."""
    return get_topic(event if isinstance(event, type) else type(event))
