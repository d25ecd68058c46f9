"""How many events a second are appended, beside what others do with the same PostgreSQL, and what its disk allows.

On an embedded PostgreSQL of its own, that many callers append an event each, a created order, and the next one once
it is durable. They take turns, in short rounds: the store, with all that a command does; its appender alone, with
events that are encoded already; the recorder of the `eventsourcing` library, in threads; an INSERT for each event
over as many connections, by psycopg and by pgbench. All but the store have their rows ready: they only insert, and
the same row, apart from the library's, which has neither merchant nor hashes.

    make bench ARGS=append                  # about four minutes
    python benchmarks/append.py --rounds 5 --seconds 4
"""

import argparse
import asyncio
import os
import re
import resource
import subprocess
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import dataclass
from multiprocessing import get_context
from shutil import which
from statistics import median
from typing import Any
from uuid import UUID

import figures
import filled_log
import psycopg
import uvloop
from eventsourcing.persistence import StoredEvent
from eventsourcing.postgres import PostgresApplicationRecorder, PostgresDatastore
from process_usage import cpu_seconds, run, server_of
from psycopg.conninfo import conninfo_to_dict
from uuid_utils.compat import uuid7

from payloops.embedded.binaries import find_postgres
from payloops.events.appender import Appender, propose
from payloops.events.authenticity import content_hash, event_mac
from payloops.events.connections import connect
from payloops.events.encoding import encode
from payloops.events.event_store import EventStore
from payloops.events.metadata import Metadata
from payloops.events.orders import Order
from payloops.events.pools import connection_pool
from payloops.events.stream import StreamEvent
from payloops.events.timestamps import utc_now

CASES = ((1, 1), (64, 1), (256, 1), (64, 4), (256, 4))
"""Callers, and the processes that they are spread over."""
CONNECTIONS = 128
"""Of those who have one for each caller, at the most: the server takes 200."""
CONNECT_SECONDS = 4
"""In which so many connections are made. They are not measured: pgbench counts them into its time, not its rate."""
THREADS = 16
"""Of the library's recorder, at the most. Its appends take turns on a lock: more threads are no faster."""
GOALS = {"library": 20.0, "insert": 3.0, "pgbench": 1.0}
MAC_KEY = bytes(32)
MERCHANT = UUID(int=1)

TABLE = """
    CREATE TABLE IF NOT EXISTS plain_events (LIKE stored_events INCLUDING ALL);
    CREATE SEQUENCE IF NOT EXISTS plain_positions CACHE 1 OWNED BY plain_events.notification_id;
    ALTER TABLE plain_events ALTER notification_id SET DEFAULT nextval('plain_positions')
"""
INSERT = """
    INSERT INTO plain_events (originator_id, originator_version, topic, state, merchant_id, content_hash, mac)
    VALUES (%b, %b, %b, %b, %b, %b, %b)
"""
PGBENCH = r"""
INSERT INTO plain_events (originator_id, originator_version, topic, state, merchant_id, content_hash, mac)
VALUES (uuidv7(), 1, 'order.created', :state::bytea, :merchant::uuid, :hash::bytea, :hash::bytea);
"""
GAPS = "SELECT count(*) - coalesce(max(notification_id), 0) FROM stored_events"

OneAppend = Callable[[], Awaitable[object]]


def created_order() -> list[StreamEvent]:
    """The event of an order that was decided on now."""
    created = Order.created(
        {"external_id": "A-1", **filled_log.ORDER},
        id=uuid7(),
        merchant_id=str(MERCHANT),
        by=Metadata(at=utc_now(), actor="api_key:benchmark", correlation_id="benchmark"),
    )
    return [created]


SAMPLE = encode(created_order()[0])[0]


def ready_event() -> StoredEvent:
    """The same, encoded: only its stream is another one."""
    return StoredEvent(uuid7(), 1, SAMPLE.topic, SAMPLE.state)


