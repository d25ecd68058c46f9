"""The subscriber forwards every payment to Temporal, once, whatever is killed when."""

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from typing import cast
from uuid import UUID

import psycopg
import pytest
import structlog
from eventsourcing.persistence import StoredEvent
from forwarding import SECONDS, caught_up, exists, parked, position, signals, started, subscribing
from holding import holding_proxy
from pydantic import SecretStr
from telling import Orders
from temporalio.client import Client
from temporalio.service import RPCError

from payloops.commands.cancel_order import cancel_order
from payloops.embedded import EmbeddedServers
from payloops.events.event_store import EventStore, RecordedEvent
from payloops.events.metadata import Metadata
from payloops.events.pauses import pause_seconds
from payloops.projections.parked import list_subscribers, retry_forwarding
from payloops.settings import Settings
from payloops.workflows_client import subscriber
from payloops.workflows_client.forwardings import Forwarding, SignalWorkflow, StartWorkflow
from payloops.workflows_client.payment_subscription import READER, payment_subscription
from payloops.workflows_client.subscriber import forward


@pytest.fixture(scope="module")
def temporal_namespace(namespaces: Iterator[str]) -> str:
    """One for all of these tests: orders of their own keep them apart."""
    return next(namespaces)


async def test_what_happened_to_one_order_is_forwarded_in_its_order_however_long_each_takes(
    store: EventStore, settings: Settings, client: Client, orders: Orders, merchant_id: UUID, by: Metadata
) -> None:
    order_id = await orders.paid()
    await cancel_order(store, order_id=order_id, merchant_id=merchant_id, by=by)
    subscription = payment_subscription(store)

    async def plan(recorded: RecordedEvent) -> Forwarding | None:
        if recorded.stored.topic == "payment.requested":
            await asyncio.sleep(0.5)
        return await subscription.plan(recorded)

    async with subscribing(store, settings, client, replace(subscription, plan=plan)):
        await caught_up(store)
    assert await signals(client, f"payment-{order_id}") == ["cancelPayment"]
    assert await parked(store) == []


async def test_a_cancellation_of_an_open_payment_whose_workflow_is_gone_is_parked_to_be_seen(
    store: EventStore, settings: Settings, client: Client, orders: Orders, merchant_id: UUID, by: Metadata
) -> None:
    async with subscribing(store, settings, client):
        order_id = await orders.paid()
        await started(client, f"payment-{order_id}")
        await client.get_workflow_handle(f"payment-{order_id}").terminate()
        await cancel_order(store, order_id=order_id, merchant_id=merchant_id, by=by)
        await caught_up(store)
    [(topic, error)] = await parked(store)
    assert topic == "payment.cancel_requested"
    assert "payloops reconcile" in error


async def test_a_cancellation_of_a_payment_that_this_code_cannot_read_is_parked_and_stops_nothing(
    store: EventStore, settings: Settings, client: Client, orders: Orders, merchant_id: UUID, by: Metadata
) -> None:
    """Its workflow is gone, and a later version has gone on with the order: whether it is open nobody knows."""
    async with subscribing(store, settings, client):
        order_id = await orders.paid()
        await started(client, f"payment-{order_id}")
        await client.get_workflow_handle(f"payment-{order_id}").terminate()
        await caught_up(store)
    await cancel_order(store, order_id=order_id, merchant_id=merchant_id, by=by)
    event = StoredEvent(order_id, 4, "payment.teleported", b"{}")
    await store._appender.append([event], merchant_id=merchant_id)
    after = await orders.paid()
    async with subscribing(store, settings, client):
        await started(client, f"payment-{after}")
        await caught_up(store)
    [(topic, error)] = await parked(store)
    assert topic == "payment.cancel_requested"
    assert "StreamUnreadable" in error


