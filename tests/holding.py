"""A way to PostgreSQL that can hold its answers back: what was sent is done, and nobody is told."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from urllib.parse import urlsplit, urlunsplit


@dataclass
class HoldingProxy:
    """Forwards connections to a database.

    Attributes:
        url: of the database, by way of this proxy.
        hold: text of a statement: from when a client next sends it, that client gets no more answers.
        held: set when that has happened.
    """

    url: str
    hold: bytes | None = None
    held: asyncio.Event = field(default_factory=asyncio.Event)
    connections: set[asyncio.Task[None]] = field(default_factory=set)
    listener: asyncio.Server | None = None

    def cut(self) -> None:
        """The way is gone: its connections are lost, and nobody gets a new one."""
        if self.listener is not None:
            self.listener.close()
        for task in list(self.connections):
            task.cancel()

    async def forward(
        self,
        client: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        server: tuple[asyncio.StreamReader, asyncio.StreamWriter],
    ) -> None:
        silent = False

        async def requests() -> None:
            nonlocal silent
            while data := await client[0].read(65_536):
                if self.hold is not None and self.hold in data:
                    silent = True
                    self.held.set()
                server[1].write(data)
                await server[1].drain()

        async def answers() -> None:
            while data := await server[0].read(65_536):
                if not silent:
                    client[1].write(data)
                    await client[1].drain()

        try:
            tasks = [asyncio.create_task(requests()), asyncio.create_task(answers())]
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        finally:
            for _, writer in (client, server):
                writer.close()


@asynccontextmanager
async def holding_proxy(database_url: str) -> AsyncIterator[HoldingProxy]:
    parts = urlsplit(database_url)

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        proxy.connections.add(task)
        with contextlib.suppress(OSError, asyncio.CancelledError):
            upstream = await asyncio.open_connection(parts.hostname, parts.port)
            await proxy.forward((reader, writer), upstream)
        proxy.connections.discard(task)

    listener = await asyncio.start_server(accept, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    netloc = f"{parts.netloc.rpartition('@')[0]}@127.0.0.1:{port}"
    proxy = HoldingProxy(url=urlunsplit(parts._replace(netloc=netloc)), listener=listener)
    try:
        yield proxy
    finally:
        proxy.cut()
        await asyncio.gather(*proxy.connections, return_exceptions=True)
