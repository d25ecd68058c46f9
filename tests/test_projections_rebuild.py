"""Tables are built anew beside those that serve, and nobody notices: whatever is interrupted, killed or in the way."""

import asyncio
import multiprocessing
import random
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any, cast
from uuid import UUID

import psycopg
import pytest
import structlog
from ordering import pay, report
from projecting import (
    DEADLINE,
    POISON,
    append,
    append_interleaved,
    eventually,
    insert_raw,
    locked,
    one,
    projector,
    rows,
)
from psycopg.errors import LockNotAvailable
from random_orders import new_order, random_order
from uuid_utils.compat import uuid7

from payloops.commands.cancel_order import cancel
from payloops.events import appender
from payloops.events.connections import connect
from payloops.events.event_store import EventStore
from payloops.events.metadata import Metadata
from payloops.events.orders import OrderCreated, PaymentRequested
from payloops.events.stream import StreamEvent
from payloops.projections import building, orders, verifying
from payloops.projections import parked as parking
from payloops.projections.batches import project_batch
from payloops.projections.building import BuildUnderWay, TablesBusy, open_build, rebuild
from payloops.projections.filling import fill_chunk
from payloops.projections.parked import (
    forward_again,
    list_subscribers,
    parked_of,
    retry_forwarding,
    retry_parked,
)
from payloops.projections.patches import Rows
from payloops.projections.projection import Projection, all_projections
from payloops.projections.projector import run_projections
from payloops.projections.verifying import verify

TABLES = [name for each in all_projections() for name in each.table_names]
STEPS = ["events", "indexes", "swap"]


def silent(*_: object) -> None:
    pass


async def project_everything(database_url: str, *projections: Projection) -> None:
    async with await connect(database_url, application_name="test") as connection:
        for projection in projections or all_projections():
            await connection.execute(
                "INSERT INTO checkpoints (name, version) VALUES (%s, %s) ON CONFLICT DO NOTHING",
                (projection.name, projection.version),
            )
            while await project_batch(connection, projection, limit=50):
                pass


async def tables(store: EventStore) -> dict[str, list[str]]:
    """All that anybody can read in the tables, and what stands beside them."""
    found = {
        name: sorted(row[0] for row in await rows(store, f"SELECT t::text FROM {name} t")) for name in TABLES
    }
    parked = "SELECT reader || position || originator_id || originator_version || topic FROM parked_events ORDER BY 1"
    found["parked"] = [row[0] for row in await rows(store, parked)]
    return found


async def definitions(store: EventStore) -> list[Any]:
    """Columns, indexes, constraints, storage and rights of the tables."""
    columns = """
        SELECT table_name, column_name, data_type, is_nullable, ordinal_position FROM information_schema.columns
        WHERE table_schema = 'public' AND table_name = ANY(%s) ORDER BY 1, 5
    """
    indexes = """
        SELECT tablename, indexdef FROM pg_indexes WHERE schemaname = 'public' AND tablename = ANY(%s) ORDER BY 2
    """
    constraints = """
        SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid) FROM pg_constraint
        WHERE conrelid::regclass::text = ANY(%s) ORDER BY 1, 2
    """
    storage = """
        SELECT relname, reloptions, relacl::text FROM pg_class WHERE relname = ANY(%s) AND relkind = 'r' ORDER BY 1
    """
    return [await rows(store, query, TABLES) for query in (columns, indexes, constraints, storage)]


async def many_orders(store: EventStore, merchant_id: UUID, *, seed: int, count: int = 60) -> None:
    chance = random.Random(seed)
    await append_interleaved(store, chance, [random_order(chance, merchant_id) for _ in range(count)])


async def agrees(database_url: str) -> bool:
    verdicts = await verify(
        database_url=database_url, projections=all_projections(), report=silent, workers=1
    )
    return not any(each.differing for each in verdicts)


