"""The activities of `backend-operations`, for a worker that knows nothing but their names and shapes."""

import ast
import asyncio
import json
import math
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import foreign
import pytest
from receiving import Endpoint, HeldBack, sdk_accepts
from standardwebhooks import Webhook
from structlog.testing import capture_logs
from telling import AMOUNT, BY, Shop, delivering
from temporalio.client import Client, WorkflowFailureError
from temporalio.exceptions import ActivityError, ApplicationError
from temporalio.worker import Worker

from payloops.commands.erase_personal_data import erase_personal_data
from payloops.commands.refund_payment import refund_payment
from payloops.embedded import EmbeddedServers
from payloops.events.event_store import EventStore
from payloops.events.orders import Order
from payloops.events.timestamps import timestamp_text, utc_now
from payloops.workflows_client import worker
from payloops.workflows_client.connection import connect

NOBODYS = {"merchantId": str(uuid4()), "orderId": str(uuid4()), "eventType": "t", "payload": {}}
UNFIT: list[dict[str, Any]] = [
    {"eventType": ""},
    {"eventType": "t" * 256},
    {"payload": None},
    {"payload": [{}]},
    {"payload": {"n": math.inf}},
    {"payload": {"n": 10**400}},
    {"payload": json.loads('{"a":' * 300 + "1" + "}" * 300)},
]
PAYLOAD = {"id": "of theirs", "type": "invoice.sent", "nested": {"a": [1, None, "ü"]}}


@pytest.fixture(scope="module")
def temporal_namespace(namespaces: Iterator[str]) -> str:
    """One for all of these tests: workflows of their own keep them apart."""
    return next(namespaces)


@pytest.fixture
async def client(
    servers: EmbeddedServers, temporal_namespace: str, store: EventStore
) -> AsyncIterator[Client]:
    """With both workers: that of `backend-operations`, and the foreign one."""
    client = await connect(address=servers.temporal_address, namespace=temporal_namespace, codec_key=None)
    async with (
        delivering(store, client),
        Worker(client, task_queue="stripe-payments", workflows=[foreign.ForeignWorkflow]),
    ):
        yield client


async def call(client: Client, *calls: tuple[Any, ...], id: str | None = None) -> list[Any]:
    """What a workflow of theirs gets for these calls."""
    handle = await client.start_workflow(
        "ForeignWorkflow",
        [list(each) for each in calls],
        id=id or f"theirs-{uuid4()}",
        task_queue="stripe-payments",
    )
    return list(await handle.result())


async def refused(client: Client, name: str, *arguments: Any) -> ApplicationError:
    with pytest.raises(WorkflowFailureError) as failed:
        await call(client, (name, *arguments))
    assert isinstance(failed.value.cause, ActivityError)
    cause = failed.value.cause.cause
    assert isinstance(cause, ApplicationError)
    return cause


