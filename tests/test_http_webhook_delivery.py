"""What a merchant sees of its webhooks: every attempt, whether its endpoint works; and sending one again."""

from collections.abc import AsyncIterator
from uuid import UUID

import pytest
from calling import Api, Merchant, running_api
from receiving import Endpoint
from telling import Shop, caught_up, delivering, subscribing
from uuid_utils.compat import uuid7

from payloops.commands.retry_webhook import MAX_RETRIES
from payloops.embedded import EmbeddedServers
from payloops.events.event_store import EventStore
from payloops.settings import Settings
from payloops.workflows_client.connection import connect


@pytest.fixture
async def api(settings: Settings) -> AsyncIterator[Api]:
    async with running_api(settings.model_copy(update={"webhook_allow_loopback": True})) as api:
        yield api


@pytest.fixture
async def merchant(api: Api, endpoint: Endpoint) -> Merchant:
    merchant = await api.merchant(processors=False)
    await listen_at(merchant, endpoint.url)
    return merchant


@pytest.fixture
async def served(
    store: EventStore, settings: Settings, servers: EmbeddedServers, temporal_namespace: str
) -> AsyncIterator[None]:
    """Subscriber and worker run."""
    client = await connect(address=servers.temporal_address, namespace=temporal_namespace, codec_key=None)
    async with subscribing(store, settings, client), delivering(store, client):
        yield


async def listen_at(merchant: Merchant, url: str | None) -> None:
    assert (await merchant.dashboard.call("PUT", "/api/merchants/me", {"webhookUrl": url})).status == 200


async def told(store: EventStore, merchant: Merchant, status: str) -> UUID:
    """Pay an order; the webhook about it, once it has come to this."""
    shop = Shop(store, merchant.id)
    await shop.paid()
    await caught_up(store)
    webhook_id, _ = (await shop.queued())[-1]
    await shop.becomes(webhook_id, status)
    return webhook_id


@pytest.mark.usefixtures("served")
async def test_a_webhook_is_seen_with_its_attempts_and_sent_again(
    store: EventStore, merchant: Merchant, endpoint: Endpoint
) -> None:
    endpoint.answer = lambda _: 410
    webhook_id = await told(store, merchant, "failed")
    path = f"/api/webhooks/{webhook_id}"
    shown = (await merchant.dashboard.get(path)).json
    assert set(shown) == {
        *("id", "orderId", "eventType", "status", "attempts", "retries", "error", "lastAttemptAt"),
        *("deliveredAt", "createdAt", "body"),
    }
    assert (shown["eventType"], shown["status"]) == ("payment.processing", "failed")
    assert shown["body"] == endpoint.received[0].json
    [attempt] = shown["attempts"]
    assert set(attempt) == {
        *("number", "url", "attemptedAt", "durationMs", "statusCode", "error", "response")
    }
    assert (attempt["url"], attempt["statusCode"], attempt["error"], attempt["response"]) == (
        endpoint.url,
        410,
        "Answered 410",
        "thanks",
    )
    assert attempt["attemptedAt"] == shown["lastAttemptAt"]

    # The endpoint has had enough: the merchant sees it, and sending again is refused until the URL is set.
    state = (await merchant.dashboard.get("/api/merchants/me/webhook")).json
    assert (state["url"], state["status"]) == (endpoint.url, "switched_off")
    assert state["switchedOffReason"] == "The endpoint answered 410 Gone"
    refused = await merchant.dashboard.post(f"{path}/retry")
    assert (refused.status, refused.code) == (400, "invalid_status")
    assert "410" in refused.json["message"]

    endpoint.answer = lambda _: 200
    await listen_at(merchant, endpoint.url)
    assert (await merchant.dashboard.get("/api/merchants/me/webhook")).json == {
        "url": endpoint.url,
        "status": "working",
        "failingSince": None,
        "switchedOffAt": None,
        "switchedOffReason": None,
    }
    again = await merchant.dashboard.post(f"{path}/retry")
    assert (again.status, again.json) == (200, {"success": True})
    await Shop(store, merchant.id).becomes(webhook_id, "delivered")
    shown = (await merchant.dashboard.get(path)).json
    assert [each["statusCode"] for each in shown["attempts"]] == [410, 200]
    assert (shown["status"], shown["deliveredAt"]) == ("delivered", shown["attempts"][1]["attemptedAt"])
    listed = (await merchant.dashboard.get("/api/webhooks")).json["data"]
    assert [(each["id"], each["attempts"]) for each in listed] == [(str(webhook_id), 2)]

    async with store.pool.connection() as connection:
        await connection.execute("UPDATE webhook_events SET retries = %s", (MAX_RETRIES,))
    refused = await merchant.dashboard.post(f"{path}/retry")
    assert (refused.status, refused.code) == (400, "invalid_status")
    assert "GET /v1/events" in refused.json["message"]


@pytest.mark.usefixtures("served")
async def test_another_merchants_webhook_is_not_found(
    store: EventStore, api: Api, merchant: Merchant
) -> None:
    webhook_id = await told(store, merchant, "delivered")
    other = await api.merchant(processors=False)
    for theirs, unknown in [
        (f"/api/webhooks/{webhook_id}", f"/api/webhooks/{uuid7()}"),
        (f"/api/webhooks/{webhook_id}", "/api/webhooks/no-uuid"),
    ]:
        seen, none = await other.dashboard.get(theirs), await other.dashboard.get(unknown)
        assert (seen.status, seen.code) == (404, "not_found")
        assert seen.lasting == none.lasting
        sent = await other.dashboard.post(f"{theirs}/retry")
        assert (sent.status, sent.code) == (404, "not_found")
    assert (await Shop(store, merchant.id).webhook(webhook_id)).retries == 0


async def test_an_endpoint_that_is_not_there_is_none(merchant: Merchant) -> None:
    await listen_at(merchant, None)
    state = (await merchant.dashboard.get("/api/merchants/me/webhook")).json
    assert (state["url"], state["status"]) == (None, "none")
