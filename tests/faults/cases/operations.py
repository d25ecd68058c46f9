"""What operators do, and what machines do to them: restarts, upgrades, rebuilds, clocks, disks, odd events."""

import asyncio
import contextlib
import secrets
import shutil
import subprocess
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

import orjson
from eventsourcing.persistence import StoredEvent
from uuid_utils.compat import uuid7

from faults.cases.registry import Skipped, case
from faults.cases.trouble import killing, listen, whole_service
from faults.shops import TOKENS, Life, Shop, create_order, open_shop, under_load
from faults.world import COMMANDS_LOG, POISON, World, operate
from payloops.embedded import EmbeddedServers
from payloops.events.crash_points import CrashPoint
from payloops.migrate import migrate
from payloops.projections.projection import all_projections

IN_FLIGHT = 200
FAKETIME = ("usr/lib/*/faketime/libfaketimeMT.so.1", "usr/local/lib/faketime/libfaketimeMT.so.1")


@case
async def sigterm(world: World) -> None:
    """An API process is asked to stop with 200 requests in flight: each of them is answered."""
    whole_service(world)
    await world.start_all()
    shop = await open_shop(world)
    orders = await asyncio.gather(*(create_order(shop) for _ in range(IN_FLIGHT)))
    victim = world.apis[0]
    sent = [
        asyncio.create_task(in_flight(shop, order_id, wait=world.chance.choice([0, 0, 5, 20])))
        for order_id in orders
    ]
    until = world.chance.choice([0, 10, 100])
    async with asyncio.timeout(30):
        while sum(task.done() for task in sent) < until or not await world.count("payment.requested"):
            await asyncio.sleep(0.01)
    left = sum(not task.done() for task in sent)
    await world.stop(victim.name)
    answers = await asyncio.gather(*sent)
    world.notes.append(f"{left} in flight")
    unanswered = [answer for answer in answers if answer is None]
    assert not unanswered, f"{len(unanswered)} of {left} requests in flight were not answered"
    victim.wanted = True
    world.start(victim.name)
    await world.ready(victim)


async def in_flight(shop: Shop, order_id: str, *, wait: int) -> int | None:
    """Pay at the first API process, once; None where there is no answer."""
    command = shop.new_command("pay", order_id=order_id)
    body = {
        "paymentMethod": {"type": "card", "token": shop.chance.choice(["tok_visa", "tok_visa", "tok_slow"])}
    }
    tried = await shop.try_once(command, f"/v1/orders/{order_id}/pay", body, wait=wait, api=0)
    return None if tried.answer is None else tried.answer.status


@case
async def rolling_restart(world: World) -> None:
    """Every process is restarted in turn under load, as by an upgrade: each stops in order."""
    whole_service(world)
    await world.start_all()
    shop = await open_shop(world, webhook_url=await listen(world))
    await under_load(shop, restarts(world), at_once=5)


async def restarts(world: World) -> None:
    names = world.chance.sample([*world.processes], len(world.processes))
    for name in names:
        await world.stop(name)
        world.start(name)
        if name.startswith("api"):
            await world.ready(world.processes[name])
        await asyncio.sleep(world.chance.uniform(0.0, 1.5))


@case
async def rebuild(world: World) -> None:
    """Projections are rebuilt under load; the rebuild is killed with -9, again and again, and goes on."""
    whole_service(world)
    await world.start_all()
    shop = await open_shop(world)
    await under_load(shop, rebuilds(world), at_once=5)


BUILD_POINTS: tuple[CrashPoint, ...] = (
    "build.begun",
    "build.chunk_filled",
    "build.counted",
    "build.swapped",
)
"""In the order in which a rebuild passes them: one that goes on does not pass those before."""
SWAPS_BEFORE_THE_LAST = len(all_projections()) - 1
"""After the last one, nothing is left to go on with."""


