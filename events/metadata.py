"""Metadata stored with every event: who acted, when, and for which request and merchant."""

from dataclasses import dataclass
from datetime import datetime


@dataclass(slots=True, kw_only=True)  # not frozen: making one would take several times as long
class Metadata:
    """The circumstances of a decision, made where the request enters.

    Attributes:
        at: when, UTC; the clock is read at the edge.
        actor: who: `api_key:<id>`, `merchant:<id>`, `checkout:<session id>` (its customer), `processor:<name>`,
            `workflow:<workflow id>`, `staff:<id>`, `operator:<login>` of who runs a command, or `system`.
        correlation_id: the request that all of this belongs to.
        causation_id: the event that led to this one, `<stream id>:<version>`; None where a person or program asked.
    """

    at: datetime
    actor: str
    correlation_id: str
    causation_id: str | None = None
