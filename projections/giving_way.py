"""Giving way: what works in bulk lets those go first who serve requests on the same machine."""

import contextlib
import os
import socket
from pathlib import Path
from typing import Any

import psycopg

NICENESS = 10
"""Not more: a server process holds locks of a moment that others wait for, and must get on with it."""


def give_way() -> None:
    """Let all others of the machine go before this process. It gets a session of its own."""
    os.nice(NICENESS)
    # Where Linux weighs sessions against each other, niceness counts within a session alone: sched(7), autogroup.
    with contextlib.suppress(OSError):
        os.setsid()
        Path("/proc/self/autogroup").write_text(f"{NICENESS}\n", encoding="ascii")


def let_server_give_way(connection: psycopg.Connection[Any] | psycopg.AsyncConnection[Any]) -> None:
    """The same of the server's process behind a connection, where it runs on this machine and we may tell it to.

    For good: who is not its superuser cannot take it back.
    """
    pid = connection.info.backend_pid
    with contextlib.suppress(OSError):
        title = Path(f"/proc/{pid}/cmdline").read_bytes()
        # Another machine's number may be another process here: it has to name our end of the connection.
        if title.startswith(b"postgres: ") and f"({_local_port(connection)})".encode() in title:
            os.setpriority(os.PRIO_PROCESS, pid, max(NICENESS, os.getpriority(os.PRIO_PROCESS, pid)))


def _local_port(connection: psycopg.Connection[Any] | psycopg.AsyncConnection[Any]) -> int:
    with socket.socket(fileno=os.dup(connection.fileno())) as ours:
        address = ours.getsockname()
    return int(address[1]) if isinstance(address, tuple) else 0
