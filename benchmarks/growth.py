"""Whether the service stays as fast as its log grows, and how much disk an order takes.

On an embedded PostgreSQL of its own, databases with 10,000, 100,000 and 1,000,000 orders stand side by side, each
with its projections. They take turns, in short rounds: appends, reads by id, and lists, for the merchant who has most
orders and so more of them, the more there are. Then each list there is, with each combination of what it can be asked
for, is explained on the largest: which of them read a table from end to end.

    make bench ARGS=growth                                       # some minutes, most of them to fill
    python benchmarks/growth.py --data-dir .growth               # keeps them: the next time they are there
    python benchmarks/growth.py --orders 10000 100000            # without the largest
"""

import argparse
import asyncio
import os
import random
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from statistics import median
from typing import Any
from uuid import UUID

import figures
import filled_log
import psycopg
from append import created_order
from listing import Asked, ExplainingCursor, lists, read_whole
from process_usage import family, run, server_of
from rebuild import rebuild, sibling

from payloops.events.event_store import EventStore
from payloops.events.pools import connection_pool
from payloops.migrate import migrate
from payloops.projections import order_search, staff_orders
from payloops.projections.order_list import UnknownCursor, list_orders
from payloops.projections.orders import get_order
from payloops.projections.staff_orders import StaffSearch
from payloops.projections.stats import payment_figures

MAC_KEY = bytes(32)
CALLS = 60
"""Of each kind, in each round."""
WARMED = 300
"""Orders and customers that are asked for, in each of the databases. A first round, which is told apart, asks for all
of them: what is read for the first time comes from the disk or the system's memory, and how much of a database
PostgreSQL has in its own depends on the machine."""
FLAT = 1.2
SOME = "SELECT id, merchant_id FROM orders TABLESAMPLE SYSTEM (%s) REPEATABLE (1)"
BUSIEST = "SELECT merchant_id, count(*) FROM orders GROUP BY merchant_id ORDER BY count(*) DESC LIMIT 1"
SIZES = """
    SELECT relname, pg_table_size(oid), pg_indexes_size(oid) FROM pg_class
    WHERE relnamespace = 'public'::regnamespace AND relkind = 'r' AND pg_table_size(oid) > 8192 * 20
    ORDER BY pg_total_relation_size(oid) DESC
"""
BIG = "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND reltuples > 500"
"""Of small tables a sequential scan says nothing; tests/test_query_plans.py looks at all."""
LOG = {"stored_events", "personal_keys"}


@dataclass(kw_only=True)
class Filled:
    """A database with so many orders.

    Attributes:
        chosen: ids of some orders and of their merchants. numbers: of others, as their external ids have them.
        customers: some.
        first: seconds of the first round, by what was asked. took: of those after it.
    """

    orders: int
    database_url: str
    store: EventStore
    chosen: list[tuple[UUID, UUID]]
    numbers: list[int]
    customers: list[int]
    busiest: UUID
    most: int
    first: dict[str, list[float]] = field(default_factory=dict)
    took: dict[str, list[float]] = field(default_factory=dict)


Call = Callable[[Filled, int], Awaitable[object]]
"""The second argument says which of `WARMED` is asked for."""


async def _append(there: Filled, _: int) -> object:
    return await there.store.append(created_order())


async def _read(there: Filled, which: int) -> object:
    order_id, merchant_id = there.chosen[which]
    return await get_order(there.store, order_id=order_id, merchant_id=merchant_id)


async def _list(there: Filled, _: int) -> object:
    return await list_orders(there.store, merchant_id=there.busiest, limit=10)


async def _list_on(there: Filled, which: int) -> object:
    order_id, merchant_id = there.chosen[which]
    return await list_orders(there.store, merchant_id=merchant_id, limit=10, starting_after=order_id)


async def _page(there: Filled, _: int) -> object:
    return await order_search.search_orders(there.store, merchant_id=there.busiest, page=1, limit=20)


async def _search(there: Filled, which: int) -> object:
    part = f"order-{there.numbers[which]}"
    return await order_search.search_orders(
        there.store, merchant_id=there.busiest, page=1, limit=20, text=part
    )


async def _find(there: Filled, which: int) -> object:
    search = StaffSearch(text=f"order-{there.numbers[which]}")
    return await staff_orders.search_all_orders(there.store, search, page=1, limit=20)


async def _find_email(there: Filled, which: int) -> object:
    search = StaffSearch(email=f"customer-{there.customers[which]}@example.com")
    return await staff_orders.search_all_orders(there.store, search, page=1, limit=20)


