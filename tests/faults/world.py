"""A whole service for one run of a case: a database and a Temporal namespace of its own, and its processes."""

import asyncio
import contextlib
import os
import random
import secrets
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TypeVar

import aiohttp
import psycopg
from google.protobuf.duration_pb2 import Duration
from processes import DOOMED, environment_of
from psycopg import sql
from pydantic import SecretStr
from redis.asyncio import Redis
from reserving import reserved_port
from temporalio.api.workflowservice.v1 import DescribeNamespaceRequest, RegisterNamespaceRequest
from temporalio.client import Client
from temporalio.service import RPCError

from faults.journal import Journal
from payloops.embedded import EmbeddedServers
from payloops.embedded.processes import Child
from payloops.embedded.servers import Part
from payloops.events.crash_points import CrashPoint
from payloops.events.event_store import EventStore
from payloops.migrate import migrate
from payloops.sandbox import ledger
from payloops.settings import Environment, Settings
from payloops.wiring import open_store
from payloops.workflows_client.connection import connect

T = TypeVar("T")

READY_SECONDS = 60.0
STOP_SECONDS = 60.0
RESTART_PAUSE = 0.3
"""Seconds after which whoever keeps processes running starts one again."""
COMMANDS_LOG = "commands.log"
"""What the commands of operators say."""
MIGRATED = "migrated"
POISON = "poison"
"""Correlation id of events that nobody can make sense of."""
CARD_NUMBER = "4242424242424242"
"""Stripe's, for tests. Clients send it, and nothing of it may stay."""


@contextmanager
def running_servers(folder: Path) -> Iterator[EmbeddedServers]:
    """PostgreSQL, Valkey and Temporal for a run, as durable as in production: they are going to be killed."""
    with EmbeddedServers(data_dir=folder / "servers", temporal_namespaces=["faults"]) as servers:
        with psycopg.connect(servers.database_url, autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {MIGRATED}")
        migrate(database_url=database_url(servers, MIGRATED))
        yield servers


def database_url(servers: EmbeddedServers, name: str) -> str:
    return f"{servers.database_url.rpartition('/')[0]}/{name}"


def copied_database(servers: EmbeddedServers, name: str) -> str:
    """A migrated, empty database of this name; its address."""
    with psycopg.connect(servers.database_url, autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}" TEMPLATE {MIGRATED} STRATEGY file_copy')
    return database_url(servers, name)


def drop_database(servers: EmbeddedServers, name: str) -> None:
    """Remove a run's database: when PostgreSQL starts again after a crash, it syncs the files of all."""
    with psycopg.connect(servers.database_url, autocommit=True) as connection:
        connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@dataclass(kw_only=True)
class Process:
    """One of the service's processes, through all of its lives.

    Attributes:
        arguments: after `payloops`.
        environment: beside the world's: a port, a clock.
        wanted: whether it is to be started again when it ends.
        child: the one that runs now.
        deaths: how often it was killed, by itself at a crash point or from outside.
        code: a checkout whose code it runs; None: this one.
    """

    name: str
    arguments: tuple[str, ...]
    environment: dict[str, str]
    log: Path
    code: Path | None = None
    wanted: bool = False
    child: Child | None = None
    deaths: int = 0
    expected: set[int] = field(default_factory=set)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.environment['PORT']}"


