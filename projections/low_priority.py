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
"""Not more: a server process holds locks of a moment that others wait for, and must get on with it."""
TURN = 100_000
"""Nanoseconds for which it may go on where another process wants its core: the least that Linux allows. Else it is
1.4 million and more, which a request waits for several times, at each process that it wakes."""
SESSION_TRIES = 5
SESSION_PAUSE = 0.1
"""Seconds, at least: Linux lets one session in so many be weighed anew, of all users but root."""


SCHED_SETATTR = {"x86_64": 314, "aarch64": 274}
"""The number of the system call, by machine. Neither Python nor the C library has a name for it: sched_setattr(2)."""
_ATTRIBUTES = struct.Struct("=IIQiIQQQ")
"""Size, policy, flags, niceness, priority, runtime (of the usual policy: a turn), deadline, period."""


def lower_priority() -> None:
    """Let all others of the machine go before this process. It gets a session of its own."""
    os.nice(NICENESS)
    _take_short_turns(os.getpid())
    with contextlib.suppress(OSError):
        os.setsid()
    _lower_session_priority(os.getpid())


def lower_server_priority(connection: psycopg.Connection[Any] | psycopg.AsyncConnection[Any]) -> None:
    """The same of the server's process behind a connection, where it runs on this machine and we may tell it to.

    For good: who is not its superuser cannot take it back. May take half a second.
    """
    pid = connection.info.backend_pid
    with contextlib.suppress(OSError):
        title = Path(f"/proc/{pid}/cmdline").read_bytes()
        # Another machine's number may be another process here: it has to name our end of the connection.
        if title.startswith(b"postgres: ") and f"({_local_port(connection)})".encode() in title:
            os.setpriority(os.PRIO_PROCESS, pid, max(NICENESS, os.getpriority(os.PRIO_PROCESS, pid)))
            _take_short_turns(pid)
            _lower_session_priority(pid)


def _take_short_turns(pid: int) -> None:
    """From Linux 6.12 on; before, this changes nothing."""
    call = SCHED_SETATTR.get(os.uname().machine) if sys.platform == "linux" else None
    if call is not None:
        niceness = os.getpriority(os.PRIO_PROCESS, pid)
        attributes = _ATTRIBUTES.pack(_ATTRIBUTES.size, os.SCHED_OTHER, 0, niceness, 0, TURN, 0, 0)
        ctypes.CDLL(None).syscall(call, pid, attributes, 0)


def _lower_session_priority(pid: int) -> None:
    """Where Linux weighs sessions against each other, niceness counts within a session alone: sched(7), autogroup.

    PostgreSQL gives a session to each of its processes. One that others share is left alone.
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
