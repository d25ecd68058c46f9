"""Opening listening sockets."""

import asyncio
import socket
from collections.abc import Callable

BACKLOG = 1_024
ACCEPTED_AT_ONCE = 16
"""Connections accepted per iteration of the event loop."""


class PortTaken(Exception):
    """Cannot listen on the address: it is in use, or not allowed."""

    def __init__(self, host: str, port: int, reason: str, *, setting: str) -> None:
        super().__init__(f"cannot listen on {host}:{port}: {reason} (HOST and {setting} say where)")


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
            first.listen(
                BACKLOG
            )  # fails if another socket listens on the address, which `bind` may not notice
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
    """Another socket on the port of a shared one. The kernel distributes connections to all that listen."""
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
