"""Projectors may be many, be killed at any moment, and lose their database: nothing is lost and nothing doubled."""

import asyncio
import os
import random
import signal
import sys
from uuid import UUID

from processes import environment_of
from projecting import (
    append,
    append_interleaved,
    checkpoint,
    eventually,
    locked,
    one,
    projector,
    projector_process,
    reached,
    rows,
)
from random_orders import new_order, random_order

from payloops.embedded import EmbeddedServers
from payloops.events.errors import OutcomeUnknown, StoreUnavailable
from payloops.events.event_store import EventStore
from payloops.events.orders import Order
from payloops.projections.batches import BATCH_EVENTS
from payloops.projections.orders import OrderRow, row_from_order
from payloops.projections.patches import column_names
from payloops.projections.projection import all_projections
from payloops.projections.status import ProjectionStatus, projections_status
from payloops.settings import Settings


async def status(store: EventStore) -> ProjectionStatus:
    """Of the projection `orders`."""
    return (await statuses(store))["orders"]


async def statuses(store: EventStore) -> dict[str, ProjectionStatus]:
    return {each.name: each for each in await projections_status(store.pool)}


async def assert_tables_equal_streams(store: EventStore) -> None:
    """Every stream, folded from the log, is what the tables say; and there is nothing else in them."""
    found = [
        OrderRow(*values)
        for values in await rows(store, f"SELECT {', '.join(column_names(OrderRow))} FROM orders")
    ]
    streams = await rows(store, "SELECT DISTINCT originator_id FROM stored_events")
    assert len(found) == len(streams)
    transactions = 0
    for row in found:
        order = await store.load(Order, row.id)
        assert order is not None
        assert row == row_from_order(order)
        transactions += len(order.transactions)
    assert await one(store, "SELECT count(*) FROM transactions") == transactions
    assert await one(store, "SELECT count(*) FROM parked_events") == 0


async def test_status_shows_lag_and_who_is_at_work(
    store: EventStore, database_url: str, merchant_id: UUID
) -> None:
    before = await status(store)
    assert before == ProjectionStatus("orders", 0, 0, 0, 0.0, 0, active=False)
    await append(store, *(new_order(merchant_id) for _ in range(3)))
    behind = await status(store)
    assert (behind.position, behind.head, behind.lag_events, behind.active) == (0, 3, 3, False)
    assert 0 < behind.lag_seconds < 60
    async with projector(database_url):
        await reached(store, 3)
        assert await status(store) == ProjectionStatus("orders", 3, 3, 0, 0.0, 0, active=True)

    async def over() -> bool:
        return not (await status(store)).active

    await eventually(over)  # PostgreSQL frees the lock a moment after the connection has closed


async def test_status_shows_subscribers_too(store: EventStore, merchant_id: UUID) -> None:
    await append(store, *(new_order(merchant_id) for _ in range(3)))
    await one(store, "INSERT INTO checkpoints VALUES ('a subscriber', 2) RETURNING 1")
    subscriber = (await statuses(store))["a subscriber"]
    assert (subscriber.name, subscriber.lag_events, subscriber.active) == ("a subscriber", 1, False)
    async with store.pool.connection() as connection:
        await connection.execute(
            "SELECT pg_advisory_lock(hashtextextended('payloops.subscriber.a subscriber', 0))"
        )
        found = await statuses(store)
        assert (found["orders"].active, found["a subscriber"].active) == (False, True)
        await connection.execute("SELECT pg_advisory_unlock_all()")


async def test_a_killed_projector_in_mid_batch_loses_and_doubles_nothing(
    store: EventStore, database_url: str, merchant_id: UUID
) -> None:
    """Killed with -9 inside its transaction: orders are written, transactions wait for a lock we hold."""
    chance = random.Random(9)
    async with projector_process(database_url) as first, projector_process(database_url):
        head = await append_interleaved(store, chance, [random_order(chance, merchant_id) for _ in range(20)])
        await reached(store, head)
        for _ in range(3):
            async with locked(database_url, "orders"):
                later = await append_interleaved(
                    store, chance, [random_order(chance, merchant_id) for _ in range(20)]
                )
                await eventually(lambda: _projector_waits(store))
                [(pid,)] = await rows(store, WAITING)
                before = await checkpoint(store)
                if first.returncode is None:
                    first.kill()
                    await first.wait()
                else:
                    await one(store, "SELECT pg_terminate_backend(%s)", pid)
            assert before < later
            await reached(store, later)
    await assert_tables_equal_streams(store)


WAITING = """
    SELECT pid FROM pg_stat_activity
    WHERE datname = current_database() AND application_name = 'payloops projector orders' AND wait_event_type = 'Lock'
"""


async def _projector_waits(store: EventStore) -> bool:
    return bool(await rows(store, WAITING))


