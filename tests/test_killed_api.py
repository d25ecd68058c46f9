"""An API process killed between its append and its answer: the retry is answered, and nothing is done twice."""

import asyncio
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from uuid import UUID

import aiohttp
import pytest
from calling import Caller, running_api
from holding import holding_proxy
from processes import SECONDS, becomes, charged, process
from pydantic import SecretStr
from reserving import reserved_port
from shopping import go_shopping

from payloops.events.event_store import EventStore
from payloops.settings import Settings


@pytest.fixture
def settings(settings: Settings, namespaces: Iterator[str]) -> Iterator[Settings]:
    with reserved_port() as port:
        yield settings.model_copy(update={"temporal_namespace": next(namespaces), "port": port})


@dataclass
class ApiProcess:
    process: asyncio.subprocess.Process
    anyone: Caller


@asynccontextmanager
async def api_process(settings: Settings) -> AsyncIterator[ApiProcess]:
    url = f"http://127.0.0.1:{settings.port}"
    async with process(settings, "serve") as child, aiohttp.ClientSession(url) as session:
        caller = Caller(session)
        async with asyncio.timeout(SECONDS):
            while True:
                try:
                    if (await caller.get("/ready")).status == 200:
                        break
                except aiohttp.ClientError:
                    pass
                await asyncio.sleep(0.05)
        yield ApiProcess(process=child, anyone=caller)


async def test_killed_between_append_and_answer_then_retried_with_the_same_key(
    store: EventStore, settings: Settings
) -> None:
    async with running_api(settings) as setup:
        merchant = await setup.merchant()
        order_id = await merchant.order(amount=4_200)
    path, headers = f"/v1/orders/{order_id}/pay", merchant.shop.headers
    body = {"paymentMethod": {"type": "card", "token": "tok_of_the_kill"}}

    async with holding_proxy(settings.database_url.get_secret_value()) as proxy:
        through_proxy = settings.model_copy(update={"database_url": SecretStr(proxy.url)})
        async with api_process(through_proxy) as victim:
            proxy.hold = b"tok_of_the_kill"  # the token reaches the database in the append alone
            first = asyncio.create_task(
                victim.anyone.with_headers(**headers).post(path, body, key="pay-once")
            )
            await asyncio.wait_for(proxy.held.wait(), SECONDS)
            async with asyncio.timeout(SECONDS):
                while "payment.requested" not in await topics(store, order_id):
                    await asyncio.sleep(0.01)
            assert not first.done()
            victim.process.kill()
            await victim.process.wait()
            with pytest.raises(aiohttp.ClientError):
                await first

    async with api_process(settings) as heir:
        again = await heir.anyone.with_headers(**headers).post(path, body, key="pay-once")
        assert (again.status, again.headers.get("Idempotent-Replayed")) == (200, "true")
        assert again.json["workflowId"] == f"payment-{order_id}"
        async with process(settings, "subscriber"), process(settings, "worker", "--sandbox"):
            await becomes(store, UUID(order_id), "captured")
        other = await heir.anyone.with_headers(**headers).post(path, body, key="pay-twice")
        assert (other.status, other.code) == (400, "invalid_status")
    assert await topics(store, order_id) == ["order.created", "payment.requested", "payment.captured"]
    assert await charged(store) == [(order_id, 1, 4_200)]


async def test_a_customer_whose_payment_was_made_by_a_process_that_died_of_it_pays_once(
    store: EventStore, settings: Settings
) -> None:
    """The append is in the log, and nobody was told: whoever comes next sees it, and can not do it again."""
    async with running_api(settings) as setup:
        shopping = await go_shopping(setup, store)
    form = {"attempt": "1", "method": "card", "token": "tok_visa"}
    dying = settings.model_copy(update={"crash_at": "append.committed:1"})
    async with api_process(dying) as victim:
        with pytest.raises(aiohttp.ClientError):
            await victim.anyone.session.post(f"{shopping.path}/pay", data=form)
        assert await asyncio.wait_for(victim.process.wait(), SECONDS) == -signal.SIGKILL
    order_id = str((await shopping.order()).id)
    async with api_process(settings) as heir:
        assert b"Confirming your payment" in (await heir.anyone.get(shopping.path)).raw
        again = await heir.anyone.session.post(f"{shopping.path}/pay", data=form)
        assert (again.status, again.url.path) == (200, shopping.path)
        async with process(settings, "subscriber"), process(settings, "worker", "--sandbox"):
            await becomes(store, UUID(order_id), "captured")
        assert b"Payment received" in (await heir.anyone.get(shopping.path)).raw
    assert await topics(store, order_id) == ["order.created", "payment.requested", "payment.captured"]
    assert await charged(store) == [(order_id, 1, 4_999)]


async def topics(store: EventStore, order_id: str) -> list[str]:
    async with store.pool.connection() as connection:
        cursor = await connection.execute(
            "SELECT topic FROM stored_events WHERE originator_id = %s ORDER BY originator_version",
            (order_id,),
        )
        return [row[0] for row in await cursor.fetchall()]
