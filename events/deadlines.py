"""Timeouts with one timer for many tasks.

`asyncio.timeout` creates, queues and cancels a timer for each. If all have the same timeout, the task that began first
is due first, so one timer for the oldest is enough.
"""

import asyncio
from types import TracebackType


class Deadlines:
    """A context manager that raises TimeoutError in the task that entered it, if it takes more than `seconds`."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._loop = asyncio.get_running_loop()
        self._due: dict[asyncio.Task[object], float] = {}
        self._ended: set[asyncio.Task[object]] = set()
        self._timer: asyncio.TimerHandle | None = None

    def __enter__(self) -> None:
        task = asyncio.current_task(self._loop)
        assert task is not None
        self._due[task] = due = self._loop.time() + self._seconds
        if self._timer is None:
            self._timer = self._loop.call_at(due, self._end_those_due)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        task = asyncio.current_task(self._loop)
        assert task is not None
        self._due.pop(task, None)
        if self._ended and task in self._ended:
            self._ended.discard(task)
            # Unless the task was cancelled by others as well: as `asyncio.timeout` does it.
            if task.uncancel() == 0 and kind is asyncio.CancelledError:
                raise TimeoutError from error

    def _end_those_due(self) -> None:
        self._timer = None
        now = self._loop.time()
        while self._due:
            task, due = next(iter(self._due.items()))
            if due > now:
                self._timer = self._loop.call_at(due, self._end_those_due)
                return
            del self._due[task]
            self._ended.add(task)
            task.cancel()
