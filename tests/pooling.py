"""A pooler before PostgreSQL, as PgBouncer is: it logs in by itself, and ignores or refuses a session's options."""

import asyncio
import contextlib
import os
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import Enum
from urllib.parse import urlsplit, urlunsplit

import psycopg

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]

ENCRYPTION_WANTED = {80877103, 80877104}
"""Codes by which a client asks for TLS or GSSAPI before it starts a session."""
REPORTED = (
    *("server_version", "server_encoding", "client_encoding", "in_hot_standby"),
    "default_transaction_read_only",
)
PID = 4_000_000_000
"""More than any process has: a pooler makes one up."""


class Mode(Enum):
    SESSION = "session"
    TRANSACTION = "transaction"
    REFUSES_OPTIONS = "refuses options"
    FULL = "has no session left"


@dataclass
class Pooler:
    """In transaction mode, whoever begins one gets the session that was given back last."""

    database_url: str
    mode: Mode
    idle: list[Streams] = field(default_factory=list)
    opened: list[psycopg.AsyncConnection] = field(default_factory=list)
    writers: list[asyncio.StreamWriter] = field(default_factory=list)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.append(writer)
        try:
            given = await _startup(reader, writer)
            if self.mode is Mode.REFUSES_OPTIONS and b"options" in given:
                writer.write(_message(b"E", b"SFATAL\0C08P01\0Munsupported startup parameter: options\0\0"))
                return
            server = await self._session()
            parameters = self.opened[-1].pgconn.parameter_status
            writer.write(_message(b"R", struct.pack("!i", 0)))
            for name in (each.encode() for each in REPORTED):
                writer.write(_message(b"S", b"%s\0%s\0" % (name, parameters(name) or b"")))
            writer.write(_message(b"K", struct.pack("!II", PID, 0)) + _message(b"Z", b"I"))
            if self.mode is Mode.FULL:
                while await reader.read(65_536):
                    pass
            elif self.mode is Mode.TRANSACTION:
                self.idle.append(server)
                await self._lend(reader, writer)
            else:
                await _forward((reader, writer), server)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # one side has ended
        finally:
            writer.close()

    async def _session(self) -> Streams:
        connection = await psycopg.AsyncConnection.connect(self.database_url, autocommit=True)
        self.opened.append(connection)
        copied = socket.socket(fileno=os.dup(connection.fileno()))
        reader, writer = await asyncio.open_connection(sock=copied)
        self.writers.append(writer)
        return reader, writer

    async def _lend(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """A session for each transaction; clients here send a statement at a time, and small ones."""
        server: Streams | None = None
        while data := await reader.read(65_536):
            if data[:1] == b"X":
                return
            server = server or (self.idle.pop() if self.idle else await self._session())
            server[1].write(data)
            kind = state = b""
            while kind != b"Z":
                head = await server[0].readexactly(5)
                kind, state = head[:1], await server[0].readexactly(struct.unpack("!i", head[1:])[0] - 4)
                writer.write(head + state)
            if state == b"I":
                self.idle.append(server)
                server = None


@asynccontextmanager
async def pooling(database_url: str, mode: Mode) -> AsyncIterator[str]:
    """The database's URL by way of a pooler."""
    pooler = Pooler(database_url, mode)
    async with await asyncio.start_server(pooler.serve, "127.0.0.1", 0) as listener:
        port = listener.sockets[0].getsockname()[1]
        parts = urlsplit(database_url)
        yield urlunsplit(parts._replace(netloc=f"{parts.netloc.rpartition('@')[0]}@127.0.0.1:{port}"))
        for writer in pooler.writers:
            writer.close()
        for writer in pooler.writers:
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
        for connection in pooler.opened:
            await connection.close()


def _message(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("!i", len(body) + 4) + body


async def _startup(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> list[bytes]:
    """Names and values with which a client starts a session."""
    while True:
        size, code = struct.unpack("!ii", await reader.readexactly(8))
        rest = await reader.readexactly(size - 8)
        if code not in ENCRYPTION_WANTED:
            return rest.split(b"\0")
        writer.write(b"N")


async def _forward(client: Streams, server: Streams) -> None:
    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()

    tasks = [asyncio.create_task(pump(client[0], server[1])), asyncio.create_task(pump(server[0], client[1]))]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
    server[1].close()