async def _figures(there: Filled, _: int) -> object:
    end = filled_log.END
    return await payment_figures(
        there.store, merchant_id=there.busiest, begin=end - timedelta(days=30), end=end
    )


CALLS_OF: dict[str, Call] = {
    "append an order": _append,
    "read an order by id": _read,
    "GET /v1/orders, first page": _list,
    "GET /v1/orders, after any order": _list_on,
    "GET /api/orders, first page and total": _page,
    "GET /api/orders?q=, an external id": _search,
    "staff: find by external id": _find,
    "staff: find by email": _find_email,
    "GET /api/dashboard/stats, 30 days": _figures,
}
COUNTED = {"GET /api/orders?q=, an external id"}
"""Tells how many of the merchant's orders fit a text, and so has to look at each that may: there are more, the more
there are."""


def fill(database_url: str, *, orders: int) -> None:
    """Make a log with about so many orders, and the projections of it, unless they are there."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        row = connection.execute("SELECT count(*) FROM orders").fetchone()
    if row is not None and row[0] > 0:
        return
    events = round(orders * filled_log.events_per_order())
    asyncio.run(filled_log.fill(database_url, events=events))
    rebuild(database_url)
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("VACUUM (ANALYZE)")
        connection.execute("CHECKPOINT")


async def opened(database_url: str, stack: AsyncExitStack, chance: random.Random) -> Filled:
    pool = connection_pool(database_url, size=2, application_name="benchmark")
    await pool.open()
    stack.push_async_callback(pool.close)
    store = await stack.enter_async_context(EventStore(database_url, pool, mac_key=MAC_KEY))
    async with pool.connection() as connection:
        row = await (await connection.execute("SELECT count(*) FROM orders")).fetchone()
        assert row is not None
        share = min(100.0, 200_000 / row[0])
        some = await (await connection.execute(SOME, (share,))).fetchall()
        busiest = await (await connection.execute(BUSIEST)).fetchone()
        assert busiest is not None
    return Filled(
        orders=row[0],
        database_url=database_url,
        store=store,
        chosen=chance.choices(some, k=WARMED),
        numbers=chance.choices(range(row[0]), k=WARMED),
        customers=chance.choices(range(filled_log.customers_of(row[0])), k=WARMED),
        busiest=busiest[0],
        most=busiest[1],
    )


def separate_cores(database_url: str) -> None:
    """Run this process on one core and PostgreSQL on the others.

    Otherwise the scheduler has a session share this process's core, or not: a read by id takes 50 or 90 µs then.
    """
    ours, *others = sorted(os.sched_getaffinity(0))
    if others:
        os.sched_setaffinity(0, {ours})
        for pid in family(server_of(database_url)):  # sessions that it starts later inherit it
            os.sched_setaffinity(pid, others)


async def ask(urls: list[str], *, rounds: int) -> dict[str, Any]:
    """Let the databases take turns with each kind of call."""
    chance = random.Random(1)
    async with AsyncExitStack() as stack:
        filled = [await opened(url, stack, chance) for url in urls]
        for number in range(rounds + 1):
            for name, call in CALLS_OF.items():
                for there in filled:
                    which = range(WARMED) if number == 0 else chance.sample(range(WARMED), CALLS)
                    took = (there.first if number == 0 else there.took).setdefault(name, [])
                    for each in which:
                        began = time.perf_counter()
                        await call(there, each)
                        took.append(time.perf_counter() - began)
    smallest, largest = filled[0], filled[-1]
    return {
        "sizes": [
            {
                "orders": there.orders,
                "orders_of_the_merchant_with_most": there.most,
                "ms": _medians(there.took),
                "ms_at_first": _medians(there.first),
            }
            for there in filled
        ],
        "to_the_smallest": _ratios(largest.took, smallest.took),
        "to_the_smallest_at_first": _ratios(largest.first, smallest.first),
    }


def _medians(took: dict[str, list[float]]) -> dict[str, float]:
    return {name: round(median(each) * 1_000, 3) for name, each in took.items()}


def _ratios(took: dict[str, list[float]], base: dict[str, list[float]]) -> dict[str, float]:
    return {name: round(median(each) / median(base[name]), 2) for name, each in took.items()}


def disk(database_url: str, *, orders: int) -> dict[str, dict[str, float]]:
    """Bytes an order, by table: rows and indexes."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        found = connection.execute(SIZES).fetchall()
    return {
        name: {"rows": round(rows / orders, 1), "indexes": round(indexes / orders, 1)}
        for name, rows, indexes in found
    }


