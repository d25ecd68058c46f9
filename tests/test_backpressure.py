"""Too much to do: who would wait in vain is told at once, and the process still says that it lives."""

import asyncio
import contextlib
import itertools
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import log_lock
import psycopg
import pytest
import structlog
from calling import PASSWORD, Answer, Api, Merchant, running_api
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool, PoolTimeout
from test_staff import hire

from payloops.events import appender
from payloops.events.connections import TIMEOUTS
from payloops.events.pools import ImpatientPool, PoolStalled, connection_pool
from payloops.events.timestamps import utc_now
from payloops.http import admission, connections
from payloops.http.app import ROUTES
from payloops.http.bodies import LARGE_BODY
from payloops.http.problems import BUSY
from payloops.settings import Settings


@pytest.fixture
async def api(settings: Settings) -> AsyncIterator[Api]:
    async with running_api(settings.model_copy(update={"database_patience": 0.06})) as api:
        await api.services.store.pool.wait()  # whoever came before would be turned away
        # Whoever waits for the pool's own deadline does so for longer than a test may take.
        api.services.store.pool.timeout = 600.0
        yield api


@asynccontextmanager
async def all_taken(pool: AsyncConnectionPool) -> AsyncIterator[None]:
    """Somebody holds every connection of the pool."""
    async with AsyncExitStack() as stack:
        for _ in range(pool.max_size):
            await stack.enter_async_context(pool.connection())
        yield


def assert_told_to_come_again(answer: Answer) -> None:
    assert (answer.status, answer.code) == (503, "unavailable")
    assert answer.json["message"] == BUSY
    assert int(answer.headers["Retry-After"]) >= 1


async def test_while_all_connections_are_taken_nobody_waits_for_one(api: Api) -> None:
    merchant = await api.merchant()
    order = await merchant.order()
    pool = api.services.store.pool
    async with asyncio.timeout(60), all_taken(pool):
        for _ in range(3):
            answers = await asyncio.gather(
                *(merchant.shop.get(f"/v1/orders/{order}/events") for _ in range(30)),
                *(merchant.dashboard.get("/api/processors") for _ in range(30)),
                api.anyone.post("/api/auth/login", {"email": merchant.email, "password": PASSWORD}),
            )
            for answer in answers:
                assert_told_to_come_again(answer)
            assert (await api.anyone.get("/health")).status == 200
        ready = await api.anyone.get("/ready")
        assert (ready.status, ready.json["dependencies"]["postgres"]) == (503, "down")
        assert pool.get_stats()["requests_waiting"] == 0
    assert (await merchant.shop.get(f"/v1/orders/{order}")).status == 200
    assert (await api.anyone.get("/ready")).status == 200


async def test_what_holds_up_a_query_holds_up_those_alone_who_have_a_connection(
    api: Api, database_url: str
) -> None:
    merchant = await api.merchant()
    order = await merchant.order()
    size = api.services.store.pool.max_size
    async with await psycopg.AsyncConnection.connect(database_url) as other, asyncio.timeout(60):
        await other.execute("LOCK TABLE orders")
        reads = [asyncio.create_task(merchant.shop.get(f"/v1/orders/{order}")) for _ in range(3 * size)]
        for answered in itertools.islice(asyncio.as_completed(reads), 2 * size):
            assert_told_to_come_again(await answered)
        assert sum(not read.done() for read in reads) == size
        await other.rollback()
        assert sorted([(await read).status for read in reads]) == size * [200] + 2 * size * [503]