async def test_projectors_killed_at_random_moments_lose_and_double_nothing(
    store: EventStore, database_url: str, merchant_id: UUID
) -> None:
    chance = random.Random(11)
    orders = [random_order(chance, merchant_id) for _ in range(300)]
    writing = asyncio.create_task(append_interleaved(store, chance, orders))
    kills = 0
    while not writing.done() or kills < 3:
        start = await checkpoint(store)
        async with projector_process(database_url) as process:

            async def moved_on(start: int = start) -> bool:
                return await checkpoint(store) > start or writing.done()

            await eventually(moved_on)
            process.kill()
            kills += 1
    async with projector(database_url):
        await reached(store, await writing)
    await assert_tables_equal_streams(store)


async def test_a_standby_takes_over(store: EventStore, database_url: str, merchant_id: UUID) -> None:
    async with projector_process(database_url) as active:
        await reached(store, await append(store, new_order(merchant_id)))
        async with projector_process(database_url) as standby:
            await eventually(lambda: _connected(store, 2))
            active.kill()
            await reached(store, await append(store, new_order(merchant_id)))
            assert standby.returncode is None
            assert (await status(store)).active
    await assert_tables_equal_streams(store)


async def _connected(store: EventStore, count: int) -> bool:
    query = """
        SELECT count(*) FROM pg_stat_activity
        WHERE datname = current_database() AND application_name = 'payloops projector orders'
    """
    return await one(store, query) == count


async def test_only_one_of_several_projectors_works(
    store: EventStore, database_url: str, merchant_id: UUID
) -> None:
    async with projector(database_url), projector(database_url), projector(database_url) as last:
        await eventually(lambda: _connected(store, 3))
        await reached(store, await append(store, *(new_order(merchant_id) for _ in range(50))))
        locks = """
            SELECT count(*) FROM pg_locks JOIN pg_database d ON d.oid = database
            WHERE locktype = 'advisory' AND datname = current_database()
        """

        async def each_has_its_lock() -> bool:
            return await one(store, locks) == len(all_projections())

        await eventually(each_has_its_lock)
        last.set()
    await assert_tables_equal_streams(store)


async def test_a_lost_connection_is_made_anew(
    store: EventStore, database_url: str, merchant_id: UUID
) -> None:
    async with projector(database_url):
        for _ in range(3):
            await reached(store, await append(store, new_order(merchant_id)))
            await one(
                store,
                "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
                "WHERE datname = current_database() AND application_name LIKE 'payloops projector%%'",
            )
        await reached(store, await append(store, new_order(merchant_id)))
    await assert_tables_equal_streams(store)


async def test_an_outage_of_the_database_is_waited_out(
    store: EventStore, database_url: str, merchant_id: UUID, servers: EmbeddedServers
) -> None:
    async with projector(database_url):
        await reached(store, await append(store, new_order(merchant_id)))
        servers.stop_part("postgres")
        try:
            await asyncio.sleep(0.5)  # the outage, in which there is nothing to wait for
        finally:
            servers.start_part("postgres")
        await store.pool.check()  # drops this test's own connections from before

        async def appended() -> bool:
            try:
                await append(store, new_order(merchant_id))
            except (StoreUnavailable, OutcomeUnknown):  # the store has to find its database again, too
                return False
            return True

        await eventually(appended)
        await reached(store, await append(store, new_order(merchant_id)))
    await assert_tables_equal_streams(store)


async def test_sigterm_ends_a_projector_after_its_batch(
    settings: Settings, store: EventStore, database_url: str, merchant_id: UUID
) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "payloops", "projector"),
        env=os.environ | environment_of(settings),
        stdout=asyncio.subprocess.DEVNULL,
    )
    try:
        await reached(store, await append(store, new_order(merchant_id)))
        async with locked(database_url, "orders"):
            head = await append(store, new_order(merchant_id))
            await eventually(lambda: _projector_waits(store))
            process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(60):
            assert await process.wait() == 0
        assert await checkpoint(store) == head
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_a_projector_far_behind_that_is_asked_to_end_does_so_after_its_batch(
    store: EventStore, database_url: str, merchant_id: UUID
) -> None:
    far = 3 * BATCH_EVENTS
    passed_over = """
        INSERT INTO stored_events (originator_id, originator_version, topic, state, notification_id, merchant_id,
                                   content_hash)
        SELECT gen_random_uuid(), 1, 'something.new', '', n, %s, '' FROM generate_series(1, %s) n
    """
    async with projector(database_url) as stop:
        await eventually(lambda: _connected(store, 1))
        async with store.pool.connection() as connection, connection.transaction():
            await connection.execute("SELECT 1 FROM checkpoints WHERE name = 'orders' FOR UPDATE")
            await one(store, f"{passed_over} RETURNING 1", merchant_id, far)
            await eventually(lambda: _projector_waits(store))
            stop.set()
    assert await checkpoint(store) == BATCH_EVENTS


async def test_projecting_takes_no_http() -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        "import sys, payloops.projections.projector; print({'aiohttp', 'payloops.http'} & sys.modules.keys())",
        stdout=asyncio.subprocess.PIPE,
    )
    printed, _ = await process.communicate()
    assert printed.strip() == b"set()"