async def rebuilds(world: World) -> None:
    """One rebuild, killed twice or three times where it has come to, and gone on with each time."""
    await asyncio.sleep(world.chance.uniform(1.0, 4.0))
    for place in sorted(world.chance.sample(range(len(BUILD_POINTS)), 2)):
        point = BUILD_POINTS[place]
        passings = world.chance.randint(1, SWAPS_BEFORE_THE_LAST) if point == "build.swapped" else 1
        await world.run("projections", "rebuild", crash_at=(point, passings))
        await asyncio.sleep(world.chance.uniform(0.0, 1.5))
    ended = await world.run("projections", "rebuild", kill_after=world.chance.uniform(1.0, 4.0))
    world.notes.append("rebuild killed at any moment" if ended is None else "rebuild done")
    done = await world.run("projections", "rebuild")
    assert done == 0, f"the rebuild ended with {done}"
    told = (world.folder / COMMANDS_LOG).read_text()
    assert "the rest of it" in told, "the rebuild began anew, in place of going on"


@case
async def reconcile(world: World) -> None:
    """Processors are asked about payments while these are made; who asks is killed, and so are workers."""
    whole_service(world)
    await world.start_all()
    shop = await open_shop(world)
    async with asyncio.TaskGroup() as group:
        group.create_task(killing(world, "worker-1", times=2, every=(3.0, 6.0)))
        await under_load(shop, reconciling(world), at_once=5)


async def reconciling(world: World) -> None:
    """At once after what they are about, as nobody would: whatever is told is then told twice, and in any order."""
    for _ in range(5):
        kill_after = world.chance.choice([None, None, world.chance.uniform(1.0, 3.0)])
        command = ("reconcile", "--sandbox", "--older-than", "0s")
        ended = await world.run(*command, kill_after=kill_after)
        assert ended in {0, 1, None}, f"the reconciliation ended with {ended}"
        world.notes.append("reconcile " + ("killed" if ended is None else "done"))


ERASURE_POINTS: tuple[CrashPoint, ...] = (
    "erasure.mentions_erased",
    "append_in.appended",
    "erasure.key_dropped",
    "erasure.copies_erased",
)
"""In the order in which an erasure passes them: a later one need not pass those before."""


@case
async def erasure(world: World) -> None:
    """A customer's data is erased while the customer's orders are paid; the erasure is killed and run again."""
    whole_service(world)
    await world.start_all()
    shop = await open_shop(world, webhook_url=await listen(world))
    await under_load(shop, erasing(shop), at_once=3)


async def erasing(shop: Shop) -> None:
    """Afterwards nothing of the customer stands anywhere: looked for as secrets are."""
    world = shop.world
    email, name = f"{secrets.token_hex(8)}@example.com", secrets.token_hex(8)
    details = {"customerEmail": email, "metadata": {"name": name}}
    lives = [Life(shop=shop, tokens=TOKENS, details=details) for _ in range(8)]
    going_on = asyncio.gather(*(life.live() for life in lives))
    await asyncio.sleep(world.chance.uniform(1.0, 3.0))
    command = ("privacy", "erase", "--merchant", str(shop.id), "--email", email, "--yes")
    for place in sorted(world.chance.sample(range(len(ERASURE_POINTS)), 2)):
        await world.run(*command, crash_at=(ERASURE_POINTS[place], 1))
    ended = await world.run(*command)
    assert ended in {0, 1}, f"the erasure ended with {ended}"  # 1: an order of the customer's came meanwhile
    await going_on
    assert await world.run(*command) == 0, "the erasure left something"
    world.canaries |= {"address of an erased customer": email, "name of an erased customer": name}