@pytest.mark.parametrize("path", ["/api/orders?q=a", "/api/staff/orders?amount=1"])
async def test_what_somebody_searches_for_leaves_connections_for_all_others(
    api: Api, database_url: str, pool: AsyncConnectionPool, path: str
) -> None:
    """However long it takes, and however often it is asked for."""
    searching, other = (await api.merchant()).dashboard, await api.merchant()
    order = await other.order()
    if "staff" in path:
        token = api.services.staff_tokens.issue(await hire(pool), now=utc_now())
        searching = searching.with_headers(Authorization=f"Bearer {token}")
    async with await psycopg.AsyncConnection.connect(database_url) as holding, asyncio.timeout(60):
        await holding.execute("LOCK TABLE orders")
        searches = [asyncio.create_task(searching.get(path)) for _ in range(90)]
        for answered in itertools.islice(asyncio.as_completed(searches), 20):
            assert_told_to_come_again(await answered)
        for number in range(3):
            assert (await other.dashboard.get("/api/processors")).status == 200
            assert (await other.shop.post("/v1/orders", {"amount": 1}, key=f"{number}")).status == 201
            assert (await other.shop.get(f"/v1/orders/{order}/events")).status == 200
        assert not all(search.done() for search in searches), "they wait meanwhile"
        await holding.rollback()
        assert {(await search).status for search in searches} <= {200, 503}
    assert (await searching.get(path)).status == 200


async def test_health_is_answered_before_those_who_wait_are(settings: Settings) -> None:
    async with (
        asyncio.timeout(60),
        running_api(settings.model_copy(update={"database_patience": 60.0})) as api,
    ):
        merchant, pool = await api.merchant(), api.services.store.pool
        pool.timeout = 600.0
        async with all_taken(pool):
            waiting = [asyncio.create_task(merchant.dashboard.get("/api/processors")) for _ in range(20)]
            while pool.get_stats()["requests_waiting"] < len(waiting):
                await asyncio.sleep(0.01)
            assert (await api.anyone.get("/health")).status == 200
            assert not any(task.done() for task in waiting)
        assert {answer.status for answer in await asyncio.gather(*waiting)} == {200}


@asynccontextmanager
async def impatient(settings: Settings, *, size: int, patience: float) -> AsyncIterator[ImpatientPool]:
    database_url = settings.database_url.get_secret_value()
    pool = connection_pool(database_url, size=size, application_name="test", patience=patience)
    assert isinstance(pool, ImpatientPool)
    pool.timeout = 600.0
    await pool.open(wait=True)
    try:
        yield pool
    finally:
        await pool.close()


async def hold(pool: AsyncConnectionPool, seconds: float = 0.0) -> None:
    async with pool.connection():
        await asyncio.sleep(seconds)


async def test_a_queue_that_moves_is_left_alone(settings: Settings) -> None:
    """The last waits three times as long as patience lasts, and is served."""
    async with impatient(settings, size=2, patience=0.4) as pool:
        await asyncio.gather(*(hold(pool, 0.1) for _ in range(24)))


async def test_who_comes_to_a_stalled_queue_is_turned_away_before_who_waits(settings: Settings) -> None:
    async with asyncio.timeout(60), impatient(settings, size=2, patience=0.4) as pool:
        async with all_taken(pool):
            with pytest.raises(PoolStalled):
                await hold(pool)
            asking = asyncio.create_task(hold(pool))
            await asyncio.sleep(0)
            for _ in range(100):
                with pytest.raises(PoolStalled):
                    await hold(pool)
            assert not asking.done()
            with pytest.raises(PoolStalled):
                await asking
        await hold(pool)
        await asyncio.gather(*(hold(pool, 0.05) for _ in range(10)))


async def test_one_who_asks_learns_that_there_are_connections_again(settings: Settings) -> None:
    async with asyncio.timeout(60), impatient(settings, size=2, patience=0.4) as pool:
        async with all_taken(pool):
            with pytest.raises(PoolStalled):
                await hold(pool)
            asking = asyncio.create_task(hold(pool))
            await asyncio.sleep(0)
        await asking


async def test_a_process_that_is_slow_itself_is_not_taken_for_a_stalled_pool(settings: Settings) -> None:
    import time  # noqa: PLC0415

    async with impatient(settings, size=2, patience=0.1) as pool:
        waiting = [asyncio.create_task(hold(pool, 0.02)) for _ in range(10)]
        for _ in range(3):
            await asyncio.sleep(0.01)
            time.sleep(0.3)  # the loop stands still
        await asyncio.gather(*waiting)