async def test_what_is_built_is_what_the_projector_made(
    store: EventStore, database_url: str, merchant_id: UUID
) -> None:
    await many_orders(store, merchant_id, seed=1)
    await project_everything(database_url)
    before, defined = await tables(store), await definitions(store)
    assert all(before[name] for name in TABLES)
    async with store.pool.connection() as connection:
        for name in TABLES:
            await connection.execute(f"TRUNCATE {name}")
        await connection.execute("GRANT SELECT ON orders, daily_volume TO pg_monitor")
    await rebuild(database_url=database_url, projections=all_projections(), report=silent, workers=2)
    assert await tables(store) == before
    built = await definitions(store)
    assert built[:3] == defined[:3]
    assert [row[1] for row in built[3]] == [row[1] for row in defined[3]]
    rights = {name: acl or "" for name, _, acl in built[3]}
    assert [name for name in TABLES if "pg_monitor=r" in rights[name]] == ["daily_volume", "orders"]
    for projection in all_projections():
        await rebuild(database_url=database_url, projections=[projection], report=silent, workers=1)
        assert await tables(store) == before, f"{projection.name} by itself"


TEXTS = [
    "",
    "null",
    '"',
    '""',
    "\\",
    "\\n",
    '\\"',
    "a\nb\r\tc",
    "\\\n\\.\n",
    "\x01\x7f\u2028",
    "a,b",
    "'",
    "\\N",
    "Ж😀",
]


async def test_texts_are_built_as_they_are(store: EventStore, database_url: str, merchant_id: UUID) -> None:
    """Whatever a customer writes: COPY has characters of its own."""
    for text in TEXTS:
        await append(
            store, new_order(merchant_id, description=text, metadata={"said": text, text: [None, 1.5]})
        )
    await project_everything(database_url)
    before = await tables(store)
    assert sorted(row[0] for row in await rows(store, "SELECT description FROM orders")) == sorted(TEXTS)
    await rebuild(database_url=database_url, projections=all_projections(), report=silent, workers=1)
    assert await tables(store) == before


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("step", STEPS)
async def test_an_interrupted_rebuild_changes_nothing_and_goes_on(
    store: EventStore, database_url: str, merchant_id: UUID, step: str
) -> None:
    await many_orders(store, merchant_id, seed=2, count=20)
    await project_everything(database_url)
    before = await tables(store)

    def interrupt(at: str, done: int, total: int) -> None:
        if at == step and (done > 0 or total == 1):
            raise Interrupted

    with pytest.raises(Interrupted):
        await rebuild(
            database_url=database_url,
            projections=all_projections(),
            report=interrupt,
            workers=1,
            chunk_events=40,
        )
    assert await tables(store) == before
    await many_orders(store, merchant_id, seed=3, count=5)
    built = await rebuild(database_url=database_url, projections=all_projections(), report=silent, workers=1)
    assert built.resumed
    assert await one(store, "SELECT count(*) FROM pg_namespace WHERE nspname = 'payloops_build'") == 0
    assert await agrees(database_url)


async def test_a_rebuild_interrupted_between_two_swaps_goes_on_with_the_tables_that_are_left(
    store: EventStore, database_url: str, merchant_id: UUID
) -> None:
    await many_orders(store, merchant_id, seed=2, count=20)
    await project_everything(database_url)

    def interrupt(at: str, done: int, _: int) -> None:
        if (at, done) == ("swap", 1):
            raise Interrupted

    async def interrupted_rebuild() -> None:
        await rebuild(database_url=database_url, projections=all_projections(), report=interrupt, workers=1)

    for _ in all_projections():
        with pytest.raises(Interrupted):
            await interrupted_rebuild()
        assert await agrees(database_url)
    assert await one(store, "SELECT count(*) FROM pg_tables WHERE schemaname = 'payloops_build'") == 4
    # All is done but the end: who rebuilds again later has another reason.
    await one(store, "UPDATE orders SET amount = 1 RETURNING 1")
    built = await rebuild(database_url=database_url, projections=all_projections(), report=silent, workers=1)
    assert not built.resumed
    assert await agrees(database_url)


async def test_what_another_version_or_other_tables_began_is_not_resumed_nor_what_is_to_be_restarted(
    store: EventStore, database_url: str, merchant_id: UUID
) -> None:
    await append(store, new_order(merchant_id, description="a table"))
    await project_everything(database_url)
    old, new = two_versions()

    async def begun_anew(*projections: Projection, restart: bool = False) -> bool:
        async with open_build(
            database_url=database_url, projections=projections, report=silent, workers=1, restart=restart
        ) as build:
            return not build.resumed

    assert [await begun_anew(each) for each in (old, old, new, new, old)] == [True, False, True, False, True]
    assert await begun_anew(old, restart=True)
    assert not await begun_anew(old)
    async with store.pool.connection() as connection:
        await connection.execute("ALTER TABLE orders ADD COLUMN more int")
    assert await begun_anew(old)


