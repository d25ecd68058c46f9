"""The projector: tails the log and folds it into tables, exactly once.

A batch updates the tables and the projection's checkpoint in one transaction (batches.py), so both are always at the
same position, whatever is killed. Each projection has one active projector at a time, which holds an advisory lock that
ends with its connection; all others stand by.

The checkpoint contains the version of the projection that made the tables. A projector of a newer version builds new
tables while one of the old version keeps the live ones up to date, and then takes over; a projector of an older version
leaves the tables alone.
"""

import asyncio
import contextlib
import os
import random
from collections.abc import AsyncIterator, Sequence
from concurrent.futures.process import BrokenProcessPool

import psycopg
import structlog
from psycopg.rows import TupleRow

from payloops.events.connections import connect, one_line, try_lock
from payloops.events.pauses import pause_seconds, sleep_unless_stopped
from payloops.events.wakeups import Wakeups
from payloops.projections.batches import BATCH_EVENTS, project_batch
from payloops.projections.building import BuildUnderWay, TablesBusy, rebuild
from payloops.projections.projection import Projection, all_projections

STANDBY_SECONDS = 0.5
"""Between a standby's attempts to become active."""
BATCH_TIMEOUT = "60s"
"""PostgreSQL's statement_timeout for a batch: longer than for a request, since nobody waits for it."""
GATHER_SECONDS = 0.02
"""Pause after a batch: under load, a batch of many events costs little more than a batch of one. The first event after
an idle time is not delayed."""
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 2.0
"""Seconds before retrying after an error of the database, or the death of a build's process: at first, and at most."""

log = structlog.get_logger()

BEGIN_AT_ZERO = "INSERT INTO checkpoints (name, version) VALUES (%s, %s) ON CONFLICT DO NOTHING"
BY_INDEX = "SET enable_seqscan = off"
"""A batch concerns a few rows of growing tables. A plan made while they are almost empty would be kept, and would scan
the whole tables for each event until PostgreSQL analyzes them again."""
VERSION = "SELECT version FROM checkpoints WHERE name = %s"


async def run_projections(
    *, database_url: str, stop: asyncio.Event, projections: Sequence[Projection] | None = None
) -> None:
    """Keep all projections up to date until `stop` is set; a batch under way is finished first.

    Survives an outage of the database, however long.
    """
    wakeups = Wakeups(database_url)
    wakeups.start()
    try:
        async with asyncio.TaskGroup() as group:
            for projection in all_projections() if projections is None else projections:
                group.create_task(_keep_up(projection, database_url, wakeups, stop), name=projection.name)
    finally:
        await wakeups.close()


async def _keep_up(projection: Projection, database_url: str, wakeups: Wakeups, stop: asyncio.Event) -> None:
    """Stand by, become active, follow the log; start over whenever the database fails, or a process of a build dies."""
    failures = 0
    while not stop.is_set():
        try:
            await _take_over_older_version(projection, database_url, stop)
            async with projecting(database_url, projection) as connection:
                if not await _become_active(connection, projection, stop):
                    continue
                log.info("projector.active", projection=projection.name)
                async with contextlib.aclosing(wakeups.ticks()) as ticks:
                    async for _ in ticks:
                        applied = BATCH_EVENTS
                        while not stop.is_set() and applied == BATCH_EVENTS:
                            applied = await project_batch(connection, projection)
                        failures = 0
                        if applied:
                            await sleep_unless_stopped(GATHER_SECONDS, stop=stop)
                        elif await _version(connection, projection) != projection.version:
                            break
                        if stop.is_set():
                            break
        except (psycopg.Error, OSError, BrokenProcessPool) as error:
            pause = pause_seconds(attempt=failures, first=FIRST_PAUSE, longest=LONGEST_PAUSE)
            failures += 1
            log.warning(
                "projector.reconnecting",
                projection=projection.name,
                error=one_line(error),
                pause_seconds=pause,
            )
            await sleep_unless_stopped(pause, stop=stop)


@contextlib.asynccontextmanager
async def projecting(
    database_url: str, projection: Projection
) -> AsyncIterator[psycopg.AsyncConnection[TupleRow]]:
    """A connection for the batches of a projection."""
    name = f"payloops projector {projection.name}"
    async with await connect(database_url, application_name=name) as connection:
        await connection.execute(f"SET statement_timeout = '{BATCH_TIMEOUT}'")
        await connection.execute(BY_INDEX)
        yield connection


async def _become_active(
    connection: psycopg.AsyncConnection[TupleRow], projection: Projection, stop: asyncio.Event
) -> bool:
    """Wait until no other projector is active; False if asked to stop, or if the tables are of an older version."""
    lock, standing_by = f"payloops.projector.{projection.name}", False
    while not stop.is_set():
        version = await _version(connection, projection)
        if version is not None and version < projection.version:
            return False
        if version in {None, projection.version} and await try_lock(connection, lock):
            await connection.execute(BEGIN_AT_ZERO, (projection.name, projection.version))
            return True
        if not standing_by:
            log.info("projector.standby", projection=projection.name, version=projection.version)
            standing_by = True
        await sleep_unless_stopped(STANDBY_SECONDS * random.uniform(0.5, 1.0), stop=stop)  # noqa: S311  # jitter
    return False


async def _version(connection: psycopg.AsyncConnection[TupleRow], projection: Projection) -> int | None:
    row = await (await connection.execute(VERSION, (projection.name,))).fetchone()
    return row[0] if row is not None else None


async def _take_over_older_version(projection: Projection, database_url: str, stop: asyncio.Event) -> None:
    """If the tables were made by an older version, build new ones beside them, and replace them."""
    async with await connect(database_url, application_name="payloops projector") as connection:
        version = await _version(connection, projection)
    if version is None or version >= projection.version:
        return
    log.info("projector.building", projection=projection.name, of=version, to=projection.version)
    building = asyncio.create_task(
        rebuild(
            database_url=database_url,
            projections=[projection],
            report=lambda *_: None,
            workers=os.cpu_count() or 1,
        )
    )
    stopped = asyncio.create_task(stop.wait())
    await asyncio.wait({building, stopped}, return_when=asyncio.FIRST_COMPLETED)
    stopped.cancel()
    building.cancel()
    try:
        await building
    except asyncio.CancelledError:
        return  # the next start resumes it
    except (BuildUnderWay, TablesBusy) as error:
        log.info("projector.build_waits", projection=projection.name, why=str(error))
        await sleep_unless_stopped(STANDBY_SECONDS * random.uniform(1.0, 2.0), stop=stop)  # noqa: S311  # jitter
    else:
        log.info("projector.built", projection=projection.name, version=projection.version)