async def explained(database_url: str) -> dict[str, Any]:
    """How many queries of lists were explained, and those that read a table from end to end."""
    pool = connection_pool(database_url, size=2, application_name="benchmark")
    assert isinstance(pool.kwargs, dict)
    pool.kwargs = {**pool.kwargs, "cursor_factory": ExplainingCursor}
    await pool.open()
    store = EventStore(database_url, pool, mac_key=MAC_KEY)
    async with pool.connection() as connection:
        row = await (await connection.execute(BUSIEST)).fetchone()
        assert row is not None
        order = await (
            await connection.execute("SELECT id FROM orders WHERE merchant_id = %s LIMIT 1", (row[0],))
        ).fetchone()
        assert order is not None
        big = {name for (name,) in await (await connection.execute(BIG)).fetchall()}
    # A processor's references are of one payment each; those in the log are copies of one.
    asked = Asked(merchant_id=row[0], order_id=order[0], now=filled_log.END, reference="ch_of_one")
    whole: dict[str, list[str]] = {}
    queries = 0
    for name, each in lists():
        ExplainingCursor.plans.clear()
        with suppress(UnknownCursor):
            await each(store, asked)
        queries += len(ExplainingCursor.plans)
        found = [part for plan in ExplainingCursor.plans for part in read_whole(plan, tables=big)]
        if found:
            whole[name] = sorted(set(found))
    await pool.close()
    return {"queries": queries, "read_a_table_as_a_whole": whole}


def measure(urls: list[str], *, orders: list[int], rounds: int) -> dict[str, Any]:
    for url, count in zip(urls, orders, strict=True):
        began = time.monotonic()
        fill(url, orders=count)
        print(f"{count:,} orders are there after {time.monotonic() - began:.0f} s", flush=True)
    separate_cores(urls[0])
    found = asyncio.run(ask(urls, rounds=rounds))
    largest = found["sizes"][-1]["orders"]
    return {
        **found,
        "bytes_of_an_order": disk(urls[-1], orders=largest),
        "lists": asyncio.run(explained(urls[-1])),
    }


def show(found: dict[str, Any]) -> None:
    sizes = found["sizes"]
    rows = []
    for name in CALLS_OF:
        ratio = found["to_the_smallest"][name]
        times = (f"{size['ms'][name]:.2f}" for size in sizes)
        at_first = found["to_the_smallest_at_first"][name]
        rows.append((name, *times, f"{ratio:.2f}", "" if name in COUNTED else f"≤ {FLAT}", f"{at_first:.2f}"))
    columns = (
        "Median, ms",
        *(f"{size['orders']:,} orders" for size in sizes),
        "Largest to smallest",
        "Goal",
        "At first",
    )
    figures.show("As the log grows", rows, columns=columns)
    most = sizes[-1]["orders_of_the_merchant_with_most"]
    print(f"lists are asked for the merchant with most orders: {most:,} in the largest")
    bytes_of = found["bytes_of_an_order"]
    disk_rows = [(name, f"{each['rows']:,.0f}", f"{each['indexes']:,.0f}") for name, each in bytes_of.items()]
    for title, names in (("log", LOG), ("projections and others", bytes_of.keys() - LOG)):
        total = {part: sum(bytes_of[name][part] for name in names) for part in ("rows", "indexes")}
        disk_rows.append((f"{title}, in all", f"{total['rows']:,.0f}", f"{total['indexes']:,.0f}"))
    figures.show("Bytes on disk an order", disk_rows, columns=("Table", "Rows", "Indexes"))
    whole = found["lists"]["read_a_table_as_a_whole"]
    print(
        f"{found['lists']['queries']} queries of lists explained: {len(whole)} read a table from end to end"
    )
    for name, parts in whole.items():
        print(f"  {name}: {', '.join(parts)}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--orders", type=int, nargs="*", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--data-dir", type=Path, help="keep the databases here, and use them again")
    parser.add_argument("--quick", action="store_true", help="1,000 and 10,000 orders")
    options = parser.parse_args()
    orders = [1_000, 10_000] if options.quick else sorted(options.orders)
    with figures.database(options.data_dir) as database_url:
        urls = [database_of(database_url, count) for count in orders]
        found = measure(urls, orders=orders, rounds=1 if options.quick else options.rounds)
    show(found)
    if not options.quick:
        figures.keep("growth", found)


def database_of(database_url: str, orders: int) -> str:
    """The URL of the database with so many orders, migrated; made where there is none."""
    name = f"orders_{orders}"
    with psycopg.connect(database_url, autocommit=True) as connection:
        there = connection.execute("SELECT FROM pg_database WHERE datname = %s", (name,)).fetchone()
    url = sibling(database_url, name, keep=there is not None)
    migrate(database_url=url)
    return url


if __name__ == "__main__":
    run(main)
