"""Events that this code makes no sense of, of a later version beside it: they stop nothing but their stream."""

import asyncio
import json
import re
from datetime import timedelta
from uuid import UUID

import orjson
import pytest
from calling import Merchant
from eventsourcing.persistence import StoredEvent
from processes import run_command
from projecting import insert_raw, project_everything, project_orders
from shopping import begun_session

from payloops.commands.create_checkout_session import LIFE
from payloops.commands.settle_checkout_sessions import settle_checkout_sessions
from payloops.events.encoding import NewerVersion, UnknownTopic
from payloops.events.errors import StreamUnreadable
from payloops.events.event_store import EventStore
from payloops.events.metadata import Metadata
from payloops.events.orders import Order
from payloops.events.timestamps import utc_now
from payloops.processors.sandbox import SandboxProcessor
from payloops.reconcile.payments import reconcile
from payloops.sandbox import ledger
from payloops.settings import Settings


async def written_by_a_later_version(
    store: EventStore, merchant_id: UUID, stream_id: UUID, topic: str = "payment.teleported", **state: object
) -> None:
    async with store.pool.connection() as connection:
        cursor = await connection.execute(
            "SELECT count(*) FROM stored_events WHERE originator_id = %s", (stream_id,)
        )
        row = await cursor.fetchone()
    assert row is not None
    envelope = {
        "timestamp": "2026-11-24T00:00:00.000000Z",
        "merchant_id": str(merchant_id),
        "actor": "system",
        "correlation_id": "later",
        "causation_id": None,
    }
    event = StoredEvent(stream_id, row[0] + 1, topic, orjson.dumps(envelope | state))
    await store._appender.append([event], merchant_id=merchant_id)


async def test_folding_such_a_stream_says_where_and_why(store: EventStore, merchant: Merchant) -> None:
    cases = [
        ("payment.teleported", {}, UnknownTopic),
        ("payment.captured", {"class_version": 99}, NewerVersion),
        ("payment.captured", {}, Exception),
    ]
    for topic, state, cause in cases:
        order_id = UUID(await merchant.order())
        await written_by_a_later_version(store, merchant.id, order_id, topic, **state)
        with pytest.raises(StreamUnreadable) as raised:
            await store.load(Order, order_id)
        assert (raised.value.version, raised.value.topic) == (2, topic)
        assert isinstance(raised.value.__cause__, cause)
        order = await store.load(Order, order_id, up_to_version=1)
        assert order is not None


async def test_its_merchant_is_told_to_try_again(store: EventStore, merchant: Merchant) -> None:
    order_id, other = await merchant.order(), await merchant.order()
    await written_by_a_later_version(store, merchant.id, UUID(order_id))
    for method, path in (("GET", ""), ("GET", "/transactions"), ("POST", "/pay"), ("POST", "/cancel")):
        answer = await merchant.shop.call(method, f"/v1/orders/{order_id}{path}")
        assert (answer.status, answer.code) == (503, "unavailable"), path
        assert answer.headers["Retry-After"]
    assert (await merchant.shop.post(f"/v1/orders/{other}/pay")).status == 200
    assert (await merchant.shop.get("/v1/orders")).status == 200
    told = await merchant.shop.get(f"/v1/orders/{order_id}/events")
    assert [each["type"] for each in told.json] == ["order.created", "payment.teleported"]


async def test_a_payment_that_a_later_version_goes_on_with_is_on_record(
    store: EventStore, merchant: Merchant
) -> None:
    """Who waits for its end is not told that nothing was done."""
    order_id = await merchant.order()
    paying = asyncio.create_task(merchant.shop.post(f"/v1/orders/{order_id}/pay", Prefer="wait=20"))
    await merchant.order_is(order_id, "processing")
    await written_by_a_later_version(store, merchant.id, UUID(order_id))
    paid = await paying
    assert (paid.status, paid.json["status"]) == (200, "processing")


async def test_the_other_sessions_are_settled(store: EventStore, merchant_id: UUID, by: Metadata) -> None:
    first, second = [await begun_session(store, merchant_id, by) for _ in range(2)]
    await written_by_a_later_version(store, merchant_id, first, "checkout_session.teleported")
    assert await settle_checkout_sessions(store, now=utc_now() + LIFE) == 2
    async with store.pool.connection() as connection:
        cursor = await connection.execute(
            "SELECT originator_id FROM stored_events WHERE topic = 'checkout_session.expired'"
        )
        assert await cursor.fetchall() == [(second,)]


async def test_the_other_payments_are_reconciled(
    store: EventStore, settings: Settings, merchant: Merchant
) -> None:
    await ledger.create_schema(store.pool)
    unreadable, other = [await merchant.order() for _ in range(2)]
    for order_id in (unreadable, other):
        assert (await merchant.shop.post(f"/v1/orders/{order_id}/pay", {"processor": "stripe"})).status == 200
    await written_by_a_later_version(store, merchant.id, UUID(unreadable))
    await project_orders(settings.database_url.get_secret_value())

    async def find(*_: object) -> SandboxProcessor:
        return SandboxProcessor(store.pool)

    day = timedelta(days=1)
    findings = await reconcile(store, find=find, older_than=timedelta(0), since=day, now=utc_now())
    assert {each.order_id: each.outcome for each in findings} == {unreadable: "unreadable", other: "unknown"}


async def test_an_event_that_was_altered_is_named_wherever_its_order_is_looked_at(
    store: EventStore, settings: Settings, merchant: Merchant, database_url: str
) -> None:
    order_id = await merchant.order()
    position = await insert_raw(
        store, merchant.id, topic="payment.requested", state=b"not as it was written", stream=UUID(order_id)
    )
    for command in ("order", "why", "replay", "export"):
        status, out, complaint = await run_command(settings, "audit", command, order_id)
        assert (status, out, complaint.count("\n")) == (1, "", 1), command
        assert f"payment.requested, version 2 of stream {order_id}, cannot be read" in complaint
        assert "payloops audit verify" in complaint
    trail = f"/orders/{order_id}/events"
    for answer in (
        await merchant.shop.get(f"/v1{trail}"),
        await merchant.dashboard.get(f"/api{trail}"),
        await merchant.dashboard.get(f"/api{trail}?asOf=2"),
    ):
        assert (answer.status, answer.code) == (503, "unavailable")
    await project_everything(database_url)
    status, out, complaint = await run_command(settings, "projections", "status")
    assert (status, complaint) == (0, "")
    assert re.search(rf"orders +{position} +payment.requested +{order_id}:2 +JSONDecodeError: ", out)
    _, out, _ = await run_command(settings, "projections", "status", "--json")
    [orders] = [each for each in json.loads(out) if each["name"] == "orders"]
    assert [(each["streamId"], each["version"]) for each in orders["parkedEvents"]] == [(order_id, 2)]
