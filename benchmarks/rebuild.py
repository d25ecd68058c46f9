"""How fast projections are rebuilt while the service is used, and what its users notice of it.

On an embedded PostgreSQL of its own: a log of a million events is filled in; then, with a projector at work, a writer
appends 500 orders a second, and a reader asks for 100 orders a second by id, first alone, then beside
`payloops projections rebuild`. Afterwards all tables are compared with the log, row by row. Beside it, the library's
own ProjectionRunner folds the first part of the same log into the same tables.

    make bench-rebuild                          # about five minutes
    make bench-rebuild ARGS="--events 100000"
"""

import argparse
import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import figures
import filled_log
import library_runner
import psycopg
from process_usage import memory_of, run
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from uuid_utils.compat import uuid7

from payloops.daemons.garbage_collection import tune_garbage_collector
from payloops.events.errors import StoreUnavailable
from payloops.events.event_store import EventStore
from payloops.events.metadata import Metadata
from payloops.events.orders import Order
from payloops.events.pools import connection_pool
from payloops.events.timestamps import utc_now
from payloops.migrate import migrate
from payloops.projections.orders import get_order
from payloops.projections.projection import all_projections
from payloops.projections.projector import run_projections
from payloops.projections.stats import payment_figures

ORDERS_A_SECOND = 500
READS_A_SECOND = 100
ALONE_SECONDS = 15
SETTLE_SECONDS = 3
MEMORY_SECONDS = 1.0
"""Between two looks at the rebuild's memory, each of which takes the CPU for some 15 ms, in the place of a reader."""
STEPS = ("fill", "index", "swap")
"""Of a rebuild: the last is to catch up and swap."""
MAC_KEY = bytes(32)
SUBSCRIBERS = (
    "SELECT coalesce(sum(position), 0)::bigint FROM checkpoints WHERE name IN ('payments', 'webhooks')"
)


async def write(database_url: str) -> None:
    """Append orders, so many a second whatever else happens, until the end; prints how many."""
    pool = connection_pool(database_url, size=2, application_name="benchmark writer")
    await pool.open()
    merchant = uuid7()
    written = refused = 0
    done = _end()

    async def one() -> None:
        nonlocal written, refused
        by = Metadata(at=utc_now(), actor="system", correlation_id="benchmark")
        order = Order.create(id=uuid7(), merchant_id=str(merchant), by=by, **ORDER)
        try:
            await store.append(order.collect_events())
            written += 1
        except StoreUnavailable:
            refused += 1

    async with EventStore(database_url, pool, mac_key=MAC_KEY) as store, asyncio.TaskGroup() as group:
        began, begun = time.monotonic(), 0
        while not done.is_set():
            due = int((time.monotonic() - began) * ORDERS_A_SECOND)
            for _ in range(due - begun):
                group.create_task(one())
            begun = due
            await asyncio.sleep(0.01)
    await pool.close()
    print(json.dumps({"written": written, "refused": refused, "seconds": time.monotonic() - began}))


ORDER = {
    "external_id": "A-1",
    "amount": 4_999,
    "currency": "USD",
    "customer_id": "cus_1",
    "customer_email": "customer@example.com",
    "description": "A table",
    "metadata": {"cart": "c-1"},
    "return_url": None,
    "cancel_url": None,
}


async def read(database_url: str) -> None:
    """Ask for orders by id, so many a second; prints when each was due and how long it took, from when it was due."""
    pool = connection_pool(database_url, size=8, application_name="benchmark reader")
    await pool.open()
    chance = random.Random(1)
    async with pool.connection() as connection:
        query = (
            "SELECT originator_id, merchant_id FROM stored_events WHERE originator_version = 1 LIMIT 20000"
        )
        orders = await (await connection.execute(query)).fetchall()
    took: list[tuple[float, float]] = []
    done = _end()

    async def one(due: float) -> None:
        order_id, merchant_id = chance.choice(orders)
        assert await get_order(store, order_id=order_id, merchant_id=merchant_id) is not None
        took.append((due, time.monotonic() - due))

    async with EventStore(database_url, pool, mac_key=MAC_KEY) as store, asyncio.TaskGroup() as group:
        due = time.monotonic()
        while not done.is_set():
            due += chance.expovariate(READS_A_SECOND)
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            group.create_task(one(due))
    await pool.close()
    print(json.dumps(took))


async def project(database_url: str) -> None:
    """As `payloops projector` does."""
    all_projections()
    tune_garbage_collector()
    await run_projections(database_url=database_url, stop=_end())
    print("{}")


def _end() -> asyncio.Event:
    done = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, done.set)
    return done


