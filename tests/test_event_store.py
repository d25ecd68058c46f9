"""The event store keeps its promises when many write at once, and when the connection breaks."""

import asyncio
import contextlib
import multiprocessing
from collections import Counter
from collections.abc import AsyncGenerator
from concurrent.futures import ProcessPoolExecutor
from typing import Any, ClassVar, cast
from uuid import UUID

import log_lock
import psycopg
import pytest
from eventsourcing.persistence import StoredEvent
from holding import holding_proxy
from psycopg_pool import AsyncConnectionPool
from uuid_utils.compat import uuid7

from payloops.events import appender, conflicts, event_store
from payloops.events.authenticity import content_hash, derive_mac_key, event_mac, is_authentic
from payloops.events.encoding import encode
from payloops.events.errors import OutcomeUnknown, StoreUnavailable, VersionConflict
from payloops.events.event_store import EventStore, RecordedEvent
from payloops.events.metadata import Metadata
from payloops.events.pools import connection_pool
from payloops.events.stream import Stream, StreamCreated, StreamEvent, stream_topic
from payloops.events.timestamps import utc_now
from payloops.settings import Settings


class CountingBegan(StreamCreated):
    TOPIC = "test.counting_began"


class Counted(StreamEvent):
    TOPIC = "test.counted"
    folded: ClassVar[int] = 0
    """How often any was applied."""

    def apply(self, aggregate: "Counter_") -> None:
        aggregate.count += 1
        Counted.folded += 1


@stream_topic("test.counter")
class Counter_(Stream):  # noqa: N801
    def __init__(self, *, merchant_id: str) -> None:
        self.merchant_id = merchant_id
        self.count = 0


MERCHANT = UUID("01900000-0000-7000-8000-000000000001")
MAC_KEY = derive_mac_key("an audit key of tests, long enough")


PATIENCE = 60.0