async def test_a_lost_connection_while_indexes_are_made_is_an_error_of_the_database(
    store: EventStore, database_url: str, merchant_id: UUID
) -> None:
    """It is waited out then, as any other."""
    await append(store, new_order(merchant_id))

    def cut(at: str, done: int, _: int) -> None:
        if (at, done) == ("indexes", 1):
            with psycopg.connect(database_url) as connection:
                connection.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    "WHERE datname = current_database() AND application_name = 'payloops build'"
                )

    with pytest.raises(psycopg.OperationalError):
        await rebuild(database_url=database_url, projections=all_projections(), report=cut, workers=1)
    await rebuild(database_url=database_url, projections=all_projections(), report=silent, workers=1)


async def test_a_part_of_the_log_is_filled_in_once_though_two_processes_do_it(
    store: EventStore, database_url: str, merchant_id: UUID
) -> None:
    await many_orders(store, merchant_id, seed=2, count=5)
    async with open_build(
        database_url=database_url, projections=all_projections(), report=silent, workers=1
    ) as build:
        [(last,)] = await rows(store, "SELECT last_stream FROM payloops_build.build")
        [chunk] = [each async for each in build._chunks(last)]
        with build._workers() as pool:
            for _ in range(2):
                await asyncio.wrap_future(pool.submit(fill_chunk, chunk))
        assert await one(store, "SELECT count(*) FROM payloops_build.orders") == 5


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A swap is soon given up where tables are in use."""
    monkeypatch.setattr(building, "SWAP_TRIES", 2)
    monkeypatch.setattr(building, "LOCK_TRIES", 2)


@asynccontextmanager
async def reading(database_url: str) -> AsyncIterator[None]:
    """Somebody reads orders without a pause."""
    async with await connect(database_url, application_name="test") as connection, connection.transaction():
        await connection.execute("SELECT 1 FROM orders")
        yield


async def test_tables_in_use_without_a_pause_are_left_as_they_are_and_replaced_later(
    store: EventStore, database_url: str, merchant_id: UUID, impatient: None
) -> None:
    await append(store, new_order(merchant_id))
    await project_everything(database_url)
    await one(store, "UPDATE orders SET amount = 1 RETURNING 1")
    async with reading(database_url):
        with pytest.raises(TablesBusy):
            await rebuild(database_url=database_url, projections=all_projections(), report=silent, workers=1)
        assert await one(store, "SELECT amount FROM orders") == 1
    built = await rebuild(database_url=database_url, projections=all_projections(), report=silent, workers=1)
    assert built.resumed
    assert await one(store, "SELECT amount FROM orders") == 1_000


@pytest.mark.parametrize("step", ["events", "indexes", "comparing orders"])
async def test_an_interrupted_verification_leaves_no_tables(
    store: EventStore, database_url: str, merchant_id: UUID, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verifying, "FETCHED", 5)
    await many_orders(store, merchant_id, seed=4, count=20)
    await project_everything(database_url)

    def interrupt(at: str, done: int, _: int) -> None:
        if at == step and done > 0:
            verification.cancel()

    verification = asyncio.create_task(
        verify(database_url=database_url, projections=all_projections(), report=interrupt, workers=1)
    )
    with pytest.raises(asyncio.CancelledError):
        await verification
    assert await one(store, "SELECT count(*) FROM pg_namespace WHERE nspname = 'payloops_verify'") == 0


PROGRAM = """
import asyncio, os, sys
from payloops.projections.building import rebuild
from payloops.projections.projection import all_projections

def report(step, done, total):
    print(step, done, flush=True)
    if done > 0:
        sys.stdin.read()  # until it is killed

if __name__ == "__main__":
    asyncio.run(rebuild(
        database_url=sys.argv[1], projections=all_projections(), report=report, workers=2, chunk_events=20
    ))