async def test_no_connection_is_lost_to_those_who_were_turned_away(settings: Settings) -> None:
    """Connections come back just when those who wait for them are turned away."""
    async with asyncio.timeout(60), impatient(settings, size=2, patience=0.02) as pool:
        for _ in range(40):
            async with all_taken(pool):
                waiting = [asyncio.create_task(hold(pool)) for _ in range(6)]
                await asyncio.sleep(0.019)
            outcomes = await asyncio.gather(*waiting, return_exceptions=True)
            assert {type(outcome) for outcome in outcomes} <= {type(None), PoolStalled}
        await asyncio.gather(hold(pool, 0.001), hold(pool, 0.001))
        stats = pool.get_stats()
        assert (stats["pool_size"], stats["pool_available"]) == (2, 2)


@pytest.mark.parametrize("patience", [None, 0.02])
async def test_a_database_that_was_away_for_long_is_found_again(
    settings: Settings, patience: float | None
) -> None:
    """Longer than the pool tries to reconnect, and asked for more often than may wait."""
    database_url = settings.database_url.get_secret_value()
    pool = connection_pool(
        "postgresql://nobody@127.0.0.1:1/none", size=2, application_name="test", patience=patience
    )
    pool.reconnect_timeout, pool.timeout, pool.max_waiting = 0.2, 0.05, 5
    await pool.open()
    async with asyncio.timeout(60):
        while pool.get_stats()["pool_size"] > 0:
            refused = await asyncio.gather(*(hold(pool) for _ in range(5)), return_exceptions=True)
            assert all(isinstance(refusal, psycopg.OperationalError) for refusal in refused)
        pool.conninfo = database_url
        while True:
            try:
                await hold(pool)
            except psycopg.OperationalError:
                await asyncio.sleep(0.02)
            else:
                break
    await pool.close()


async def test_other_processes_wait_for_their_connections(settings: Settings) -> None:
    pool = connection_pool(settings.database_url.get_secret_value(), size=2, application_name="test")
    async with pool:
        await pool.wait()
        pool.timeout = 0.5
        async with all_taken(pool):
            with pytest.raises(PoolTimeout):
                await hold(pool)


async def test_with_the_database_away_nobody_waits_for_it(settings: Settings) -> None:
    broken = Settings.model_validate(
        {
            **settings.model_dump(),
            "database_url": "postgresql://nobody@127.0.0.1:1/none",
            "database_patience": 0.06,
        }
    )
    async with asyncio.timeout(60), running_api(broken) as api:
        api.services.store.pool.timeout = 600.0
        login = {"email": "a@example.com", "password": PASSWORD}
        answers = await asyncio.gather(*(api.anyone.post("/api/auth/login", login) for _ in range(20)))
        for answer in answers:
            assert_told_to_come_again(answer)


async def test_more_than_fit_into_flight_are_turned_away(settings: Settings) -> None:
    configured = settings.model_copy(update={"max_in_flight": 3, "database_patience": 60.0})
    async with asyncio.timeout(60), running_api(configured) as api:
        merchant = await api.merchant()
        pool = api.services.store.pool
        async with all_taken(pool):
            working = [asyncio.create_task(merchant.dashboard.get("/api/processors")) for _ in range(3)]
            while pool.get_stats()["requests_waiting"] < 3:
                await asyncio.sleep(0.01)
            for _ in range(3):
                assert_told_to_come_again(await merchant.dashboard.get("/api/processors"))
                assert_told_to_come_again(await api.anyone.post("/api/auth/login", {}))
                assert (await api.anyone.get("/health")).status == 200
            assert not any(task.done() for task in working)
        assert {answer.status for answer in await asyncio.gather(*working)} == {200}
        assert (await merchant.dashboard.get("/api/processors")).status == 200


