"""What processes say at start about the database. What they say about keys: `test_keys_rotate`."""

import asyncio
from typing import Any
from uuid import UUID

import psycopg
import pytest
from projecting import append
from psycopg_pool import AsyncConnectionPool
from pydantic import SecretStr
from random_orders import new_order
from structlog.testing import capture_logs

from payloops.daemons.start_checks import check_at_start
from payloops.embedded import EmbeddedServers
from payloops.events import connections
from payloops.events.connections import connect
from payloops.events.event_store import EventStore
from payloops.events.sealer import seal_next
from payloops.events.seals import AuditKeys
from payloops.migrate import migrate
from payloops.settings import Settings
from payloops.wiring import make_audit_keys, make_cipher, open_store


async def test_settings_by_which_the_database_may_lose_what_it_confirmed_are_logged_at_start(
    settings: Settings, pool: AsyncConnectionPool
) -> None:
    """The servers of tests have all of them."""
    with capture_logs() as lines:
        await check_at_start(pool, cipher=make_cipher(settings), audit_keys=make_audit_keys(settings))
    [line] = lines
    assert (line["event"], line["log_level"]) == ("database.not_durable", "error")
    assert line["settings"] == ["fsync", "full_page_writes", "synchronous_commit"]


async def test_a_locale_without_the_small_letters_of_all_is_logged_at_start(
    settings: Settings, servers: EmbeddedServers
) -> None:
    """Small letters are what addresses and search terms are compared by."""
    with psycopg.connect(servers.database_url, autocommit=True) as connection:
        connection.execute("CREATE DATABASE plain TEMPLATE template0 LOCALE_PROVIDER libc LOCALE 'C'")
    url = f"{servers.database_url.rpartition('/')[0]}/plain"
    await asyncio.to_thread(migrate, database_url=url)
    own = settings.model_copy(update={"database_url": SecretStr(url)})
    with capture_logs() as lines:
        async with open_store(own, application_name="test") as store:
            await check_at_start(store.pool, cipher=make_cipher(own), audit_keys=make_audit_keys(own))
    assert [line["log_level"] for line in lines if line["event"] == "database.locale"] == ["error"]


async def test_trouble_with_the_database_does_not_end_the_checks(
    settings: Settings, pool: AsyncConnectionPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    troubles = iter([psycopg.OperationalError(), ConnectionResetError(), TimeoutError()])
    healthy = pool.connection

    def connection() -> Any:
        for trouble in troubles:
            raise trouble
        return healthy()

    monkeypatch.setattr(pool, "connection", connection)
    monkeypatch.setattr(connections, "RECONNECT_SECONDS", 0)
    with capture_logs() as lines:
        await check_at_start(pool, cipher=make_cipher(settings), audit_keys=make_audit_keys(settings))
    assert [line["event"] for line in lines] == [*["start.not_checked"] * 3, "database.not_durable"]


async def test_an_audit_key_other_than_that_of_the_log_is_told_of_at_start(
    settings: Settings, store: EventStore, database_url: str, merchant_id: UUID
) -> None:
    right, other = make_audit_keys(settings), "another audit key, 32 characters"

    async def told(keys: AuditKeys) -> list[object]:
        with capture_logs() as lines:
            await check_at_start(store.pool, cipher=make_cipher(settings), audit_keys=keys)
        wrong = [line for line in lines if line["event"] == "audit_key.wrong"]
        return [(line["log_level"], line["key"], line["sealed_by"]) for line in wrong]

    await append(store, new_order(merchant_id))
    assert await told(AuditKeys.derive(other)) == []  # nothing says whose the log is yet
    async with await connect(database_url, application_name="test") as connection:
        assert await seal_next(connection, keys=right) == 1
    wrong = AuditKeys.derive(other)
    assert await told(wrong) == [("error", wrong.present.id, right.present.id)]
    former = settings.audit_key.get_secret_value()
    assert await told(right) == await told(AuditKeys.derive(other, older=[former])) == []
