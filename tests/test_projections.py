"""The tables say what the streams say: for every path, delivered twice, and beside events that cannot be applied."""

import asyncio
import dataclasses
import random
from uuid import UUID

import orjson
import pytest
from projecting import (
    POISON,
    append,
    append_interleaved,
    checkpoint,
    eventually,
    insert_raw,
    locked,
    one,
    project_orders,
    rows,
)
from psycopg.errors import LockNotAvailable
from random_orders import new_order, random_order, recorded

from payloops.commands.cancel_order import cancel
from payloops.commands.pay_order import request_payment
from payloops.commands.route_payment import Route
from payloops.events.connections import connect
from payloops.events.event_store import EventStore
from payloops.events.metadata import Metadata
from payloops.events.orders import Order, OrderCreated, OrderFact
from payloops.projections.batches import project_batch
from payloops.projections.orders import PROJECTION, OrderRow, get_order, row_from_order
from payloops.projections.patches import column_names
from payloops.projections.status import projections_status
from payloops.projections.transactions import TransactionRow, list_transactions, rows_from_order


async def projected(store: EventStore, order_id: UUID) -> OrderRow | None:
    """The row as it is in the table."""
    found = await rows(
        store, f"SELECT {', '.join(column_names(OrderRow))} FROM orders WHERE id = %s", order_id
    )
    return OrderRow(*found[0]) if found else None


async def projected_transactions(store: EventStore, order: Order) -> list[TransactionRow]:
    """The rows in the table, all of the order's version, as the fold gives them."""
    columns = ", ".join(column_names(TransactionRow))
    query = f"SELECT {columns} FROM transactions WHERE order_id = %s ORDER BY created_at DESC, id DESC"
    found = [TransactionRow(*values) for values in await rows(store, query, order.id)]
    return [dataclasses.replace(row, version=order.version) for row in found]


def pay(order: Order, *, by: Metadata) -> None:
    request_payment(
        order, route=Route(processor="stripe", reason="test"), payment_method=None, capture="manual", by=by
    )


@pytest.mark.parametrize("limit", [1, 7, 1_000])
async def test_rows_equal_the_fold_on_every_path(
    store: EventStore, database_url: str, merchant_id: UUID, limit: int
) -> None:
    chance = random.Random(limit)
    orders: list[Order] = []
    unseen = {OrderCreated, *OrderFact.__subclasses__()}
    while unseen or len(orders) < 150:
        orders.append(random_order(chance, merchant_id))
        unseen -= {type(event) for event in orders[-1].pending_events}
    await append_interleaved(store, chance, orders)

    await project_orders(database_url, limit=limit)

    assert await one(store, "SELECT count(*) FROM parked_events") == 0
    for order in orders:
        assert await projected(store, order.id) == row_from_order(order)
        assert await projected_transactions(store, order) == rows_from_order(order)


