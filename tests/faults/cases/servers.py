"""The servers that the service stands on go away under load, and come back."""

import asyncio
import contextlib
import os
import signal

import psycopg

from faults.cases.registry import case
from faults.cases.trouble import listen, whole_service
from faults.shops import Shop, open_shop, under_load
from faults.world import World
from payloops.embedded.servers import Part

SERVES = "SELECT pid FROM pg_stat_activity WHERE datname = %s AND application_name LIKE %s LIMIT 1"


async def outages(world: World, part: Part, *, times: int, away: tuple[float, float], killed: bool) -> None:
    """A server goes away and comes back, a few times. `away`: seconds, from and to; `killed`: with -9, or asked to."""
    for _ in range(times):
        await asyncio.sleep(world.chance.uniform(0.5, 3.0))
        seconds = world.chance.uniform(*away)
        world.notes.append(f"{part} {'killed' if killed else 'stopped'} for {seconds:.1f} s")
        await world.stop_server(part, killed=killed)
        await asyncio.sleep(seconds)
        await world.start_server(part)


@case
async def postgres_restarted(world: World) -> None:
    """PostgreSQL is stopped under load, for an instant or for longer than anybody waits."""
    whole_service(world)
    await world.start_all()
    shop = await open_shop(world)
    away = world.chance.choice([(0.0, 3.0), (9.0, 16.0)])
    await under_load(shop, outages(world, "postgres", times=2, away=away, killed=False), at_once=8)


@case
async def postgres_killed(world: World) -> None:
    """PostgreSQL is killed with -9 under load, one of its processes or all of them."""
    whole_service(world)
    await world.start_all()
    shop = await open_shop(world)
    if world.chance.random() < 0.5:
        trouble = outages(world, "postgres", times=2, away=(0.0, 4.0), killed=True)
    else:
        trouble = backends_killed(world, times=3)
    await under_load(shop, trouble, at_once=8)


async def backends_killed(world: World, *, times: int) -> None:
    """One server process dies, which has PostgreSQL end all others and recover."""
    for _ in range(times):
        await asyncio.sleep(world.chance.uniform(0.5, 3.0))
        whose = world.chance.choice(["payloops appender", "payloops api", "payloops projector%"])
        pid = await server_process(world, whose)
        world.notes.append(f"killed a server process of {whose}")
        os.kill(pid, signal.SIGKILL)


async def server_process(world: World, whose: str) -> int:
    """Process id of one that serves such a client, as soon as there is one."""
    async with asyncio.timeout(30):
        while True:
            with contextlib.suppress(psycopg.Error):
                async with world.store.pool.connection() as connection:
                    cursor = await connection.execute(SERVES, (world.settings.temporal_namespace, whose))
                    row = await cursor.fetchone()
                if row is not None:
                    return int(row[0])
            await asyncio.sleep(0.1)


@case
async def redis_down(world: World) -> None:
    """Redis is away under load, while merchants log in."""
    world.settings = world.settings.model_copy(
        update={
            "rate_limits": True,
            "login_limit_per_address": "100000/minute",
            "login_limit_per_account": "100000/minute",
        }
    )
    whole_service(world)
    await world.start_all()
    shop = await open_shop(world)
    killed = world.chance.random() < 0.5
    logins = asyncio.create_task(logging_in(shop))
    await under_load(shop, outages(world, "valkey", times=2, away=(0.5, 4.0), killed=killed), at_once=4)
    logins.cancel()


async def logging_in(shop: Shop) -> None:
    while True:
        await asyncio.sleep(0.2)
        answer = await shop.log_in()
        if answer is not None and answer.status not in {200, 503}:
            shop.world.journal.wrong.append(f"a login was answered {answer.status} {answer.code}")


@case
async def temporal_down(world: World) -> None:
    """Temporal is away under load: payments are accepted, and made when it is back."""
    whole_service(world)
    await world.start_all()
    shop = await open_shop(world, webhook_url=await listen(world))
    killed = world.chance.random() < 0.5
    await under_load(shop, outages(world, "temporal", times=2, away=(0.5, 8.0), killed=killed), at_once=4)