@pytest.fixture
def lock_is_waited_for(database_url: str) -> None:
    """Appends wait for those of others for as long as these take on a busy machine."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(log_lock.WAIT_LONGER)


def by() -> Metadata:
    return Metadata(at=utc_now(), actor="system", correlation_id="test")


def collected(stream: Stream) -> list[StreamEvent]:
    return stream.collect_events()


def begun(id: UUID | None = None) -> Counter_:
    return Counter_.begin(CountingBegan, id=id or uuid7(), merchant_id=str(MERCHANT), by=by())


def count(stream: Counter_) -> int:
    """Record that it counted; return the version with that."""
    stream.record(Counted, by=by())
    return stream.version


async def stored_versions(pool: AsyncConnectionPool) -> list[tuple[UUID, int]]:
    async with pool.connection() as connection:
        cursor = await connection.execute(
            "SELECT originator_id, originator_version FROM stored_events ORDER BY notification_id"
        )
        return [(row[0], row[1]) for row in await cursor.fetchall()]


# -- many processes


def write_in_a_process(database_url: str, shared: list[UUID], number: int) -> list[tuple[UUID, int]]:
    """Append to shared and own streams, concurrently; the (stream, version) pairs that were acknowledged."""
    return asyncio.run(_write(database_url, shared, number))


async def _write(database_url: str, shared: list[UUID], number: int) -> list[tuple[UUID, int]]:
    pool = connection_pool(database_url, size=3, application_name=f"writer {number}")
    pool.timeout = PATIENCE
    await pool.open()
    acknowledged: list[tuple[UUID, int]] = []
    async with EventStore(database_url, pool, mac_key=MAC_KEY, patience=PATIENCE) as store:

        async def on_shared(stream_id: UUID) -> None:
            for _ in range(6):
                try:
                    version = await store.change(Counter_, stream_id, count)
                except VersionConflict:
                    continue
                acknowledged.append((stream_id, version))

        async def on_own() -> None:
            stream = begun()
            await store.append(collected(stream))
            acknowledged.append((stream.id, 1))
            for _ in range(5):
                count(stream)
                count(stream)
                await store.append(collected(stream))
                acknowledged.extend([(stream.id, stream.version - 1), (stream.id, stream.version)])

        await asyncio.gather(*(on_shared(stream_id) for stream_id in shared), *(on_own() for _ in range(8)))
    await pool.close()
    return acknowledged


async def tail(store: EventStore, writing: asyncio.Event) -> list[RecordedEvent]:
    """Everything a reader sees that reads from the start until the writers are done."""
    seen: list[RecordedEvent] = []
    async for _ in store.wakeups(poll_seconds=0.02):
        done = not writing.is_set()
        while page := await store.read(after=seen[-1].position if seen else 0, limit=7):
            seen += page
        if done:
            return seen
    raise AssertionError


@pytest.mark.usefixtures("lock_is_waited_for")
async def test_with_eight_writing_processes_nobody_misses_or_repeats_an_event(
    store: EventStore, settings: Settings
) -> None:
    shared = [begun() for _ in range(3)]
    for stream in shared:
        await store.append(collected(stream))
    writing = asyncio.Event()
    writing.set()
    readers = [asyncio.create_task(tail(store, writing)) for _ in range(3)]
    loop = asyncio.get_running_loop()
    url = settings.database_url.get_secret_value()
    with ProcessPoolExecutor(8, mp_context=multiprocessing.get_context("spawn")) as processes:
        written = await asyncio.gather(
            *(
                loop.run_in_executor(processes, write_in_a_process, url, [s.id for s in shared], number)
                for number in range(8)
            )
        )
    writing.clear()

    acknowledged = [pair for pairs in written for pair in pairs] + [(stream.id, 1) for stream in shared]
    in_log = await stored_versions(store.pool)
    assert max(Counter(acknowledged).values()) == 1, "two appends of one version were acknowledged"
    assert sorted(in_log) == sorted(acknowledged)
    last: dict[UUID, int] = {}
    for stream_id, version in in_log:
        assert version == last.get(stream_id, 0) + 1, "versions run 1..n in the global order"
        last[stream_id] = version
    for reader in readers:
        seen = await reader
        assert [event.position for event in seen] == list(range(1, len(in_log) + 1))
        assert [(e.stored.originator_id, e.stored.originator_version) for e in seen] == in_log


# -- folding on


async def counted_by_loading_on(store: EventStore, id: UUID) -> tuple[int, int]:
    """The stream's count, and how many events were folded to find it."""
    before = Counted.folded
    found = await store.load_on(Counter_, id)
    assert found is not None
    folded = Counted.folded - before
    count(found)  # and never appended: what is kept does not have it
    return found.count - 1, folded


async def set_back(pool: AsyncConnectionPool, id: UUID) -> None:
    """Lose all that the stream counted after the first ten, as where a backup is restored."""
    async with pool.connection() as connection:
        await connection.execute("ALTER TABLE stored_events DISABLE TRIGGER USER")
        await connection.execute(
            "DELETE FROM stored_events WHERE originator_id = %s AND originator_version > 11", (id,)
        )


async def go_on(store: EventStore, id: UUID) -> None:
    """Count fourteen times, as another process."""
    stream = await store.load(Counter_, id)
    assert stream is not None
    for _ in range(14):
        count(stream)
    await store.append(collected(stream))


async def test_what_was_folded_before_is_not_folded_again(
    store: EventStore, settings: Settings, pool: AsyncConnectionPool
) -> None:
    stream = begun()
    for _ in range(20):
        count(stream)
    await store.append(collected(stream))
    assert await counted_by_loading_on(store, stream.id) == (20, 20)
    assert await counted_by_loading_on(store, stream.id) == (20, 0)
    for _ in range(3):
        count(stream)
    await store.append(collected(stream))
    assert await counted_by_loading_on(store, stream.id) == (23, 3)
    await set_back(pool, stream.id)
    assert await counted_by_loading_on(store, stream.id) == (10, 10)
    await go_on(store, stream.id)
    assert await counted_by_loading_on(store, stream.id) == (24, 14)
    await set_back(pool, stream.id)
    await go_on(store, stream.id)  # to the version that was folded, by other events
    assert await counted_by_loading_on(store, stream.id) == (24, 24)
    assert await store.load_on(Counter_, uuid7()) is None