@case
async def clock_jumps(world: World) -> None:
    """The clocks of processes jump, by minutes and by an hour, ahead and back. Needs libfaketime."""
    library = next((path for pattern in FAKETIME for path in Path("/").glob(pattern)), None)
    if library is None:
        raise Skipped("needs libfaketime: `make faketime`, or apt-get install libfaketime")
    whole_service(world)
    clocks = [set_clock(world, name, library=library) for name in world.processes]
    world.skewed = True
    await world.start_all()
    shop = await open_shop(world, webhook_url=await listen(world))
    await under_load(shop, jumps(world, clocks), at_once=5)


def set_clock(world: World, name: str, *, library: Path) -> Path:
    """Give a process a clock of its own, right until the file says otherwise."""
    clock = world.folder / f"{name}.clock"
    clock.write_text("+0")
    world.processes[name].environment |= {
        "LD_PRELOAD": str(library),
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_CACHE_DURATION": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    return clock


async def jumps(world: World, clocks: list[Path]) -> None:
    for _ in range(6):
        await asyncio.sleep(world.chance.uniform(1.0, 2.5))
        clock, seconds = world.chance.choice(clocks), world.chance.choice([-3_600, -120, -5, 2, 90, 3_600])
        clock.write_text(f"{seconds:+d}")
        world.notes.append(f"{clock.stem} {seconds:+d} s")
    # A process whose clock is wrong by more than five minutes refuses what processors tell, as it has to. They tell
    # it again, and are heard once clocks are right.
    for clock in clocks:
        clock.write_text("+0")


SENSELESS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("payment.teleported", {}),
    ("payment.captured", {"class_version": 99}),
    ("refund.requested", {"amount": "a lot"}),
    ("payment.requested", {}),
    ("checkout_session.teleported", {}),
    ("order.created", {"class_version": 2}),
)
"""Topics and states that this version cannot make sense of: of a later version, or of nobody's."""


@case
async def poison(world: World) -> None:
    """Events that nobody can make sense of come into the log: everybody else's are dealt with all the same."""
    whole_service(world)
    await world.start_all()
    shop = await open_shop(world, webhook_url=await listen(world))
    await under_load(shop, poisoning(shop), at_once=5)


async def poisoning(shop: Shop) -> None:
    world = shop.world
    for topic, state in world.chance.sample(SENSELESS, len(SENSELESS)):
        await asyncio.sleep(world.chance.uniform(0.2, 1.0))
        order_id = await create_order(shop) if world.chance.random() < 0.7 else str(uuid7())
        world.poisoned.add(order_id)
        await append_raw(world, shop.id, order_id, topic, state)
        await look_at_poisoned(shop, order_id)
    world.notes.append(f"{len(SENSELESS)} events")


async def append_raw(
    world: World, merchant_id: UUID, order_id: str, topic: str, state: dict[str, Any]
) -> None:
    """Append an event as a later version, or anybody with the key, would."""
    async with world.store.pool.connection() as connection:
        cursor = await connection.execute(
            "SELECT count(*) FROM stored_events WHERE originator_id = %s", (order_id,)
        )
        row = await cursor.fetchone()
    assert row is not None
    given = {
        "timestamp": "2026-11-24T00:00:00.000000Z",
        "merchant_id": str(merchant_id),
        "actor": "system",
        "correlation_id": POISON,
        "causation_id": None,
    }
    event = StoredEvent(UUID(order_id), row[0] + 1, topic, orjson.dumps(given | state))
    await world.store._appender.append([event], merchant_id=merchant_id)


async def look_at_poisoned(shop: Shop, order_id: str) -> None:
    """Whoever asks for it is told that it does not go, not that the service is broken."""
    for path in (f"/v1/orders/{order_id}", f"/v1/orders/{order_id}/transactions", "/v1/orders", "/v1/events"):
        answer = await shop.send("GET", path, headers={"X-API-Key": shop.key})
        if answer.status not in {200, 404, 503}:
            shop.world.journal.wrong.append(f"GET {path} of a poisoned order answered {answer.status}")


