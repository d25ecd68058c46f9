"""What merchants are told: once for each event that calls for it, as of that event."""

import asyncio
import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from random import Random
from typing import Any
from uuid import UUID

import pytest
import structlog
from jsonschema import Draft202012Validator
from ordering import authorized, new_order, pay, report
from random_orders import random_order, recorded
from receiving import Endpoint, sdk_accepts
from standardwebhooks import Webhook
from telling import BY, Shop, caught_up, delivering, open_shop, subscribing
from temporalio.client import Client
from temporalio.service import RPCError
from uuid_utils.compat import uuid7

from payloops.commands.cancel_order import cancel, cancel_order, request_void
from payloops.commands.receive_processor_event import ProcessorEvent, receive_processor_event
from payloops.commands.refund_outcomes import fail_refund, succeed_refund
from payloops.commands.refund_payment import refund_payment, request_refund
from payloops.commands.retry_webhook import WebhooksOff, retry_webhook
from payloops.commands.update_refund_status import update_refund_status
from payloops.commands.webhooks import WebhookNotFound
from payloops.events.event_store import EventStore
from payloops.events.orders import Failure, Order, TransactionType
from payloops.events.stream import topic_of
from payloops.events.timestamps import timestamp_text, utc_now
from payloops.http.app import ROUTES
from payloops.http.openapi import openapi_document
from payloops.projections.orders import row_from_order
from payloops.settings import Settings
from payloops.workflows_client.order_json import order_json
from payloops.workflows_client.webhook_subscription import (
    READER,
    details_of,
    event_type_of,
    payload_of,
    webhook_id_of,
)


@pytest.fixture(scope="module")
def temporal_namespace(namespaces: Iterator[str]) -> str:
    """One for all of these tests: webhooks of their own keep them apart."""
    return next(namespaces)


async def every_story(shop: Shop) -> dict[UUID, list[str]]:
    """One order of each kind; what is to be told of it."""
    store, merchant_id = shop.store, shop.merchant_id
    captured = await shop.paid()
    await shop.report(captured, "requires_action", redirect_url="https://bank.example")
    await shop.report(captured, "captured")
    for succeeded in (False, True):
        refund = await refund_payment(
            store, order_id=captured, merchant_id=merchant_id, amount=1_000, reason="broken", by=BY
        )
        await update_refund_status(
            store, order_id=captured, refund_id=refund.id, succeeded=succeeded, failure=Failure("odd"), by=BY
        )
    failed = await shop.paid()
    await shop.report(failed, "failed", failure=Failure("declined", "No."))
    voided = await shop.paid(capture="manual")
    await shop.report(voided, "authorized")
    await cancel_order(store, order_id=voided, merchant_id=merchant_id, by=BY)
    await shop.report(voided, "cancelled")
    cancelled, stopped = await shop.create(), await shop.paid()
    await cancel_order(store, order_id=cancelled, merchant_id=merchant_id, by=BY)
    await shop.report(stopped, "cancelled")
    return {
        captured: [
            *("payment.processing", "payment.requires_action", "payment.captured"),
            *("refund.failed", "refund.processed"),
        ],
        failed: ["payment.processing", "payment.failed"],
        voided: ["payment.processing", "payment.authorized", "payment.cancelled"],
        cancelled: ["payment.cancelled"],
        stopped: ["payment.processing", "payment.cancelled"],
    }


async def test_each_event_is_told_once_with_the_order_as_of_it(
    store: EventStore, settings: Settings, client: Client, shop: Shop, endpoint: Endpoint
) -> None:
    stories = await every_story(shop)
    async with subscribing(store, settings, client), delivering(store, client):
        await endpoint.has(sum(map(len, stories.values())))
        await caught_up(store)
        for webhook_id, _ in await shop.queued():
            await shop.becomes(webhook_id, "delivered")
    secret = (await shop.secret()).secret
    for order_id, types in stories.items():
        bodies = sorted(
            (each.json for each in endpoint.received if each.json["orderId"] == str(order_id)),
            key=lambda body: body["sequence"],
        )
        assert [body["type"] for body in bodies] == types
        for body in bodies:
            await _is_as_the_contract_has_it(store, body)
    assert len({each.headers["webhook-id"] for each in endpoint.received}) == len(endpoint.received)
    for each in endpoint.received:
        assert each.headers["webhook-id"] == each.json["id"]
        assert Webhook(secret).verify(each.body, dict(each.headers)) == each.json
        assert sdk_accepts(
            each.body, each.headers["X-PayLoops-Signature"], secret, now_ms=int(utc_now().timestamp() * 1000)
        )