class Places:
    """An admission whose seconds pass when they are told to."""

    def __init__(self, *, limit: int) -> None:
        self.now = 0.0
        self.admission = admission.Admission(limit=limit, clock=lambda: self.now)

    def room_after(self, seconds: float, *, answered: int, turned_away: int = 0) -> int:
        for _ in range(answered):
            with self.admission.admit("work"):
                pass
        for _ in range(turned_away):
            self.admission.count_refused()
        self.now += seconds
        self.admission.sample()
        return self.admission.limit


def test_where_more_come_than_are_answered_there_is_room_for_those_of_a_moment() -> None:
    places = Places(limit=300)
    assert places.room_after(1, answered=16_000, turned_away=16_000) == 200
    assert places.room_after(0.1, answered=0, turned_away=100) == 200  # too soon to tell
    after_a_stall = places.room_after(1, answered=0, turned_away=100)
    assert admission.LEAST < after_a_stall < 200  # many come at once
    rooms = [places.room_after(1, answered=100, turned_away=100) for _ in range(20)]
    assert rooms[-1] == admission.LEAST
    assert places.room_after(1, answered=100_000, turned_away=20_000) == 300
    with contextlib.ExitStack() as taken:
        for _ in range(300):
            assert not places.admission.full
            taken.enter_context(places.admission.admit("work"))
        assert places.admission.full


def test_where_all_are_answered_who_come_a_moment_without_answers_makes_nobody_be_refused() -> None:
    places = Places(limit=1_000)
    assert places.room_after(1, answered=0) == admission.LEAST
    assert places.room_after(1, answered=4_000) == 400
    assert [places.room_after(1, answered=100) for _ in range(20)][-1] == 400  # more could have been
    # A few who were refused, of many, tell of a stall: they take little from what is known.
    assert 390 <= places.room_after(1, answered=3_000, turned_away=30) < 400
    assert places.room_after(1, answered=3_000, turned_away=400) < 100
    assert 300 <= places.room_after(1, answered=3_000) < 400
    assert Places(limit=3).room_after(1, answered=4_000) == 3


async def test_who_sends_a_body_slowly_takes_nobodys_place(settings: Settings) -> None:
    async with running_api(settings.model_copy(update={"max_in_flight": 2})) as api:
        head = b"POST /api/auth/login HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        writers = []
        for _ in range(10):
            _, writer = await asyncio.open_connection("127.0.0.1", api.port)
            writer.write(head + b"Content-Length: 100\r\n\r\n{")
            writers.append(writer)
        await asyncio.sleep(0.2)
        assert (await api.anyone.post("/api/auth/login", {})).status == 400
        for writer in writers:
            writer.close()