async def test_a_log_delivered_twice_changes_nothing(
    store: EventStore, database_url: str, merchant_id: UUID
) -> None:
    chance = random.Random(2)
    orders = [random_order(chance, merchant_id) for _ in range(50)]
    head = await append_interleaved(store, chance, orders)
    await project_orders(database_url, limit=10)
    tables = " UNION ALL ".join(
        f"SELECT to_json(t)::text FROM {table} t" for table in ("orders", "transactions", "order_counts")
    )
    tables += " ORDER BY 1"
    before = await rows(store, tables)

    for again_from in (0, head // 2, head - 3):
        await one(store, "UPDATE checkpoints SET position = %s RETURNING 1", again_from)
        await project_orders(database_url, limit=7)
        assert await rows(store, tables) == before
        assert await checkpoint(store) == head


async def test_metadata_comes_back_as_it_was_given(
    store: EventStore, database_url: str, merchant_id: UUID
) -> None:
    metadata = {"z": 1.5, "a": {"ü": [True, None, "\\u0041\n"]}, "m": 2**53, "": ""}
    order = new_order(merchant_id, metadata=metadata)
    await append(store, order)
    await project_orders(database_url)
    row = await projected(store, order.id)
    assert row is not None
    assert orjson.dumps(row.metadata) == orjson.dumps(metadata)


async def test_events_of_other_streams_are_passed_over(
    store: EventStore, database_url: str, merchant_id: UUID
) -> None:
    await insert_raw(store, merchant_id, topic="merchant.registered", state=b"{}")
    await insert_raw(store, merchant_id, topic="something.new", state=b"not even JSON")
    order = new_order(merchant_id)
    head = await append(store, order)
    await project_orders(database_url)
    assert await checkpoint(store) == head == 3
    assert await one(store, "SELECT count(*) FROM parked_events") == 0
    assert await projected(store, order.id) == row_from_order(order)


@pytest.mark.parametrize("poison", POISON.values(), ids=POISON)
@pytest.mark.parametrize("limit", [1, 1_000])
async def test_an_event_that_cannot_be_applied_stops_nothing_but_itself(
    store: EventStore, database_url: str, merchant_id: UUID, by: Metadata, poison: bytes, limit: int
) -> None:
    before, hurt, after = (new_order(merchant_id) for _ in range(3))
    await append(store, before, hurt)
    position = await insert_raw(store, merchant_id, topic="payment.requested", state=poison, stream=hurt.id)
    hurt.__dict__["_version"] = 2  # the fold knows nothing of it
    cancel(hurt, by=by)
    await append(store, hurt)
    head = await append(store, after)

    await project_orders(database_url, limit=limit)

    assert await checkpoint(store) == head
    for order in (before, after):
        assert await projected(store, order.id) == row_from_order(order)
    parked = await rows(
        store, "SELECT reader, position, originator_id, originator_version, topic FROM parked_events"
    )
    assert parked == [("orders", position, hurt.id, 2, "payment.requested")]
    row = await projected(store, hurt.id)
    assert row is not None
    assert row.status == "cancelled", "what came later is applied"
    assert row.version == 1, "but the row does not claim to hold the version that is missing"
    [status] = [each for each in await projections_status(store.pool) if each.name == "orders"]
    assert (status.parked, status.lag_events) == (1, 0)


async def test_a_row_with_a_gap_is_not_believed(
    store: EventStore, database_url: str, merchant_id: UUID, by: Metadata
) -> None:
    """A row that misses an event of its stream, whatever the reason, is not what is answered by id."""
    order = new_order(merchant_id)
    pay(order, by=by)
    cancel(order, by=by)
    await append(store, order)
    await one(store, "INSERT INTO checkpoints VALUES ('orders', 0) ON CONFLICT DO NOTHING RETURNING 1")
    await project_orders(database_url, limit=1)
    await one(
        store,
        "UPDATE orders SET version = 1, attempt = 0, processor = NULL WHERE id = %s RETURNING 1",
        order.id,
    )
    await one(store, "DELETE FROM transactions WHERE order_id = %s RETURNING 1", order.id)
    await one(store, "UPDATE checkpoints SET position = 2 RETURNING 1")
    await project_orders(database_url)

    row = await projected(store, order.id)
    assert row is not None
    assert (row.version, row.attempt) == (1, 0)
    assert await get_order(store, order_id=order.id, merchant_id=merchant_id) == row_from_order(order)
    transactions = await list_transactions(store, order_id=order.id, merchant_id=merchant_id)
    assert transactions == rows_from_order(order)


async def test_personal_data_is_not_copied_into_errors(
    store: EventStore, database_url: str, merchant_id: UUID
) -> None:
    order = new_order(merchant_id, customer_email="secret@example.com")
    [created] = recorded(order)
    state = {**created.__dict__, "amount": None, "timestamp": "2026-11-23T15:40:00Z"}
    del state["originator_id"], state["originator_version"]
    await insert_raw(store, merchant_id, topic="order.created", state=orjson.dumps(state), version=1)
    await project_orders(database_url)
    [(error,)] = await rows(store, "SELECT error FROM parked_events")
    assert "null value" in error
    assert "secret@example.com" not in error


async def project_behind(
    store: EventStore, database_url: str, *meanwhile: str, projectors: int = 1
) -> list[int]:
    """What batches return that have read the log, and wait for the checkpoint while its holder executes statements."""
    waiting = """
        SELECT count(*) FROM pg_stat_activity
        WHERE datname = current_database() AND application_name = 'behind' AND wait_event_type = 'Lock'
    """

    async def batch() -> int:
        async with await connect(database_url, application_name="behind") as connection:
            return await project_batch(connection, PROJECTION)

    async def all_wait() -> bool:
        return await one(store, waiting) == projectors

    async with await connect(database_url, application_name="test") as holding, holding.transaction():
        await holding.execute("SELECT 1 FROM checkpoints WHERE name = 'orders' FOR UPDATE")
        batches = [asyncio.create_task(batch()) for _ in range(projectors)]
        await eventually(all_wait)
        for statement in meanwhile:
            await holding.execute(statement.encode())
    return await asyncio.gather(*batches)


async def test_of_two_projectors_that_have_read_the_same_events_one_applies_them(
    store: EventStore, database_url: str, merchant_id: UUID
) -> None:
    await append(store, *(new_order(merchant_id) for _ in range(3)))
    assert sorted(await project_behind(store, database_url, projectors=2)) == [0, 3]
    assert await checkpoint(store) == 3


async def test_a_batch_that_a_newer_version_has_overtaken_leaves_its_tables_alone(
    store: EventStore, database_url: str, merchant_id: UUID
) -> None:
    await append(store, new_order(merchant_id))
    newer = "UPDATE checkpoints SET version = version + 1 WHERE name = 'orders'"
    assert await project_behind(store, database_url, newer) == [0]
    assert await one(store, "SELECT count(*) FROM orders") == 0


async def test_trouble_with_the_database_parks_nothing_while_an_event_to_park_is_looked_for(
    store: EventStore, database_url: str, merchant_id: UUID, by: Metadata
) -> None:
    hurt, paid = new_order(merchant_id), new_order(merchant_id)
    pay(paid, by=by)
    await append(store, hurt, paid)
    poison = POISON["a character that text cannot hold"]
    position = await insert_raw(store, merchant_id, topic="payment.requested", state=poison, stream=hurt.id)
    async with await connect(database_url, application_name="test") as connection:
        async with locked(database_url, "transactions"):
            await connection.execute("SET lock_timeout = '50ms'")
            with pytest.raises(LockNotAvailable):
                await project_batch(connection, PROJECTION)
        assert await one(store, "SELECT count(*) FROM orders") == 0
        assert await project_batch(connection, PROJECTION) == position
    assert await rows(store, "SELECT position FROM parked_events") == [(position,)]