async def _is_as_the_contract_has_it(store: EventStore, body: dict[str, Any]) -> None:
    order_id = UUID(body["orderId"])
    order = await store.load(Order, order_id, up_to_version=body["sequence"])
    assert order is not None
    assert sorted(body) == sorted(
        [
            *("id", "type", "eventType", "createdAt", "sequence", "orderId", "externalId", "amount"),
            *("currency", "status", "processor", "data", "payload"),
        ]
    )
    assert body["eventType"] == body["type"]
    assert body["createdAt"] == timestamp_text(order.modified_on)
    assert body["data"] == order_json(row_from_order(order))
    assert {name: body[name] for name in ("externalId", "amount", "currency", "status", "processor")} == {
        name: body["data"][name] for name in ("externalId", "amount", "currency", "status", "processor")
    }
    told_of = (await store.read_stream(order_id))[body["sequence"] - 1]
    async with store.pool.connection() as connection:
        row = await connection.execute(
            "SELECT created_at, source_position FROM webhook_events WHERE id = %s", (body["id"],)
        )
        assert await row.fetchone() == (order.modified_on, told_of.position)


def test_a_webhook_has_the_same_id_in_every_version_of_this_code() -> None:
    """By it receivers recognize repetitions, and Temporal a workflow that was started before."""
    order = UUID("01900000-0000-7000-8000-000000000001")
    [created] = recorded(new_order())
    fact = replace(created, originator_id=order, originator_version=2)
    assert webhook_id_of(fact) == UUID("70031211-06e2-5ccd-8306-7de12dd7ebb1")


def test_a_webhook_tells_when_it_happened_beside_when_the_order_was_created() -> None:
    order = new_order()
    later = BY.at + timedelta(hours=1)
    cancel(order, by=replace(BY, at=later))
    [_, cancelled] = recorded(order)
    body = payload_of(cancelled, webhook_id=uuid7(), event_type="payment.cancelled", order=order)
    assert body["createdAt"] == timestamp_text(later)
    assert body["data"]["createdAt"] == timestamp_text(order.created_on)


