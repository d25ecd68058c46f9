"""Requests over raw connections: what a driver costs has to be little beside what a server does.

Requests are bytes that are made beforehand; of an answer its status and length are looked at. `closed` asks as fast
as it is answered, `arrivals` at a rate, whatever becomes of the answers.
"""

import asyncio
import resource
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import cast

BLANK_LINE = b"\r\n\r\n"
LENGTH = b"\r\nContent-Length: "
STATUS = slice(9, 12)
REFUSED = 400
"""Statuses from here on."""
PACE_SECONDS = 0.001
"""Between two looks at which requests are due."""
ANSWER_SECONDS = 30.0
"""How long the last answers are waited for."""


def request_bytes(method: str, path: str, *, headers: Mapping[str, str], body: bytes = b"") -> bytes:
    """A request as it is sent."""
    lines = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", *(f"{k}: {v}" for k, v in headers.items())]
    if method == "POST":
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    return "\r\n".join(lines).encode() + BLANK_LINE + body


@dataclass(slots=True)
class Load:
    """What came back.

    Attributes:
        seconds: from the first request to the last answer.
        seen: of each answer: when it was asked for, in seconds from the beginning, its status, and how long it took.
        bodies: of the first answers, as many as were asked for. refusal: the first that was one.
        unsent: arrivals for which there was no connection. lost: answers that did not come,
            the connection's end in their place.
        cpu: seconds of the driver's own.
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


Answered = Callable[["Connection", int, bytes], None]


class Connection(asyncio.Protocol):
    """One connection, one request at a time."""

    def __init__(self, answered: Answered, lost: Callable[["Connection"], None]) -> None:
        self._answered = answered
        self._lost = lost
        self._received = b""
        self._length = 0
        self._transport: asyncio.Transport | None = None
        self.began = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  # asyncio's name
        self._lost(self)

    def send(self, request: bytes, *, began: float) -> None:
        assert self._transport is not None
        self.began = began
        self._length = 0
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        received = self._received = self._received + data if self._received else data
        if not self._length:
            head = received.find(BLANK_LINE)
            if head < 0:
                return
            at = received.find(LENGTH, 0, head)
            end = received.find(b"\r\n", at + 2)
            self._length = (
                head + len(BLANK_LINE) + int(received[at + len(LENGTH) : end]) if at > 0 else head + 4
            )
        if len(received) >= self._length:
            self._received = b""
            self._answered(self, int(received[STATUS]), received)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


class _Drive:
    """What both kinds of load have in common: connections, and what came back over them."""

    def __init__(self, port: int, *, keep: int = 0) -> None:
        self.load = Load()
        self.began = 0.0
        self._port = port
        self._keep = keep
        self._loop = asyncio.get_running_loop()
        self._open: set[Connection] = set()
        self._closing = False

    async def connect(self) -> Connection:
        _, connection = await self._loop.create_connection(
            lambda: Connection(self._answered, self._lost), "127.0.0.1", self._port
        )
        self._open.add(connection)
        return connection

    def close(self) -> None:
        self._closing = True
        for connection in self._open:
            connection.close()

    def idle(self, connection: Connection) -> None:
        """It has answered."""
        raise NotImplementedError

    def _answered(self, connection: Connection, status: int, received: bytes) -> None:
        load = self.load
        load.seen.append((connection.began - self.began, status, time.perf_counter() - connection.began))
        if status >= REFUSED and load.refusal is None:
            load.refusal = received
        elif len(load.bodies) < self._keep:
            load.bodies.append(received[received.index(BLANK_LINE) + len(BLANK_LINE) :])
        self.idle(connection)

    def _lost(self, connection: Connection) -> None:
        self._open.discard(connection)
        if not self._closing:
            self.load.lost += 1


class _Closed(_Drive):
    """Each connection sends its next request when the last is answered."""

    def __init__(self, port: int, requests: Iterator[bytes], *, keep: int) -> None:
        super().__init__(port, keep=keep)
        self._requests = requests
        self._until = 0.0
        self._busy: set[Connection] = set()
        self.finished = asyncio.Event()

    def begin(self, *, until: float) -> None:
        self._until = until
        self._busy = set(self._open)
        for connection in list(self._open):
            self.idle(connection)

    def idle(self, connection: Connection) -> None:
        now = time.perf_counter()
        request = next(self._requests, None) if now < self._until else None
        if request is not None:
            connection.send(request, began=now)
        else:
            self._end(connection)

    def _lost(self, connection: Connection) -> None:
        super()._lost(connection)
        self._end(connection)

    def _end(self, connection: Connection) -> None:
        self._busy.discard(connection)
        if not self._busy:
            self.finished.set()


async def closed(
    port: int, requests: Iterator[bytes], *, connections: int, seconds: float, keep: int = 0
) -> Load:
    """As fast as it is answered, until time or requests are over.

    Args:
        keep: how many answers' bodies are kept.
    """
    drive = _Closed(port, requests, keep=keep)
    try:
        for _ in range(connections):
            await drive.connect()
        drive.began = began = time.perf_counter()
        cpu = cpu_seconds()
        drive.begin(until=began + seconds)
        await asyncio.wait_for(drive.finished.wait(), seconds + ANSWER_SECONDS)
        drive.load.seconds, drive.load.cpu = time.perf_counter() - began, cpu_seconds() - cpu
    finally:
        drive.close()
    return drive.load


class _Arrivals(_Drive):
    """Requests that come whether or not others are answered, each over a connection that is free."""

    def __init__(self, port: int, request: bytes, *, connections: int) -> None:
        super().__init__(port)
        self._request = request
        self._most = connections
        self._idle: list[Connection] = []
        self._opening: set[asyncio.Task[None]] = set()
        self.under_way = 0

    def arrive(self, due: float) -> None:
        if self._idle:
            self._send(self._idle.pop(), due)
        elif len(self._open) + len(self._opening) < self._most:
            self.under_way += 1
            task = asyncio.create_task(self._connect_and_send(due))
            self._opening.add(task)
            task.add_done_callback(self._opening.discard)
        else:
            self.load.unsent += 1

    async def _connect_and_send(self, due: float) -> None:
        try:
            connection = await self.connect()
        except OSError:
            self.load.lost += 1
        else:
            self._send(connection, due)
        finally:
            self.under_way -= 1

    def _send(self, connection: Connection, due: float) -> None:
        self.under_way += 1
        connection.send(self._request, began=due)

    def idle(self, connection: Connection) -> None:
        self.under_way -= 1
        self._idle.append(connection)

    def _lost(self, connection: Connection) -> None:
        if connection in self._idle:  # after a while a server closes what nobody uses
            self._idle.remove(connection)
            self._open.discard(connection)
        else:
            super()._lost(connection)
            self.under_way -= 1


async def arrivals(port: int, request: bytes, *, rate: float, seconds: float, connections: int) -> Load:
    """The same request so many times a second, whatever becomes of them; times are from when each was due.

    Args:
        connections: the most that are opened. Where all are taken, an arrival is `unsent`.
    """
    drive = _Arrivals(port, request, connections=connections)
    drive.began = began = time.perf_counter()
    cpu, sent, all_of_them = cpu_seconds(), 0, int(rate * seconds)
    try:
        while sent < all_of_them:
            due = min(all_of_them, int((time.perf_counter() - began) * rate))
            for number in range(sent, due):
                drive.arrive(began + number / rate)
            sent = due
            await asyncio.sleep(PACE_SECONDS)
        until = time.perf_counter() + ANSWER_SECONDS
        while drive.under_way and time.perf_counter() < until:  # noqa: ASYNC110  # only once, at the end
            await asyncio.sleep(PACE_SECONDS)
    finally:
        drive.close()
    load = drive.load
    load.lost += drive.under_way
    load.seconds, load.cpu = time.perf_counter() - began, cpu_seconds() - cpu
    return load


def cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
