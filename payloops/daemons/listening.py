"""Opening listening sockets."""

import asyncio
import os
import socket
from collections.abc import Callable

BACKLOG = 1_024
ACCEPTED_AT_ONCE = 16
"""Connections accepted per iteration of the event loop."""
HANDED_OVER = 3
"""File descriptor of the first socket that is handed over: SD_LISTEN_FDS_START of sd_listen_fds(3)."""


class PortTaken(Exception):
    """Cannot listen on the address: it is in use, or not allowed."""

    def __init__(self, host: str, port: int, reason: str, *, setting: str) -> None:
        super().__init__(f"cannot listen on {host}:{port}: {reason} (HOST and {setting} say where)")


class NotOneSocket(Exception):
    """What was handed over is not one TCP socket that listens."""

    def __init__(self, what: str) -> None:
        super().__init__(f"one TCP socket is expected from the caller (LISTEN_FDS), and there is {what}")


def handed_over() -> socket.socket | None:
    """The listening socket that this process was started with, if any: by systemd, for example (sd_listen_fds(3)).

    It stays open when the process ends, so while another one takes its place, connections wait in its backlog.

    Raises:
        NotOneSocket: see there.
    """
    pid, count = os.environ.pop("LISTEN_PID", ""), os.environ.pop("LISTEN_FDS", "")
    if pid != str(os.getpid()):  # these variables are of a process that started this one
        return None
    if count != "1":
        raise NotOneSocket(f"LISTEN_FDS={count}")
    try:
        listener = socket.socket(fileno=HANDED_OVER)
    except OSError as error:
        raise NotOneSocket(f"none: {error.strerror}") from None
    tcp = listener.family in {socket.AF_INET, socket.AF_INET6} and listener.type == socket.SOCK_STREAM
    if not tcp or not listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        listener.close()
        raise NotOneSocket("another kind of socket")
    listener.set_inheritable(False)
    return listener


def bind(host: str, port: int, *, setting: str = "PORT", shared: bool = False) -> socket.socket:
    """A listening socket; connections wait in its backlog until they are accepted.

    Args:
        port: if 0, any free one.
        setting: name of the setting with the port, for the error message.
        shared: the socket does not listen itself, but reserves the port for sockets created by `share`.

    Raises:
        PortTaken: see there.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        first = _bound(family, host, port, shared=False)
        try:
            # Fails if another socket listens on the address, which `bind` may not notice.
            first.listen(BACKLOG)
        except BaseException:
            first.close()
            raise
        if not shared:
            return first
        # Checked above without SO_REUSEPORT, because with it, a port that another service shares could be bound, too.
        with first:
            port = first.getsockname()[1]
        return _bound(family, host, port, shared=True)
    except OSError as error:
        raise PortTaken(host, port, error.strerror or str(error), setting=setting) from None


def share(bound: socket.socket) -> socket.socket:
    """Another socket on the port of a shared one. The kernel distributes connections to all that listen.

    If the given one listens itself, all take connections from its backlog.
    """
    if bound.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        return bound.dup()
    host, port = bound.getsockname()[:2]
    return _bound(bound.family, host, port, shared=True)


async def accept(
    listener: socket.socket, factory: Callable[[], asyncio.BaseProtocol]
) -> list[asyncio.AbstractServer]:
    """Accept connections, until the servers are closed, which also close the socket.

    libuv accepts one connection per socket in each iteration of the loop. A loaded loop has only some dozen iterations
    per second, too few for many new connections, so the loop gets several duplicates of the socket.
    """
    loop = asyncio.get_running_loop()
    duplicates = [listener, *(listener.dup() for _ in range(ACCEPTED_AT_ONCE - 1))]
    return [await loop.create_server(factory, sock=each, backlog=BACKLOG) for each in duplicates]


def _bound(family: socket.AddressFamily, host: str, port: int, *, shared: bool) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind((host, port))
    except BaseException:
        sock.close()
        raise
    return sock
