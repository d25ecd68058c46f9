"""When a process that died is started again."""

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 15.0
"""Seconds before it is started again: after the first death, and at most."""
SETTLED = 30.0
"""Seconds of running after which earlier deaths no longer count."""


class Restarts:
    """The restarts of one process, after pauses that double with each death."""

    def __init__(self) -> None:
        self._pause = 0.0
        self._began = 0.0
        self._due = 0.0

    def is_due(self, *, now: float) -> bool:
        return now >= self._due

    def began(self, *, now: float) -> None:
        """It was started."""
        self._began = now

    def died(self, *, now: float) -> float:
        """It died. Returns the pause before the next start, in seconds."""
        if self._pause == 0.0 or now - self._began > SETTLED:
            self._pause = FIRST_PAUSE
        else:
            self._pause = min(LONGEST_PAUSE, 2 * self._pause)
        self._due = now + self._pause
        return self._pause