@dataclass(frozen=True, slots=True)
class Turn:
    """What a process has to do: so many callers, from one moment to another, by the machine's monotonic clock."""

    contender: str
    database_url: str
    callers: int
    connections: int
    begin: float
    end: float


@dataclass(frozen=True, slots=True)
class Done:
    """What came of it: events, and seconds of CPU."""

    events: int
    cpu: float


async def drive(turn: Turn, append: OneAppend) -> Done:
    """Let the callers append, one event after the other, and count what became durable within the turn."""
    events = 0

    async def caller() -> None:
        nonlocal events
        while (now := time.monotonic()) < turn.end:
            await append()
            if now >= turn.begin:
                events += 1

    async with asyncio.TaskGroup() as group:
        for _ in range(turn.callers):
            group.create_task(caller())
        await asyncio.sleep(turn.begin - time.monotonic())
        before = time.process_time()
        await asyncio.sleep(turn.end - time.monotonic())
        used = time.process_time() - before
    return Done(events, used)


async def by_store(turn: Turn) -> Done:
    pool = connection_pool(turn.database_url, size=2, application_name="benchmark")
    await pool.open()
    async with EventStore(turn.database_url, pool, mac_key=MAC_KEY, patience=10) as store:
        done = await drive(turn, lambda: store.append(created_order()))
    await pool.close()
    return done


async def by_appender(turn: Turn) -> Done:
    appender = Appender(turn.database_url, mac_key=MAC_KEY, queue_size=2_000, patience=10)
    appender.start()
    done = await drive(turn, lambda: appender.append([ready_event()], merchant_id=MERCHANT))
    await appender.close()
    return done


async def by_insert(turn: Turn) -> Done:
    digest = content_hash(SAMPLE)
    async with AsyncExitStack() as stack:
        free: asyncio.LifoQueue[Any] = asyncio.LifoQueue()
        for _ in range(turn.connections):
            connection = await connect(turn.database_url, application_name="benchmark")
            await stack.enter_async_context(connection)
            free.put_nowait(connection)

        async def insert() -> None:
            connection = await free.get()
            row = (uuid7(), 1, SAMPLE.topic, SAMPLE.state, MERCHANT, digest, digest)
            await connection.execute(INSERT, row)
            free.put_nowait(connection)

        return await drive(turn, insert)


def library_recorder(database_url: str, *, connections: int) -> PostgresApplicationRecorder:
    parameters = {key: str(value) for key, value in conninfo_to_dict(database_url).items()}
    datastore = PostgresDatastore(
        dbname=parameters["dbname"],
        host=parameters["host"],
        port=parameters["port"],
        user=parameters["user"],
        password=parameters["password"],
        pool_size=connections,
    )
    return PostgresApplicationRecorder(datastore, events_table_name="library_events")


def by_library(turn: Turn) -> Done:
    counts = [0] * min(turn.callers, turn.connections)
    recorder = library_recorder(turn.database_url, connections=len(counts))
    with recorder.datastore:
        recorder.datastore.register_type_adapters()

        def caller(number: int) -> None:
            while (now := time.monotonic()) < turn.end:
                recorder.insert_events([ready_event()])
                counts[number] += now >= turn.begin

        threads = [threading.Thread(target=caller, args=(number,)) for number in range(len(counts))]
        for thread in threads:
            thread.start()
        time.sleep(turn.begin - time.monotonic())
        before = time.process_time()
        for thread in threads:
            thread.join()
        return Done(sum(counts), time.process_time() - before)


ASYNC = {"store": by_store, "appender": by_appender, "insert": by_insert}


def play(turn: Turn) -> Done:
    """A process's part of a turn."""
    if turn.contender == "library":
        return by_library(turn)
    return uvloop.run(ASYNC[turn.contender](turn))


