"""A merchant's endpoint for tests: a real server on loopback that keeps what it is sent."""

import asyncio
import hashlib
import hmac
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from multidict import CIMultiDictProxy

Responder = Callable[["Received"], web.StreamResponse | int | Awaitable[web.StreamResponse | int]]


@dataclass(frozen=True)
class Received:
    path: str
    headers: CIMultiDictProxy[str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class HeldBack:
    """An answer of 200 that nobody is given before `give`, and everybody from then on."""

    def __init__(self) -> None:
        self._given = asyncio.Event()

    async def __call__(self, _: Received) -> int:
        await self._given.wait()
        return 200

    def give(self) -> None:
        self._given.set()


@dataclass
class Endpoint:
    """`answer`: what each request is answered with."""

    url: str = ""
    answer: Responder = lambda _: 200
    received: list[Received] = field(default_factory=list)
    arrived: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def has(self, count: int, *, seconds: float = 60) -> list[Received]:
        """Wait until this many requests have come."""
        async with asyncio.timeout(seconds), self.arrived:
            await self.arrived.wait_for(lambda: len(self.received) >= count)
        return self.received

    async def handle(self, request: web.Request) -> web.StreamResponse:
        received = Received(request.path_qs, request.headers, await request.read())
        async with self.arrived:
            self.received.append(received)
            self.arrived.notify_all()
        answer = self.answer(received)
        if isinstance(answer, Awaitable):
            answer = await answer
        return web.Response(status=answer, text="thanks") if isinstance(answer, int) else answer


@asynccontextmanager
async def receiving(answer: Responder = lambda _: 200) -> AsyncIterator[Endpoint]:
    endpoint = Endpoint(answer=answer)
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", endpoint.handle)
    runner = web.AppRunner(app, shutdown_timeout=0, handler_cancellation=True)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        endpoint.url = f"http://127.0.0.1:{runner.addresses[0][1]}/hooks"
        yield endpoint
    finally:
        await runner.cleanup()


def sdk_accepts(body: bytes, signature: str, secret: str, *, now_ms: int) -> bool:
    """The SDK's rule, read independently: the last `t` and the last `v1` of the list count; 300 seconds."""
    given: dict[str, str] = {}
    for part in signature.split(","):
        name, _, value = part.strip().partition("=")
        given[name] = value
    if abs(now_ms - int(given["t"])) > 300_000:
        return False
    expected = hmac.new(secret.encode(), f"{given['t']}.".encode() + body, hashlib.sha256).hexdigest()
    return hmac.compare_digest(expected, given["v1"])


@dataclass
class Canary:
    """Listens and counts who connects. `ports`: by address."""

    ports: dict[str, int] = field(default_factory=dict)
    connections: list[str] = field(default_factory=list)


@asynccontextmanager
async def canaries(*addresses: str) -> AsyncIterator[Canary]:
    """One listener on each address, all on one port where that is free."""
    canary = Canary()
    servers: list[asyncio.Server] = []
    try:
        for address in addresses:

            def noted(_: asyncio.StreamReader, writer: asyncio.StreamWriter, *, name: str = address) -> None:
                canary.connections.append(name)
                writer.close()

            port = next(iter(canary.ports.values()), 0)
            try:
                server = await asyncio.start_server(noted, address, port)
            except OSError:  # a machine without IPv6
                continue
            servers.append(server)
            canary.ports[address] = server.sockets[0].getsockname()[1]
        yield canary
    finally:
        for server in servers:
            server.close()
            await server.wait_closed()
