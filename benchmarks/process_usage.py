"""The processes of a benchmark: that they end with it, and what they use, as /proc tells it: CPU and memory."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import FrameType

import psycopg

TICKS = os.sysconf("SC_CLK_TCK")


def run(main: Callable[[], None]) -> None:
    """Run a program that starts others. SIGTERM ends it as an error does: it stops what it started."""
    signal.signal(signal.SIGTERM, _end)
    main()


def _end(number: int, _: FrameType | None) -> None:
    signal.signal(number, signal.SIG_IGN)  # stopping them is not cut short
    sys.exit(128 + number)


def cpu_seconds(pid: int) -> float:
    """CPU time of a process and its children, those that ended included, as long as it waited for them."""
    ticks = 0
    for each in family(pid):
        try:
            fields = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        ticks += sum(int(field) for field in fields[11:15])  # utime, stime, cutime, cstime
    return ticks / TICKS


def memory_of(pid: int) -> int:
    """Bytes of a process and its children; what they share counts once."""
    total = 0
    for each in family(pid):
        try:
            lines = Path(f"/proc/{each}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) * 1_024 for line in lines if line.startswith("Pss:"))
    return total


def family(pid: int) -> Iterator[int]:
    """A process, its children, and theirs."""
    of = _children()
    waiting = [pid]
    while waiting:
        each = waiting.pop()
        yield each
        waiting += of.get(each, [])


def children(pid: int) -> list[int]:
    """None where it has ended."""
    return _children().get(pid, [])


def _children() -> dict[int, list[int]]:
    """Of every process of the machine. What the kernel itself lists leaves some out while others come and go."""
    found: dict[int, list[int]] = {}
    for each in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            parent = int((each / "stat").read_text().rpartition(")")[2].split()[1])
            found.setdefault(parent, []).append(int(each.name))
    return found


def server_of(database_url: str) -> int:
    """The process id of the PostgreSQL server, whose children serve connections; it runs on this machine."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        status = Path(f"/proc/{connection.info.backend_pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("PPid:"))