def run_pgbench(database_url: str, *, clients: int, seconds: float) -> tuple[float, Done]:
    """Transactions a second, and what it took pgbench itself."""
    program = find_postgres() / "pgbench"
    found = str(program) if program.exists() else which("pgbench")
    if found is None:
        raise SystemExit("no pgbench: it comes with payloops[embedded], or with PostgreSQL's client programs")
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with tempfile.NamedTemporaryFile("w", suffix=".sql") as script:
        script.write(PGBENCH)
        script.flush()
        said = subprocess.run(
            [
                *(found, "--no-vacuum", "--protocol=prepared", f"--file={script.name}"),
                *(f"--client={clients}", f"--jobs={min(clients, os.cpu_count() or 1)}"),
                *(f"--time={round(seconds) + CONNECT_SECONDS}", f"--define=state=\\x{SAMPLE.state.hex()}"),
                *(f"--define=merchant={MERCHANT}", f"--define=hash=\\x{content_hash(SAMPLE).hex()}"),
                database_url,
            ],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    processed = re.search(r"transactions actually processed: (\d+)", said)
    rate = re.search(r"tps = ([\d.]+) \(without", said)
    if processed is None or rate is None:
        raise SystemExit(f"pgbench did nothing in its time:\n{said}")
    return float(rate[1]), Done(int(processed[1]), cpu)


class Rounds:
    """Plays turns, in processes that stay, and keeps what each came to."""

    def __init__(self, database_url: str, executor: ProcessPoolExecutor, *, seconds: float) -> None:
        self._database_url = database_url
        self._executor = executor
        self._seconds = seconds
        self._server = server_of(database_url)
        self.found: dict[tuple[int, int], dict[str, list[tuple[float, float, float]]]] = {}

    def play(self, contender: str, *, callers: int, processes: int) -> None:
        """One turn: events a second, and microseconds of CPU an event, of the client and of the server."""
        turn = self._pgbench if contender == "pgbench" else self._turn
        rate, done, server = turn(contender, callers, processes)
        each = self.found.setdefault((callers, processes), {}).setdefault(contender, [])
        events = max(1, done.events)
        each.append((rate, done.cpu / events * 1e6, server / events * 1e6))

    def _turn(self, contender: str, callers: int, processes: int) -> tuple[float, Done, float]:
        most = THREADS if contender == "library" else CONNECTIONS
        connections = min(callers, most) if contender in {"library", "insert"} else 1
        begin = time.monotonic() + 1.0 + CONNECT_SECONDS * connections / CONNECTIONS
        turn = Turn(
            contender=contender,
            database_url=self._database_url,
            callers=callers // processes,
            connections=max(1, connections // processes),
            begin=begin,
            end=begin + self._seconds,
        )
        parts = [self._executor.submit(play, turn) for _ in range(processes)]
        time.sleep(begin - time.monotonic())
        before = cpu_seconds(self._server)
        time.sleep(turn.end - time.monotonic())
        server = cpu_seconds(self._server) - before
        done = [part.result() for part in parts]
        total = Done(sum(each.events for each in done), sum(each.cpu for each in done))
        return total.events / self._seconds, total, server

    def _pgbench(self, _: str, callers: int, __: int) -> tuple[float, Done, float]:
        before = cpu_seconds(self._server)
        rate, done = run_pgbench(self._database_url, clients=min(callers, CONNECTIONS), seconds=self._seconds)
        return rate, done, cpu_seconds(self._server) - before


CONTENDERS = ("store", "appender", "library", "insert", "pgbench")


def measure(
    database_url: str, *, rounds: int, seconds: float, cases: Iterable[tuple[int, int]]
) -> dict[str, Any]:
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(TABLE)
    recorder = library_recorder(database_url, connections=1)
    with recorder.datastore:
        recorder.create_table()
    with ProcessPoolExecutor(4, mp_context=get_context("spawn")) as executor:
        list(executor.map(time.sleep, [1.0] * 4))  # all four are there, and have imported everything
        played = Rounds(database_url, executor, seconds=seconds)
        for callers, processes in cases:
            for number in range(rounds):
                # Each goes first once, so that nobody always follows the same one's checkpoints.
                for place in range(len(CONTENDERS)):
                    contender = CONTENDERS[(number + place) % len(CONTENDERS)]
                    played.play(contender, callers=callers, processes=processes)
    with psycopg.connect(database_url, autocommit=True) as connection:
        gaps = connection.execute(GAPS).fetchone()
    return {
        "seconds": seconds,
        "rounds": rounds,
        "gaps_in_positions": gaps and gaps[0],
        "microseconds_of_an_event": steps(),
        "cases": [
            {"callers": callers, "processes": processes, **_case(found)}
            for (callers, processes), found in played.found.items()
        ],
    }


def _case(found: dict[str, list[tuple[float, float, float]]]) -> dict[str, Any]:
    middle = {name: [median(column) for column in zip(*turns, strict=True)] for name, turns in found.items()}
    return {
        "events_per_second": {name: round(each[0]) for name, each in middle.items()},
        "cpu_us_of_client_and_server": {
            name: [round(us, 1) for us in each[1:]] for name, each in middle.items()
        },
        "appender_to": {name: round(middle["appender"][0] / middle[name][0], 2) for name in GOALS},
        "store_to": {name: round(middle["store"][0] / middle[name][0], 2) for name in GOALS},
    }


def steps(times: int = 5_000) -> dict[str, float]:
    """Microseconds of CPU that an event takes before it is handed to the appender, step by step."""
    decided = [created_order()[0] for _ in range(times)]
    encoded = [encode(event) for event in decided]

    def took(step: Callable[[int], object]) -> float:
        before = time.process_time()
        for number in range(times):
            step(number)
        return round((time.process_time() - before) / times * 1e6, 1)

    hashes = [content_hash(event) for event, _ in encoded]
    return {
        "decided": took(lambda _: created_order()),
        "encoded, personal data sealed": took(lambda number: encode(decided[number])),
        "content hash": took(lambda number: content_hash(encoded[number][0])),
        "MAC": took(lambda number: event_mac(MAC_KEY, content_hash=hashes[number], merchant_id=MERCHANT)),
        "all that a proposal takes": took(
            lambda number: propose([encoded[number][0]], merchant_id=MERCHANT, mac_key=MAC_KEY)
        ),
    }


def show(found: dict[str, Any]) -> None:
    rates, ratios, cpu = [], [], []
    for case in found["cases"]:
        name = (str(case["callers"]), str(case["processes"]))
        rates.append((*name, *(f"{case['events_per_second'][each]:,}" for each in CONTENDERS)))
        costs = case["cpu_us_of_client_and_server"]
        cpu.append((*name, *(" + ".join(f"{us:.0f}" for us in costs[each]) for each in CONTENDERS)))
        ratios.append(
            (*name, *(f"{case['appender_to'][each]:.1f}, {case['store_to'][each]:.1f}" for each in GOALS))
        )
    columns = ("Callers", "Processes", *CONTENDERS)
    figures.show("Events appended a second", rates, columns=columns)
    goals = tuple(f"{name} (goal {goal:g})" for name, goal in GOALS.items())
    figures.show("Times as many: the appender, the store", ratios, columns=("Callers", "Processes", *goals))
    figures.show("µs of CPU an event: client + server", cpu, columns=columns)
    taken = [(name, f"{us:.1f}") for name, us in found["microseconds_of_an_event"].items()]
    figures.show("µs of CPU before an event is appended", taken, columns=("Step", "µs"))
    print(f"gaps in the store's positions: {found['gaps_in_positions']}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0, help="that each turn lasts")
    parser.add_argument("--callers", type=int, nargs="*", help="only these numbers of callers")
    parser.add_argument("--quick", action="store_true", help="one round of a second each")
    options = parser.parse_args()
    rounds, seconds = (1, 1.0) if options.quick else (options.rounds, options.seconds)
    cases = [case for case in CASES if options.callers is None or case[0] in options.callers]
    with figures.database() as database_url:
        found = measure(database_url, rounds=rounds, seconds=seconds, cases=cases)
    show(found)
    if not options.quick and options.callers is None:
        figures.keep("append", found)


if __name__ == "__main__":
    run(main)