def test_webhooks_of_every_type_fit_the_contract() -> None:
    document = openapi_document(ROUTES, version="test")
    body = document["webhooks"]["order"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    contract = Draft202012Validator({**body, "components": document["components"]})
    seen = set()
    for seed in range(200):
        order = random_order(Random(seed), uuid7())
        for fact in recorded(order):
            if (type := event_type_of(fact)) is not None:
                sent = json.loads(
                    json.dumps(payload_of(fact, webhook_id=uuid7(), event_type=type, order=order))
                )
                assert [error.message for error in contract.iter_errors(sent)] == []
                assert sent.keys() == body["properties"].keys()
                seen.add(type)
    assert seen == set(body["properties"]["type"]["enum"])


def told(order: Order) -> list[tuple[str, dict[str, Any]]]:
    """What is told of an order: the types, and what is special to each."""
    facts = [(event_type_of(fact), fact) for fact in recorded(order)]
    return [(type, details_of(fact, order=order)) for type, fact in facts if type is not None]


def test_all_that_is_special_to_each_event() -> None:
    captured = report(report(pay(new_order()), "requires_action"), "captured")
    for amount, reason in ((300, "broken"), (200, "late")):
        refund = request_refund(captured, amount=amount, reason=reason, by=BY)
        reference = f"re_{amount}"
        if reason == "late":
            fail_refund(
                captured,
                refund.id,
                processor_transaction_id=reference,
                failure=Failure("no", "No."),
                by=BY,
            )
        else:
            succeed_refund(captured, refund.id, processor_transaction_id=reference, by=BY)
    [succeeded, failed] = [t for t in captured.transactions.values() if t.type is TransactionType.REFUND]
    attempt, processor = {"attempt": 1}, {"processorTransactionId": "pt_1"}
    first, *_ = captured.transactions
    assert told(captured) == [
        ("payment.processing", attempt | {"transactionId": first, "capture": "automatic", "amount": 1_000}),
        ("payment.requires_action", attempt | {"redirectUrl": "https://bank.example"}),
        (
            "payment.captured",
            attempt | processor | {"transactionId": first, "amount": 1_000, "amountCaptured": 1_000},
        ),
        (
            "refund.processed",
            {
                "refundId": succeeded.id,
                "amount": 300,
                "amountRefunded": 300,
                "reason": "broken",
                "processorTransactionId": "re_300",
            },
        ),
        (
            "refund.failed",
            {
                "refundId": failed.id,
                "amount": 200,
                "reason": "late",
                "errorCode": "no",
                "errorMessage": "No.",
            },
        ),
    ]


@pytest.mark.parametrize("status", ["failed", "cancelled"])
def test_all_that_is_special_to_a_payment_that_ends_without_money(status: str) -> None:
    error = {"errorCode": "card_declined", "errorMessage": "The card was declined"}
    details = {"failed": error | {"processorTransactionId": "pt_1"}, "cancelled": {}}
    assert told(report(pay(new_order()), status))[1:] == [
        (f"payment.{status}", {"attempt": 1} | details[status])
    ]
    cancelled = new_order()
    cancel(cancelled, by=BY)
    assert told(cancelled) == [("payment.cancelled", {})]


def test_all_that_is_special_to_an_authorization_and_its_void() -> None:
    order = authorized()
    request_void(order, order.payments[1], by=BY)
    report(order, "cancelled")
    kinds = (TransactionType.AUTHORIZATION, TransactionType.VOID)
    [held, void] = [t.id for kind in kinds for t in order.transactions.values() if t.type is kind]
    shared = {"attempt": 1, "amount": 1_000}
    assert told(order)[1:] == [
        ("payment.authorized", shared | {"transactionId": held, "processorTransactionId": "pt_1"}),
        ("payment.cancelled", shared | {"transactionId": void}),
    ]


async def test_a_refund_that_came_back_is_told_to_have_failed(
    store: EventStore, settings: Settings, client: Client, shop: Shop
) -> None:
    order_id = await shop.paid()
    await shop.report(order_id, "captured")
    refund = await refund_payment(
        store, order_id=order_id, merchant_id=shop.merchant_id, amount=1_000, reason="broken", by=BY
    )
    told = ProcessorEvent(
        processor="stripe",
        event_id="evt_1",
        type="refund.updated",
        order_id=order_id,
        attempt=1,
        outcome="refunded",
        amount=1_000,
        refund_reference="re_1",
        refund_id=refund.id,
    )
    back = replace(
        told, event_id="evt_2", outcome="refund_failed", failure=Failure("expired_or_canceled_card")
    )
    for event in (told, back):
        await receive_processor_event(store, merchant_id=shop.merchant_id, event=event, body="{}", by=BY)
    async with subscribing(store, settings, client):
        await caught_up(store)
    webhooks = [await shop.webhook(webhook_id) for webhook_id, _ in await shop.queued()]
    webhooks.sort(key=lambda each: each.payload["sequence"])
    assert [each.event_type for each in webhooks][-2:] == ["refund.processed", "refund.failed"]
    body = webhooks[-1].payload
    assert (body["status"], body["data"]["amountRefunded"]) == ("captured", 0)
    assert body["payload"] == {
        "refundId": refund.id,
        "amount": 1_000,
        "amountRefunded": 0,
        "reason": "broken",
        "processorTransactionId": "re_1",
        "errorCode": "expired_or_canceled_card",
        "errorMessage": None,
    }


async def test_what_does_not_change_the_order_is_not_told(
    store: EventStore, settings: Settings, client: Client, shop: Shop
) -> None:
    """The first attempt fails, the second is captured; then the first is heard of again."""
    order_id = await shop.paid()
    await shop.report(order_id, "failed")
    await shop.pay(order_id)
    await shop.report(order_id, "captured", attempt=2)
    await shop.report(order_id, "authorized", attempt=1)
    async with subscribing(store, settings, client):
        await caught_up(store)
    assert [event_type for _, event_type in await shop.queued()] == [
        *("payment.processing", "payment.failed", "payment.processing", "payment.captured")
    ]


@pytest.mark.parametrize(
    ("reports", "topic"),
    [
        (["requires_action"], "payment.action_required"),
        (["authorized"], "payment.authorized"),
        (["failed"], "payment.failed"),
        (["cancelled"], "payment.cancelled"),
        (["authorized", "cancelled"], "payment.voided"),
    ],
)
def test_what_becomes_of_an_attempt_beside_a_captured_one_is_not_told(reports: list[str], topic: str) -> None:
    """The first attempt failed, and was captured after all while the second was under way."""
    order = report(pay(report(pay(new_order()), "failed")), "captured", attempt=1)
    before = order.version
    for each in reports:
        report(order, each, attempt=2)
    new = [fact for fact in recorded(order) if fact.originator_version > before]
    assert topic in [topic_of(type(fact)) for fact in new]
    assert [event_type_of(fact) for fact in new] == [None] * len(new)


async def test_a_merchant_without_a_url_is_told_nothing(
    store: EventStore, settings: Settings, client: Client
) -> None:
    shop = await open_shop(store)
    async with subscribing(store, settings, client):
        await shop.paid()
        await caught_up(store)
    assert await shop.queued() == []


async def test_reading_the_log_again_queues_and_sends_nothing(
    store: EventStore, settings: Settings, client: Client, shop: Shop, endpoint: Endpoint
) -> None:
    """Also where Temporal has forgotten its workflows: a delivered webhook is not sent again."""
    async with delivering(store, client):
        async with subscribing(store, settings, client):
            order_id = await shop.paid()
            await caught_up(store)
        queued = await shop.queued()
        [(webhook_id, _)] = queued
        await shop.becomes(webhook_id, "delivered")
        async with store.pool.connection() as connection:
            await connection.execute("UPDATE checkpoints SET position = 0 WHERE name = %s", (READER,))
        async with subscribing(store, settings, client):
            await caught_up(store)
        assert await shop.queued() == queued
        webhook = await shop.webhook(webhook_id)
        forgotten = await client.execute_workflow(
            "WebhookDeliveryWorkflow",
            {
                "webhookEventId": str(webhook_id),
                "merchantId": str(shop.merchant_id),
                "webhookUrl": endpoint.url,
                "payload": webhook.payload,
            },
            id=f"webhook-{webhook_id}-forgotten",
            task_queue="backend-operations",
        )
    assert forgotten["success"]
    assert forgotten["attempts"] == 1
    assert [each.json["orderId"] for each in endpoint.received] == [str(order_id)]


async def test_an_event_is_not_given_up_where_the_database_is_the_trouble(
    store: EventStore, settings: Settings, client: Client, shop: Shop
) -> None:
    """Started before the migrations were applied, say."""
    await shop.paid()
    async with store.pool.connection() as connection:
        await connection.execute("ALTER TABLE webhook_events RENAME TO later")
    with structlog.testing.capture_logs() as lines:
        async with subscribing(store, settings, client):
            async with asyncio.timeout(60):
                while not any(line["event"] == "subscriber.interrupted" for line in lines):
                    await asyncio.sleep(0.05)
            async with store.pool.connection() as connection:
                await connection.execute("ALTER TABLE later RENAME TO webhook_events")
            await caught_up(store)
    assert len(await shop.queued()) == 1
    assert not any(line["event"] == "subscriber.parked" for line in lines)


async def test_replicas_killed_in_the_middle_tell_each_event_once(
    store: EventStore, settings: Settings, client: Client, shop: Shop, endpoint: Endpoint
) -> None:
    """The leader's connection is ended again and again while a hundred orders are paid."""
    stop = asyncio.Event()

    async def trouble() -> None:
        while not stop.is_set():
            await asyncio.sleep(0.15)
            async with store.pool.connection() as connection:
                await connection.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE application_name = 'payloops subscriber' AND datname = current_database()"
                )

    async with (
        delivering(store, client),
        subscribing(store, settings, client),
        subscribing(store, settings, client),
        asyncio.TaskGroup() as group,
    ):
        group.create_task(trouble())
        orders = [await shop.paid() for _ in range(100)]
        await asyncio.sleep(1)
        stop.set()
        await endpoint.has(len(orders))
        await caught_up(store)
    assert sorted(each.json["orderId"] for each in endpoint.received) == sorted(map(str, orders))
    assert len(await shop.queued()) == len(orders)


