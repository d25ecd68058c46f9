"""503 says that nothing was done. Where that is not certain the answer is 504, and the same key finds out."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Literal
from uuid import UUID, uuid4

import log_lock
import psycopg
import pytest
from calling import Api, Caller, Merchant, running_api
from holding import HoldingProxy, holding_proxy
from prometheus_client import REGISTRY
from psycopg import sql
from pydantic import SecretStr
from telling import SECONDS

from payloops.commands.cipher import Cipher
from payloops.commands.client_secrets import ClientSecrets
from payloops.commands.update_order_status import update_order_status
from payloops.events import appender, connections
from payloops.events.connections import connect
from payloops.events.event_store import EventStore
from payloops.events.metadata import Metadata
from payloops.settings import Settings

TOKEN = "tok_of_this_test"
BODY = {"paymentMethod": {"type": "card", "token": TOKEN}}
REFUSED = ("payloops_appends_total", {"outcome": "refused"})
END_OTHERS = """
    SELECT pg_terminate_backend(pid, 3000) FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid()
"""


@asynccontextmanager
async def api_by_way_of(proxy: HoldingProxy, settings: Settings, **changes: object) -> AsyncIterator[Api]:
    through = settings.model_copy(update={"database_url": SecretStr(proxy.url), **changes})
    async with running_api(through) as api:
        yield api


async def in_the_log(store: EventStore, topic: str) -> int:
    async with store.pool.connection() as connection:
        cursor = await connection.execute("SELECT count(*) FROM stored_events WHERE topic = %s", (topic,))
        row = await cursor.fetchone()
    assert row is not None
    return int(row[0])


async def merchant_is_known(shop: Caller) -> None:
    """To a process that has just begun: its next request takes no longer than any."""
    assert (await shop.post("/v1/orders", {"amount": 1})).status == 201


async def comes_to_the_log(store: EventStore, topic: str) -> None:
    async with asyncio.timeout(SECONDS):
        while not await in_the_log(store, topic):
            await asyncio.sleep(0.01)


async def test_a_database_gone_between_append_and_answer(
    settings: Settings, store: EventStore, merchant: Merchant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(appender, "RESOLVE_SECONDS", 0.3)
    order_id = await merchant.order()
    path = f"/v1/orders/{order_id}/pay"
    async with (
        holding_proxy(settings.database_url.get_secret_value()) as proxy,
        api_by_way_of(proxy, settings) as cut_off,
    ):
        proxy.hold = TOKEN.encode()
        shop = cut_off.anyone.with_headers(**merchant.shop.headers)
        paying = asyncio.create_task(shop.post(path, BODY, key="once"))
        await comes_to_the_log(store, "payment.requested")
        proxy.cut()
        answer = await paying
    assert (answer.status, answer.code) == (504, "outcome_unknown")
    again = await merchant.shop.post(path, BODY, key="once")
    assert (again.status, again.headers["Idempotent-Replayed"]) == (200, "true")
    assert await in_the_log(store, "payment.requested") == 1


async def test_a_request_that_runs_out_of_time_after_its_append(
    settings: Settings, store: EventStore, merchant: Merchant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(appender, "RESOLVE_SECONDS", 0.3)
    order_id = await merchant.order()
    path = f"/v1/orders/{order_id}/pay"
    async with (
        holding_proxy(settings.database_url.get_secret_value()) as proxy,
        api_by_way_of(proxy, settings, request_timeout=3.0) as slow,
    ):
        shop = slow.anyone.with_headers(**merchant.shop.headers)
        await merchant_is_known(shop)
        proxy.hold = TOKEN.encode()
        answer = await shop.post(path, BODY, key="once")
        assert (answer.status, answer.code) == (504, "outcome_unknown")
        again = await merchant.shop.post(path, BODY, key="once")
        assert (again.status, again.headers["Idempotent-Replayed"]) == (200, "true")
        proxy.cut()  # so that the append does not wait for its answer until the end


async def test_a_request_that_runs_out_of_time_before_its_append_is_not_done_later(
    settings: Settings, store: EventStore, merchant: Merchant
) -> None:
    url = settings.database_url.get_secret_value()
    order_id = await merchant.order()
    path = f"/v1/orders/{order_id}/pay"
    async with (
        running_api(settings.model_copy(update={"request_timeout": 1.0})) as slow,
        await psycopg.AsyncConnection.connect(url) as blocking,
    ):
        shop = slow.anyone.with_headers(**merchant.shop.headers)
        await blocking.execute(f"SELECT pg_advisory_xact_lock({log_lock.KEY})")
        answer = await shop.post(path, BODY, key="once")
        await blocking.rollback()
        assert (answer.status, answer.code) == (503, "unavailable")
        again = await merchant.shop.post(path, BODY, key="once")
        assert (again.status, "Idempotent-Replayed" in again.headers) == (200, False)
    assert await in_the_log(store, "payment.requested") == 1


async def test_a_key_that_cannot_be_let_go_leaves_the_outcome_unknown(
    settings: Settings, store: EventStore, merchant: Merchant
) -> None:
    """Its append may yet come through."""
    url = settings.database_url.get_secret_value()
    path = f"/v1/orders/{await merchant.order()}/pay"
    async with (
        running_api(settings.model_copy(update={"request_timeout": 2.0})) as slow,
        await psycopg.AsyncConnection.connect(url) as blocking,
    ):
        shop = slow.anyone.with_headers(**merchant.shop.headers)
        await merchant_is_known(shop)
        await blocking.execute(f"SELECT pg_advisory_xact_lock({log_lock.KEY})")
        paying = asyncio.create_task(shop.post(path, BODY, key="once"))
        async with store.pool.connection() as connection, asyncio.timeout(SECONDS):
            while not (await connection.execute("SELECT 1 FROM idempotency_keys")).rowcount:
                await asyncio.sleep(0.01)
            await connection.execute("ALTER TABLE idempotency_keys RENAME TO elsewhere")
        answer = await paying
        await blocking.rollback()
    assert (answer.status, answer.code) == (504, "outcome_unknown")


async def test_without_a_key_nobody_is_told_to_try_again_what_may_have_been_done(
    settings: Settings, store: EventStore, merchant: Merchant
) -> None:
    url = settings.database_url.get_secret_value()
    order_id = await merchant.order()
    async with (
        running_api(settings.model_copy(update={"request_timeout": 1.0})) as slow,
        await psycopg.AsyncConnection.connect(url) as blocking,
    ):
        shop = slow.anyone.with_headers(**merchant.shop.headers)
        await blocking.execute(f"SELECT pg_advisory_xact_lock({log_lock.KEY})")
        answer = await shop.post(f"/v1/orders/{order_id}/pay", BODY)
        await blocking.rollback()
    assert (answer.status, answer.code) == (504, "outcome_unknown")


async def test_a_payment_whose_client_secret_cannot_be_read_is_on_record_all_the_same(
    settings: Settings, store: EventStore, merchant: Merchant, by: Metadata, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "STATEMENT_TIMEOUT", 2)
    order_id = await merchant.order()
    async with (
        running_api(settings) as impatient,
        await psycopg.AsyncConnection.connect(settings.database_url.get_secret_value()) as blocking,
    ):
        await blocking.execute("LOCK TABLE client_secrets")
        shop = impatient.anyone.with_headers(**merchant.shop.headers)
        paying = asyncio.create_task(shop.post(f"/v1/orders/{order_id}/pay", BODY, Prefer="wait=20"))
        await comes_to_the_log(store, "payment.requested")
        await update_order_status(store, order_id=UUID(order_id), status="requires_action", by=by)
        paid = await paying
        await blocking.rollback()
    assert (paid.status, paid.json["status"]) == (200, "processing"), paid.raw


async def test_a_payment_whose_client_secret_no_key_opens_is_on_record_all_the_same(
    settings: Settings, store: EventStore, merchant: Merchant, by: Metadata
) -> None:
    """The service was started with another ENCRYPTION_KEY; also when the answer is replayed."""
    order_id = await merchant.order()
    path = f"/v1/orders/{order_id}/pay"
    sealed = ClientSecrets(store.pool, Cipher(secret="another key, long enough to encrypt it"))
    paying = asyncio.create_task(merchant.shop.post(path, BODY, key="once", Prefer="wait=20"))
    await comes_to_the_log(store, "payment.requested")
    await sealed.keep(order_id=UUID(order_id), attempt=1, secret="for the browser")
    await update_order_status(
        store, order_id=UUID(order_id), status="requires_action", redirect_url="https://bank.example", by=by
    )
    paid = await paying
    again = await merchant.shop.post(path, BODY, key="once", Prefer="wait=20")
    for answer in (paid, again):
        assert answer.status == 200, answer.raw
        assert (answer.json["status"], answer.json["clientSecret"]) == ("requires_action", None)


async def test_what_no_key_opens_is_unavailable_and_nothing_was_done(
    merchant: Merchant, store: EventStore
) -> None:
    """As a merchant's webhook secret, and an event that is signed with a secret of a processor's configuration."""
    path = "/api/merchants/me/webhook-secret"
    assert (await merchant.dashboard.get(path)).status == 200
    credentials = {"secretKey": "sk", "webhookSecret": "whsec_1"}
    configured = await merchant.dashboard.post("/api/processors/stripe", {"credentials": credentials})
    assert configured.status == 200
    async with store.pool.connection() as connection:
        await connection.execute("UPDATE webhook_secrets SET secret = reverse(secret)")
        await connection.execute("UPDATE processor_configs SET credentials = reverse(credentials)")
    shown = await merchant.dashboard.get(path)
    received = await merchant.shop.call(
        "POST", f"/webhooks/stripe/{merchant.id}", {"id": "evt_1"}, headers={"Stripe-Signature": "t=1,v1=0"}
    )
    for answer in (shown, received):
        assert (answer.status, answer.code) == (503, "unavailable"), answer.raw
        assert "Retry-After" in answer.headers


async def test_a_database_that_only_reads_turns_away_who_writes_and_is_used_again_afterwards(
    merchant: Merchant, database_url: str
) -> None:
    """As those who host databases make it when the disk is full. Sessions that began read-only would stay so."""
    order = await merchant.order()
    await reads_only(database_url, "on")
    await merchant.order_is(order, "pending")  # connections are there again
    refused = REGISTRY.get_sample_value(*REFUSED) or 0
    created = await merchant.shop.post("/v1/orders", {"amount": 1})
    again = await merchant.shop.post("/v1/orders", {"amount": 1}, **{"Idempotency-Key": "of-this-test"})
    paid = await merchant.shop.post(f"/v1/orders/{order}/pay", BODY)
    issued = await merchant.dashboard.post("/api/api-keys", {"name": "another"})
    for each in (created, again, paid, issued):
        assert (each.status, each.json["code"]) == (503, "unavailable"), each.raw
    assert (REGISTRY.get_sample_value(*REFUSED) or 0) > refused
    await reads_only(database_url, "off")
    async with asyncio.timeout(SECONDS):
        statuses = {503}
        while statuses != {201}:
            keys = [str(uuid4()) for _ in range(10)]  # more at a time than the pool has sessions
            answers = [merchant.shop.post("/v1/orders", {"amount": 1}, key=key) for key in keys]
            statuses = {answer.status for answer in await asyncio.gather(*answers)}


async def reads_only(database_url: str, value: Literal["on", "off"]) -> None:
    """What connections to the database begin with, from now on; those that could still write are ended."""
    async with await connect(database_url, application_name="test") as connection:
        await connection.execute("SET default_transaction_read_only = off")
        name = sql.Identifier(connection.info.dbname)
        setting = sql.SQL("ALTER DATABASE {} SET default_transaction_read_only = {}").format(name, value)
        await connection.execute(setting)
        if value == "on":
            await connection.execute(END_OTHERS)