async def test_events_forwarded_again_change_nothing_even_after_their_workflows_have_closed(
    store: EventStore, settings: Settings, client: Client, orders: Orders
) -> None:
    async with subscribing(store, settings, client):
        open_order, closed_order = await orders.paid(), await orders.paid()
        before = [await started(client, f"payment-{id}") for id in (open_order, closed_order)]
        await client.get_workflow_handle(f"payment-{closed_order}").terminate()
        await caught_up(store)
    async with store.pool.connection() as connection:
        await connection.execute("UPDATE checkpoints SET position = 0 WHERE name = %s", (READER,))
    async with subscribing(store, settings, client):
        await caught_up(store)
        after = [await started(client, f"payment-{id}") for id in (open_order, closed_order)]
    assert [start["run"] for start in after] == [start["run"] for start in before]
    assert await parked(store) == []


async def test_an_event_that_cannot_be_forwarded_is_parked_and_stops_nothing(
    store: EventStore, settings: Settings, client: Client, orders: Orders
) -> None:
    """A capture of a payment whose reference the processor never told; then an order like any other."""
    await orders.captured_without_reference()
    unreadable = await orders.paid()
    async with store.pool.connection() as connection:  # as a version of tomorrow might write it
        await connection.execute("ALTER TABLE stored_events DISABLE TRIGGER stored_events_are_facts")
        await connection.execute(
            "UPDATE stored_events SET state = '{' WHERE originator_id = %s AND topic = 'payment.requested'",
            (unreadable,),
        )
    after = await orders.paid()
    async with subscribing(store, settings, client):
        await started(client, f"payment-{after}")
        await caught_up(store)
    errors = dict(await parked(store))
    assert set(errors) == {"payment.capture_requested", "payment.requested"}
    assert "ProcessorReferenceMissing" in errors["payment.capture_requested"]


async def test_trouble_with_the_database_parks_nothing_and_what_is_refused_for_good_is_parked(
    store: EventStore, settings: Settings, client: Client, orders: Orders
) -> None:
    troubled, refused, unheard_of = [await orders.paid() for _ in range(3)]
    troubles = {
        troubled: iter(
            [psycopg.OperationalError("the connection is lost"), ConnectionResetError(), TimeoutError()]
        ),
        refused: iter([psycopg.DataError("no such text")]),
    }
    subscription = payment_subscription(store)

    async def plan(recorded: RecordedEvent) -> Forwarding | None:
        order_id = recorded.event.originator_id
        for trouble in troubles.get(order_id, ()):
            raise trouble
        planned = await subscription.plan(recorded)
        assert isinstance(planned, StartWorkflow)
        return replace(planned, workflow_id="x" * 5_000) if order_id == unheard_of else planned

    async with subscribing(store, settings, client, replace(subscription, plan=plan)):
        await started(client, f"payment-{troubled}")
        await caught_up(store)
    by_the_database, by_temporal = sorted(error for _, error in await parked(store))
    assert by_the_database == "DataError: no such text"
    assert by_temporal.startswith("RPCError: ")


async def test_one_replica_forwards_and_another_takes_over_when_its_connection_breaks(
    store: EventStore, settings: Settings, client: Client, orders: Orders
) -> None:
    async with subscribing(store, settings, client), subscribing(store, settings, client):
        await started(client, f"payment-{await orders.paid()}")
        leader = await _leader(store)
        async with store.pool.connection() as connection:
            await connection.execute("SELECT pg_terminate_backend(%s)", (leader,))
        await started(client, f"payment-{await orders.paid()}")
        assert await _leader(store) != leader


async def _leader(store: EventStore) -> int:
    """The process id of the backend that holds the subscriber's lock; there is exactly one."""
    async with asyncio.timeout(SECONDS), store.pool.connection() as connection:
        while True:
            cursor = await connection.execute(
                "SELECT l.pid FROM pg_locks l JOIN pg_stat_activity a USING (pid)"
                " WHERE l.locktype = 'advisory' AND l.granted AND a.application_name = 'payloops subscriber'"
                " AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())"
            )
            rows = await cursor.fetchall()
            if rows:
                assert len(rows) == 1
                return cast("int", rows[0][0])
            await asyncio.sleep(0.05)