async def test_no_more_streams_are_kept_folded_than_a_process_has_room_for(
    store: EventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_store, "MOST_KEPT", 2)
    streams = [begun() for _ in range(3)]
    for stream in streams:
        count(stream)
        await store.append(collected(stream))
        await store.load_on(Counter_, stream.id)
    assert await counted_by_loading_on(store, streams[2].id) == (1, 0)
    assert await counted_by_loading_on(store, streams[0].id) == (1, 1)


# -- conflicts


async def counted_twice(store: EventStore, stream: Counter_) -> tuple[Counter_, Counter_]:
    """Two decisions on the same version of a stream, neither of which is appended yet."""
    first, second = await store.load(Counter_, stream.id), await store.load(Counter_, stream.id)
    assert first is not None
    assert second is not None
    count(first)
    count(second)
    return first, second


async def test_of_two_appends_decided_on_the_same_version_one_wins(store: EventStore) -> None:
    stream = begun()
    await store.append(collected(stream))
    first, second = await counted_twice(store, stream)
    results = await asyncio.gather(
        store.append(collected(first)), store.append(collected(second)), return_exceptions=True
    )
    assert [type(result) for result in results] in ([int, VersionConflict], [VersionConflict, int])
    assert len(await stored_versions(store.pool)) == 2


async def test_an_append_that_lost_leaves_none_of_its_events_while_its_batch_goes_on(
    store: EventStore,
) -> None:
    stale, fresh = begun(), begun()
    await store.append(collected(stale))
    await store.append(collected(fresh))
    behind = await store.load(Counter_, stale.id)
    assert behind is not None
    count(stale)
    await store.append(collected(stale))
    for _ in range(3):
        count(behind)
    count(fresh)
    lost, won = await asyncio.gather(
        store.append(collected(behind)), store.append(collected(fresh)), return_exceptions=True
    )
    assert isinstance(lost, VersionConflict)
    assert won == 4
    assert [v for s, v in await stored_versions(store.pool) if s == stale.id] == [1, 2]


async def test_what_a_transaction_changed_is_undone_where_its_stream_has_moved_on(store: EventStore) -> None:
    stream = begun()
    event = collected(stream)
    await store.append(event)

    async def change() -> None:
        async with store.transaction() as connection:
            await connection.execute("INSERT INTO checkpoints (name, position) VALUES ('test', 1)")
            await store.append_in(connection, event)

    with pytest.raises(VersionConflict):
        await change()
    async with store.pool.connection() as connection:
        cursor = await connection.execute("SELECT count(*) FROM checkpoints WHERE name = 'test'")
        assert await cursor.fetchone() == (0,)


async def test_what_goes_wrong_with_the_database_in_a_transaction_is_told(store: EventStore) -> None:
    async def wait() -> None:
        async with store.transaction() as connection:
            await connection.execute("SET LOCAL statement_timeout = 1")
            await connection.execute("SELECT pg_sleep(60)")

    with pytest.raises(psycopg.errors.QueryCanceled):
        await wait()


async def test_an_append_that_skips_a_version_is_refused(store: EventStore) -> None:
    stream = begun()
    count(stream)
    with pytest.raises(VersionConflict):
        await store.append(collected(stream)[1:])
    assert await stored_versions(store.pool) == []


async def decided_among_others(store: EventStore, *, others: int) -> tuple[list[int], int]:
    """Count in a stream to which others append just before, this many times; the counts decided on, and the result."""
    stream = begun()
    await store.append(collected(stream))
    decided_on: list[int] = []

    async def decide() -> tuple[list[Stream], int]:
        counter, other = await counted_twice(store, stream)
        if len(decided_on) < others:
            await store.append(collected(other))
        decided_on.append(counter.count - 1)
        return [counter], counter.count

    return decided_on, await store.decide(stream.id, decide)


async def test_a_command_is_decided_again_on_fresh_state(store: EventStore) -> None:
    assert await decided_among_others(store, others=10) == (list(range(11)), 11)


async def test_a_command_on_a_stream_that_keeps_changing_ends(
    store: EventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conflicts, "LONGEST_PAUSE", 0)
    with pytest.raises(VersionConflict):
        await decided_among_others(store, others=1_000)