@case
async def two_versions(world: World) -> None:
    """Old and new code side by side, while the migration between them runs. Needs the history in git."""
    old = await asyncio.to_thread(older_code, world.folder / "old")
    await world.begin_with(old)
    whole_service(world)
    for process in world.processes.values():
        process.code = old
    await world.start_all()
    shop = await open_shop(world)
    await under_load(shop, upgrade(world), at_once=5)


def older_code(folder: Path) -> Path:
    """The code as it was before the newest migration.

    Raises:
        Skipped: there is no history.
    """
    root = Path(__file__).resolve().parents[3]
    newest = ["log", "-1", "--diff-filter=A", "--format=%H", "--", "migrations/versions"]
    try:
        commit = subprocess.run(
            ["git", "-C", root, *newest], capture_output=True, text=True, check=True
        ).stdout.strip()
        archive = subprocess.run(
            ["git", "-C", root, "archive", f"{commit}^"], capture_output=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        raise Skipped("needs git, and a history that has the commit before the newest migration") from None
    folder.mkdir()
    subprocess.run(["tar", "-x", "-C", folder], input=archive, check=True)
    return folder


async def upgrade(world: World) -> None:
    """Migrate, then replace one process after another."""
    await asyncio.sleep(world.chance.uniform(1.0, 3.0))
    assert await world.run("migrate") == 0
    world.notes.append("migrated")
    await asyncio.sleep(world.chance.uniform(1.0, 3.0))
    for name in world.chance.sample([*world.processes], len(world.processes)):
        await world.stop(name)
        world.processes[name].code = None
        world.start(name)
        if name.startswith("api"):
            await world.ready(world.processes[name])
        await asyncio.sleep(world.chance.uniform(0.0, 1.0))


DISK = "320m"
"""For a new cluster and its log."""


@case
async def full_disk(world: World) -> None:
    """PostgreSQL's disk is full for a while, under load. Needs root, to mount a small file system."""
    disk = await small_disk(world)
    servers = EmbeddedServers(data_dir=disk / "servers", parts=["postgres"])
    await operate(servers.start)
    world.until_rest.push_async_callback(operate, servers.stop)
    if not (disk / "servers/postgres").resolve().is_relative_to(disk):
        raise Skipped("needs to run PostgreSQL where it is told to, which takes user namespaces")
    await asyncio.to_thread(migrate, database_url=servers.database_url)
    await world.move_to(servers.database_url)
    whole_service(world)
    await world.start_all()
    shop = await open_shop(world)
    await under_load(shop, fill(world, disk, servers), at_once=6)


async def small_disk(world: World) -> Path:
    """A file system of its own, in memory, until everything has come to rest.

    Raises:
        Skipped: this user may not mount one.
    """
    disk = world.folder / "disk"
    disk.mkdir()
    mounted = await asyncio.to_thread(
        subprocess.run,
        ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(disk)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode != 0:
        raise Skipped("needs root, and leave to mount a file system")
    unmount = partial(subprocess.run, ["umount", "--lazy", disk], check=False)
    world.until_rest.push_async_callback(asyncio.to_thread, unmount)
    return disk


async def fill(world: World, disk: Path, servers: EmbeddedServers) -> None:
    """No room, or next to none, for some seconds; a server that ended of it is started again when there is."""
    ballast = disk / "ballast"
    for _ in range(2):
        await asyncio.sleep(world.chance.uniform(1.0, 3.0))
        spare, seconds = world.chance.choice([0, 0, 65_536, 1_000_000]), world.chance.uniform(4.0, 9.0)
        free = shutil.disk_usage(disk).free
        with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            for _ in range(max(0, free - spare) // 4_096 + (spare == 0)):
                file.write(bytes(4_096))
        await asyncio.sleep(seconds)
        ballast.unlink()
        ended = bool(servers.ended())
        world.notes.append(
            f"{spare} bytes free for {seconds:.0f} s" + (", PostgreSQL ended" if ended else "")
        )
        if ended:
            await operate(servers.start_part, "postgres")