async def test_bodies_that_arrive_slowly_take_a_bounded_part_of_the_memory(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Large ones are refused then, not those that others send."""
    monkeypatch.setattr(admission, "MOST_ARRIVING", 100_000)
    head = b"POST /api/auth/login HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"

    async def begin(size: int, *, of: int = 200_000) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", api.port)
        writer.write(head + f"Content-Length: {of}\r\n\r\n".encode() + b"{" + b" " * (size - 1))
        return reader, writer

    async def holds(size: int) -> None:
        while api.services.admission.arriving != size:
            await asyncio.sleep(0.001)

    async with asyncio.timeout(60):
        _, slow = await begin(99_000)
        await holds(99_000)
        reader, more = await begin(10_000)
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 503 ")
        await holds(99_000)
        reader, small = await begin(LARGE_BODY - 2, of=LARGE_BODY - 1)
        assert (await api.anyone.post("/api/auth/login", {})).status == 400  # it came whole
        small.write(b"}")
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 400 ")
        slow.close()
        await holds(0)
        for writer in (slow, more, small):
            writer.close()


async def test_who_is_turned_away_costs_no_line_in_the_log_but_all_together_one(settings: Settings) -> None:
    async with running_api(settings.model_copy(update={"max_in_flight": 1})) as api:
        merchant = await api.merchant()
        admission = api.services.admission
        with structlog.testing.capture_logs() as lines:
            with admission.admit("work"):
                for _ in range(3):
                    assert_told_to_come_again(await merchant.shop.get("/v1/orders"))
                    assert_told_to_come_again(await api.anyone.post("/api/auth/login", {}))
            admission.sample()
            assert (await merchant.shop.get("/v1/orders")).status == 200
        told = [line["requests"] for line in lines if line["event"] == "http.shed"]
        answered = [line["status"] for line in lines if line["event"] == "http.request"]
        assert (sum(told), answered) == (6, [200])


async def test_who_waits_for_a_payment_takes_nobodys_place(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(admission.SHARES, "wait", 4)
    async with running_api(settings.model_copy(update={"max_in_flight": 2})) as api:
        merchant = await api.merchant()
        waiting = [await start_waiting(merchant) for _ in range(4)]
        assert (await merchant.shop.get("/v1/orders")).status == 200
        assert (await merchant.shop.post(f"/v1/orders/{await merchant.order()}/pay")).status == 200
        assert not any(task.done() for task in waiting)
        api.services.watch.stop_waiting()
        assert {answer.status for answer in await asyncio.gather(*waiting)} == {200}


async def test_places_to_wait_for_a_payment_are_left_to_others_and_who_gets_none_pays_without_waiting(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(admission.SHARES, "wait", 4)
    async with running_api(settings.model_copy(update={"max_in_flight": 2})) as api:
        greedy, *others = [await api.merchant() for _ in range(5)]
        waiting = [await start_waiting(greedy) for _ in range(4)]  # of the eight places
        await pay_without_waiting(greedy)
        for other, places in zip(others, [2, 1, 1, 0], strict=True):
            waiting += [await start_waiting(other) for _ in range(places)]
            await pay_without_waiting(other)
        api.services.watch.stop_waiting()
        answers = await asyncio.gather(*waiting)
        assert {answer.headers["Preference-Applied"] for answer in answers} == {"wait=30"}
        assert api.services.admission.may_wait(greedy.id)


async def start_waiting(merchant: Merchant) -> asyncio.Task[Answer]:
    order_id = await merchant.order()
    paying = asyncio.create_task(merchant.shop.post(f"/v1/orders/{order_id}/pay", Prefer="wait=30"))
    await merchant.order_is(order_id, "processing")
    return paying


async def pay_without_waiting(merchant: Merchant) -> None:
    paid = await merchant.shop.post(f"/v1/orders/{await merchant.order()}/pay", Prefer="wait=30")
    assert (paid.status, paid.json["status"]) == (200, "processing")
    assert "Preference-Applied" not in paid.headers


def test_only_what_tells_of_the_process_is_never_turned_away() -> None:
    kept = {route.path for route in ROUTES if not route.sheds}
    assert {"/health", "/ready"} <= kept
    assert not any(path.startswith(("/v1", "/api", "/webhooks")) for path in kept)


async def create(merchant: Merchant) -> Answer:
    return await merchant.shop.post("/v1/orders", {"amount": 1})


@pytest.fixture
async def other(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[psycopg.AsyncConnection[TupleRow]]:
    """Another connection, which may make appends wait for longer than they usually would."""
    monkeypatch.setitem(TIMEOUTS, "statement_timeout", "60s")
    monkeypatch.setattr(appender, "SEND_SECONDS", 60.0)
    database_url = settings.database_url.get_secret_value()
    async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as connection:
        await connection.execute(log_lock.WAIT_LONGER)
        yield connection


async def test_a_full_queue_of_appends_takes_nobody_in(
    settings: Settings, other: psycopg.AsyncConnection[TupleRow]
) -> None:
    configured = settings.model_copy(update={"append_queue_size": 3, "append_patience": 60.0})
    async with asyncio.timeout(60), running_api(configured) as api:
        merchant = await api.merchant()
        async with other:
            await other.execute(log_lock.TAKE)
            sent = asyncio.create_task(create(merchant))
            await log_lock.an_append_waits(other)
            queued = [asyncio.create_task(create(merchant)) for _ in range(3)]
            while len(api.services.store._appender._queue) < 3:
                await asyncio.sleep(0.01)
            for _ in range(5):
                assert_told_to_come_again(await create(merchant))
            assert not any(task.done() for task in (sent, *queued))
            assert (await api.anyone.get("/health")).status == 200
        answers = await asyncio.gather(sent, *queued)
        assert {answer.status for answer in answers} == {201}


async def test_a_queue_of_appends_that_stands_turns_away_who_waits_and_takes_nobody_in(
    settings: Settings, other: psycopg.AsyncConnection[TupleRow]
) -> None:
    configured = settings.model_copy(update={"append_patience": 0.2})
    async with asyncio.timeout(60), running_api(configured) as api:
        merchant = await api.merchant()
        for _ in range(2):  # and once more
            await other.execute(log_lock.TAKE)
            sent = asyncio.create_task(create(merchant))
            await log_lock.an_append_waits(other)
            assert_told_to_come_again(await create(merchant))  # after a while
            for _ in range(3):
                assert_told_to_come_again(await create(merchant))  # at once
            assert not sent.done()
            await other.execute("SELECT pg_advisory_unlock_all()")
            assert (await sent).status == 201
            assert (await create(merchant)).status == 201
        log = [each.stored.topic for each in await api.services.store.read(after=0, limit=100)]
        assert log.count("order.created") == 4  # none of the others after all


REQUEST = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
REQUESTS = 20_000
"""So many that their answers fit into no buffer between here and there."""


async def small_buffers(api: Api) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", api.port))
    return await asyncio.open_connection(sock=sock, limit=1_024)


async def test_who_never_takes_the_answers_is_cut_off(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "WRITE_DEADLINE", 0.3)
    with structlog.testing.capture_logs() as lines:
        reader, writer = await small_buffers(api)
        writer.write(REQUEST * REQUESTS)
        with contextlib.suppress(TimeoutError):  # the kernel has the same deadline, and may be first
            async with asyncio.timeout(4):
                while not any(line["event"] == "http.not_taken" for line in lines):
                    await asyncio.sleep(0.05)
    assert 0 < await answers_until_the_end(reader) < REQUESTS
    writer.close()


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="the kernel has no such deadline")
async def test_the_kernel_cuts_off_who_takes_nothing_of_little(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "WRITE_DEADLINE", 0.2)
    reader, writer = await small_buffers(api)
    few = 300
    writer.write(REQUEST * few)
    async with asyncio.timeout(60):
        while not reader._buffer:  # type: ignore[attr-defined]
            await asyncio.sleep(0.01)
    await asyncio.sleep(3)  # since the first answer came: the kernel counts time, and tells nobody
    assert await answers_until_the_end(reader) < few
    writer.close()


async def answers_until_the_end(reader: asyncio.StreamReader) -> int:
    received = 0
    async with asyncio.timeout(90):
        try:
            while data := await reader.read(65_536):
                received += data.count(b"HTTP/1.1 200")
        except (ConnectionError, OSError):
            pass
    return received


async def test_who_takes_the_answers_slowly_gets_them_all(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "WRITE_DEADLINE", 20.0)
    reader, writer = await small_buffers(api)
    writer.write(REQUEST * REQUESTS)
    received, rest = 0, b""
    async with asyncio.timeout(60):
        while received < REQUESTS:
            data = await reader.read(65_536)
            assert data, "it was cut off"
            received += (rest + data).count(b"HTTP/1.1 200")
            rest = (rest + data)[-11:]
            if received < 2_000:
                await asyncio.sleep(0.01)
    writer.close()
