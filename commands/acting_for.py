"""Event metadata for what processors report: who acts, and which request it follows from."""

from dataclasses import replace

from payloops.events.metadata import Metadata
from payloops.events.orders import Asked


def answering(asked: Asked, by: Metadata) -> Metadata:
    """`by`, as a consequence of what was asked, and under its correlation id where `by` has none of its own."""
    return replace(
        by,
        correlation_id=by.correlation_id or asked.correlation_id,
        causation_id=by.causation_id or asked.event,
    )
