"""Opening listening sockets."""

import asyncio
import socket
from collections.abc import Callable

BACKLOG = 1_024
ACCEPTED_AT_ONCE = 16
"""Connections that a turn of the event loop takes out of a backlog."""


class PortTaken(Exception):
    """The address to listen on is in use, or not ours to use."""

    def __init__(self, host: str, port: int, reason: str, *, setting: str) -> None:
        super().__init__(f"cannot listen on {host}:{port}: {reason} (HOST and {setting} say where)")


def bind(host: str, port: int, *, setting: str = "PORT", shared: bool = False) -> socket.socket:
    """A socket that listens; connections wait in it until somebody accepts.

    Args:
        port: 0 takes a free one.
        setting: what says which, for who has to choose another.
        shared: does not listen itself, but keeps the port for the sockets made by `share`.

    Raises:
        PortTaken: see there.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        first = _bound(family, host, port, shared=False)
        try:
            first.listen(BACKLOG)  # only this tells that somebody else listens, too
        except BaseException:
            first.close()
            raise
        if not shared:
            return first
        # A port that others share would be shared with us as well: only a bind that does not share tells.
        with first:
            port = first.getsockname()[1]
        return _bound(family, host, port, shared=True)
    except OSError as error:
        raise PortTaken(host, port, error.strerror or str(error), setting=setting) from None


def share(bound: socket.socket) -> socket.socket:
    """Another socket on the port of a shared one: the kernel spreads connections over those that listen."""
    host, port = bound.getsockname()[:2]
    return _bound(bound.family, host, port, shared=True)


async def accept(
    listener: socket.socket, factory: Callable[[], asyncio.BaseProtocol]
) -> list[asyncio.AbstractServer]:
    """Accept connections, until the servers are closed, and the socket with them.

    libuv accepts one connection in each turn of the loop. A loaded loop turns some dozen times a second, too seldom
    for those who come then: so it has the socket several times.
    """
    loop = asyncio.get_running_loop()
    same = [listener, *(listener.dup() for _ in range(ACCEPTED_AT_ONCE - 1))]
    return [await loop.create_server(factory, sock=each, backlog=BACKLOG) for each in same]


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
