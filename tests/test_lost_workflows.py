"""What Temporal has lost is started again, once the processor has been asked, and nothing that may have been done."""

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from typing import Literal
from uuid import UUID

import pytest
from forwarding import SECONDS, caught_up, exists, parked, started, subscribing, until_nothing_is_parked
from projecting import project_orders
from telling import AMOUNT, Orders
from temporalio.client import Client

from payloops.cli.options import duration
from payloops.commands.cancel_order import cancel_order
from payloops.commands.capture_payment import capture_payment
from payloops.commands.refund_payment import refund_payment
from payloops.embedded import EmbeddedServers
from payloops.events.event_store import EventStore
from payloops.events.metadata import Metadata
from payloops.events.orders import Order
from payloops.events.timestamps import utc_now
from payloops.processors.port import PaymentQuestion, ProcessorPayment
from payloops.projections.parked import forward_again
from payloops.reconcile.payments import reconcile
from payloops.settings import Settings
from payloops.workflows_client.connection import connect
from payloops.workflows_client.payment_subscription import READER


@pytest.fixture(scope="module")
def temporal_namespace(namespaces: Iterator[str]) -> str:
    """One for all of these tests: orders of their own keep them apart."""
    return next(namespaces)


class Books:
    """A processor that knows some payments, by order."""

    def __init__(self, known: dict[UUID, ProcessorPayment]) -> None:
        self.known = known

    async def find(self, _: UUID, __: str) -> "Books":
        return self

    async def look_up(self, question: PaymentQuestion) -> ProcessorPayment | None:
        return self.known.get(UUID(question.order_id))


def known(
    order_id: UUID, status: Literal["authorized", "captured"], *, refunded: int = 0
) -> ProcessorPayment:
    return ProcessorPayment(
        status=status,
        processor_order_id=f"po_{order_id}",
        processor_transaction_id=f"pt_{order_id}",
        currency="USD",
        amount_captured=AMOUNT if status == "captured" else 0,
        amount_refunded=refunded,
    )


async def test_a_capture_is_forwarded_once_the_reference_of_its_payment_is_known(
    store: EventStore, settings: Settings, client: Client, orders: Orders
) -> None:
    order_id = await orders.captured_without_reference()
    await project_orders(settings.database_url.get_secret_value())
    books = Books({})

    async def look() -> str:
        [found] = await reconcile(
            store, find=books.find, older_than=duration("0s"), since=duration("0s"), now=utc_now()
        )
        return f"{found.outcome}: {found.detail}"

    async with subscribing(store, settings, client):
        await caught_up(store)
        [(_, why)] = await parked(store)
        assert "payloops reconcile asks it" in why
        books.known[order_id] = replace(known(order_id, "authorized"), processor_order_id=None)
        assert (await look()).startswith("unknown: the processor's reference of the payment is not certain")
        assert await parked(store) == [("payment.capture_requested", why)]
        books.known[order_id] = replace(known(order_id, "authorized"), processor_transaction_id=None)
        assert (await look()).startswith("unknown: payment.capture_requested: unknown to the processor")
        capture = await started(client, f"capture-{order_id}")
        assert capture["input"]["processorOrderId"] == f"po_{order_id}"
        await until_nothing_is_parked(store)


async def test_a_payment_to_be_cancelled_that_nobody_works_on_and_no_processor_knows_is_cancelled(
    store: EventStore,
    settings: Settings,
    servers: EmbeddedServers,
    namespaces: Iterator[str],
    client: Client,
    orders: Orders,
    merchant_id: UUID,
    by: Metadata,
) -> None:
    """Temporal began anew after the cancellation had been signalled: that the workflow is gone is found out first."""
    unknown, waiting = await orders.paid(), await orders.paid()
    await orders.report(waiting, "processing")
    for each in (unknown, waiting):
        await cancel_order(store, order_id=each, merchant_id=merchant_id, by=by)
    async with subscribing(store, settings, client):
        await caught_up(store)
    await project_orders(settings.database_url.get_secret_value())
    books = Books({waiting: replace(known(waiting, "authorized"), status="processing")})

    async def look(older_than: str = "0s") -> list[str]:
        found = await reconcile(
            store, find=books.find, older_than=duration(older_than), since=duration("1d"), now=utc_now()
        )
        outcomes = {each.order_id: each.outcome for each in found}
        return [outcomes[str(each)] for each in (unknown, waiting)]

    async with subscribing(store, settings, client):
        assert await look() == ["unknown", "waits"]  # its workflow is there, and told again
        await until_nothing_is_parked(store)
    other = await connect(address=servers.temporal_address, namespace=next(namespaces), codec_key=None)
    async with subscribing(store, settings, other):
        assert await look() == ["unknown", "waits"]
        async with asyncio.timeout(SECONDS):
            while [error.partition(":")[0] for _, error in await parked(store)] != ["WorkflowGone"] * 2:
                await asyncio.sleep(0.02)
        assert await look(older_than="1h") == ["unknown", "waits"]  # what it asked for may still arrive
        assert await look() == ["recorded", "differs"]
        async with asyncio.timeout(SECONDS):
            while len(await parked(store)) != 1:
                await asyncio.sleep(0.02)
    order = await store.load(Order, unknown)
    assert order is not None
    assert order.status == "cancelled"


