"""Metrics of processes that share a port: whichever of them is scraped answers for all.

Uses the multiprocess mode of prometheus_client: each process keeps its values in memory-mapped files of one directory.
The files are named by the process's slot, not by its process id: the replacement of a process that was killed continues
its counts, and there are never more files than slots.
"""

import contextlib
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from prometheus_client import REGISTRY, CollectorRegistry, values
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.registry import Collector

VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
"""Where the library looks for the directory."""
PREFIX = "payloops-metrics-"
LOCK = "lock"
JUST_MADE = 60.0
"""Seconds."""


class _Process:
    """This process. `directory`: None where it counts for itself."""

    place = "parent"
    directory: Path | None = None


@contextlib.contextmanager
def share_metrics() -> Iterator[None]:
    """Have this process and those that it forks count together; the directory goes with the context.

    To be entered before any metric is made, and so before the modules are imported that make theirs. Directories
    that killed processes have left behind are removed first.
    """
    assert not any(each.name.startswith("payloops_") for each in REGISTRY.collect()), "metrics were made"
    _remove_left_behind()
    directory = Path(tempfile.mkdtemp(prefix=PREFIX))
    try:
        # Held by those that are forked, too: free when the last of them has ended, however it did.
        with (directory / LOCK).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            os.environ[VARIABLE] = str(directory)
            values.ValueClass = values.MultiProcessValue(process_identifier=lambda: _Process.place)  # type: ignore[no-untyped-call]
            _Process.directory = directory
            yield
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def take_place(number: int) -> None:
    """Count as this one of the crew, in a process that was just forked."""
    _Process.place = str(number)


def leave_place(number: int) -> None:
    """The process in this place has ended: what it counted stays, what it had in hand does not."""
    if _Process.directory is not None:
        mark_process_dead(number, path=str(_Process.directory))  # type: ignore[no-untyped-call]


def counted() -> Collector:
    """What this process has counted; where it shares, all of them."""
    if _Process.directory is None:
        return REGISTRY
    registry = CollectorRegistry()
    MultiProcessCollector(registry, path=str(_Process.directory))  # type: ignore[no-untyped-call]
    return registry


def _remove_left_behind() -> None:
    for directory in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):
            kept = directory.lstat()
            # Who has only just made one may not hold its lock yet.
            if kept.st_uid != os.getuid() or time.time() - kept.st_mtime < JUST_MADE:
                continue
            with (directory / LOCK).open() as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(directory)
