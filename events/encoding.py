"""Encodes events for storage, and decodes them: readable JSON with a stable topic, a version, personal data encrypted.

Versions and upcasters are declared as for the `eventsourcing` library's Mapper, which is not used itself: here personal
data is decrypted with the key of the event's stream, and a version that this code does not know yet is refused instead
of being read as if it were known.
"""

from collections.abc import Callable
from datetime import UTC
from functools import cache
from typing import Any, cast
from uuid import UUID

import orjson
from eventsourcing.persistence import StoredEvent

from payloops.events.event_types import fact_types
from payloops.events.personal_data import SEALED, PersonalKey, given_fields, new_key, seal, unseal
from payloops.events.stream import FACTS, PersonalStreamCreated, StreamEvent, made_of
from payloops.events.timestamps import parse_timestamp, plain_timestamp, timestamp_text

VERSION = "class_version"
"""The member of a state with the version of its shape; a state without it has version 1."""


class UnknownTopic(Exception):
    """An event of a type that this code does not know."""

    def __init__(self, topic: str) -> None:
        super().__init__(f"no type of event is called {topic}")


class NewerVersion(Exception):
    """An event was written by a later version of this code, in a shape that this one does not know."""

    def __init__(self, *, topic: str, version: int, known: int) -> None:
        super().__init__(f"{topic} of version {version}: this code knows it up to version {known}")


def encode(event: StreamEvent) -> tuple[StoredEvent, PersonalKey | None]:
    """The event as it is stored; and the key of its stream, if it begins a stream with personal data."""
    state = vars(event).copy()
    del state["originator_id"], state["originator_version"]
    if event.class_version > 1:
        state[VERSION] = event.class_version
    at = event.timestamp
    state["timestamp"] = plain_timestamp(at) if at.tzinfo is UTC else timestamp_text(at)
    key = _seal(event, state) if isinstance(event, PersonalStreamCreated) else None
    stored = {
        "originator_id": event.originator_id,
        "originator_version": event.originator_version,
        "topic": event.TOPIC,
        "state": orjson.dumps(state, option=orjson.OPT_UTC_Z),
    }
    return made_of(StoredEvent, stored), key


def _seal(event: PersonalStreamCreated, state: dict[str, Any]) -> PersonalKey | None:
    """Encrypt the personal fields of a state. Returns the stream's key, None if the event names no customer.

    An event that names a customer but has no personal data gets one, too: the stream is found by it.
    """
    given = given_fields(state, event.PERSONAL)
    if not given and event.customer_id is None:
        return None
    key = new_key(
        stream_id=event.originator_id,
        merchant_id=event.merchant_id,
        customer_id=event.customer_id,
        email=event.customer_email,
    )
    if given:
        seal(state, given, key=key.key, stream_id=event.originator_id, version=event.originator_version)
    return key


def decode(stored: StoredEvent, *, personal_key: bytes | None) -> StreamEvent:
    """Decode a stored event.

    Args:
        personal_key: of its stream, from the view `readable_events`.

    Raises:
        UnknownTopic, NewerVersion, PersonalDataUnreadable: see there.
    """
    return decode_state(
        stored.topic,
        stored.state,
        stream_id=cast("UUID", stored.originator_id),
        version=stored.originator_version,
        personal_key=personal_key,
    )


def decode_state(
    topic: str, stored: bytes, *, stream_id: UUID, version: int, personal_key: bytes | None
) -> StreamEvent:
    """As `decode`, from columns of the log."""
    fact = fact_of(topic)
    if fact is None:
        raise UnknownTopic(topic)
    return decoder_of(fact)(stored, stream_id, version, personal_key)


Decoder = Callable[[bytes, UUID, int, bytes | None], StreamEvent]
"""As `decode`, from a state, its stream, its version in the stream, and the stream's key."""


@cache
def decoder_of(fact: type[StreamEvent]) -> Decoder:
    """The decoder for a type of event. It is built once, so that nothing about the type is looked up for each event."""
    personal, known = fact.PERSONAL, fact.class_version

    def decode_fact(stored: bytes, stream_id: UUID, version: int, personal_key: bytes | None) -> StreamEvent:
        state: dict[str, Any] = orjson.loads(stored)
        if personal_key is not None or SEALED in state:
            unseal(state, personal=personal, key=personal_key, stream_id=stream_id, version=version)
        if known != 1 or VERSION in state:
            _upcast(fact, state)
        state["timestamp"] = parse_timestamp(state["timestamp"])
        state["originator_id"] = stream_id
        state["originator_version"] = version
        return made_of(fact, state)

    return decode_fact


def open_state(stored: StoredEvent, *, personal_key: bytes | None) -> dict[str, Any]:
    """The state of a stored event, decrypted but not upcast; also for types that this code does not know.

    Raises:
        PersonalDataUnreadable: see there.
    """
    state: dict[str, Any] = orjson.loads(stored.state)
    unseal(
        state,
        personal=(fact_of(stored.topic) or StreamEvent).PERSONAL,
        key=personal_key,
        stream_id=cast("UUID", stored.originator_id),
        version=stored.originator_version,
    )
    return state


def fact_of(topic: str) -> type[StreamEvent] | None:
    """The event class of a topic, even if nothing in this process has imported its module yet."""
    return FACTS.get(topic) or fact_types().get(topic)


def _upcast(fact: type[StreamEvent], state: dict[str, Any]) -> None:
    """Convert a state from the version it was written in to the current one, step by step."""
    written, known = state.pop(VERSION, 1), fact.class_version
    if written > known:
        raise NewerVersion(topic=fact.TOPIC, version=written, known=known)
    for version in range(written, known):
        getattr(fact, f"upcast_v{version}_v{version + 1}")(state)