"""


async def test_a_killed_rebuild_takes_its_processes_with_it_and_goes_on(
    store: EventStore, database_url: str, merchant_id: UUID, tmp_path: Path
) -> None:
    await many_orders(store, merchant_id, seed=4, count=60)
    program = tmp_path / "rebuild.py"
    program.write_text(PROGRAM)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(program), database_url),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    async with asyncio.timeout(DEADLINE):
        while (line := await process.stdout.readline()).endswith(b" 0\n"):
            pass
    assert line.startswith(b"events")
    process.send_signal(signal.SIGKILL)
    await process.wait()

    async def gone() -> bool:
        query = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'payloops build'"
        return await one(store, f"{query} AND datname = current_database()") == 0

    await eventually(gone)
    built = await rebuild(database_url=database_url, projections=all_projections(), report=silent, workers=2)
    assert built.resumed
    assert await agrees(database_url)


async def test_a_process_of_a_rebuild_that_cannot_reach_the_database_says_what_failed(
    store: EventStore, database_url: str, merchant_id: UUID
) -> None:
    await append(store, new_order(merchant_id))
    async with open_build(
        database_url=database_url, projections=all_projections(), report=silent, workers=2
    ) as build:
        build.plan = replace(build.plan, database_url="postgresql://nobody@127.0.0.1:1/none")
        with pytest.raises(psycopg.OperationalError, match="port 1 failed: Connection refused"):
            await build.run()


async def test_writes_and_reads_go_on_while_tables_are_built(
    store: EventStore, database_url: str, merchant_id: UUID
) -> None:
    """What is written before, during and after is in the tables, once; readers never miss an order that they saw."""
    await many_orders(store, merchant_id, seed=5)
    done = asyncio.Event()
    seen = 0

    async def write() -> int:
        written = 0
        while not done.is_set():
            await append(store, new_order(merchant_id))
            written += 1
        return written

    async def read() -> None:
        nonlocal seen
        while not done.is_set():
            count = cast("int", await one(store, "SELECT count(*) FROM orders"))
            assert count >= seen
            seen = count

    async with projector(database_url):
        writing, reading = asyncio.create_task(write()), asyncio.create_task(read())
        for _ in range(2):
            await rebuild(database_url=database_url, projections=all_projections(), report=silent, workers=1)
        done.set()
        written = await writing
        await reading
        assert written > 0
        await append(store, new_order(merchant_id))

        async def complete() -> bool:
            return await one(store, "SELECT count(*) FROM orders") == 60 + written + 1

        await eventually(complete)
    assert await agrees(database_url)


async def test_only_one_rebuild_runs_at_a_time(store: EventStore, database_url: str) -> None:
    async with open_build(database_url=database_url, projections=all_projections(), report=silent, workers=1):
        with pytest.raises(BuildUnderWay):
            await rebuild(database_url=database_url, projections=all_projections(), report=silent, workers=1)


async def test_a_rebuild_has_no_effects_beside_the_tables(
    store: EventStore, database_url: str, merchant_id: UUID
) -> None:
    await many_orders(store, merchant_id, seed=7, count=10)
    # What a connection has counted it tells at the latest when it ends: it is not to be taken for the rebuild's.
    assert store._appender._statement is not None
    await store._appender._statement.close()

    async def told() -> bool:
        appenders = "SELECT count(*) FROM pg_stat_activity WHERE application_name = %s"
        return await one(store, f"{appenders} AND datname = current_database()", appender.NAME) == 0

    await eventually(told)
    others = """
        SELECT c.relname, s.n_tup_ins + s.n_tup_upd + s.n_tup_del FROM pg_stat_user_tables s
        JOIN pg_class c ON c.oid = s.relid WHERE schemaname = 'public' AND c.relname <> ALL(%s) ORDER BY 1
    """
    known = [*TABLES, "checkpoints", "parked_events"]
    of_temporal = (
        "INSERT INTO parked_events SELECT 'temporal', 1, originator_id, 1, topic, 'x' FROM stored_events"
    )
    await one(store, f"{of_temporal} LIMIT 1 RETURNING 1")
    before = await rows(store, others, known)
    readers = "SELECT * FROM checkpoints WHERE name <> ALL(%s) ORDER BY 1"
    names = [each.name for each in all_projections()]
    subscribers = await rows(store, readers, names)
    await rebuild(database_url=database_url, projections=all_projections(), report=silent, workers=1)
    assert await rows(store, others, known) == before
    assert await rows(store, readers, names) == subscribers
    assert await rows(store, "SELECT reader FROM parked_events") == [("temporal",)]


@pytest.mark.parametrize("poison", POISON.values(), ids=POISON)
async def test_what_cannot_be_applied_is_parked_as_the_projector_parks_it(
    store: EventStore, database_url: str, merchant_id: UUID, by: Metadata, poison: bytes
) -> None:
    hurt = new_order(merchant_id)
    await append(store, hurt)
    await insert_raw(store, merchant_id, topic="payment.requested", state=poison, stream=hurt.id)
    hurt.__dict__["_version"] = 2
    cancel(hurt, by=by)
    await append(store, hurt)
    await many_orders(store, merchant_id, seed=8, count=5)
    await project_everything(database_url)
    before = await tables(store)
    assert before["parked"]
    await rebuild(database_url=database_url, projections=all_projections(), report=silent, workers=1)
    assert await tables(store) == before


async def test_a_row_that_is_built_does_not_claim_an_event_that_is_not_in_it(
    store: EventStore, database_url: str, merchant_id: UUID, by: Metadata
) -> None:
    order = new_order(merchant_id)
    await append(store, order)
    await insert_raw(store, merchant_id, topic="something.new", state=b"not even JSON", stream=order.id)
    order.__dict__["_version"] = 2
    cancel(order, by=by)
    await append(store, order)
    await project_everything(database_url)
    before = await tables(store)
    assert await rows(store, "SELECT status, version FROM orders") == [("cancelled", 1)]
    await rebuild(database_url=database_url, projections=all_projections(), report=silent, workers=1)
    assert await tables(store) == before


async def test_a_stream_with_a_gap_in_its_versions_is_built_as_the_projector_made_it(
    store: EventStore, database_url: str, merchant_id: UUID
) -> None:
    order = pay(new_order(merchant_id))
    await append(store, report(order, "captured"))
    async with store.pool.connection() as connection:
        await connection.execute("ALTER TABLE stored_events DISABLE TRIGGER stored_events_are_facts")
        await connection.execute(
            "UPDATE stored_events SET originator_version = 4 WHERE originator_version = 3"
        )
    await many_orders(store, merchant_id, seed=9, count=5)
    await project_everything(database_url)
    before = await tables(store)
    assert await rows(store, "SELECT status, version FROM orders WHERE id = %s", order.id) == [
        ("captured", 2)
    ]
    await rebuild(database_url=database_url, projections=all_projections(), report=silent, workers=1)
    assert await tables(store) == before


async def test_verify_names_rows_and_fields_that_differ(
    store: EventStore, database_url: str, merchant_id: UUID
) -> None:
    changed, gone, kept = (new_order(merchant_id, description="a table") for _ in range(3))
    await append(store, changed, gone, kept)
    await project_everything(database_url)
    assert await agrees(database_url)
    invented = uuid7()
    await one(store, "UPDATE orders SET amount = 1, description = NULL WHERE id = %s RETURNING 1", changed.id)
    await one(store, "DELETE FROM orders WHERE id = %s RETURNING 1", gone.id)
    copy = "INSERT INTO orders SELECT (jsonb_populate_record(o, jsonb_build_object('id', %s::text))).* FROM orders o"
    await one(store, f"{copy} WHERE id = %s RETURNING 1", invented, kept.id)
    verdicts = await verify(
        database_url=database_url, projections=all_projections(), report=silent, workers=1
    )
    assert {each.table: each.differing for each in verdicts if each.differing} == {"orders": 3}
    [verdict] = [each for each in verdicts if each.table == "orders"]
    found = {each.key["id"]: (each.live, each.rebuilt) for each in verdict.differences}
    live, rebuilt = found[str(changed.id)]
    assert live == {"amount": "1", "description": None}
    assert rebuilt == {"amount": "1000", "description": "a table"}
    assert found[str(gone.id)][0] is None
    assert found[str(invented)][1] is None
    assert await one(store, "SELECT count(*) FROM orders WHERE id = %s", invented) == 1, "nothing is mended"


class Trouble:
    """Whether a test's projection cannot apply payments. Processes that build begin without."""

    lasts = False