@dataclass(kw_only=True)
class World:
    """The service under test, and who watches it.

    Attributes:
        chance: the only source of chance of a case: the same seed, the same choices.
        store: for looking, never for acting.
        canaries: secrets that were given to the service, by what they are: they must turn up nowhere.
        crashes: by process, the points at which its next lives end, each with how often it is passed.
        heard: how often each webhook came to the merchant's endpoint, where there is one.
        until_rest: what has to stay until everything has come to rest.
        ports: those that its processes listen on, reserved for them.
        poisoned: streams into which events came that nobody can make sense of.
        skewed: whether clocks are wrong on purpose.
        open_orders: orders that are left in the middle of things on purpose.
        wrong: what was seen to go wrong beside what clients saw.
    """

    servers: EmbeddedServers
    settings: Settings
    store: EventStore
    temporal: Client
    chance: random.Random
    folder: Path
    journal: Journal = field(default_factory=Journal)
    processes: dict[str, Process] = field(default_factory=dict)
    canaries: dict[str, str] = field(default_factory=dict)
    open_orders: set[str] = field(default_factory=set)
    poisoned: set[str] = field(default_factory=set)
    skewed: bool = False
    crashes: dict[str, list[tuple[CrashPoint, int]]] = field(default_factory=dict)
    heard: Counter[str] | None = None
    wrong: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    until_rest: AsyncExitStack = field(default_factory=AsyncExitStack)
    ports: ExitStack = field(default_factory=ExitStack)
    session: aiohttp.ClientSession = field(init=False)

    @property
    def apis(self) -> list[Process]:
        return [each for each in self.processes.values() if each.arguments[0] == "serve"]

    def add(self, name: str, *arguments: str, **environment: str) -> Process:
        """A process of the service, not yet started."""
        if arguments[0] == "serve":
            environment["PORT"] = str(self.ports.enter_context(reserved_port()))
        process = Process(
            name=name,
            arguments=arguments,
            environment=environment,
            log=self.folder / f"{name}.log",
        )
        self.processes[name] = process
        return process

    def start(self, name: str) -> None:
        """Start a process; where `crashes` names it, this life of it ends there."""
        process = self.processes[name]
        doomed = self.crashes.get(name)
        crash_at = doomed.pop(0) if doomed else None
        process.wanted = True
        environment = os.environ | environment_of(self.settings) | process.environment
        if process.code is not None:
            environment["PYTHONPATH"] = str(process.code)
        if crash_at is not None:
            environment["CRASH_AT"] = f"{crash_at[0]}:{crash_at[1]}"
        process.expected = {-signal.SIGKILL} if crash_at is not None else set()
        process.child = Child(
            name=name,
            command=[sys.executable, "-P", "-m", "payloops", *process.arguments],
            log=process.log,
            death_signal=signal.SIGKILL,
            environment=environment,
        )

    async def start_all(self) -> None:
        """Start every process, and wait until the APIs are ready."""
        for name in self.processes:
            self.start(name)
        await asyncio.gather(*(self.ready(api) for api in self.apis))

    async def ready(self, api: Process) -> None:
        async with asyncio.timeout(READY_SECONDS):
            while True:
                with contextlib.suppress(aiohttp.ClientError):
                    async with self.session.get(f"{api.url}/ready") as answer:
                        if answer.status == 200:  # HTTP
                            return
                await asyncio.sleep(0.1)

    async def died(self, name: str) -> None:
        """Wait until a process has died."""
        process = self.processes[name]
        deaths = process.deaths
        async with asyncio.timeout(READY_SECONDS):
            while process.deaths == deaths:
                await asyncio.sleep(0.02)

    async def outlived(self, name: str, *, seconds: float) -> None:
        """Wait until a process has lived all the lives that end at a crash point, or until the time is over."""
        deadline = time.monotonic() + seconds
        while (self.crashes.get(name) or self.processes[name].expected) and time.monotonic() < deadline:
            await asyncio.sleep(0.1)

    async def restarted(self, name: str) -> None:
        """Wait until an API process that was told to die has been started again and is ready."""
        await self.died(name)
        async with asyncio.timeout(READY_SECONDS):
            while self.processes[name].child is None:
                await asyncio.sleep(0.02)
        await self.ready(self.processes[name])

    def kill(self, name: str) -> None:
        """End a process as kill -9 does. Who keeps processes running starts it again."""
        process = self.processes[name]
        if process.child is not None and process.child.exit_status() is None:
            process.expected.add(-signal.SIGKILL)
            process.child.send(signal.SIGKILL)

    @asynccontextmanager
    async def kept(self) -> AsyncIterator[None]:
        """Meanwhile, processes that end are started again, as a supervisor would."""
        keeping = asyncio.create_task(self._keep())
        try:
            yield
        finally:
            keeping.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await keeping

    async def _keep(self) -> None:
        while True:
            for process in self.processes.values():
                if process.wanted and process.child is not None and self._ended(process):
                    await asyncio.sleep(RESTART_PAUSE)
                    self.start(process.name)
            await asyncio.sleep(0.05)

    def _ended(self, process: Process) -> bool:
        assert process.child is not None
        status = process.child.exit_status()
        if status is None:
            return False
        process.deaths += 1
        if status not in process.expected:
            self.wrong.append(f"{process.name} ended by itself, with {status}")
        process.child = None
        return True

    async def stop(self, *names: str) -> None:
        """Ask processes to stop, all where none is named; they have to, in order."""
        stopping = [self.processes[name] for name in names] if names else list(self.processes.values())
        running = [each for each in stopping if each.child is not None]
        for process in running:
            process.wanted = False
            await self._has_begun(process)
        for process in running:
            assert process.child is not None
            process.child.send(signal.SIGTERM)
        deadline = time.monotonic() + STOP_SECONDS
        for process in running:
            child, process.child = process.child, None
            assert child is not None
            while child.exit_status() is None and time.monotonic() < deadline:
                await asyncio.sleep(0.02)
            status = child.exit_status()
            if status is None:
                self.wrong.append(f"{process.name} did not stop within {STOP_SECONDS:.0f} s of SIGTERM")
                child.kill()
            elif status != 0 and status not in process.expected:
                self.wrong.append(f"{process.name}, asked to stop, ended with {status}")

    async def _has_begun(self, process: Process) -> None:
        """Wait for a process to say something: until it listens to signals, Python ends by the first."""
        deadline = time.monotonic() + READY_SECONDS
        while time.monotonic() < deadline:
            if process.child is None or process.child.exit_status() is not None or process.child.output():
                return
            await asyncio.sleep(0.05)

    async def run(
        self,
        *arguments: str,
        code: Path | None = None,
        kill_after: float | None = None,
        crash_at: tuple[CrashPoint, int] | None = None,
    ) -> int | None:
        """Run a command of `payloops` to its end: its status, None where it was killed before.

        Args:
            code: a checkout whose code runs; None: this one.
            kill_after: seconds.
            crash_at: where it has to kill itself, and as it passes that for how many times.
        """
        environment = os.environ | environment_of(self.settings)
        if code is not None:
            environment["PYTHONPATH"] = str(code)
        program = ["-m", "payloops"] if crash_at is None else ["-c", DOOMED, crash_at[0], str(crash_at[1])]
        child = Child(
            name=arguments[0],
            command=[sys.executable, "-P", *program, *arguments],
            log=self.folder / COMMANDS_LOG,
            death_signal=signal.SIGKILL,
            environment=environment,
        )
        deadline = time.monotonic() + (kill_after or READY_SECONDS)
        while (status := child.exit_status()) is None and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
        if status is None:
            child.kill()
            assert kill_after is not None, f"payloops {' '.join(arguments)} did not end"
        if crash_at is not None:
            what, where = " ".join(arguments[:2]), f"{crash_at[0]}:{crash_at[1]}"
            assert status == -signal.SIGKILL, f"{what} ended with {status}, and not at {where}"
            self.notes.append(f"{what} killed at {where}")
            return None
        return status

    async def count(self, topic: str) -> int:
        """How many events of a topic are in the log."""
        async with self.store.pool.connection() as connection:
            query = "SELECT count(*) FROM stored_events WHERE topic = %s"
            row = await (await connection.execute(query, (topic,))).fetchone()
        assert row is not None
        return int(row[0])

    async def begin_with(self, code: Path) -> None:
        """An empty database anew, migrated by the code of another checkout."""
        name = self.settings.temporal_namespace

        def empty() -> None:
            drop_database(self.servers, name)
            with psycopg.connect(self.servers.database_url, autocommit=True) as connection:
                connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))

        await asyncio.to_thread(empty)
        assert await self.run("migrate", code=code) == 0
        await self.store.pool.check()
        await ledger.create_schema(self.store.pool)

    async def move_to(self, url: str) -> None:
        """Another database in place of the world's own."""
        self.settings = self.settings.model_copy(update={"database_url": SecretStr(url)})
        self.store = await self.until_rest.enter_async_context(
            open_store(self.settings, application_name="faults")
        )
        self.canaries["password of the database"] = url.split(":")[2].partition("@")[0]
        await ledger.create_schema(self.store.pool)

    async def stop_server(self, part: Part, *, killed: bool) -> None:
        """Take a server away, by its own orderly end or by kill -9; its address stays its own."""
        child = getattr(self.servers, part).child
        assert child is not None
        if killed:
            child.send(signal.SIGKILL)
            await operate(child.wait, seconds=STOP_SECONDS)
        await operate(self.servers.stop_part, part)

    async def start_server(self, part: Part) -> None:
        await operate(self.servers.start_part, part)

    def kill_all(self) -> None:
        for process in self.processes.values():
            if process.child is not None:
                process.child.kill()
                process.child = None


