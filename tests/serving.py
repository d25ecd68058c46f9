"""`payloops serve` as processes of its own, for tests."""

import asyncio
import json
import os
import socket
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from subprocess import Popen
from typing import Any

import aiohttp
from calling import Caller

from payloops.settings import Settings

PATIENCE = 60.0
"""Seconds that a test waits for what has to come."""


class Server:
    """A process of `payloops serve`, with those it started. `listener`: handed over to it, as systemd does."""

    def __init__(
        self,
        settings: Settings,
        log: Path,
        *,
        port: int = 0,
        workers: int = 1,
        grace: float = 0,
        listener: socket.socket | None = None,
    ) -> None:
        self.log = log
        environment = {
            **os.environ,
            "DATABASE_URL": settings.database_url.get_secret_value(),
            "REDIS_URL": settings.redis_url.get_secret_value(),
            "TEMPORAL_ADDRESS": settings.temporal_address,
            "TEMPORAL_NAMESPACE": settings.temporal_namespace,
            "JWT_SECRET": settings.jwt_secret.get_secret_value(),
            "ENCRYPTION_KEY": settings.encryption_key.get_secret_value(),
            "AUDIT_KEY": settings.audit_key.get_secret_value(),
            "ENVIRONMENT": "production",
            "BCRYPT_ROUNDS": "4",
            "SHUTDOWN_GRACE": str(grace),
            "RATE_LIMITS": "false",
            "DATABASE_PATIENCE": str(settings.database_patience),
            "APPEND_PATIENCE": str(settings.append_patience),
            "PORT": str(port),
        }
        with log.open("w") as output:
            command = [sys.executable, "-P", "-m", "payloops", "serve", "--workers", str(workers)]
            stdin = None
            if listener is not None:
                stdin = listener.fileno()
                handing = 'exec 3<&0 </dev/null; LISTEN_FDS=1 LISTEN_PID=$$ exec "$@"'
                command = ["sh", "-c", handing, "sh", *command]
            self.process = Popen(command, env=environment, stdin=stdin, stderr=output)

    def lines(self, event: str) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]
        return [line for line in lines if line["event"] == event]

    async def listening(self, *, workers: int = 1) -> str:
        """Its address, once this many of its processes have announced that they listen."""
        deadline = time.monotonic() + PATIENCE
        while len(found := self.lines("api.listening")) < workers:
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            await asyncio.sleep(0.05)
        return str(found[0]["url"])

    async def ended(self) -> int:
        return await asyncio.to_thread(self.process.wait, PATIENCE)


@contextmanager
def server(settings: Settings, log: Path, **options: Any) -> Iterator[Server]:
    running = Server(settings, log, **options)
    try:
        yield running
    finally:
        running.process.kill()
        running.process.wait()


@asynccontextmanager
async def caller(url: str) -> AsyncIterator[Caller]:
    async with aiohttp.ClientSession(url, timeout=aiohttp.ClientTimeout(total=PATIENCE)) as session:
        yield Caller(session)


async def call_often(url: str) -> None:
    """Requests on connections of their own, so that every process gets some."""
    for _ in range(40):
        async with caller(url) as anyone:
            assert (await anyone.get("/health")).status == 200