def troubled(fact: StreamEvent, rows: Rows) -> None:
    orders.handle_order(fact, rows)
    if Trouble.lasts and isinstance(fact, PaymentRequested):
        raise ValueError("no column for this")


@pytest.fixture
def projection(monkeypatch: pytest.MonkeyPatch) -> Projection:
    """One that cannot apply payments while `Trouble.lasts`, and tries a few streams at a time."""
    monkeypatch.setattr(Trouble, "lasts", True)
    monkeypatch.setattr(parking, "STREAMS", 3)
    table = replace(orders.ORDERS, handler=troubled)
    totals = replace(orders.ORDER_COUNTS, of=table)
    return replace(orders.PROJECTION, tables=(table,), totals=(totals,))


async def test_what_was_parked_takes_its_place_when_it_is_tried_again(
    store: EventStore, database_url: str, merchant_id: UUID, projection: Projection
) -> None:
    await many_orders(store, merchant_id, seed=9, count=20)
    hurt = pay(new_order(merchant_id))
    await append(store, hurt)
    await project_everything(database_url, projection)
    parked = await one(store, "SELECT count(*) FROM parked_events")
    streams = await one(store, "SELECT count(DISTINCT originator_id) FROM parked_events")
    assert cast("int", streams) > 2 * parking.STREAMS
    await append(store, report(hurt, "captured"))  # which is not projected yet
    async with await connect(database_url, application_name="test") as connection:
        still = await retry_parked(connection, projection=projection)
        assert (still.applied, still.parked) == (0, parked)
        Trouble.lasts = False
        later = await retry_parked(connection, projection=replace(projection, version=99))
        assert (later.applied, later.parked) == (0, 0), "the tables are of another version"
        after = await retry_parked(connection, projection=projection)
        assert (after.applied, after.parked) == (parked, 0)
        again = await retry_parked(connection, projection=projection)
        assert (again.applied, again.parked) == (0, 0)
    assert await one(store, "SELECT version FROM orders WHERE id = %s", hurt.id) == 2
    await project_everything(database_url, projection)
    verdicts = await verify(database_url=database_url, projections=[projection], report=silent, workers=1)
    assert {each.table: each.differing for each in verdicts} == {"orders": 0, "order_counts": 0}