async def test_decisions_in_one_process_take_turns(store: EventStore) -> None:
    stream = begun()
    await store.append(collected(stream))
    at = await asyncio.gather(*(store.change(Counter_, stream.id, count) for _ in range(100)))
    assert sorted(at) == list(range(2, 102))


async def test_an_append_that_the_database_cannot_store_fails_alone(store: EventStore) -> None:
    good, poison = begun(), begun()
    unstorable = encode(collected(poison)[0])[0]
    unstorable = StoredEvent(unstorable.originator_id, 1, "test.\0", unstorable.state)
    outcomes = await asyncio.gather(
        store._appender.append([unstorable], merchant_id=MERCHANT),
        store.append(collected(good)),
        return_exceptions=True,
    )
    assert isinstance(outcomes[0], psycopg.DataError)
    assert outcomes[1] == 1


# -- order, hashes, topics


async def test_positions_have_no_gaps_where_appends_were_refused(store: EventStore) -> None:
    for _ in range(3):
        stream = begun()
        event = collected(stream)
        await store.append(event)
        with pytest.raises(VersionConflict):
            await store.append(event)
    assert [event.position for event in await store.read(after=0, limit=9)] == [1, 2, 3]


async def test_an_event_is_stored_with_its_hash_under_a_stable_topic_as_readable_json(
    store: EventStore,
) -> None:
    stream = begun()
    await store.append(collected(stream))
    async with store.pool.connection() as connection:
        cursor = await connection.execute(
            "SELECT topic, convert_from(state, 'UTF8')::jsonb ->> 'actor', content_hash, state FROM stored_events"
        )
        row = await cursor.fetchone()
    assert row is not None
    assert row[:2] == ("test.counting_began", "system")
    assert bytes(row[2]) == content_hash(StoredEvent(stream.id, 1, row[0], bytes(row[3])))


async def test_every_event_has_a_mac_that_takes_the_audit_key(store: EventStore, settings: Settings) -> None:
    await store.append(collected(begun()))
    async with store.transaction() as connection:
        await store.append_in(connection, collected(begun()))
    key = derive_mac_key(settings.audit_key.get_secret_value())
    async with store.pool.connection() as connection:
        found = await (
            await connection.execute("SELECT content_hash, merchant_id, mac FROM stored_events")
        ).fetchall()
    assert len(found) == 2
    for content, merchant, mac in found:
        assert is_authentic(key, content_hash=content, merchant_id=merchant, mac=mac)
        assert not is_authentic(MAC_KEY, content_hash=content, merchant_id=merchant, mac=mac)
        assert not is_authentic(key, content_hash=content, merchant_id=uuid7(), mac=mac)
        assert mac != event_mac(key, content_hash=mac, merchant_id=merchant)


async def test_processes_of_the_version_before_macs_append_beside_this_one(store: EventStore) -> None:
    await store.append(collected(begun()))
    event = encode(collected(begun())[0])[0]
    async with store.pool.connection() as connection:
        row = await (
            await connection.execute(
                "SELECT append, outcome, last_position FROM append_events("
                " %s::int[], %s::uuid[], %s::bigint[], %s::text[], %b::bytea[], %s::uuid[], %b::bytea[],"
                " '{}', '{}', '{}', '{}', '{}', '{}')",
                (
                    *([0], [event.originator_id], [1], [event.topic], [event.state], [MERCHANT]),
                    [content_hash(event)],
                ),
            )
        ).fetchone()
    assert row == (0, "appended", 2)
    await store.append(collected(begun()))
    assert await store.head() == 3


@pytest.mark.parametrize(
    "change", ["UPDATE stored_events SET topic = 'x'", "DELETE FROM stored_events", "TRUNCATE stored_events"]
)
async def test_events_are_never_updated_and_never_deleted(store: EventStore, change: str) -> None:
    await store.append(collected(begun()))
    async with store.pool.connection() as connection:
        with pytest.raises(psycopg.errors.RaiseException, match="never updated and never deleted"):
            await connection.execute(change.encode())


LISTENS = """
    SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND state = 'idle' AND query LIKE 'LISTEN%'
"""


