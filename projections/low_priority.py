"""Lowering the priority of bulk work, so that processes that serve requests on the same machine run first."""

import contextlib
import ctypes
import os
import random
import socket
import struct
import sys
import time
from pathlib import Path
from typing import Any

import psycopg

NICENESS = 10
"""Not higher, because a server process may hold short locks that others wait for."""
TIME_SLICE = 100_000
"""Time slice in nanoseconds, the least that Linux allows. The default is 1.4 million or more, which a request would
have to wait for at each process that it wakes."""
SESSION_TRIES = 5
SESSION_PAUSE = 0.1
"""Seconds, at least: Linux limits how often users other than root may change the weight of a session."""


SCHED_SETATTR = {"x86_64": 314, "aarch64": 274}
"""The number of the system call, by machine. Neither Python nor the C library has a name for it: sched_setattr(2)."""
_ATTRIBUTES = struct.Struct("=IIQiIQQQ")
"""Size, policy, flags, niceness, priority, runtime (with the usual policy: the time slice), deadline, period."""


def lower_priority() -> None:
    """Give this process a low priority, and a session of its own."""
    os.nice(NICENESS)
    _shorten_time_slice(os.getpid())
    with contextlib.suppress(OSError):
        os.setsid()
    _lower_session_priority(os.getpid())


def lower_server_priority(connection: psycopg.Connection[Any] | psycopg.AsyncConnection[Any]) -> None:
    """Give the server's process behind a connection a low priority, if it runs on this machine and we are allowed to.

    This cannot be undone, except by root. It may take half a second.
    """
    pid = connection.info.backend_pid
    with contextlib.suppress(OSError):
        title = Path(f"/proc/{pid}/cmdline").read_bytes()
        # The server may run on another machine, where its pid means another process: its title must name our port.
        if title.startswith(b"postgres: ") and f"({_local_port(connection)})".encode() in title:
            os.setpriority(os.PRIO_PROCESS, pid, max(NICENESS, os.getpriority(os.PRIO_PROCESS, pid)))
            _shorten_time_slice(pid)
            _lower_session_priority(pid)


def _shorten_time_slice(pid: int) -> None:
    """Shorten the time slice of a process: from Linux 6.12 on. Before, it has no effect."""
    call = SCHED_SETATTR.get(os.uname().machine) if sys.platform == "linux" else None
    if call is not None:
        niceness = os.getpriority(os.PRIO_PROCESS, pid)
        attributes = _ATTRIBUTES.pack(_ATTRIBUTES.size, os.SCHED_OTHER, 0, niceness, 0, TIME_SLICE, 0, 0)
        ctypes.CDLL(None).syscall(call, pid, attributes, 0)


def _lower_session_priority(pid: int) -> None:
    """Lower the weight of a process's session, if no other process is in it.

    With autogroup (sched(7)), Linux weighs sessions against each other, and niceness only counts within a session. Each
    of PostgreSQL's processes has a session of its own.
    """
    with contextlib.suppress(OSError):
        for _ in range(SESSION_TRIES):
            if os.getsid(pid) != pid:
                return
            try:
                Path(f"/proc/{pid}/autogroup").write_text(f"{NICENESS}\n", encoding="ascii")
            except BlockingIOError:
                time.sleep(SESSION_PAUSE * (1 + random.random()))  # noqa: S311  # jitter
            else:
                return


def _local_port(connection: psycopg.Connection[Any] | psycopg.AsyncConnection[Any]) -> int:
    with socket.socket(fileno=os.dup(connection.fileno())) as ours:
        address = ours.getsockname()
    return int(address[1]) if isinstance(address, tuple) else 0