async def test_nothing_parked_is_tried_again_in_the_middle_of_a_projectors_batch(
    store: EventStore, database_url: str, merchant_id: UUID, projection: Projection
) -> None:
    """Both would write the same rows."""
    await append(store, pay(new_order(merchant_id)))
    await project_everything(database_url, projection)
    async with (
        await connect(database_url, application_name="test") as connection,
        store.pool.connection() as projecting,
        projecting.transaction(),
    ):
        await projecting.execute("UPDATE checkpoints SET position = position WHERE name = 'orders'")
        await connection.execute("SET lock_timeout = '50ms'")
        with pytest.raises(LockNotAvailable):
            await retry_parked(connection, projection=projection)
    assert await one(store, "SELECT count(*) FROM parked_events") == 1


async def test_without_a_subscriber_what_is_to_be_forwarded_waits_and_nobody_else(
    store: EventStore, database_url: str, merchant_id: UUID
) -> None:
    order = new_order(merchant_id)
    await append(store, order)
    [created] = await store.read_stream(order.id)
    async with await connect(database_url, application_name="test") as connection:
        for reader in ("temporal", "webhooks", "orders"):
            await forward_again(connection, subscriber=reader, event=created, why="x")
        await connection.execute("UPDATE parked_events SET retry = false")
        projections = [each.name for each in all_projections()]
        assert await list_subscribers(connection, projections=projections) == ["temporal", "webhooks"]
        for reader in ("mail", "seals"):
            await connection.execute("INSERT INTO checkpoints (name, position) VALUES (%s, 1)", (reader,))
        found = await list_subscribers(connection, projections=projections)
        assert found == ["mail", "temporal", "webhooks"]  # one with nothing parked is a subscriber, too
        retried = await retry_forwarding(connection, subscriber="mail", seconds=0)
        assert (retried.applied, retried.parked, retried.waiting) == (0, 0, 0)
        retried = await retry_forwarding(connection, subscriber="webhooks", seconds=0)
        assert (retried.applied, retried.parked, retried.waiting) == (0, 0, 1)
        assert list(await parked_of(connection, subscriber="webhooks", stream=order.id)) == [1]
    assert await rows(store, "SELECT reader FROM parked_events WHERE retry") == [("webhooks",)]


def loud(fact: StreamEvent, rows: Rows) -> None:
    """The second version of a projection: its descriptions are in capitals."""
    if isinstance(fact, OrderCreated):
        fact = copy(fact)
        vars(fact)["description"] = (fact.description or "").upper()
    orders.handle_order(fact, rows)


def two_versions() -> tuple[Projection, Projection]:
    """The old one, and the new one."""
    old = replace(orders.PROJECTION, tables=(orders.ORDERS,), totals=())
    return old, replace(old, tables=(replace(orders.ORDERS, handler=loud),), version=old.version + 1)


