"""Keeps the processes of `payloops dev` running."""

import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from payloops.daemons.restarts import Restarts
from payloops.dev.log_tail import LogTail
from payloops.embedded.processes import Child

STOP_SECONDS = 20.0


class Part:
    """A process of the service, which is started again when it dies, after growing pauses."""

    def __init__(
        self,
        *,
        name: str,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        log: Path,
        started: Callable[[Child], None],
    ) -> None:
        self.name = name
        self.log = LogTail(name=name, path=log)
        self.child: Child | None = None
        self._arguments = arguments
        self._environment = environment
        self._started = started
        self._restarts = Restarts()

    def start(self) -> None:
        self._restarts.began(now=time.monotonic())
        self.child = Child(
            name=self.name,
            command=[sys.executable, "-P", "-m", "payloops", *self._arguments],
            log=self.log.path,
            # If this process is killed, the servers end as well, so there is no point in a graceful stop.
            death_signal=signal.SIGKILL,
            environment=self._environment,
        )
        self.log.from_offset(self.child.log_offset)
        self._started(self.child)

    def watch(self) -> str | None:
        """Start it again if that is due. If it has just died, returns a line that says so."""
        now = time.monotonic()
        if self.child is None:
            if self._restarts.is_due(now=now):
                self.start()
            return None
        status = self.child.exit_status()
        if status is None:
            return None
        pause = self._restarts.died(now=now)
        self.child = None
        return f"{self.name} {how_it_ended(status)}; starting it again in {pause:g} s (log: {self.log.path})"

    def ask_to_stop(self) -> None:
        if self.child is not None:
            self.child.send(signal.SIGTERM)

    def end(self, *, seconds: float) -> None:
        """Wait for it to stop, and kill it after that time."""
        if self.child is not None and not self.child.wait(seconds=seconds):
            self.child.kill()
        self.child = None


def stop_parts(parts: Sequence[Part], *, seconds: float = STOP_SECONDS) -> None:
    """Stop several parts at the same time."""
    deadline = time.monotonic() + seconds
    for each in parts:
        each.ask_to_stop()
    for each in parts:
        each.end(seconds=max(0.0, deadline - time.monotonic()))


def how_it_ended(status: int) -> str:
    if status < 0:
        return f"was ended by {signal.Signals(-status).name}"
    return f"ended with status {status}"
