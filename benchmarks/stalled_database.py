"""How soon the API says that it cannot, when its database does not get on.

While another session holds a lock on `orders`, requests that read an order come from many connections: they take
every connection of the pool, and none comes back before PostgreSQL's own timeout ends the statement. Printed is how
long each answer took, by its status, and how long `/health` took meanwhile; apart from the others those few who had
a connection, and so waited for that timeout. Against a running service on this machine:

    payloops dev                              # in another terminal
    python benchmarks/stalled_database.py     # --data-dir as there, if one was given
"""

import argparse
import asyncio
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import aiohttp
import psycopg

from payloops.dev.demo_merchant import read_demo_merchant
from payloops.dev.environment import read_environment
from payloops.events.connections import STATEMENT_TIMEOUT

LIMIT = 100.0
"""Milliseconds in which a refusal is to come."""


async def calls(
    session: aiohttp.ClientSession, path: str, *, until: float, took: dict[Any, list[float]]
) -> None:
    """One client: a request after the other."""
    while time.monotonic() < until:
        began = time.perf_counter()
        async with session.get(path) as answer:
            await answer.read()
            told = "Retry-After" in answer.headers
        milliseconds = (time.perf_counter() - began) * 1000
        held = milliseconds > STATEMENT_TIMEOUT * 1000
        took[(path.split("/")[1], answer.status, told, held)].append(milliseconds)
        await asyncio.sleep(0.02)


async def main(*, data_dir: Path, clients: int, seconds: float) -> None:
    merchant, environment = read_demo_merchant(data_dir=data_dir), read_environment(data_dir=data_dir)
    if merchant is None:
        raise SystemExit(f"no service has run on {data_dir}: start `payloops dev` first")
    took: dict[Any, list[float]] = defaultdict(list)
    connector = aiohttp.TCPConnector(limit=0)
    headers = {"X-API-Key": merchant.api_key}
    async with aiohttp.ClientSession(merchant.url, headers=headers, connector=connector) as session:
        async with session.post("/v1/orders", json={"amount": 1}) as answer:
            order = (await answer.json())["id"]
        async with await psycopg.AsyncConnection.connect(environment["DATABASE_URL"]) as other:
            await other.execute("LOCK TABLE orders IN ACCESS EXCLUSIVE MODE")
            until = time.monotonic() + seconds
            await asyncio.gather(
                calls(session, "/health", until=until, took=took),
                *(calls(session, f"/v1/orders/{order}", until=until, took=took) for _ in range(clients)),
            )
        async with session.get(f"/v1/orders/{order}") as answer:
            print(f"{clients} clients for {seconds:g} s; once the lock is gone: {answer.status}")
    print(
        f"{'path':8} {'status':>6} {'answers':>8} {'p50 ms':>8} {'p99 ms':>8} {'max ms':>8}  within {LIMIT:g} ms"
    )
    for (path, status, told, held), times in sorted(took.items()):
        times.sort()
        p50, p99 = (times[min(len(times) - 1, int(len(times) * share))] for share in (0.5, 0.99))
        within = sum(each <= LIMIT for each in times) / len(times)
        note = "" if status == 200 or told else "  without Retry-After!"
        note += "  had a connection" if held else ""
        print(
            f"{path:8} {status:6} {len(times):8} {p50:8.1f} {p99:8.1f} {times[-1]:8.1f}  {within:.1%}{note}"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-dir", type=Path, default=Path(".payloops"))
    parser.add_argument("--clients", type=int, default=40)
    parser.add_argument("--seconds", type=float, default=4.0)
    given = parser.parse_args()
    asyncio.run(main(data_dir=given.data_dir, clients=given.clients, seconds=given.seconds))