@asynccontextmanager
async def building_already(database_url: str) -> AsyncIterator[None]:
    """Somebody rebuilds projections."""
    async with open_build(database_url=database_url, projections=all_projections(), report=silent, workers=1):
        yield


@pytest.fixture
async def newer(store: EventStore, database_url: str, merchant_id: UUID) -> Projection:
    """The new version of a projection; the old one's tables have an order."""
    old, new = two_versions()
    await append(store, new_order(merchant_id, description="a table"))
    await project_everything(database_url, old)
    return new


@asynccontextmanager
async def taking_over(
    store: EventStore, database_url: str, newer: Projection, *, in_the_way: AbstractAsyncContextManager[Any]
) -> AsyncIterator[Callable[[str], Awaitable[None]]]:
    """A projector of a new version while something is in its way; without it, it takes over.

    Yields a way to wait until the projector has logged an event.
    """
    stop = asyncio.Event()

    async def logs(event: str) -> None:
        async def logged() -> bool:
            return any(each["event"] == event for each in lines)

        await eventually(logged)

    async def taken_over() -> bool:
        return await one(store, "SELECT description FROM orders") == "A TABLE"

    with structlog.testing.capture_logs() as lines:
        async with asyncio.TaskGroup() as group:
            async with in_the_way:
                group.create_task(run_projections(database_url=database_url, stop=stop, projections=[newer]))
                yield logs
            await eventually(taken_over)
            stop.set()


@pytest.mark.parametrize("in_the_way", [reading, building_already])
async def test_a_new_version_waits_until_it_can_build_and_take_over(
    store: EventStore, database_url: str, newer: Projection, impatient: None, in_the_way: Any
) -> None:
    async with taking_over(store, database_url, newer, in_the_way=in_the_way(database_url)) as logs:
        await logs("projector.build_waits")


async def test_a_projector_whose_building_process_is_killed_goes_on_by_itself(
    store: EventStore, database_url: str, newer: Projection
) -> None:
    async def reads() -> bool:
        return bool(await rows(store, WAITING_FOR_KEYS))

    in_the_way = locked(database_url, "personal_keys")
    async with taking_over(store, database_url, newer, in_the_way=in_the_way) as logs:
        await eventually(reads)
        for process in multiprocessing.active_children():
            process.kill()
        await logs("projector.reconnecting")


WAITING_FOR_KEYS = "SELECT FROM pg_locks WHERE NOT granted AND relation = 'personal_keys'::regclass"


async def test_a_projector_that_is_asked_to_end_does_so_while_it_builds(
    store: EventStore, database_url: str, newer: Projection
) -> None:
    stop = asyncio.Event()

    async def swaps() -> bool:
        query = """
            SELECT count(*) FROM pg_stat_activity
            WHERE datname = current_database() AND application_name = 'payloops build' AND wait_event_type = 'Lock'
        """
        return await one(store, query) != 0

    async with reading(database_url):  # for longer than the test takes
        projecting = asyncio.create_task(
            run_projections(database_url=database_url, stop=stop, projections=[newer])
        )
        await eventually(swaps)
        stop.set()
        await asyncio.wait_for(projecting, 20)
    assert await one(store, "SELECT description FROM orders") == "a table"


async def test_a_new_version_builds_while_the_old_one_serves_and_takes_over(
    store: EventStore, database_url: str, merchant_id: UUID
) -> None:
    old, new = two_versions()
    first = new_order(merchant_id, description="a table")
    await append(store, first)
    described = "SELECT description FROM orders WHERE id = %s"

    def says(id: UUID, text: str) -> Callable[[], Awaitable[bool]]:
        async def look() -> bool:
            return await one(store, described, id) == text

        return look

    stop = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        group.create_task(run_projections(database_url=database_url, stop=stop, projections=[old]))
        await eventually(says(first.id, "a table"))
        group.create_task(run_projections(database_url=database_url, stop=stop, projections=[new]))
        await eventually(says(first.id, "A TABLE"))
        second = new_order(merchant_id, description="a chair")
        await append(store, second)
        await eventually(says(second.id, "A CHAIR"))
        stop.set()
    version = "SELECT version FROM checkpoints WHERE name = 'orders'"
    assert await one(store, version) == new.version
    async with await connect(database_url, application_name="test") as connection:
        await append(store, new_order(merchant_id))
        assert await project_batch(connection, old) == 0, (
            "the older version leaves the newer one's tables alone"
        )
