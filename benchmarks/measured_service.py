"""The service as benchmarks run it: on servers of its own, with API processes and a projector.

Nobody forwards events to Temporal here: what a payment costs beyond its request is for other benchmarks.
"""

import asyncio
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

import filled_log
import psycopg
from process_usage import server_of

from payloops.dev.client import Client
from payloops.embedded import EmbeddedServers
from payloops.embedded.locks import free_ports
from payloops.migrate import migrate

READY_SECONDS = 60.0
PAYLOOPS = ("-P", "-m", "payloops")
NOWHERE = "127.0.0.1:9"
REACHED = """
    SELECT (SELECT coalesce(max(notification_id), 0) FROM stored_events)
         - (SELECT coalesce(min(position), 0) FROM checkpoints WHERE name = ANY (%s))
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Merchant:
    """Whoever sends the requests."""

    id: UUID
    api_key: str
    token: str


class Process:
    """A process and those that it starts, until the end of the context that started it."""

    def __init__(self, arguments: Sequence[str], *, environment: dict[str, str], log: Path) -> None:
        with log.open("ab") as output:
            self._child = subprocess.Popen(
                [sys.executable, *arguments], env={**os.environ, **environment}, stdout=output, stderr=output
            )
        self._log = log

    @property
    def pid(self) -> int:
        return self._child.pid

    def check(self) -> None:
        """Raises SystemExit where it has ended."""
        if self._child.poll() is not None:
            raise SystemExit(f"ended unasked: see {self._log}\n{self._log.read_text()[-2_000:]}")

    def stop(self) -> None:
        self._child.terminate()
        try:
            self._child.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()


class Service:
    """The service on its own PostgreSQL and Valkey. Made by `measured_service`."""

    def __init__(self, servers: EmbeddedServers) -> None:
        self.database_url = servers.database_url
        self.environment = {
            "DATABASE_URL": servers.database_url,
            "REDIS_URL": servers.redis_url,
            "TEMPORAL_ADDRESS": NOWHERE,
            "SHUTDOWN_GRACE": "0",
            **{name: secrets.token_urlsafe(32) for name in ("JWT_SECRET", "ENCRYPTION_KEY", "AUDIT_KEY")},
        }
        self.logs = servers.data_dir / "logs"
        self.postmaster = server_of(servers.database_url)

    @contextmanager
    def api(self, *, workers: int, **environment: str) -> Iterator[tuple[Process, int]]:
        """`payloops serve`, once it answers; and its port."""
        [port] = free_ports(wanted=[None])
        arguments = (*PAYLOOPS, "serve", "--workers", str(workers))
        with self.process(arguments, name="api", PORT=str(port), **environment) as process:
            wait_until_answered(process, port)
            yield process, port

    def projector(self) -> AbstractContextManager[Process]:
        """`payloops projector`."""
        return self.process((*PAYLOOPS, "projector"), name="projector")

    @contextmanager
    def process(self, arguments: Sequence[str], *, name: str, **environment: str) -> Iterator[Process]:
        process = Process(
            arguments, environment={**self.environment, **environment}, log=self.logs / f"{name}.log"
        )
        try:
            yield process
        finally:
            process.stop()

    def run(self, *arguments: str) -> None:
        """`payloops …`, to its end."""
        subprocess.run(
            [sys.executable, *PAYLOOPS, *arguments],
            env={**os.environ, **self.environment},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=True,
        )

    def merchant_with_orders(self, orders: int) -> Merchant:
        """A merchant with a key, a token and processors, and with so many orders, in the log and in the tables."""
        with self.api(workers=1) as (_, port):
            merchant = asyncio.run(_merchant(port))
        asyncio.run(
            filled_log.fill(
                self.database_url, events=int(orders * filled_log.events_per_order()), owners=[merchant.id]
            )
        )
        self.run("projections", "rebuild", "--json")
        return merchant

    def order_ids(self, merchant: Merchant, *, limit: int) -> list[str]:
        """Some of a merchant's orders."""
        query = "SELECT id FROM orders WHERE merchant_id = %s ORDER BY id LIMIT %s"
        with psycopg.connect(self.database_url) as connection:
            return [str(row[0]) for row in connection.execute(query, (merchant.id, limit))]

    def wait_for_projections(self, *, seconds: float = 60.0) -> None:
        """Until the tables hold all that is in the log."""
        deadline = time.monotonic() + seconds
        with psycopg.connect(self.database_url, autocommit=True) as connection:
            while time.monotonic() < deadline:
                row = connection.execute(REACHED, (["orders", "daily_volume"],)).fetchone()
                if row is not None and row[0] <= 0:
                    return
                time.sleep(0.05)
        raise SystemExit("the projector has not caught up")


@contextmanager
def measured_service() -> Iterator[Service]:
    """A service whose servers run, and nothing else yet; all of it is removed afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="payloops-bench-"))
    try:
        with EmbeddedServers(data_dir=folder, parts=["postgres", "valkey"]) as servers:
            migrate(database_url=servers.database_url)
            yield Service(servers)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


async def _merchant(port: int) -> Merchant:
    async with Client(url=f"http://127.0.0.1:{port}") as client:
        account = {
            "name": "Benchmark",
            "email": "benchmark@example.com",
            "password": secrets.token_urlsafe(12),
        }
        registered = (await client.post("/api/auth/register", body=account)).body
        signed_in = {"Authorization": f"Bearer {registered['token']}"}
        credentials = {"secretKey": "sk_test_benchmark", "webhookSecret": "whsec_benchmark"}
        processor = {"processor": "stripe", "credentials": credentials}
        await client.post("/api/processors", body=processor, headers=signed_in)
        issued = (await client.post("/api/api-keys", body={"name": "benchmark"}, headers=signed_in)).body
    return Merchant(
        id=UUID(registered["merchant"]["id"]), api_key=issued["secret"], token=registered["token"]
    )


def wait_until_answered(process: Process, port: int) -> None:
    """Until something comes back; raises SystemExit where nothing does."""
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline:
        process.check()
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                return
        except urllib.error.HTTPError:
            return
        except OSError:
            time.sleep(0.05)
    raise SystemExit(f"nothing answers at port {port}")