def test_the_foreign_worker_imports_nothing_of_ours() -> None:
    imported = {
        name.name if isinstance(node, ast.Import) else node.module
        for node in ast.walk(ast.parse(Path(foreign.__file__).read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in node.names
    }
    assert imported == {"datetime", "typing", "temporalio", "temporalio.common"}


async def test_get_processor_config(client: Client, store: EventStore, shop: Shop) -> None:
    asked = {"merchantId": str(shop.merchant_id), "processor": "stripe"}
    assert await call(client, ("getProcessorConfig", asked)) == [None]
    await shop.takes_stripe(secret_key="sk_of_the_shop")
    [config] = await call(client, ("getProcessorConfig", asked))
    assert config == asked | {"testMode": True, "credentials": {"secretKey": "sk_of_the_shop"}}


async def test_a_payment_is_reported_refunded_and_read(client: Client, store: EventStore, shop: Shop) -> None:
    order_id = await shop.paid()
    ids = {"orderId": str(order_id)}
    reported: dict[str, Any] = {"processorOrderId": "po", "processorTransactionId": "pt"}
    action = ids | {"status": "requires_action", "redirectUrl": "https://bank.example", "clientSecret": "cs"}
    captured = ids | reported | {"status": "captured"}
    calls = [("updateOrderStatus", action), *[("updateOrderStatus", captured)] * 2, ("getOrder", ids)]
    *nothing, order = await call(client, *calls, id=f"payment-{order_id}")
    assert nothing == [None] * 3
    assert (order["status"], order["amountCaptured"], order["processorOrderId"]) == ("captured", AMOUNT, "po")
    assert set(order) == {
        *("id", "externalId", "amount", "currency", "status", "processor", "processorOrderId", "metadata"),
        *("customerId", "customerEmail", "description", "returnUrl", "cancelUrl", "amountCaptured"),
        *("amountRefunded", "attempt", "lastError", "createdAt", "updatedAt"),
    }
    refund = await refund_payment(store, order_id=order_id, merchant_id=shop.merchant_id, amount=1_000, by=BY)
    success = ids | {"refundId": refund.id, "status": "success", "processorTransactionId": "re"}
    calls = [*[("updateRefundStatus", success)] * 2, ("getOrder", ids)]
    *nothing, order = await call(client, *calls, id=f"refund-{refund.id}")
    assert nothing == [None] * 2
    assert (order["status"], order["amountRefunded"]) == ("partially_refunded", 1_000)
    folded = await store.load(Order, order_id)
    assert folded is not None
    assert (
        folded.version == 6
    )  # created, requested, action, captured, refund requested and succeeded: each once


async def test_get_order_of_an_unknown_order_is_null(client: Client) -> None:
    id = f"theirs-{uuid4()}"
    assert await call(client, ("getOrder", {"orderId": str(uuid4())}), id=id) == [None]
    history = await client.get_workflow_handle(id).fetch_history()
    [result] = [
        payload
        for event in history.events
        for payload in event.activity_task_completed_event_attributes.result.payloads
    ]
    assert (result.metadata["encoding"], result.data) == (b"json/plain", b"null")


async def test_get_merchant_webhook_url(client: Client, shop: Shop, endpoint: Endpoint) -> None:
    asked = {"merchantId": str(shop.merchant_id)}
    secret = (await shop.secret()).secret
    assert await call(client, ("getMerchantWebhookUrl", asked)) == [{"url": endpoint.url, "secret": secret}]
    await shop.listen_at(None)
    assert await call(client, ("getMerchantWebhookUrl", asked)) == [{"url": None, "secret": secret}]
    await shop.listen_at(endpoint.url)
    endpoint.answer = lambda _: 410
    [webhook_id] = await call(client, new_webhook(shop, await shop.create()))
    delivery = {"webhookEventId": webhook_id, "webhookUrl": endpoint.url, "payload": PAYLOAD}
    await call(client, ("deliverWebhook", delivery))
    assert await call(client, ("getMerchantWebhookUrl", asked)) == [{"url": None, "secret": secret}]
    unknown = {"merchantId": str(uuid4())}
    assert await call(client, ("getMerchantWebhookUrl", unknown)) == [{"url": None, "secret": None}]


def new_webhook(shop: Shop, order_id: UUID, **changed: Any) -> tuple[str, dict[str, Any]]:
    asked = {
        "merchantId": str(shop.merchant_id),
        "orderId": str(order_id),
        "eventType": "invoice.sent",
        "payload": PAYLOAD,
    }
    return "createWebhookEvent", asked | changed


async def test_a_webhook_of_theirs_is_made_once_and_delivered_once(
    client: Client, shop: Shop, endpoint: Endpoint
) -> None:
    order_id = await shop.create()
    made = new_webhook(shop, order_id)
    first, again, other = await call(client, made, made, new_webhook(shop, order_id, payload={"b": 1}))
    assert first == again != other
    assert await call(client, made) != [first]  # another workflow tells it anew
    webhook = await shop.webhook(UUID(first))
    assert (webhook.event_type, webhook.payload, webhook.status) == ("invoice.sent", PAYLOAD, "pending")

    secret = (await shop.secret()).secret
    delivery = {
        "webhookEventId": first,
        "webhookUrl": endpoint.url,
        "webhookSecret": secret,
        "payload": PAYLOAD,
    }
    result, second = await call(client, *[("deliverWebhook", delivery)] * 2)
    assert set(result) == {"success", "statusCode", "attempts", "deliveredAt"}
    assert (result["success"], result["statusCode"], result["attempts"]) == (True, 200, 1)
    [recorded] = await shop.attempts(UUID(first))
    assert result["deliveredAt"] == timestamp_text(recorded.attempt.attempted_at)
    assert second == {"success": True, "attempts": 1, "deliveredAt": result["deliveredAt"]}
    [received] = endpoint.received
    assert received.json == PAYLOAD
    assert received.headers["webhook-id"] == first
    assert Webhook(secret).verify(received.body, dict(received.headers)) == PAYLOAD
    now = int(utc_now().timestamp() * 1000)
    signature = received.headers["X-PayLoops-Signature"]
    assert signature.count("v1=") == 1  # the secret that it names is the merchant's own
    assert sdk_accepts(received.body, signature, secret, now_ms=now)
    assert (await shop.webhook(UUID(first))).status == "delivered"


async def test_a_secret_that_is_not_named_is_looked_up_and_one_that_is_signs_too(
    client: Client, shop: Shop, endpoint: Endpoint
) -> None:
    order_id = await shop.create()
    for number, named in enumerate((None, "", "their own secret")):
        [webhook_id] = await call(client, new_webhook(shop, order_id, payload={"n": number}))
        asked = {"webhookEventId": webhook_id, "webhookUrl": endpoint.url, "payload": {"n": number}}
        await call(client, ("deliverWebhook", asked if named is None else asked | {"webhookSecret": named}))
        received = endpoint.received[-1]
        secret = (await shop.secret()).secret
        assert Webhook(secret).verify(received.body, dict(received.headers)) == {"n": number}
        now = int(utc_now().timestamp() * 1000)
        signature = received.headers["X-PayLoops-Signature"]
        assert sdk_accepts(received.body, signature, named or secret, now_ms=now)


async def test_what_was_erased_of_an_order_is_told_no_more(
    client: Client, shop: Shop, endpoint: Endpoint
) -> None:
    order_id = await shop.create(customer_email="ada@example.com")
    payload = {"data": {"customerEmail": "ada@example.com", "description": None}, "n": 1}
    [before] = await call(client, new_webhook(shop, order_id, payload=payload))
    async for _ in erase_personal_data(shop.store, order_id, by=BY):
        pass
    [after] = await call(client, new_webhook(shop, order_id, payload=payload))
    for webhook_id in (before, after):
        asked = {"webhookEventId": webhook_id, "webhookUrl": endpoint.url, "payload": payload}
        await call(client, ("deliverWebhook", asked))
        erased = {"data": {"customerEmail": "[erased]", "description": None}, "n": 1}
        assert endpoint.received[-1].json == erased


@pytest.mark.parametrize(
    ("payload", "sent"),
    [
        ({"cut \ud83d": ["off \ud83d", {"n": 2**53}]}, {"cut ?": ["off ?", {"n": 2**53}]}),
        (
            {"nul": "\0", "large": [2**63 - 1, -(2**63), 1e300]},
            {"nul": "", "large": [2**63 - 1, -(2**63), 1e300]},
        ),
        ({"larger": [2**64, -(2**69)]}, {"larger": [float(2**64), -float(2**69)]}),
        ({}, {}),
    ],
)
async def test_a_webhook_of_a_workflow_is_delivered_whatever_text_and_numbers_are_in_it(
    client: Client, shop: Shop, endpoint: Endpoint, payload: dict[str, Any], sent: dict[str, Any]
) -> None:
    """JavaScript cuts a text in the middle of a character, and writes 2**69 with all its digits."""
    [webhook_id] = await call(client, new_webhook(shop, await shop.create(), payload=payload))
    asked = {"webhookEventId": webhook_id, "webhookUrl": endpoint.url, "payload": payload}
    [result] = await call(client, ("deliverWebhook", asked))
    assert result["success"]
    assert endpoint.received[-1].json == sent


async def test_a_failed_delivery_is_a_result_and_no_error(
    client: Client, shop: Shop, endpoint: Endpoint
) -> None:
    endpoint.answer = lambda _: 503
    [webhook_id] = await call(client, new_webhook(shop, await shop.create()))
    asked = {"webhookEventId": webhook_id, "webhookUrl": endpoint.url, "payload": PAYLOAD}
    for attempts in (1, 2):
        [result] = await call(client, ("deliverWebhook", asked))
        assert result == {
            "success": False,
            "statusCode": 503,
            "attempts": attempts,
            "errorMessage": "Answered 503",
        }
    [result] = await call(client, ("deliverWebhook", asked | {"webhookUrl": "http://169.254.169.254/"}))
    assert result == {
        "success": False,
        "attempts": 3,
        "errorMessage": "The address is not a public one",
    }


@pytest.mark.parametrize(
    ("name", "arguments", "type"),
    [
        ("updateOrderStatus", [{"orderId": str(uuid4()), "status": "captured"}], "OrderNotFound"),
        ("updateOrderStatus", [{"status": "captured"}], "InvalidInput"),
        ("updateOrderStatus", [str(uuid4()), "captured"], "InvalidInput"),
        ("getOrder", [str(uuid4())], "InvalidInput"),
        ("getOrder", [], "InvalidInput"),
        ("getMerchantWebhookUrl", [{}], "InvalidInput"),
        ("createWebhookEvent", [{"merchantId": str(uuid4())}], "InvalidInput"),
        *(("createWebhookEvent", [NOBODYS | each], "InvalidInput") for each in UNFIT),
        ("createWebhookEvent", [NOBODYS], "OrderNotFound"),
        (
            "deliverWebhook",
            [{"webhookEventId": str(uuid4()), "webhookUrl": "http://127.0.0.1/", "payload": {}}],
            "WebhookNotFound",
        ),
    ],
)
async def test_what_can_never_succeed_fails_at_once_and_is_logged_in_a_line(
    client: Client, name: str, arguments: list[Any], type: str, caplog: pytest.LogCaptureFixture
) -> None:
    with capture_logs() as lines:
        error = await refused(client, name, *arguments)
    assert (error.type, error.non_retryable) == (type, True)
    [line] = [line for line in lines if line["event"] == "activity.refused"]
    assert (line["activity"], line["type"], line["error"]) == (name, type, error.message)
    assert "\n" not in error.message
    assert "Traceback" not in caplog.text


async def test_a_webhook_about_another_merchants_order_is_not_queued(client: Client, shop: Shop) -> None:
    name, argument = new_webhook(shop, await shop.create(), merchantId=str(uuid4()))
    error = await refused(client, name, argument)
    assert (error.type, error.non_retryable) == ("OrderNotFound", True)
    async with shop.store.pool.connection() as connection:
        assert not await (await connection.execute("SELECT FROM webhook_events")).fetchall()


async def test_what_the_database_does_not_answer_is_given_up_and_tried_again(
    client: Client, store: EventStore, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "ANSWER_SECONDS", 0.3)
    argument = {"merchantId": str(shop.merchant_id), "processor": "stripe"}
    async with store.pool.connection() as connection, connection.transaction():
        await connection.execute("LOCK TABLE processor_configs")
        error = await refused(client, "getProcessorConfig", argument)
    assert (error.type, error.non_retryable, error.message) == (
        "DatabaseFailed",
        False,
        "no answer within 0.3 s",
    )
    assert await call(client, ("getProcessorConfig", argument))


async def test_what_the_database_refuses_is_tried_again_and_quotes_nothing(
    client: Client, store: EventStore, shop: Shop, endpoint: Endpoint, caplog: pytest.LogCaptureFixture
) -> None:
    """PostgreSQL's details quote the row. Failures are readable in histories, and are logged."""
    async with store.pool.connection() as connection:
        await connection.execute("ALTER TABLE webhook_events ADD CHECK (event_type = 'none')")
    name, argument = new_webhook(shop, await shop.create(), payload={"email": "ada@example.com"})
    error = await refused(client, name, argument)
    assert (error.type, error.non_retryable, error.cause) == ("DatabaseFailed", False, None)
    recorded = str(error.failure)
    for text in (recorded, caplog.text):
        assert "CheckViolation: new row for relation" in text
        assert "queue_webhook.py" in text
        assert "ada@example.com" not in text


async def test_an_activity_that_runs_when_its_worker_is_asked_to_stop_may_finish(
    servers: EmbeddedServers, temporal_namespace: str, store: EventStore, shop: Shop, endpoint: Endpoint
) -> None:
    client = await connect(address=servers.temporal_address, namespace=temporal_namespace, codec_key=None)
    endpoint.answer = answer = HeldBack()
    async with (
        asyncio.timeout(60),
        Worker(client, task_queue="stripe-payments", workflows=[foreign.ForeignWorkflow]),
    ):
        async with delivering(store, client):
            [webhook_id] = await call(client, new_webhook(shop, await shop.create()))
            asked = {"webhookEventId": webhook_id, "webhookUrl": endpoint.url, "payload": PAYLOAD}
            calling = asyncio.create_task(call(client, ("deliverWebhook", asked)))
            await endpoint.has(1)
            asyncio.get_running_loop().call_later(0.3, answer.give)  # once the worker is stopping
        async with delivering(store, client):
            [result] = await calling
    assert (result["success"], result["attempts"]) == (True, 1)


async def test_an_activity_that_hangs_keeps_no_worker_from_stopping_and_is_done_by_the_next(
    servers: EmbeddedServers, temporal_namespace: str, store: EventStore, shop: Shop, endpoint: Endpoint
) -> None:
    client = await connect(address=servers.temporal_address, namespace=temporal_namespace, codec_key=None)
    endpoint.answer = answer = HeldBack()
    async with (
        asyncio.timeout(60),
        Worker(client, task_queue="stripe-payments", workflows=[foreign.ForeignWorkflow]),
    ):
        async with (
            asyncio.timeout(30),
            delivering(store, client, deadline=3_600, grace=timedelta(seconds=0.1)),
        ):
            [webhook_id] = await call(client, new_webhook(shop, await shop.create()))
            asked = {"webhookEventId": webhook_id, "webhookUrl": endpoint.url, "payload": PAYLOAD}
            calling = asyncio.create_task(call(client, ("deliverWebhook", asked)))
            await endpoint.has(1)
        answer.give()
        async with delivering(store, client):
            [result] = await calling
    assert (result["success"], result["attempts"]) == (True, 2)  # the first was interrupted


async def test_with_a_codec_key_no_argument_nor_result_is_read_in_a_history(
    servers: EmbeddedServers, temporal_namespace: str, store: EventStore, shop: Shop, endpoint: Endpoint
) -> None:
    await shop.takes_stripe(secret_key="sk_of_the_shop")
    order_id = await shop.create(customer_email="ada@example.com")
    connected = partial(connect, address=servers.temporal_address, namespace=temporal_namespace)
    client = await connected(codec_key="a codec key of thirty-two characters")
    asked = {"merchantId": str(shop.merchant_id)}
    async with (
        delivering(store, client),
        Worker(client, task_queue="stripe-payments", workflows=[foreign.ForeignWorkflow]),
    ):
        id = f"theirs-{uuid4()}"
        calls = [("getOrder", {"orderId": str(order_id)}), ("getMerchantWebhookUrl", asked)]
        config, order, target = await call(
            client, ("getProcessorConfig", asked | {"processor": "stripe"}), *calls, id=id
        )
    plain = [config["credentials"]["secretKey"], order["customerEmail"], target["secret"], target["url"]]
    assert plain == ["sk_of_the_shop", "ada@example.com", (await shop.secret()).secret, endpoint.url]
    other = await connected(codec_key=None)
    history = await other.get_workflow_handle(id).fetch_history()
    written = b"".join(event.SerializeToString() for event in history.events)
    assert written.count(b"binary/encrypted") >= 8
    assert not [text for text in plain if text.encode() in written]
