"""Metadata stored with every event: who acted, when, and for which request and merchant."""

from dataclasses import dataclass
from datetime import datetime


@dataclass(slots=True, kw_only=True)  # not frozen: creating one would take several times as long
class Metadata:
    """When, by whom and for which request something is decided. Created where the request arrives.

    Attributes:
        at: when, UTC; the clock is read at the edge.
        actor: who: `api_key:<id>`, `merchant:<id>`, `checkout:<session id>` (its customer), `processor:<name>`,
            `workflow:<workflow id>`, `staff:<id>`, `operator:<login>` (who runs a command), or `system`.
        correlation_id: of the request that led to this.
        causation_id: the event that led to this, `<stream id>:<version>`; None if a person or program requested it.
    """

    at: datetime
    actor: str
    correlation_id: str
    causation_id: str | None = None
