"""Locks, so that one process uses a data directory, and one process per machine chooses ports; and free ports."""

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from payloops.embedded.errors import NotStarted

PORTS_LOCK = Path("/tmp/payloops-ports.lock")  # noqa: S108 one per machine: $TMPDIR may differ between users
PORTS_WAIT = 30.0


def take_directory(directory: Path) -> int:
    """Lock a data directory for this process. Returns a file descriptor: closing it releases the lock.

    Raises:
        NotStarted: another process has it.
    """
    descriptor = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "unknown"
        os.close(descriptor)
        raise NotStarted(
            part="data directory",
            why=f"{directory} is in use by another instance (process {holder}): end it, or choose another directory"
            " with --data-dir",
        ) from None
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    return descriptor


@contextmanager
def choosing_ports() -> Iterator[None]:
    """Hold the machine-wide lock, from choosing ports until servers have bound them.

    If another process holds it for more than 30 s, go on without it: that the right server answers is checked anyway.
    """
    descriptor = _open_shared(PORTS_LOCK)
    try:
        deadline = time.monotonic() + PORTS_WAIT
        while time.monotonic() < deadline:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(0.02)
        yield
    finally:
        os.close(descriptor)


def _open_shared(path: Path) -> int:
    """Open a lock file that any user may have created.

    Reading is enough for flock, and the kernel refuses O_CREAT on another user's file in /tmp
    (fs.protected_regular).
    """
    flags = os.O_CLOEXEC | os.O_NOFOLLOW
    for _ in range(2):
        with suppress(FileNotFoundError):
            return os.open(path, os.O_RDONLY | flags)
        with suppress(FileExistsError):
            descriptor = os.open(path, os.O_RDONLY | os.O_CREAT | os.O_EXCL | flags, 0o644)
            os.fchmod(descriptor, 0o644)
            return descriptor
    return os.open(path, os.O_RDONLY | flags)


def free_ports(*, wanted: list[int | None]) -> list[int]:
    """Different free loopback ports, one for each wanted one: that port itself, if it is free."""
    bound: list[socket.socket] = []
    try:
        for port in wanted:
            bound.append(_bound(port) or _bound(0) or _raise_no_port())  # noqa: PERF401 closed if one fails
        return [each.getsockname()[1] for each in bound]
    finally:
        for each in bound:
            each.close()


def _bound(port: int | None) -> socket.socket | None:
    if port is None:
        return None
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    # Servers do the same, so for them a port whose last connections are in TIME_WAIT is free.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(("127.0.0.1", port))
        listener.listen(1)
    except OSError:
        listener.close()
        return None
    return listener


def _raise_no_port() -> socket.socket:
    raise NotStarted(part="ports", why="no free port on 127.0.0.1")


def port_is_free(port: int) -> bool:
    listener = _bound(port)
    if listener is None:
        return False
    listener.close()
    return True


def remembered_ports(path: Path) -> dict[str, int]:
    """The ports of the last run; empty if there was none."""
    try:
        return {str(name): int(port) for name, port in json.loads(path.read_text(encoding="utf-8")).items()}
    except (FileNotFoundError, ValueError, AttributeError, TypeError):
        return {}


def remember_ports(path: Path, ports: Mapping[str, int]) -> None:
    path.write_text(json.dumps(ports), encoding="utf-8")
