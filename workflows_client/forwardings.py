"""What a subscriber can have Temporal do."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class StartWorkflow:
    """Start it unless there is, or ever was, one of this id."""

    workflow: str
    workflow_id: str
    task_queue: str
    input: dict[str, Any]

    @property
    def target(self) -> str:
        """What is asked for, of a few names."""
        return self.workflow


@dataclass(frozen=True, slots=True, kw_only=True)
class SignalWorkflow:
    """Signal it if it is still running. `argument`: the signal's only one, None where it has none."""

    workflow_id: str
    signal: str
    argument: dict[str, Any] | None = None

    @property
    def target(self) -> str:
        """What is asked for, of a few names."""
        return self.signal


Forwarding = StartWorkflow | SignalWorkflow
