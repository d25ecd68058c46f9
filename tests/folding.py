"""Folding what would be stored of facts, as a process does that reads them from the log."""

from collections.abc import Iterable
from typing import Any, cast

from payloops.events.encoding import decode, encode
from payloops.events.stream import StreamEvent


def folded_from_stored(events: Iterable[Any]) -> Any:
    """The aggregate that facts fold to, each encoded and decoded."""
    aggregate: Any = None
    for event in events:
        stored, key = encode(cast("StreamEvent", event))
        aggregate = decode(stored, personal_key=key.key if key is not None else None).mutate(aggregate)
    assert aggregate is not None
    return aggregate
