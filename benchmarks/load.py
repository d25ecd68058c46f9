"""A load generator that needs little CPU beside the server that it measures.

`closed` sends as fast as the server answers, `arrivals` at a fixed rate, regardless of the answers. Requests are bytes
that are made beforehand; of an answer, only status and length are read. Sockets are used without an event loop, so
that a request and its answer take two system calls and little else.
"""

import resource
import select
import socket
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Self

BLANK_LINE = b"\r\n\r\n"
LENGTH = b"\r\nContent-Length: "
STATUS = slice(9, 12)
REFUSED = 400
"""Statuses from here on are refusals."""
PACE_SECONDS = 0.001
"""At a fixed rate: between two rounds of sending the requests that are due and reading the answers that arrived."""
MOST_RECEIVED = 65_536
"""Bytes of one read."""
ANSWER_SECONDS = 30.0
"""How long to wait for the last answers."""


def request_bytes(method: str, path: str, *, headers: Mapping[str, str], body: bytes = b"") -> bytes:
    """A request as it goes over the wire."""
    lines = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", *(f"{k}: {v}" for k, v in headers.items())]
    if method == "POST":
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    return "\r\n".join(lines).encode() + BLANK_LINE + body


@dataclass(slots=True)
class Load:
    """The outcome of a load.

    Attributes:
        seconds: from the first request to the last answer.
        seen: of each answer: when its request was due, in seconds from the beginning, its status, and how long it took.
        bodies: of the first answers, as many as the caller wants to keep. refusal: the first refusal.
        unsent: requests for which no connection was free. lost: requests without an answer.
        cpu: seconds of CPU that the driver took.
    """

    seconds: float = 0.0
    seen: list[tuple[float, int, float]] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    refusal: bytes | None = None
    unsent: int = 0
    lost: int = 0
    cpu: float = 0.0

    @property
    def statuses(self) -> Counter[int]:
        return Counter(status for _, status, _ in self.seen)

    @property
    def answers(self) -> int:
        return len(self.seen)

    def took(self, status: int | None = None) -> list[float]:
        """Seconds of all answers, or of those with a status."""
        return [took for _, each, took in self.seen if status in (None, each)]


class Connection:
    """A connection, for one request at a time."""

    __slots__ = ("_length", "_received", "_request", "began", "socket")

    def __init__(self, port: int) -> None:
        self.socket = socket.socket()
        self.socket.setblocking(False)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.connect_ex(("127.0.0.1", port))
        self._request = self._received = b""
        self._length = 0
        self.began = 0.0

    def send(self, request: bytes, *, began: float) -> bool:
        """Send a request. False if the connection is not established yet: then `send_again` has to follow.

        Raises:
            OSError: the connection was closed or refused.
        """
        self.began = began
        self._request = request
        return self.send_again()

    def send_again(self) -> bool:
        try:
            sent = self.socket.send(self._request)
        except BlockingIOError:
            return False
        assert sent == len(self._request), "a request fits into what a socket takes"
        return True

    def receive(self) -> bytes | None:
        """The answer; None if only a part of it has arrived.

        Raises:
            OSError: the connection was closed.
        """
        data = self.socket.recv(MOST_RECEIVED)
        if not data:
            raise ConnectionResetError
        received = self._received = self._received + data if self._received else data
        if not self._length:
            head = received.find(BLANK_LINE)
            if head < 0:
                return None
            self._length = head + len(BLANK_LINE)
            at = received.find(LENGTH, 0, head)
            if at > 0:
                self._length += int(received[at + len(LENGTH) : received.find(b"\r", at + len(LENGTH))])
        if len(received) < self._length:
            return None
        self._received = b""
        self._length = 0
        return received


