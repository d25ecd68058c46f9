"""The way of the money through real processes: subscriber and worker, killed and cut off from Temporal."""

import asyncio
import contextlib
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import cast
from uuid import UUID

import psycopg
import pytest
from processes import SECONDS, becomes, charged, process
from pydantic import SecretStr
from temporalio.service import RPCError
from uuid_utils.compat import uuid7

from payloops.commands.cipher import Cipher
from payloops.commands.configure_processor import configure_processor
from payloops.commands.create_order import create_order
from payloops.commands.hashing import Hasher
from payloops.commands.pay_order import pay_order
from payloops.commands.refund_payment import refund_payment
from payloops.commands.register_merchant import register_merchant
from payloops.embedded import EmbeddedServers
from payloops.events.event_store import EventStore
from payloops.events.merchants import ProcessorChoice
from payloops.events.metadata import Metadata
from payloops.sandbox import ledger
from payloops.settings import Settings
from payloops.workflows_client.connection import connect

AMOUNT = 5_000
OUTAGE_SECONDS = 60


@pytest.fixture
def settings(settings: Settings, namespaces: Iterator[str]) -> Settings:
    return settings.model_copy(
        update={
            "temporal_namespace": next(namespaces),
            "temporal_codec_key": SecretStr("a codec key of thirty-two characters"),
            "log_level": "info",
        }
    )


@pytest.fixture
async def merchant_id(store: EventStore, settings: Settings, by: Metadata) -> UUID:
    """A merchant with both processors."""
    async with Hasher(rounds=4) as passwords:
        merchant = await register_merchant(
            store, name="Shop", email="shop@example.com", password="p" * 12, passwords=passwords, by=by
        )
    for processor in ("stripe", "razorpay"):
        await configure_processor(
            store,
            merchant_id=merchant.id,
            processor=processor,
            credentials={"secretKey": "sk_test_of_a_merchant"},
            choice=ProcessorChoice(enabled=True, priority=1, test_mode=True),
            cipher=Cipher(secret=settings.encryption_key.get_secret_value()),
            by=by,
        )
    return merchant.id


async def paid(
    store: EventStore, *, merchant_id: UUID, by: Metadata, currency: str = "USD", token: str | None = None
) -> UUID:
    order_id = uuid7()
    await create_order(
        store, order_id=order_id, merchant_id=merchant_id, amount=AMOUNT, currency=currency, by=by
    )
    method = None if token is None else {"type": "card", "token": token}
    await pay_order(store, order_id=order_id, merchant_id=merchant_id, payment_method=method, by=by)
    return order_id


async def test_an_order_is_paid_and_refunded(
    store: EventStore, settings: Settings, merchant_id: UUID, by: Metadata
) -> None:
    async with process(settings, "subscriber"), process(settings, "worker", "--sandbox"):
        for currency, processor in (("USD", "stripe"), ("INR", "razorpay")):
            order_id = await paid(store, merchant_id=merchant_id, by=by, currency=currency)
            order = await becomes(store, order_id, "captured")
            assert order.processor == processor
            await refund_payment(store, order_id=order_id, merchant_id=merchant_id, amount=2_000, by=by)
            refunded = await becomes(store, order_id, "partially_refunded")
            assert refunded.amount_refunded == 2_000
            charge = await ledger.find_charge(store.pool, order_id=str(order_id), attempt=1)
            assert charge is not None
            assert (charge.processor_order_id, charge.amount_refunded) == (order.processor_order_id, 2_000)


async def test_a_declined_payment_is_paid_at_the_second_attempt(
    store: EventStore, settings: Settings, merchant_id: UUID, by: Metadata
) -> None:
    async with process(settings, "subscriber"), process(settings, "worker", "--sandbox"):
        order_id = await paid(store, merchant_id=merchant_id, by=by, token="tok_chargeDeclined")
        failed = await becomes(store, order_id, "failed")
        assert failed.last_error is not None
        assert failed.last_error.code == "card_declined"
        await pay_order(store, order_id=order_id, merchant_id=merchant_id, by=by)
        assert (await becomes(store, order_id, "captured")).attempt == 2