async def test_each_subscription_has_a_leader_of_its_own(
    store: EventStore, settings: Settings, client: Client, orders: Orders
) -> None:
    await orders.paid()
    another = replace(payment_subscription(store), name="another")
    async with subscribing(store, settings, client), subscribing(store, settings, client, another):
        await caught_up(store)
        await caught_up(store, another.name)


async def test_who_lost_the_lock_leads_no_longer_though_nothing_is_to_be_done(
    store: EventStore, settings: Settings, orders: Orders, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An event waits for Temporal: what is waited for needs no database."""
    monkeypatch.setattr(subscriber, "WATCH_SECONDS", 0.1)
    nobody_there = await Client.connect("127.0.0.1:1", lazy=True)
    await orders.paid()
    with structlog.testing.capture_logs() as lines:
        async with subscribing(store, settings, nobody_there), asyncio.timeout(SECONDS):
            for told in ("subscriber.temporal_unavailable", "subscriber.interrupted", "subscriber.leading"):
                while not any(line["event"] == told for line in lines):
                    await asyncio.sleep(0.02)
                if told == "subscriber.temporal_unavailable":
                    lines.clear()
                    async with store.pool.connection() as connection:
                        await connection.execute("SELECT pg_terminate_backend(%s)", (await _leader(store),))


async def test_a_replica_that_lost_its_connection_moves_no_checkpoint(
    store: EventStore, settings: Settings, client: Client, orders: Orders
) -> None:
    """Its connection ends while a workflow is started: the event is forwarded again, the workflow is the same."""
    async with subscribing(store, settings, client):
        await caught_up(store)
        async with await psycopg.AsyncConnection.connect(
            settings.database_url.get_secret_value()
        ) as blocking:
            await blocking.execute("SELECT 1 FROM checkpoints WHERE name = %s FOR UPDATE", (READER,))
            order_id = await orders.paid()
            first = await started(client, f"payment-{order_id}")
            held = await position(store)
            leader = await _leader(store)
            await blocking.execute("SELECT pg_terminate_backend(%s)", (leader,))
            await asyncio.sleep(0.2)
            assert await position(store) == held
            await blocking.rollback()
        await caught_up(store)
        assert (await started(client, f"payment-{order_id}"))["run"] == first["run"]


@pytest.mark.parametrize(("settled", "grows"), [(60.0, True), (0.0, False)])
async def test_trouble_that_lasts_is_met_at_ever_longer_intervals_and_says_what_to_do(
    store: EventStore,
    settings: Settings,
    client: Client,
    orders: Orders,
    monkeypatch: pytest.MonkeyPatch,
    settled: float,
    grows: bool,
) -> None:
    """A database whose migrations are yet to be applied: the lock is to be had, and nothing else."""
    monkeypatch.setattr(subscriber, "SETTLED_SECONDS", settled)
    order_id = await orders.paid()
    async with store.pool.connection() as connection:
        await connection.execute("ALTER TABLE checkpoints RENAME TO later")
    with structlog.testing.capture_logs() as lines:
        async with subscribing(store, settings, client):
            async with asyncio.timeout(SECONDS):
                while len(told := [line for line in lines if line["event"] == "subscriber.interrupted"]) < 4:
                    await asyncio.sleep(0.05)
            async with store.pool.connection() as connection:
                await connection.execute("ALTER TABLE later RENAME TO checkpoints")
            await started(client, f"payment-{order_id}")
    assert (told[3]["retry_in"] > told[0]["retry_in"] * 2) == grows
    [error] = told[0]["errors"]
    assert error.endswith("run `payloops migrate`")


async def test_a_replica_whose_connection_falls_silent_leads_no_longer(
    store: EventStore, settings: Settings, client: Client, orders: Orders, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its lock may be another's by now."""
    monkeypatch.setattr(subscriber, "WATCH_SECONDS", 0.5)
    async with holding_proxy(settings.database_url.get_secret_value()) as proxy:
        proxy.hold = b"SELECT 1"
        by_proxy = settings.model_copy(update={"database_url": SecretStr(proxy.url)})
        with structlog.testing.capture_logs() as lines:
            async with subscribing(store, by_proxy, client):
                async with asyncio.timeout(SECONDS):
                    while not [line for line in lines if line["event"] == "subscriber.interrupted"]:
                        await asyncio.sleep(0.05)
                proxy.hold = None
                await started(client, f"payment-{await orders.paid()}")


def test_pauses_differ_so_that_not_all_come_back_at_once() -> None:
    pauses = {pause_seconds(attempt=9, longest=2.0) for _ in range(100)}
    assert len(pauses) > 1
    assert all(1.0 <= each <= 2.0 for each in pauses)


async def test_while_temporal_is_down_nothing_is_skipped_and_stopping_works(
    store: EventStore, settings: Settings, orders: Orders
) -> None:
    nobody_there = await Client.connect("127.0.0.1:1", lazy=True)
    await orders.paid()
    await _is_turned_away(store, settings, nobody_there)


async def test_while_the_namespace_is_missing_nothing_is_skipped_nor_taken_for_gone(
    store: EventStore, settings: Settings, servers: EmbeddedServers, orders: Orders
) -> None:
    """Temporal answers, and refuses: it is being set up, or restored."""
    nowhere = await Client.connect(servers.temporal_address, namespace="nowhere")
    order_id = await orders.paid()
    await _is_turned_away(store, settings, nowhere)
    signal = SignalWorkflow(workflow_id=f"payment-{order_id}", signal="cancelPayment")
    with pytest.raises(RPCError):
        await forward(signal, client=nowhere, correlation_id="")


async def _is_turned_away(store: EventStore, settings: Settings, client: Client) -> None:
    """Twice, and stopped while it waits for the next time."""
    with structlog.testing.capture_logs() as lines:
        async with subscribing(store, settings, client), asyncio.timeout(SECONDS):
            while [line["event"] for line in lines].count("subscriber.temporal_unavailable") < 2:
                await asyncio.sleep(0.02)
    assert await position(store) == 0
    assert await parked(store) == []


async def test_what_was_parked_is_forwarded_once_it_can_be_and_somebody_asks(
    store: EventStore, settings: Settings, client: Client, orders: Orders
) -> None:
    order_id = await orders.paid()
    change = "UPDATE stored_events SET state = %s WHERE originator_id = %s AND topic = 'payment.requested'"

    async def ask() -> tuple[int, int, int]:
        async with store.pool.connection() as connection:
            assert READER in await list_subscribers(connection, projections=[])
            retried = await retry_forwarding(connection, subscriber=READER, seconds=SECONDS)
        return retried.applied, retried.parked, retried.waiting

    async with store.pool.connection() as connection:
        await connection.execute("ALTER TABLE stored_events DISABLE TRIGGER stored_events_are_facts")
        query = "SELECT state FROM stored_events WHERE originator_id = %s AND topic = 'payment.requested'"
        row = await (await connection.execute(query, (order_id,))).fetchone()
        assert row is not None
        await connection.execute(change, (b"{", order_id))
    async with subscribing(store, settings, client):
        await caught_up(store)
        before = await parked_at(store)
        assert await ask() == (0, 1, 0)
        assert before < await parked_at(store)
        async with store.pool.connection() as connection:
            await connection.execute(change, (row[0], order_id))
        await orders.paid()
        await caught_up(store)
        assert await exists(client, f"payment-{order_id}") is False
        assert await ask() == (1, 0, 0)
        assert (await started(client, f"payment-{order_id}"))["memo"] == {"correlationId": "test"}
    assert await parked(store) == []


async def parked_at(store: EventStore) -> datetime:
    async with store.pool.connection() as connection:
        row = await (await connection.execute("SELECT max(parked_at) FROM parked_events")).fetchone()
    assert row is not None
    return cast("datetime", row[0])