ROLES = {"writer": write, "reader": read, "projector": project}


class Role:
    """A process that plays a part until it is told to end, and prints what it saw."""

    def __init__(self, name: str, database_url: str) -> None:
        environment = {**os.environ, "DATABASE_URL": database_url}
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--role", name], env=environment, stdout=subprocess.PIPE
        )

    def end(self) -> Any:
        self._process.terminate()
        said, _ = self._process.communicate(timeout=60)
        return json.loads(said.splitlines()[-1])  # before it stands what was logged

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


def rebuild(database_url: str) -> dict[str, Any]:
    """Run the command; what it says, when its steps began, and the most memory that its processes had."""
    command = [str(Path(sys.executable).with_name("payloops")), "projections", "rebuild", "--json"]
    began = time.monotonic()
    process = subprocess.Popen(
        command,
        env={**os.environ, "DATABASE_URL": database_url},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    steps: dict[str, float] = {}
    listener = threading.Thread(target=_listen, args=(process, steps))
    listener.start()
    most = 0
    try:
        while process.poll() is None:
            most = max(most, memory_of(process.pid))
            time.sleep(MEMORY_SECONDS)
    finally:
        process.terminate()  # where it has not ended
    assert process.stdout is not None
    assert process.returncode == 0, "the rebuild failed"
    ended = time.monotonic()
    listener.join()
    said: dict[str, Any] = json.load(process.stdout)
    bounds = [began, steps["indexes"], steps["swap"], ended]
    return {**said, "steps": dict(zip(STEPS, pairwise(bounds), strict=True)), "memory_mb": most / 2**20}


def _listen(process: subprocess.Popen[str], steps: dict[str, float]) -> None:
    """Pass the command's progress on, and note when each of its steps was first told of."""
    assert process.stderr is not None
    for line in process.stderr:
        steps.setdefault(line.partition(":")[0], time.monotonic())
        if sys.stderr.isatty():
            sys.stderr.write(line)


def one(database_url: str, query: str) -> Any:
    with psycopg.connect(database_url, autocommit=True) as connection:
        row = connection.execute(query.encode()).fetchone()
        return row[0] if row else None


async def year_of_figures(database_url: str) -> float:
    """Milliseconds that the dashboard's figures of a year take, for the merchant with most payments; the median."""
    pool = connection_pool(database_url, size=2, application_name="benchmark figures")
    await pool.open()
    merchant = one(database_url, "SELECT merchant_id FROM payments GROUP BY 1 ORDER BY count(*) DESC LIMIT 1")
    took = []
    async with EventStore(database_url, pool, mac_key=MAC_KEY) as store:
        for _ in range(11):
            began = time.monotonic()
            end = filled_log.END + timedelta(hours=7)
            await payment_figures(store, merchant_id=merchant, begin=end - timedelta(days=366), end=end)
            took.append(time.monotonic() - began)
    await pool.close()
    return figures.percentile(took, 0.5)


def sibling(database_url: str, name: str, *, keep: bool = False) -> str:
    """The URL of another database of the server, made anew unless it is to be kept."""
    if not keep:
        with psycopg.connect(database_url, autocommit=True) as connection:
            connection.execute(f"DROP DATABASE IF EXISTS {name}".encode())
            connection.execute(f"CREATE DATABASE {name}".encode())
    url = make_conninfo(database_url, dbname=name)
    parts = conninfo_to_dict(url)
    return f"postgresql://{parts['user']}:{parts['password']}@{parts['host']}:{parts['port']}/{name}"


def measure(database_url: str, *, events: int, library_events: int) -> dict[str, Any]:
    there = one(database_url, "SELECT coalesce(max(notification_id), 0) FROM stored_events")
    if there == 0:
        asyncio.run(filled_log.fill(database_url, events=events))
    first = rebuild(database_url)
    year = asyncio.run(year_of_figures(database_url))
    subscribers = one(database_url, SUBSCRIBERS)
    roles = {name: Role(name, database_url) for name in ROLES}
    try:
        time.sleep(SETTLE_SECONDS)
        alone = (time.monotonic(), time.monotonic() + ALONE_SECONDS)
        time.sleep(ALONE_SECONDS)
        beside = rebuild(database_url)
        reads = roles["reader"].end()
        written = roles["writer"].end()
        roles["projector"].end()
    except BaseException:
        for role in roles.values():
            role.kill()
        raise
    verified = subprocess.run(
        [str(Path(sys.executable).with_name("payloops")), "projections", "verify", "--json"],
        env={**os.environ, "DATABASE_URL": database_url},
        stdout=subprocess.PIPE,
        check=False,
    )
    before = [took for due, took in reads if alone[0] <= due < alone[1]]
    by_step = {
        step: [took for due, took in reads if begins <= due < ends]
        for step, (begins, ends) in beside["steps"].items()
    }
    during = [took for of_step in by_step.values() for took in of_step]
    library = sibling(database_url, "library")
    migrate(database_url=library)
    asyncio.run(filled_log.fill(library, events=library_events))
    library_seconds = library_runner.run(library, events=library_events)
    return {
        "events": first["position"],
        "rebuild_alone": {
            "seconds": first["seconds"],
            "events_per_second": first["eventsPerSecond"],
            "seconds_of_step": _seconds(first),
        },
        "rebuild_beside_load": {
            "seconds": beside["seconds"],
            "events_per_second": beside["eventsPerSecond"],
            "seconds_of_step": _seconds(beside),
            "memory_mb": round(beside["memory_mb"]),
        },
        "orders_written_per_second": round(written["written"] / written["seconds"]),
        "orders_refused": written["refused"],
        "read_ms_alone": {"p50": figures.percentile(before, 0.5), "p99": figures.percentile(before, 0.99)},
        "read_ms_during_rebuild": {
            "p50": figures.percentile(during, 0.5),
            "p99": figures.percentile(during, 0.99),
            "p99_of_step": {step: figures.percentile(took, 0.99) for step, took in by_step.items()},
        },
        "figures_of_a_year_ms": year,
        "webhooks_queued": one(database_url, "SELECT count(*) FROM webhook_events"),
        "subscribers_moved": one(database_url, SUBSCRIBERS) - subscribers,
        "rows_that_differ": sum(each["differing"] for each in json.loads(verified.stdout)),
        "library": {"events": library_events, "events_per_second": round(library_events / library_seconds)},
    }


def _seconds(rebuilt: dict[str, Any]) -> dict[str, float]:
    return {step: round(ends - begins, 2) for step, (begins, ends) in rebuilt["steps"].items()}


def show(found: dict[str, Any]) -> None:
    beside, alone, during = (
        found["rebuild_beside_load"],
        found["read_ms_alone"],
        found["read_ms_during_rebuild"],
    )
    library = found["library"]["events_per_second"]
    rows = (
        ("events/s, nobody else there", "", f"{found['rebuild_alone']['events_per_second']:,}"),
        ("events/s, beside writer and reader", "≥ 50,000", f"{beside['events_per_second']:,}"),
        ("memory of its processes, MB", "< 300", str(beside["memory_mb"])),
        ("orders written a second meanwhile", str(ORDERS_A_SECOND), str(found["orders_written_per_second"])),
        ("orders refused", "0", str(found["orders_refused"])),
        ("read by id, p50 ms: without, with", "", f"{alone['p50']:.1f}, {during['p50']:.1f}"),
        (
            "the same, seconds to fill, index, catch up and swap",
            "",
            ", ".join(f"{seconds:.1f}" for seconds in beside["seconds_of_step"].values()),
        ),
        (
            "read by id, p99 ms: without, with",
            "< 2 times",
            f"{alone['p99']:.1f}, {during['p99']:.1f}: {during['p99'] / alone['p99']:.2f} times",
        ),
        (
            "the same, while it fills, indexes, catches up and swaps",
            "",
            ", ".join(f"{p99:.1f}" for p99 in during["p99_of_step"].values()),
        ),
        ("dashboard's figures of a year, ms", "< 50", f"{found['figures_of_a_year_ms']:.1f}"),
        (
            "webhooks queued, subscribers moved",
            "0, 0",
            f"{found['webhooks_queued']}, {found['subscribers_moved']}",
        ),
        ("rows that differ from the log", "0", str(found["rows_that_differ"])),
        (
            "events/s of the library's ProjectionRunner",
            "",
            f"{library:,}: {found['events'] / library / 60:.0f} minutes for this log",
        ),
    )
    title = f"Rebuilding projections of {found['events']:,} events"
    figures.show(title, rows, columns=("Figure", "Goal", "Measured"))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--library-events", type=int, default=10_000, help="that the library's runner folds")
    parser.add_argument("--data-dir", type=Path, help="keep the log here, and use it again")
    parser.add_argument("--role", choices=ROLES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.role is not None:
        asyncio.run(ROLES[options.role](os.environ["DATABASE_URL"]))
        return
    with figures.database(options.data_dir) as database_url:
        found = measure(database_url, events=options.events, library_events=options.library_events)
    show(found)
    figures.keep("rebuild", found)


if __name__ == "__main__":
    run(main)
