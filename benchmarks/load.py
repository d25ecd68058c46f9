"""Requests over raw connections: what a driver costs has to be little beside what a server does.

Requests are bytes that are made beforehand; of an answer its status and length are looked at. `closed` asks as fast
as it is answered, `arrive` at a rate, whatever becomes of the answers.
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
        seconds: from the first request to the last answer. took: of each answer, by its status, in seconds.
        bodies: of the first answers, as many as were asked for. refusal: the first that was one.
        unsent: arrivals for which there was no connection. lost: connections that ended unasked.
        cpu: seconds of the driver's own.
    """

    seconds: float = 0.0
    took: dict[int, list[float]] = field(default_factory=dict)
    bodies: list[bytes] = field(default_factory=list)
    refusal: bytes | None = None
    unsent: int = 0
    lost: int = 0
    cpu: float = 0.0

    @property
    def statuses(self) -> Counter[int]:
        return Counter({status: len(took) for status, took in self.took.items()})

    @property
    def answers(self) -> int:
        return sum(len(took) for took in self.took.values())

    def note(self, status: int, seconds: float) -> None:
        self.took.setdefault(status, []).append(seconds)


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
        load.note(status, time.perf_counter() - connection.began)
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
        began, cpu = time.perf_counter(), cpu_seconds()
        drive.begin(until=began + seconds)
        await asyncio.wait_for(drive.finished.wait(), seconds + ANSWER_SECONDS)
        drive.load.seconds, drive.load.cpu = time.perf_counter() - began, cpu_seconds() - cpu
    finally:
        drive.close()
    return drive.load


def cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
