"""Webhooks by the service's own processes: subscriber and worker as they are run, and killed."""

import asyncio
from collections.abc import Iterator
from uuid import UUID

import pytest
from processes import becomes, process
from pydantic import SecretStr
from receiving import Endpoint, HeldBack, canaries
from telling import Shop, open_shop

from payloops.commands.pay_order import pay_order
from payloops.commands.record_webhook_attempt import INTERRUPTED
from payloops.commands.webhook_endpoints import find_webhook_endpoint
from payloops.embedded import EmbeddedServers
from payloops.events.event_store import EventStore
from payloops.events.metadata import Metadata
from payloops.settings import Settings
from payloops.workflows_client.connection import connect


@pytest.fixture
def settings(settings: Settings, namespaces: Iterator[str]) -> Settings:
    return settings.model_copy(
        update={
            "temporal_namespace": next(namespaces),
            "temporal_codec_key": SecretStr("a codec key of thirty-two characters"),
            "webhook_allow_loopback": True,
        }
    )


@pytest.fixture
async def shop(store: EventStore, endpoint: Endpoint) -> Shop:
    shop = await open_shop(store, url=endpoint.url)
    await shop.takes_stripe(secret_key="sk_test_of_a_merchant")
    return shop


async def paid(shop: Shop, by: Metadata) -> UUID:
    order_id = await shop.create()
    await pay_order(shop.store, order_id=order_id, merchant_id=shop.merchant_id, payment_method=None, by=by)
    return order_id


async def delivered(shop: Shop, count: int) -> list[UUID]:
    """Wait until so many webhooks are delivered."""
    async with asyncio.timeout(90):
        while len(queued := await shop.queued()) < count:
            await asyncio.sleep(0.05)
    for webhook_id, _ in queued:
        await shop.becomes(webhook_id, "delivered")
    return [webhook_id for webhook_id, _ in queued]


async def test_a_payment_is_told_and_its_secret_is_not_read_in_temporal(
    store: EventStore,
    settings: Settings,
    servers: EmbeddedServers,
    shop: Shop,
    endpoint: Endpoint,
    by: Metadata,
) -> None:
    async with process(settings, "subscriber"), process(settings, "worker", "--sandbox"):
        order_id = await paid(shop, by)
        await becomes(store, order_id, "captured")
        webhooks = await delivered(shop, 2)
    told = sorted(
        (each.json["sequence"], each.json["type"], each.json["status"]) for each in endpoint.received
    )
    assert told == [(2, "payment.processing", "processing"), (3, "payment.captured", "captured")]
    client = await connect(
        address=servers.temporal_address, namespace=settings.temporal_namespace, codec_key=None
    )
    for webhook_id in webhooks:
        history = await client.get_workflow_handle(f"webhook-{webhook_id}").fetch_history()
        events = b"".join(event.SerializeToString() for event in history.events)
        assert b"binary/encrypted" in events
        assert b"whsec_" not in events
        assert str(order_id).encode() not in events


async def test_subscribers_killed_one_after_another_tell_each_event_once(
    settings: Settings, shop: Shop, endpoint: Endpoint, by: Metadata
) -> None:
    async with process(settings, "worker", "--sandbox"):
        orders = []
        for _ in range(3):
            async with process(settings, "subscriber") as victim:
                orders += [await paid(shop, by) for _ in range(8)]
                await endpoint.has(len(endpoint.received) + 1)
                victim.kill()
                await victim.wait()
        async with process(settings, "subscriber"):
            await delivered(shop, 2 * len(orders))
    told = sorted((each.json["orderId"], each.json["sequence"]) for each in endpoint.received)
    assert told == sorted((str(order_id), version) for order_id in orders for version in (2, 3))


async def test_a_webhook_whose_worker_is_killed_while_it_is_sent_is_delivered_by_another(
    settings: Settings, shop: Shop, endpoint: Endpoint, by: Metadata
) -> None:
    """It was sent twice under one id; the merchant sees both attempts, and the endpoint is not blamed."""
    endpoint.answer = answer = HeldBack()
    async with process(settings, "subscriber"):
        async with process(settings, "worker") as victim:
            await paid(shop, by)
            [first] = await endpoint.has(1)
            victim.kill()
            await victim.wait()
        answer.give()
        async with process(settings, "worker"):
            [webhook_id] = await delivered(shop, 1)
    webhook = await shop.webhook(webhook_id)
    attempts = await shop.attempts(webhook_id)
    assert [each.headers["webhook-id"] for each in endpoint.received] == [str(webhook_id)] * 2
    assert [each.body for each in endpoint.received] == [first.body] * 2
    assert [(each.number, each.attempt.status_code, each.attempt.error) for each in attempts] == [
        (1, None, INTERRUPTED),
        (2, 200, None),
    ]
    assert attempts[0].attempt.attempted_at < attempts[1].attempt.attempted_at
    assert (webhook.attempts, webhook.status) == (2, "delivered")
    found = await find_webhook_endpoint(shop.store.pool, merchant_id=shop.merchant_id)
    assert found is not None
    assert found.failing_since is None


async def test_nothing_is_sent_to_loopback_unless_it_is_allowed(settings: Settings, shop: Shop) -> None:
    defaults = settings.model_copy(update={"webhook_allow_loopback": False})
    async with canaries("127.0.0.1") as canary, process(defaults, "subscriber"), process(defaults, "worker"):
        await shop.listen_at(f"http://localhost:{canary.ports['127.0.0.1']}/")
        await shop.paid()
        async with asyncio.timeout(60):
            while not (queued := await shop.queued()) or not await shop.attempts(queued[0][0]):
                await asyncio.sleep(0.05)
        [attempt] = await shop.attempts(queued[0][0])
        assert attempt.attempt.error == "The address is not a public one"
        assert canary.connections == []
