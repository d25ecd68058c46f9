"""Progress of long operations: a bar in a terminal, otherwise an occasional line."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from payloops.projections.building import Report

PLAIN_SECONDS = 2.0
"""Between two lines of progress, if there is no terminal."""
SETTLING_SECONDS = 0.5
"""Before a rate is shown, because it would be too inaccurate."""


@contextmanager
def progress() -> Iterator[Report]:
    """Show the progress of steps on standard error: on a terminal a bar for each, otherwise an occasional line."""
    if sys.stderr.isatty():
        with _bars() as report:
            yield report
    else:
        yield _PlainLines()


@contextmanager
def _bars() -> Iterator[Report]:
    with Progress(
        TextColumn("{task.description:14}"),
        BarColumn(),
        MofNCompleteColumn(separator=" of "),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    ) as shown:
        tasks: dict[str, TaskID] = {}
        began: dict[str, tuple[float, int]] = {}

        def report(step: str, done: int, total: int) -> None:
            if step not in tasks:
                tasks[step] = shown.add_task(step, total=total or None, rate="")
                began[step] = (time.monotonic(), done)
            since, first = began[step]
            seconds = time.monotonic() - since
            rate = f"{(done - first) / seconds:,.0f}/s" if seconds > SETTLING_SECONDS and done > first else ""
            shown.update(tasks[step], completed=done, total=total or None, rate=rate)

        yield report


class _PlainLines:
    def __init__(self) -> None:
        self._step = ""
        self._began = (0.0, 0)
        self._printed_at = 0.0
        self._complete = False

    def __call__(self, step: str, done: int, total: int) -> None:
        now = time.monotonic()
        if step != self._step:
            self._step, self._began, self._printed_at, self._complete = step, (now, done), 0.0, False
        complete = 0 < total <= done
        if self._complete if complete else now - self._printed_at < PLAIN_SECONDS:
            return
        self._complete = complete
        self._printed_at = now
        since, first = self._began
        rate = (done - first) / (now - since) if now > since else 0.0
        left = f", {(total - done) / rate:,.0f} s left" if rate and done < total else ""
        of = f" of {total:,}" if total else ""
        speed = f", {rate:,.0f} a second" if rate else ""
        sys.stderr.write(f"{step}: {done:,}{of}{speed}{left}\n")
