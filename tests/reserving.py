"""Ports for tests that have to name one before anybody listens on it."""

import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def reserved_port() -> Iterator[int]:
    """A port on loopback that the system gives to nobody else meanwhile.

    It is bound here, and not listened on. Linux lets a server bind and listen there all the same, where both have
    SO_REUSEADDR, as ours do; elsewhere the port is only one that was free.
    """
    with socket.socket() as reserved:
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reserved.bind(("127.0.0.1", 0))
        port: int = reserved.getsockname()[1]
        if sys.platform != "linux":
            reserved.close()
        yield port
