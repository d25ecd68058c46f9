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
"""The environment variable in which the library looks for the directory."""
PREFIX = "payloops-metrics-"
LOCK = "lock"
NEW_SECONDS = 60.0
"""A directory younger than this may belong to a process that has not locked it yet."""


class _Process:
    """State of this process. `directory`: None if it does not share its metrics."""

    slot = "parent"
    directory: Path | None = None


@contextlib.contextmanager
def share_metrics() -> Iterator[None]:
    """Share the metrics of this process with those that it forks. The directory is removed with the context.

    Enter it before any metric is created, and so before the modules that create some are imported. Directories that
    killed processes have left behind are removed first.
    """
    assert not any(each.name.startswith("payloops_") for each in REGISTRY.collect()), "metrics exist already"
    _remove_left_behind()
    directory = Path(tempfile.mkdtemp(prefix=PREFIX))
    try:
        # Forked processes hold the lock, too: it is released when the last of them has ended, even if killed.
        with (directory / LOCK).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            os.environ[VARIABLE] = str(directory)
            values.ValueClass = values.MultiProcessValue(process_identifier=lambda: _Process.slot)  # type: ignore[no-untyped-call]
            _Process.directory = directory
            yield
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def use_slot(number: int) -> None:
    """Count in the files of this slot; for a process that was just forked."""
    _Process.slot = str(number)


def release_slot(number: int) -> None:
    """The process in this slot has ended: keep its counters, drop its gauges."""
    if _Process.directory is not None:
        mark_process_dead(number, path=str(_Process.directory))  # type: ignore[no-untyped-call]


def counted() -> Collector:
    """The metrics of this process; if it shares them, those of all processes."""
    if _Process.directory is None:
        return REGISTRY
    registry = CollectorRegistry()
    MultiProcessCollector(registry, path=str(_Process.directory))  # type: ignore[no-untyped-call]
    return registry


def _remove_left_behind() -> None:
    for directory in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):
            kept = directory.lstat()
            if kept.st_uid != os.getuid() or time.time() - kept.st_mtime < NEW_SECONDS:
                continue
            with (directory / LOCK).open() as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(directory)