async def test_a_manual_retry_begins_anew_in_a_workflow_of_its_own(
    store: EventStore, settings: Settings, client: Client, shop: Shop, endpoint: Endpoint
) -> None:
    """The one before, which waits for its next attempt, gives way when its time comes."""
    endpoint.answer = lambda _: 500
    async with subscribing(store, settings, client), delivering(store, client):
        await shop.paid()
        await endpoint.has(1)
        [(webhook_id, _)] = await shop.queued()
        await _attempts_are(shop, webhook_id, 1)
        endpoint.answer = lambda _: 200
        await retry_webhook(store, webhook_id=webhook_id, merchant_id=shop.merchant_id, by=BY)
        webhook = await shop.becomes(webhook_id, "delivered")
        assert (webhook.attempts, webhook.retries) == (2, 1)
        for suffix in ("", "-1"):
            handle = client.get_workflow_handle(f"webhook-{webhook_id}{suffix}")
            assert await (await handle.describe()).memo() == {"correlationId": "test"}
            started = (await handle.fetch_history()).events[0].workflow_execution_started_event_attributes
            assert await client.data_converter.decode(started.input.payloads) == [
                {
                    "webhookEventId": str(webhook_id),
                    "merchantId": str(shop.merchant_id),
                    "webhookUrl": endpoint.url,
                    "payload": webhook.payload,
                }
            ]
        # Delivered, and wanted once more.
        await retry_webhook(store, webhook_id=webhook_id, merchant_id=shop.merchant_id, by=BY)
        await endpoint.has(3)
        assert (await shop.becomes(webhook_id, "delivered")).attempts == 3
    assert len({each.headers["webhook-id"] for each in endpoint.received}) == 1
    assert {each.body for each in endpoint.received} == {endpoint.received[0].body}


