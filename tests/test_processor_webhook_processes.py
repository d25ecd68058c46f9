"""Webhooks of processors beside workflows: real processes, and a customer who had to act."""

import asyncio
from typing import Any
from uuid import UUID

import orjson
import pytest
from calling import Api, Merchant
from processes import becomes, charged, process
from signing import Labels, Processors, charge_refunded, merchant_with_secrets, stripe_payment, stripe_refund
from temporalio.client import Client, WorkflowExecutionStatus

from payloops.events.event_store import EventStore
from payloops.settings import Settings
from payloops.workflows_client.connection import connect

SECONDS = 90


@pytest.fixture
def settings(settings: Settings, temporal_namespace: str) -> Settings:
    return settings.model_copy(update={"temporal_namespace": temporal_namespace, "log_level": "info"})


@pytest.fixture
async def client(settings: Settings) -> Client:
    return await connect(
        address=settings.temporal_address, namespace=settings.temporal_namespace, codec_key=None
    )


@pytest.fixture
async def merchant(api: Api) -> Merchant:
    return await merchant_with_secrets(api)


async def acting(merchant: Merchant, store: EventStore) -> tuple[Labels, dict[str, Any]]:
    """An order whose customer has to act, and what Stripe's events call its payment."""
    order_id = await merchant.order()
    method = {"type": "card", "token": "tok_3ds"}
    paid = await merchant.shop.post(
        f"/v1/orders/{order_id}/pay", {"processor": "stripe", "paymentMethod": method}
    )
    assert paid.status == 200, paid.raw
    await becomes(store, UUID(order_id), "requires_action")
    shown = (await merchant.shop.get(f"/v1/orders/{order_id}")).json
    names = {"id": shown["processorOrderId"], "latest_charge": "ch_of_stripe"}
    return Labels(merchant.id, order_id), names


async def signals(client: Client, order_id: str) -> list[tuple[str, Any]]:
    history = await client.get_workflow_handle(f"payment-{order_id}").fetch_history()
    return [
        (
            event.workflow_execution_signaled_event_attributes.signal_name,
            *(
                orjson.loads(p.data)
                for p in event.workflow_execution_signaled_event_attributes.input.payloads
            ),
        )
        for event in history.events
        if event.HasField("workflow_execution_signaled_event_attributes")
    ]


async def test_a_workflow_that_waits_for_the_customer_is_told_and_ends(
    api: Api, merchant: Merchant, store: EventStore, settings: Settings, client: Client
) -> None:
    processors = Processors(api)
    async with process(settings, "subscriber"), process(settings, "worker", "--sandbox"):
        labels, names = await acting(merchant, store)
        event = stripe_payment("succeeded", labels, **names)
        answers = await asyncio.gather(*(processors.stripe(event) for _ in range(10)))
        assert {answer.status for answer in answers} == {200}
        handle = client.get_workflow_handle(f"payment-{labels.order_id}")
        assert await asyncio.wait_for(handle.result(), SECONDS) == "captured"
        assert await signals(client, labels.order_id) == [
            ("completePayment", {"success": True, "processorTransactionId": "ch_of_stripe"})
        ]
        assert await charged(store) == [(labels.order_id, 1, 1_000)]

        labels, names = await acting(merchant, store)
        await processors.stripe(stripe_payment("payment_failed", labels, **names))
        handle = client.get_workflow_handle(f"payment-{labels.order_id}")
        assert await asyncio.wait_for(handle.result(), SECONDS) == "failed"
    trail = await merchant.shop.get(f"/v1/orders/{labels.order_id}/events")
    assert [each["type"] for each in trail.json][-2:] == ["order.processor_event_received", "payment.failed"]


async def test_where_no_workflow_waits_the_order_has_the_truth_all_the_same(
    api: Api, merchant: Merchant, store: EventStore, settings: Settings, client: Client
) -> None:
    """One workflow was ended from outside, another has failed the payment; Stripe captured both."""
    processors = Processors(api)
    async with process(settings, "subscriber"), process(settings, "worker", "--sandbox"):
        ended, ended_names = await acting(merchant, store)
        await client.get_workflow_handle(f"payment-{ended.order_id}").terminate()
        failed, failed_names = await acting(merchant, store)
        handle = client.get_workflow_handle(f"payment-{failed.order_id}")
        await handle.signal("completePayment", {"success": False})
        assert await asyncio.wait_for(handle.result(), SECONDS) == "failed"
        for labels, names in ((ended, ended_names), (failed, failed_names)):
            await processors.stripe(stripe_payment("succeeded", labels, **names))
            await becomes(store, _id(labels), "captured")
        description = await client.get_workflow_handle(f"payment-{ended.order_id}").describe()
        assert description.status is WorkflowExecutionStatus.TERMINATED
        fresh = await merchant.order()  # the subscriber goes on
        await merchant.shop.post(f"/v1/orders/{fresh}/pay", {"processor": "stripe"})
        await becomes(store, _id(Labels(merchant.id, fresh)), "captured")
    async with store.pool.connection() as connection:
        assert await (await connection.execute("SELECT * FROM parked_events")).fetchall() == []


async def test_refunds_of_ours_and_of_the_dashboard_are_told_apart(
    api: Api, merchant: Merchant, store: EventStore, settings: Settings
) -> None:
    processors = Processors(api)
    async with process(settings, "subscriber"), process(settings, "worker", "--sandbox"):
        order_id = await merchant.order()
        await merchant.shop.post(f"/v1/orders/{order_id}/pay", {"processor": "stripe"})
        await becomes(store, UUID(order_id), "captured")
        shown = (await merchant.shop.get(f"/v1/orders/{order_id}")).json
        labels = Labels(merchant.id, order_id)
        names = {"payment_intent": shown["processorOrderId"], "id": "ch_1"}
        asked = await merchant.shop.post(f"/v1/orders/{order_id}/refund", {"amount": 300})
        assert asked.status == 201
        await processors.stripe(charge_refunded(labels, 300, **names))
        await becomes(store, _id(labels), "partially_refunded")
        ours = (await merchant.shop.get(f"/v1/orders/{order_id}/transactions")).json[0]
        mine = stripe_refund(ours["processorTransactionId"], 300, metadata=labels.json)
        mine["data"]["object"]["payment_intent"] = shown["processorOrderId"]
        await processors.stripe(mine)
        await processors.stripe(charge_refunded(labels, 300, **names))
        theirs = stripe_refund("re_theirs", 700, metadata=labels.json)
        theirs["data"]["object"]["payment_intent"] = shown["processorOrderId"]
        await processors.stripe(theirs)
        await processors.stripe(charge_refunded(labels, 1_000, **names))
        order = await becomes(store, _id(labels), "refunded")
    refunds = (await merchant.shop.get(f"/v1/orders/{order_id}/refunds")).json
    assert sorted((each["amount"], each["status"]) for each in refunds) == [
        (300, "success"),
        (700, "success"),
    ]
    assert order.amount_refunded == 1_000
    assert all(amount == 1_000 for _, _, amount in await charged(store))


def _id(labels: Labels) -> UUID:
    return UUID(labels.order_id)