async def test_what_temporal_has_lost_is_started_again_where_the_processor_knows_nothing_of_it(
    store: EventStore,
    settings: Settings,
    servers: EmbeddedServers,
    namespaces: Iterator[str],
    client: Client,
    orders: Orders,
    merchant_id: UUID,
    by: Metadata,
) -> None:
    """Another namespace is a Temporal that began anew: the log was forwarded, and nobody works on it."""

    async def refunding() -> tuple[UUID, str]:
        order_id = await orders.paid()
        await orders.report(order_id, "captured")
        refund = await refund_payment(
            store, order_id=order_id, merchant_id=merchant_id, amount=1_000, reason=None, by=by
        )
        return order_id, f"refund-{refund.id}"

    capturing, voiding = await orders.authorized(), await orders.authorized()
    await capture_payment(store, order_id=capturing, merchant_id=merchant_id, by=by)
    await cancel_order(store, order_id=voiding, merchant_id=merchant_id, by=by)
    (refunded_not, refund), (refunded_there, other_refund) = await refunding(), await refunding()
    paid, cancelled, elsewhere = [await orders.paid() for _ in range(3)]
    to_hold = await orders.paid(capture="manual")
    await cancel_order(store, order_id=cancelled, merchant_id=merchant_id, by=by)
    await orders.report(
        elsewhere, "processing"
    )  # under a reference that the processor does not know any more
    async with subscribing(store, settings, client):
        await caught_up(store)
    await project_orders(settings.database_url.get_secret_value())
    books = Books(
        {
            capturing: known(capturing, "authorized"),
            voiding: known(voiding, "authorized"),
            refunded_not: known(refunded_not, "captured"),
            refunded_there: known(refunded_there, "captured", refunded=1_000),
        }
    )

    async def look(*, older_than: str) -> dict[str, str]:
        found = await reconcile(
            store, find=books.find, older_than=duration(older_than), since=duration("1d"), now=utc_now()
        )
        return {each.order_id: each.outcome for each in found}

    url, anew = servers.temporal_address, next(namespaces)
    other = await connect(address=url, namespace=anew, codec_key=None)
    async with subscribing(store, settings, other):
        await look(older_than="1h")
        assert await parked(store) == []  # it may well be under way
        outcomes = await look(older_than="0s")
        wanted = [f"payment-{paid}", f"payment-{to_hold}", f"capture-{capturing}", f"void-{voiding}", refund]
        for workflow_id in wanted:
            await started(other, workflow_id)
        async with asyncio.timeout(SECONDS):
            while [error.partition(":")[0] for _, error in await parked(store)] != ["WorkflowGone"]:
                await asyncio.sleep(0.02)
        later = {str(refunded_there): "agrees", str(cancelled): "recorded"}
        assert await look(older_than="0s") == outcomes | later
        await until_nothing_is_parked(store)
    assert outcomes == {
        **{str(each): "unknown" for each in (paid, to_hold, cancelled, elsewhere)},
        **{str(each): "unknown" for each in (capturing, voiding, refunded_not)},
        str(refunded_there): "recorded",
    }
    runs = [each.id async for each in other.list_workflows()]
    assert sorted(runs) == sorted(wanted)
    assert other_refund not in runs


async def test_a_payment_that_was_only_authorized_is_not_made_anew_where_temporal_has_lost_it(
    store: EventStore, settings: Settings, client: Client, orders: Orders, merchant_id: UUID, by: Metadata
) -> None:
    """Its capture was opened by the payment's own request, which is no reason to charge once more."""
    orders.by = replace(by, at=by.at - timedelta(hours=1))
    alone, capturing = await orders.paid(), await orders.paid()
    for each in (alone, capturing):
        await orders.report(each, "authorized")
    await capture_payment(store, order_id=capturing, merchant_id=merchant_id, by=by)
    await project_orders(settings.database_url.get_secret_value())
    books = Books({each: known(each, "authorized") for each in (alone, capturing)})

    found = await reconcile(
        store, find=books.find, older_than=duration("0s"), since=duration("1d"), now=utc_now()
    )
    assert [each.outcome for each in found] == ["agrees", "unknown"]
    assert [topic for topic, _ in await parked(store)] == ["payment.capture_requested"]
    [requested] = [e for e in await store.read_stream(alone) if e.stored.topic == "payment.requested"]
    async with store.pool.connection() as connection:
        await forward_again(connection, subscriber=READER, event=requested, why="somebody asked for it")
    async with subscribing(store, settings, client):
        await started(client, f"capture-{capturing}")
        await until_nothing_is_parked(store)
        await caught_up(store)
        assert [await exists(client, f"payment-{each}") for each in (alone, capturing)] == [False, False]