_OPERATOR = ThreadPoolExecutor(1, thread_name_prefix="operator")
"""Starts servers. A server ends with the thread that started it: this one stays."""


async def operate(work: Callable[..., T], *arguments: object, **options: object) -> T:
    """Do something to a server, in the thread that servers are started by."""
    return await asyncio.get_running_loop().run_in_executor(_OPERATOR, partial(work, *arguments, **options))


SECRETS = ("jwt_secret", "audit_key", "encryption_key", "temporal_codec_key")


@asynccontextmanager
async def open_world(
    servers: EmbeddedServers, *, name: str, chance: random.Random, folder: Path
) -> AsyncIterator[World]:
    """A world without processes yet. At the end whatever runs is killed: a case stops what it started."""
    folder.mkdir(parents=True)
    url = copied_database(servers, name)
    await _register_namespace(servers, name)
    async with Redis.from_url(servers.redis_url) as redis:
        await redis.flushall()
    given = {each: f"{each}-{secrets.token_hex(24)}" for each in SECRETS}
    settings = Settings.model_validate(
        {
            "database_url": url,
            "redis_url": servers.redis_url,
            "temporal_address": servers.temporal_address,
            "temporal_namespace": name,
            "environment": Environment.DEVELOPMENT,
            "bcrypt_rounds": 4,
            "shutdown_grace": 0.2,
            "rate_limits": False,  # all clients come from one address
            "webhook_allow_loopback": True,
            "log_level": "info",
            **given,
        }
    )
    looking = settings.model_copy(update={"database_url": SecretStr(url)})
    async with (
        open_store(looking, application_name="faults") as store,
        aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=40),
            connector=aiohttp.TCPConnector(limit=0),  # nobody waits here: all are at the service
        ) as session,
    ):
        client = await connect(
            address=servers.temporal_address, namespace=name, codec_key=given["temporal_codec_key"]
        )
        world = World(
            servers=servers,
            settings=settings,
            store=store,
            temporal=client,
            chance=chance,
            folder=folder,
            canaries={**given, "card number": CARD_NUMBER},
        )
        world.canaries["database password"] = url.split(":")[2].partition("@")[0]
        world.session = session
        await ledger.create_schema(store.pool)  # cases look into them before a worker may have begun any
        try:
            yield world
        finally:
            world.kill_all()
            await world.until_rest.aclose()
            world.ports.close()


async def _register_namespace(servers: EmbeddedServers, name: str) -> None:
    client = await Client.connect(servers.temporal_address)
    await client.workflow_service.register_namespace(
        RegisterNamespaceRequest(namespace=name, workflow_execution_retention_period=Duration(seconds=86_400))
    )
    async with asyncio.timeout(READY_SECONDS):
        while True:
            with contextlib.suppress(RPCError):
                await client.workflow_service.describe_namespace(
                    DescribeNamespaceRequest(namespace=name), timeout=timedelta(seconds=5)
                )
                return
            await asyncio.sleep(0.05)
