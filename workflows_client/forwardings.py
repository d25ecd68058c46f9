"""What a subscriber can request of Temporal: to start a workflow, or to signal one."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class StartWorkflow:
    """Start a workflow, unless there is, or ever was, one with this id.

    Attributes:
        signal: a signal without an argument that it has before it does anything; None if there is none.
    """

    workflow: str
    workflow_id: str
    task_queue: str
    input: dict[str, Any]
    signal: str | None = None

    @property
    def target(self) -> str:
        """The label of this request in metrics."""
        return self.workflow


@dataclass(frozen=True, slots=True, kw_only=True)
class SignalWorkflow:
    """Signal a workflow, if it is still running. `argument`: the only argument of the signal, if it has one."""

    workflow_id: str
    signal: str
    argument: dict[str, Any] | None = None

    @property
    def target(self) -> str:
        """The label of this request in metrics."""
        return self.signal


Forwarding = StartWorkflow | SignalWorkflow
