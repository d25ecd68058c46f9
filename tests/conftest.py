"""The real servers, started once per run; a database of its own for each test, dropped after it."""

import itertools
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

import psycopg
import pytest
from browsing import NO_BROWSER, chromium, running_browser
from calling import Api, Merchant, running_api
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings
from playwright.async_api import Browser
from psycopg_pool import AsyncConnectionPool
from pydantic import SecretStr
from receiving import Endpoint, receiving
from shopping import Shopping, go_shopping
from telling import Orders, Shop, open_shop
from temporalio.client import Client
from uuid_utils.compat import uuid7

from payloops.commands import authenticate_api_key
from payloops.embedded import EmbeddedServers, NotStarted
from payloops.embedded.locks import take_directory
from payloops.events import pools
from payloops.events.event_store import EventStore
from payloops.events.metadata import Metadata
from payloops.events.seals import AuditKeys
from payloops.events.timestamps import utc_now
from payloops.http import rate_limits
from payloops.migrate import migrate
from payloops.settings import Environment, Settings
from payloops.wiring import make_audit_keys, open_store
from payloops.workflows_client.connection import connect

NAMESPACES = [f"test-{number:02}" for number in range(40)]
"""Temporal namespaces, made when the server starts: a test that runs workers takes one for itself."""

PREFIX = "payloops-test-"
MEMORY = Path("/dev/shm")
ROOM = 4 * 2**30
"""Bytes that have to be free there: more than the servers ever need."""
NEW_SECONDS = 60.0
"""The age from which a folder that nobody has locked is taken to be left behind."""

# The same examples in every run, however slow the machine is. `--hypothesis-profile=searching` looks for others.
hypothesis_settings.register_profile("searching", deadline=None, print_blob=True)
hypothesis_settings.register_profile(
    "the same", derandomize=True, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow]
)
hypothesis_settings.load_profile("the same")


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Deadlines of the service that a busy machine would miss: tests that are about them set their own."""
    monkeypatch.setattr(authenticate_api_key, "ROW_DEADLINE", 20.0)
    monkeypatch.setattr(pools, "WAIT_SECONDS", 20.0)


def folder_for_servers() -> Path:
    """In memory where there is room: on a disk that others use, making a database takes twenty times as long."""
    if not os.access(MEMORY, os.W_OK) or shutil.disk_usage(MEMORY).free < ROOM:
        return Path(tempfile.mkdtemp(prefix=PREFIX))
    for left in MEMORY.glob(f"{PREFIX}*/servers"):  # by a run that was killed, which held the lock
        with suppress(OSError, NotStarted):
            if time.time() - left.stat().st_mtime > NEW_SECONDS:
                os.close(take_directory(left))
                shutil.rmtree(left.parent)
    return Path(tempfile.mkdtemp(prefix=PREFIX, dir=MEMORY))


@pytest.fixture(scope="session")
def servers() -> Iterator[EmbeddedServers]:
    """PostgreSQL, Valkey and Temporal."""
    folder = folder_for_servers()
    try:
        with EmbeddedServers(
            data_dir=folder / "servers", temporal_namespaces=NAMESPACES, ephemeral=True
        ) as running:
            yield running
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True)
class Databases:
    """Makes databases as copies of a migrated one."""

    admin_url: str
    numbers: Iterator[int]

    @contextmanager
    def create(self) -> Iterator[str]:
        """A database, until the end of the context: each takes 10 MB, and a run makes a thousand."""
        name = f"test_{next(self.numbers)}"
        with psycopg.connect(self.admin_url, autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name} TEMPLATE migrated STRATEGY file_copy")
        try:
            yield _url(self.admin_url, name)
        finally:
            with psycopg.connect(self.admin_url, autocommit=True) as connection:
                connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(scope="session")
def databases(servers: EmbeddedServers) -> Databases:
    with psycopg.connect(servers.database_url, autocommit=True) as connection:
        connection.execute("CREATE DATABASE migrated")
    migrate(database_url=_url(servers.database_url, "migrated"))
    return Databases(admin_url=servers.database_url, numbers=itertools.count(1))


def _url(url: str, database: str) -> str:
    """The same server, another database."""
    head, _, _ = url.rpartition("/")
    return f"{head}/{database}"


@pytest.fixture
def database_url(databases: Databases) -> Iterator[str]:
    """A migrated, empty database."""
    with databases.create() as url:
        yield url


@pytest.fixture(scope="session")
def namespaces() -> Iterator[str]:
    return iter(NAMESPACES)


@pytest.fixture
def temporal_namespace(namespaces: Iterator[str]) -> str:
    """A Temporal namespace that no other test has used."""
    return next(namespaces)


@pytest.fixture
def settings(servers: EmbeddedServers, database_url: str) -> Settings:
    """Settings for a test without workflows; `settings.model_copy(update=…)` for others."""
    return Settings.model_validate(
        {
            "database_url": database_url,
            "redis_url": servers.redis_url,
            "temporal_address": servers.temporal_address,
            "temporal_namespace": NAMESPACES[0],
            "jwt_secret": "a secret of tests, long enough to sign",
            "encryption_key": "a key of tests, long enough to encrypt",
            "audit_key": "a key of tests, long enough to authenticate",
            "environment": Environment.DEVELOPMENT,
            "port": 0,
            "bcrypt_rounds": 4,
            "shutdown_grace": 0.0,
            "database_patience": 10.0,  # several tests at a time make the machine slow
            "append_patience": 20.0,
            "rate_limits": False,  # all tests come from one address
            "log_level": "warning",
        }
    )


@pytest.fixture
def limited(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Limits that no other test counts against: they are counted under digests with the secret.

    Redis is given time: what a process allows by itself would be something else.
    """
    monkeypatch.setattr(rate_limits, "REDIS_SECONDS", 20.0)
    return settings.model_copy(
        update={"rate_limits": True, "jwt_secret": SecretStr(secrets.token_urlsafe(32))}
    )