async def quiet_wakeups(store: EventStore) -> AsyncGenerator[None]:
    """Wakeups of a process that listens by now, and has told its readers so."""
    async with store.pool.connection() as connection:
        while await (await connection.execute(LISTENS)).fetchone() is None:
            await asyncio.sleep(0.01)
    wakeups = store.wakeups(poll_seconds=30)
    with contextlib.suppress(TimeoutError):
        while True:
            await asyncio.wait_for(anext(wakeups), 0.2)
    wakeups = store.wakeups(poll_seconds=30)
    await anext(wakeups)
    return wakeups


@pytest.mark.parametrize("in_transaction", [False, True])
async def test_readers_are_woken_by_an_append_of_another_process(
    store: EventStore, settings: Settings, in_transaction: bool
) -> None:
    url = settings.database_url.get_secret_value()
    wakeups = await quiet_wakeups(store)
    async with EventStore(url, store.pool, mac_key=MAC_KEY, patience=PATIENCE) as other:
        if in_transaction:
            async with other.transaction() as connection:
                position = await other.append_in(connection, collected(begun()))
        else:
            position = await other.append(collected(begun()))
        await asyncio.wait_for(anext(wakeups), 20)
    assert position == await store.head() == 1


# -- faults


async def test_the_answer_of_a_batch_whose_connection_broke_is_found_in_the_log(
    store: EventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The append committed, its answer was lost: the caller still gets its position, and nothing is there twice."""
    await store.append(collected(begun()))
    statement = store._appender._statement
    assert statement is not None
    execute = statement.execute

    async def execute_and_lose(*parameters: Any, **which: Any) -> None:
        await execute(*parameters, **which)
        await statement.close()
        raise psycopg.OperationalError("connection lost")

    monkeypatch.setattr(statement, "execute", execute_and_lose)
    assert await store.append(collected(begun())) == 2
    assert len(await stored_versions(store.pool)) == 2


async def test_anothers_event_in_the_same_place_is_not_taken_for_ones_own_where_the_answer_was_lost(
    store: EventStore, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = begun()
    await store.append(collected(stream))
    ours, theirs = await counted_twice(store, stream)
    statement = store._appender._statement
    assert statement is not None
    url = settings.database_url.get_secret_value()

    async def lose(*_: object, **__: object) -> None:
        async with EventStore(url, store.pool, mac_key=MAC_KEY, patience=PATIENCE) as other:
            await other.append(collected(theirs))
        await statement.close()
        raise psycopg.OperationalError("connection lost")

    monkeypatch.setattr(statement, "execute", lose)
    with pytest.raises(StoreUnavailable):
        await store.append(collected(ours))
    assert await stored_versions(store.pool) == [(stream.id, 1), (stream.id, 2)]


@pytest.mark.usefixtures("lock_is_waited_for")
async def test_an_append_whose_connection_was_ended_before_it_committed_is_reported_as_not_done(
    store: EventStore, settings: Settings
) -> None:
    await store.append(collected(begun()))
    statement = store._appender._statement
    assert statement is not None
    url = settings.database_url.get_secret_value()
    async with await psycopg.AsyncConnection.connect(url) as blocker:
        await blocker.execute(log_lock.TAKE)
        waiting = asyncio.create_task(store.append(collected(begun())))
        async with store.pool.connection() as observer:
            await log_lock.an_append_waits(observer)
            await observer.execute("SELECT pg_terminate_backend(%s)", (statement.backend[0],))
        with pytest.raises(StoreUnavailable):
            await waiting
    assert len(await stored_versions(store.pool)) == 1
    await store.append(collected(begun()))  # and the next goes through


@pytest.mark.usefixtures("lock_is_waited_for")
async def test_an_append_that_is_reported_as_not_done_is_not_done_later(
    store: EventStore, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PostgreSQL would go on with it, although nobody waits for the answer any more."""
    monkeypatch.setattr(appender, "SEND_SECONDS", 1.0)
    url = settings.database_url.get_secret_value()
    async with (
        EventStore(url, store.pool, mac_key=MAC_KEY, patience=PATIENCE) as impatient,
        await psycopg.AsyncConnection.connect(url) as blocker,
    ):
        await blocker.execute(log_lock.TAKE)
        with pytest.raises(StoreUnavailable):
            await impatient.append(collected(begun()))
        await blocker.rollback()
    assert await store.append(collected(begun())) == 1


async def test_an_answer_that_does_not_come_is_looked_for_in_the_log(
    store: EventStore, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(appender, "SEND_SECONDS", 1.0)
    async with (
        asyncio.timeout(PATIENCE),
        holding_proxy(settings.database_url.get_secret_value()) as proxy,
        EventStore(proxy.url, store.pool, mac_key=MAC_KEY, patience=PATIENCE) as waiting,
    ):
        proxy.hold = CountingBegan.TOPIC.encode()
        append = asyncio.create_task(waiting.append(collected(begun())))
        await proxy.held.wait()
        proxy.hold = None
        assert await append == 1


async def test_an_append_goes_through_whose_connection_was_ended_while_it_was_idle(store: EventStore) -> None:
    await store.append(collected(begun()))
    statement = store._appender._statement
    assert statement is not None
    async with store.pool.connection() as observer:
        await observer.execute("SELECT pg_terminate_backend(%s, 10000)", (statement.backend[0],))
        while not statement.closed:
            await observer.execute("SELECT 1")
    assert await store.append(collected(begun())) == 2


async def test_a_cancelled_caller_does_not_take_its_append_back(store: EventStore) -> None:
    append = asyncio.create_task(store.append(collected(begun())))
    await asyncio.sleep(0)
    append.cancel()
    await asyncio.gather(append, return_exceptions=True)
    assert await store.append(collected(begun())) == 2


async def test_what_waits_when_a_process_ends_is_still_written_and_nothing_is_taken_in_any_more(
    store: EventStore, settings: Settings
) -> None:
    url = settings.database_url.get_secret_value()
    async with EventStore(url, store.pool, mac_key=MAC_KEY, patience=PATIENCE) as ending:
        several = appender.MAX_BATCH_APPENDS + 1  # so in two batches
        waiting = [asyncio.create_task(ending.append(collected(begun()))) for _ in range(several)]
        await asyncio.sleep(0)
    assert sorted(each.result() for each in waiting) == list(range(1, several + 1)), "before it has ended"
    with pytest.raises(StoreUnavailable):
        await asyncio.wait_for(ending.append(collected(begun())), PATIENCE)


async def transactions_of_64(store: EventStore) -> int:
    """In how many transactions appends that come at once are written."""
    last = max(await asyncio.gather(*(store.append(collected(begun())) for _ in range(64))))
    async with store.pool.connection() as connection:
        cursor = await connection.execute(
            "SELECT count(DISTINCT xid) FROM stored_events WHERE notification_id > %s", (last - 64,)
        )
        row = await cursor.fetchone()
    assert row is not None
    return cast("int", row[0])


async def test_a_process_that_is_alone_writes_in_halves(store: EventStore) -> None:
    await store.append(collected(begun()))
    assert await transactions_of_64(store) == 2


async def test_beside_others_a_process_writes_all_that_waits_at_once(
    store: EventStore, settings: Settings
) -> None:
    await store.append(collected(begun()))
    async with EventStore(
        settings.database_url.get_secret_value(), store.pool, mac_key=MAC_KEY, patience=PATIENCE
    ) as other:
        await other.append(collected(begun()))
    await store.append(collected(begun()))
    assert await transactions_of_64(store) == 1


async def test_only_so_many_events_are_written_at_once(
    store: EventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(appender, "MAX_BATCH_EVENTS", 8)
    await store.append(collected(begun()))
    assert await transactions_of_64(store) == 8


async def test_more_appends_than_may_wait_are_turned_away_at_once(settings: Settings) -> None:
    url = settings.database_url.get_secret_value()
    pool = connection_pool(url, size=2, application_name="test")
    await pool.open()
    async with EventStore(url, pool, mac_key=MAC_KEY, queue_size=5, patience=PATIENCE) as store:
        outcomes = await asyncio.gather(
            *(store.append(collected(begun())) for _ in range(9)), return_exceptions=True
        )
    await pool.close()
    assert sorted(type(outcome).__name__ for outcome in outcomes) == ["StoreUnavailable"] * 4 + ["int"] * 5


@pytest.mark.parametrize("events", [1, 2])
async def test_while_another_holds_the_log_appends_end_as_unavailable(
    store: EventStore, settings: Settings, events: int
) -> None:
    """One event and several are appended by functions of their own."""
    stream = begun()
    for _ in range(events - 1):
        count(stream)
    store._appender._patience = 0.3
    await store.append(collected(begun()))  # so that there is a connection
    url = settings.database_url.get_secret_value()
    async with await psycopg.AsyncConnection.connect(url) as blocker:
        await blocker.execute(log_lock.TAKE)
        sent = asyncio.create_task(store.append(collected(stream)))
        async with store.pool.connection() as observer:
            await log_lock.an_append_waits(observer)
        queued = asyncio.create_task(store.append(collected(begun())))
        with pytest.raises(StoreUnavailable, match="waited too long"):
            await queued
        with pytest.raises(StoreUnavailable, match="LockNotAvailable"):
            await sent
    await store.append(collected(begun()))
    assert len(await stored_versions(store.pool)) == 2, "what was turned away is not written later, either"


async def test_after_a_restart_of_the_database_no_reader_is_given_a_broken_connection(
    store: EventStore, settings: Settings
) -> None:
    await asyncio.gather(*(store.head() for _ in range(5)))  # several idle connections
    wakeups = await quiet_wakeups(store)
    async with await psycopg.AsyncConnection.connect(
        settings.database_url.get_secret_value(), autocommit=True
    ) as other:
        # The one that listens last: a database that restarts takes nobody back before all are gone.
        for listens in ("<>", "="):
            await other.execute(
                "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
                f" AND application_name {listens} 'payloops wakeups'"
            )
    await asyncio.wait_for(anext(wakeups), PATIENCE)  # this process listens again
    assert await asyncio.gather(*(store.head() for _ in range(5))) == [0] * 5


async def test_a_process_that_stalls_with_the_log_in_its_hands_is_thrown_out(store: EventStore) -> None:
    stalled, other = begun(), begun()

    async def stall() -> None:
        async with store.transaction() as connection:
            await store.append_in(connection, collected(stalled))
            await store.append(collected(other))  # goes through as soon as the database has ended the stalled

    with pytest.raises(StoreUnavailable):
        await stall()
    assert [stream for stream, _ in await stored_versions(store.pool)] == [other.id]


async def test_a_connection_lost_at_the_commit_leaves_the_outcome_unknown(
    store: EventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def lose(*_: object) -> None:
        raise psycopg.OperationalError("connection lost")

    monkeypatch.setattr(psycopg.AsyncTransaction, "__aexit__", lose)
    with pytest.raises(OutcomeUnknown):
        async with store.transaction() as connection:
            await store.append_in(connection, collected(begun()))


async def test_streams_that_are_loaded_at_the_same_time_share_a_query(store: EventStore) -> None:
    streams = [begun() for _ in range(9)]
    for number, stream in enumerate(streams):
        for _ in range(number):
            count(stream)
        await store.append(collected(stream))
    asked = store.pool.get_stats().get("requests_num", 0)
    loaded = await asyncio.gather(
        *(store.load(Counter_, each.id) for each in streams), store.load(Counter_, uuid7())
    )
    assert store.pool.get_stats().get("requests_num", 0) == asked + 1
    assert [each and (each.id, each.count) for each in loaded] == [
        *((stream.id, number) for number, stream in enumerate(streams)),
        None,
    ]


async def test_decisions_on_a_stream_are_made_one_at_a_time_and_no_lock_is_kept(store: EventStore) -> None:
    deciding = most = 0

    async def decide() -> tuple[list[Stream], None]:
        nonlocal deciding, most
        deciding += 1
        most = max(most, deciding)
        await asyncio.sleep(0)
        deciding -= 1
        return [], None

    for _ in range(3):
        id = uuid7()
        await asyncio.gather(*(store.decide(id, decide) for _ in range(3)))
    assert most == 1
    assert not store._locks