class _Drive:
    """What both kinds of load have in common: the connections and their events."""

    def __init__(self, port: int, *, keep: int = 0) -> None:
        self.load = Load()
        self.began = 0.0
        self.under_way = 0
        self._port = port
        self._keep = keep
        self._poll = select.epoll()
        self._open: dict[int, Connection] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for connection in self._open.values():
            connection.socket.close()
        self._poll.close()

    def connect(self) -> Connection:
        connection = Connection(self._port)
        self._open[connection.socket.fileno()] = connection
        self._poll.register(connection.socket, select.EPOLLIN)
        return connection

    def send(self, connection: Connection, request: bytes, *, began: float) -> None:
        self.under_way += 1
        try:
            if not connection.send(request, began=began):
                self._poll.modify(connection.socket, select.EPOLLOUT)
        except OSError:
            self._lose(connection)

    def take(self, *, seconds: float) -> None:
        """Handle the answers that have arrived; wait this long for the first."""
        for number, event in self._poll.poll(seconds):
            connection = self._open[number]
            try:
                if event & select.EPOLLOUT:
                    if connection.send_again():
                        self._poll.modify(number, select.EPOLLIN)
                elif (answer := connection.receive()) is not None:
                    self._answered(connection, answer)
            except OSError:
                self._lose(connection)

    def idle(self, connection: Connection) -> None:
        """Called when a connection is free for another request."""
        raise NotImplementedError

    def _answered(self, connection: Connection, answer: bytes) -> None:
        load, status = self.load, int(answer[STATUS])
        load.seen.append((connection.began - self.began, status, time.perf_counter() - connection.began))
        if status >= REFUSED and load.refusal is None:
            load.refusal = answer
        elif len(load.bodies) < self._keep:
            load.bodies.append(answer[answer.index(BLANK_LINE) + len(BLANK_LINE) :])
        self.under_way -= 1
        self.idle(connection)

    def _lose(self, connection: Connection) -> None:
        """The connection was closed before it answered."""
        self._drop(connection)
        self.under_way -= 1
        self.load.lost += 1

    def _drop(self, connection: Connection) -> None:
        del self._open[connection.socket.fileno()]
        connection.socket.close()


def closed(port: int, requests: Iterator[bytes], *, connections: int, seconds: float, keep: int = 0) -> Load:
    """Send the next request over each connection when the last one is answered, until time or requests run out.

    Args:
        keep: how many bodies of answers to keep.

    Raises:
        TimeoutError: a request was not answered.
    """
    with _Closed(port, requests, keep=keep) as drive:
        all_of_them = [drive.connect() for _ in range(connections)]
        began, cpu = time.perf_counter(), cpu_seconds()
        drive.began, drive.until = began, began + seconds
        for connection in all_of_them:
            drive.idle(connection)
        while drive.under_way:
            if time.perf_counter() > drive.until + ANSWER_SECONDS:
                raise TimeoutError
            drive.take(seconds=1.0)
        drive.load.seconds, drive.load.cpu = time.perf_counter() - began, cpu_seconds() - cpu
        return drive.load


class _Closed(_Drive):
    """See `closed`."""

    def __init__(self, port: int, requests: Iterator[bytes], *, keep: int) -> None:
        super().__init__(port, keep=keep)
        self.until = 0.0
        self._requests = requests

    def idle(self, connection: Connection) -> None:
        now = time.perf_counter()
        if now < self.until and (request := next(self._requests, None)) is not None:
            self.send(connection, request, began=now)


def arrivals(port: int, request: bytes, *, rate: float, seconds: float, connections: int) -> Load:
    """Send the same request at a fixed rate, regardless of the answers; times count from when each was due.

    Args:
        connections: at most so many are opened. If none is free, a request is `unsent`.
    """
    with _Arrivals(port, request, connections=connections) as drive:
        began, cpu = time.perf_counter(), cpu_seconds()
        drive.began, sent, all_of_them = began, 0, int(rate * seconds)
        while sent < all_of_them:
            due = min(all_of_them, int((time.perf_counter() - began) * rate))
            for number in range(sent, due):
                drive.arrive(began + number / rate)
            sent = due
            time.sleep(PACE_SECONDS)
            drive.take(seconds=0)
        until = time.perf_counter() + ANSWER_SECONDS
        while drive.under_way and time.perf_counter() < until:
            drive.take(seconds=PACE_SECONDS)
        drive.load.lost += drive.under_way
        drive.load.seconds, drive.load.cpu = time.perf_counter() - began, cpu_seconds() - cpu
        return drive.load


class _Arrivals(_Drive):
    """See `arrivals`."""

    def __init__(self, port: int, request: bytes, *, connections: int) -> None:
        super().__init__(port)
        self._request = request
        self._most = connections
        self._idle: list[Connection] = []

    def arrive(self, due: float) -> None:
        if self._idle:
            self.send(self._idle.pop(), self._request, began=due)
        elif len(self._open) < self._most:
            self.send(self.connect(), self._request, began=due)
        else:
            self.load.unsent += 1

    def idle(self, connection: Connection) -> None:
        self._idle.append(connection)

    def _lose(self, connection: Connection) -> None:
        if connection in self._idle:  # the server closes idle connections
            self._idle.remove(connection)
            self._drop(connection)
        else:
            super()._lose(connection)


def cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
