"""PostgreSQL's primary is lost, and its standby takes its place."""

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import psycopg
from psycopg.rows import TupleRow
from standby import COPYING, standby_of

from faults.cases.registry import Skipped, case
from faults.cases.trouble import whole_service
from faults.shops import open_shop, under_load
from faults.world import World, operate
from payloops.embedded import EmbeddedServers
from payloops.embedded.binaries import find_postgres
from payloops.migrate import migrate

UP_SECONDS = 60.0


@case
async def postgres_failover(world: World) -> None:
    """PostgreSQL is killed under load for good, and its synchronous standby is promoted."""
    primary, standby = await primary_and_standby(world)
    await asyncio.to_thread(migrate, database_url=primary.database_url)
    user, _, there = primary.database_url.partition("@")
    await world.move_to(f"{user}@127.0.0.1:{standby.postgres.port},{there}")  # to be passed over
    whole_service(world)
    await world.start_all()
    shop = await open_shop(world)
    await under_load(shop, fail_over(world, primary, standby), at_once=8)


async def primary_and_standby(world: World) -> tuple[EmbeddedServers, EmbeddedServers]:
    """The primary confirms nothing that the standby does not have."""
    if not (find_postgres() / COPYING).exists():
        raise Skipped(f"needs {COPYING} beside the server's programs")
    primary = EmbeddedServers(data_dir=world.folder / "primary", parts=["postgres"])
    await operate(primary.start)
    world.until_rest.push_async_callback(operate, primary.stop)
    standby = await operate(standby_of, primary, data_dir=world.folder / "standby", ephemeral=False)
    world.until_rest.push_async_callback(operate, standby.stop)
    async with administering(primary) as connection:
        await connection.execute("ALTER SYSTEM SET synchronous_standby_names = '*'")
        await connection.execute("SELECT pg_reload_conf()")
        await follows(connection)
    return primary, standby


async def fail_over(world: World, primary: EmbeddedServers, standby: EmbeddedServers) -> None:
    """One of the two is away for a while; then the primary is, for good."""
    await asyncio.sleep(world.chance.uniform(1.0, 3.0))
    which, servers = world.chance.choice([("primary", primary), ("standby", standby)])
    seconds = world.chance.uniform(0.0, 8.0)
    world.notes.append(f"no {which} for {seconds:.1f} s")
    await operate(servers.stop_part, "postgres")
    await asyncio.sleep(seconds)
    await operate(servers.start_part, "postgres")
    async with administering(primary) as connection:
        await follows(connection)
    await all_ready(world)
    await asyncio.sleep(world.chance.uniform(1.0, 3.0))
    child = primary.postgres.child
    assert child is not None
    child.send(signal.SIGKILL)
    await operate(child.wait, seconds=UP_SECONDS)
    await operate(primary.stop_part, "postgres")
    seconds = world.chance.uniform(0.0, 5.0)
    world.notes.append(f"promoted after {seconds:.1f} s")
    await asyncio.sleep(seconds)
    async with administering(standby) as connection:
        await connection.execute("SELECT pg_promote()")
        await becomes(connection, "SELECT pg_is_in_recovery()", False)
    await all_ready(world)


async def all_ready(world: World) -> None:
    await asyncio.gather(*(world.ready(api) for api in world.apis))


@asynccontextmanager
async def administering(servers: EmbeddedServers) -> AsyncIterator[psycopg.AsyncConnection[TupleRow]]:
    async with await psycopg.AsyncConnection.connect(servers.database_url, autocommit=True) as connection:
        yield connection


async def follows(connection: psycopg.AsyncConnection[TupleRow]) -> None:
    """Wait until a standby follows this primary."""
    await becomes(connection, "SELECT sync_state FROM pg_stat_replication", "sync")


async def becomes(connection: psycopg.AsyncConnection[TupleRow], query: str, wanted: Any) -> None:
    async with asyncio.timeout(UP_SECONDS):
        while await (await connection.execute(query)).fetchone() != (wanted,):
            await asyncio.sleep(0.1)