@pytest.fixture
async def store(settings: Settings) -> AsyncIterator[EventStore]:
    """An event store over the test's database."""
    async with open_store(settings, application_name="test") as opened:
        yield opened


@pytest.fixture
def pool(store: EventStore) -> AsyncConnectionPool:
    return store.pool


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    """Chromium; without it, what needs it is left out, and the end of the run says so."""
    path = chromium()
    if path is None:
        pytest.skip(NO_BROWSER)
    async with running_browser(path) as browser:
        yield browser


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    left_out = [each for each in terminalreporter.getreports("skipped") if NO_BROWSER in str(each.longrepr)]
    if left_out:
        terminalreporter.write_line(
            f"WARNING: no page was looked at. {len(left_out)} tests were left out: {NO_BROWSER}",
            yellow=True,
            bold=True,
        )


@pytest.fixture
async def api(settings: Settings) -> AsyncIterator[Api]:
    """The API in this process. Tests that want other settings have one of their own."""
    async with running_api(settings) as api:
        yield api


@pytest.fixture
async def merchant(api: Api) -> Merchant:
    """A merchant of that API, with both processors configured."""
    return await api.merchant()


@pytest.fixture
async def client(servers: EmbeddedServers, temporal_namespace: str) -> Client:
    return await connect(address=servers.temporal_address, namespace=temporal_namespace, codec_key=None)


@pytest.fixture
async def endpoint() -> AsyncIterator[Endpoint]:
    """A merchant's endpoint for webhooks."""
    async with receiving() as opened:
        yield opened


@pytest.fixture
async def shop(store: EventStore, endpoint: Endpoint) -> Shop:
    """A merchant whose webhooks go there."""
    return await open_shop(store, url=endpoint.url)


@pytest.fixture
def merchant_id() -> UUID:
    return uuid7()


@pytest.fixture
def by() -> Metadata:
    """Somebody who acts now."""
    return Metadata(at=utc_now(), actor="system", correlation_id="test")


@pytest.fixture
def orders(store: EventStore, merchant_id: UUID, by: Metadata) -> Orders:
    """Orders of a merchant, and what happens to them."""
    return Orders(store, merchant_id, by)


@pytest.fixture
async def shopping(api: Api, store: EventStore) -> Shopping:
    """A customer at the checkout of a merchant."""
    return await go_shopping(api, store)


@pytest.fixture
def keys(settings: Settings) -> AuditKeys:
    """Those by which the log is authenticated and sealed."""
    return make_audit_keys(settings)