async def _attempts_are(shop: Shop, webhook_id: UUID, count: int) -> None:
    async with asyncio.timeout(60):
        while len(await shop.attempts(webhook_id)) < count:
            await asyncio.sleep(0.02)


async def test_a_retry_of_nothing_or_to_nowhere_is_refused(
    store: EventStore, settings: Settings, client: Client, shop: Shop
) -> None:
    async with subscribing(store, settings, client):
        await shop.paid()
        await caught_up(store)
    [(webhook_id, _)] = await shop.queued()
    other = await open_shop(store)
    with pytest.raises(WebhookNotFound):
        await retry_webhook(store, webhook_id=webhook_id, merchant_id=other.merchant_id, by=BY)
    assert (await shop.webhook(webhook_id)).retries == 0
    await retry_webhook(store, webhook_id=webhook_id, merchant_id=shop.merchant_id, by=BY)
    await shop.listen_at(None)
    with pytest.raises(WebhooksOff):
        await retry_webhook(store, webhook_id=webhook_id, merchant_id=shop.merchant_id, by=BY)
    async with subscribing(store, settings, client):
        await caught_up(store)
    assert (await shop.webhook(webhook_id)).status == "failed", "nobody works on it"


async def test_of_two_retries_at_once_one_begins(
    store: EventStore, settings: Settings, client: Client, shop: Shop
) -> None:
    async with subscribing(store, settings, client):
        await shop.paid()
        await caught_up(store)
        [(webhook_id, _)] = await shop.queued()
        results = await asyncio.gather(
            *(
                retry_webhook(store, webhook_id=webhook_id, merchant_id=shop.merchant_id, by=BY)
                for _ in range(5)
            ),
            return_exceptions=True,
        )
        await caught_up(store)
    begun = results.count(None)
    assert begun >= 1
    assert (await shop.webhook(webhook_id)).retries == begun
    with pytest.raises(RPCError):
        await client.get_workflow_handle(f"webhook-{webhook_id}-{begun + 1}").describe()
    await client.get_workflow_handle(f"webhook-{webhook_id}-{begun}").describe()