async def test_a_subscriber_killed_between_a_workflows_start_and_the_checkpoint(
    store: EventStore, settings: Settings, servers: EmbeddedServers, merchant_id: UUID, by: Metadata
) -> None:
    """We hold the checkpoint's row, so that the workflow starts and the checkpoint does not move: kill -9 there.

    The next subscriber forwards the event again: one workflow, one charge.
    """
    client = await connect(
        address=servers.temporal_address,
        namespace=settings.temporal_namespace,
        codec_key="a codec key of thirty-two characters",
    )
    async with process(settings, "subscriber") as victim:
        async with asyncio.timeout(SECONDS):
            while await _checkpoint(store) < await store.head():
                await asyncio.sleep(0.05)
        held = await _checkpoint(store)
        async with await psycopg.AsyncConnection.connect(
            settings.database_url.get_secret_value()
        ) as blocking:
            await blocking.execute("SELECT 1 FROM checkpoints WHERE name = 'temporal' FOR UPDATE")
            order_id = await paid(store, merchant_id=merchant_id, by=by)
            handle = client.get_workflow_handle(f"payment-{order_id}")
            async with asyncio.timeout(SECONDS):
                while True:
                    with contextlib.suppress(RPCError):
                        run = (await handle.describe()).run_id
                        break
                    await asyncio.sleep(0.01)
            victim.kill()
            await victim.wait()
            # PostgreSQL does not know yet: what the dead subscriber had sent must not be done after all.
            await blocking.execute(
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
                " WHERE datname = current_database() AND wait_event_type = 'Lock'"
            )
            await blocking.rollback()
    assert await _checkpoint(store) == held
    async with process(settings, "worker", "--sandbox"):
        await becomes(store, order_id, "captured")
        async with process(settings, "subscriber"), asyncio.timeout(SECONDS):
            while await _checkpoint(store) < await store.head():
                await asyncio.sleep(0.05)
    assert (await handle.describe()).run_id == run
    assert [w.run_id async for w in client.list_workflows(f"WorkflowId = 'payment-{order_id}'")] == [run]
    assert await charged(store) == [(str(order_id), 1, AMOUNT)]


async def _checkpoint(store: EventStore) -> int:
    async with store.pool.connection() as connection:
        cursor = await connection.execute("SELECT position FROM checkpoints WHERE name = 'temporal'")
        row = await cursor.fetchone()
    return 0 if row is None else cast("int", row[0])


async def test_payments_accepted_while_temporal_is_stopped_for_a_minute_all_proceed(
    store: EventStore, settings: Settings, merchant_id: UUID, by: Metadata
) -> None:
    """Subscriber and worker run on; both find their way back by themselves, and every payment is charged once."""
    with temporal_of_its_own() as servers:
        settings = settings.model_copy(
            update={"temporal_address": servers.temporal_address, "temporal_namespace": "outage"}
        )
        async with process(settings, "subscriber"), process(settings, "worker", "--sandbox"):
            before = [await paid(store, merchant_id=merchant_id, by=by) for _ in range(3)]
            for order_id in before:
                await becomes(store, order_id, "captured")
            await asyncio.to_thread(servers.stop_part, "temporal")
            stopped = time.monotonic()
            during = []
            while time.monotonic() < stopped + OUTAGE_SECONDS:
                during.append(await paid(store, merchant_id=merchant_id, by=by))
                await asyncio.sleep(OUTAGE_SECONDS / 30)
            servers.temporal.launch(port=servers.temporal.port, ui_port=None)
            await asyncio.to_thread(servers.temporal.wait_ready, deadline=time.monotonic() + SECONDS)
            after = await paid(store, merchant_id=merchant_id, by=by)
            for order_id in (*during, after):
                await becomes(store, order_id, "captured")
    expected = [(str(order_id), 1, AMOUNT) for order_id in (*before, *during, after)]
    assert sorted(await charged(store)) == sorted(expected)


@contextlib.contextmanager
def temporal_of_its_own() -> Iterator[EmbeddedServers]:
    with (
        tempfile.TemporaryDirectory(prefix="payloops-outage-") as folder,
        EmbeddedServers(
            data_dir=Path(folder) / "servers",
            temporal_namespaces=["outage"],
            parts=["temporal"],
            ephemeral=True,
        ) as servers,
    ):
        yield servers
