"""Building a projection's tables again beside the live ones: for `rebuild`, `verify` and new versions of a projection.

The new tables have the same names in a schema of their own, so the code that writes the live tables can write them as
well, over a connection with that schema first in its search path. They are built in these steps, each of which can be
interrupted and resumed:

1. Fill: several processes read the log up to a position, stream by stream, in chunks. Each row belongs to one stream,
   so the rows of a chunk are final: they are copied in the transaction that marks the chunk as done.
2. Index them like the live tables, and count the totals.
3. Catch up with what was appended meanwhile, by the projector's batches.
4. Swap: one transaction catches up with the position of the live tables, and replaces them.
"""

import asyncio
import contextlib
import hashlib
import json
import multiprocessing
import os
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, LiteralString, cast
from uuid import UUID

import psycopg
from psycopg import sql
from psycopg.rows import TupleRow

from payloops.events.connections import connect, try_lock
from payloops.events.crash_points import crash_point
from payloops.projections.batches import BATCH_EVENTS, END_OF_LOG, project_batch
from payloops.projections.filling import Chunk, Plan, fill_chunk, start_worker
from payloops.projections.low_priority import lower_server_priority
from payloops.projections.projection import Projection
from payloops.projections.totals import count_all

BUILD: LiteralString = "payloops_build"
"""Schema of the tables that are going to replace the live ones."""
CHUNK_EVENTS = 10_000
INDEX_MEMORY = "96MB"
STANDSTILL = "10s"
"""How long a swap waits for the projector's batch; nobody waits for it meanwhile."""
SWAP_LOCK = "200ms"
"""How long a swap waits for a reader, since other readers wait behind it; then it is tried again."""
LOCK_TRIES = 10
"""Attempts to lock the tables while the projector stands still."""
SWAP_TRIES = 20
SWAP_PAUSE = 0.2
"""Seconds between two attempts, on average."""
FIRST = UUID(int=0)
"""An id smaller than that of any stream."""

Connection = psycopg.AsyncConnection[TupleRow]
Report = Callable[[str, int, int], None]
"""Called with the step, how much of it is done, and how much there is to do."""


class BuildUnderWay(Exception):
    """Another process is building projections."""

    def __init__(self) -> None:
        super().__init__("another process is building projections: wait for it to end")


class TablesBusy(Exception):
    """The live tables could not be locked to be replaced, because they are read without a pause."""

    def __init__(self, projection: str) -> None:
        super().__init__(
            f"{projection}: the new tables are ready, but the live ones are in use without a pause; "
            "run it again at a quieter time, it goes on from here"
        )


CREATE_TABLES = """
    CREATE TABLE build (fingerprint text NOT NULL, upto bigint NOT NULL, last_stream uuid, counted boolean NOT NULL);
    CREATE TABLE build_chunks (
        number int PRIMARY KEY, after uuid NOT NULL, through uuid NOT NULL, done boolean NOT NULL DEFAULT false
    );
    CREATE TABLE checkpoints (LIKE public.checkpoints INCLUDING ALL);
    CREATE TABLE parked_events (LIKE public.parked_events INCLUDING ALL);
"""
INSERT_BUILD = """
    INSERT INTO build (fingerprint, upto, last_stream, counted)
    SELECT %s, %s, (SELECT originator_id FROM stored_events ORDER BY originator_id DESC LIMIT 1), false
"""
# An index-only scan: the end of a chunk is found without reading its events.
CHUNK_END = """
    SELECT originator_id FROM stored_events WHERE originator_id > %s AND originator_id <= %s
    ORDER BY originator_id, originator_version OFFSET %s LIMIT 1
"""
INSERT_CHUNK = "INSERT INTO build_chunks (number, after, through) VALUES (%s, %s, %s)"
COLUMNS_AND_INDEXES = """
    SELECT c.relname,
           (SELECT array_agg(format('%%s %%s %%s', attname, atttypid::regtype, attnotnull) ORDER BY attnum)
            FROM pg_attribute WHERE attrelid = c.oid AND attnum > 0 AND NOT attisdropped),
           (SELECT array_agg(pg_get_indexdef(indexrelid) ORDER BY pg_get_indexdef(indexrelid))
            FROM pg_index WHERE indrelid = c.oid)
    FROM pg_class c WHERE c.oid = ANY(%s::text[]::regclass[]) ORDER BY 1
"""
INDEX_NAMES = "SELECT indexname FROM pg_indexes WHERE schemaname = current_schema()"
INDEXES = """
    SELECT i.relname, pg_get_indexdef(i.oid), pg_get_constraintdef(k.oid)
    FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid
    LEFT JOIN pg_constraint k ON k.conindid = i.oid AND k.contype IN ('p', 'u', 'x')
    WHERE x.indrelid = %s::text::regclass ORDER BY x.indisprimary DESC, i.relname
"""
STORAGE = "SELECT array_to_string(reloptions, ', ') FROM pg_class WHERE oid = %s::text::regclass"
AUTOVACUUM = sql.SQL("autovacuum_enabled")
GRANTS = """
    SELECT CASE grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(grantee)) END, privilege_type
    FROM pg_class, aclexplode(relacl) WHERE oid = %s::text::regclass AND grantee <> relowner
"""


@dataclass
class Build:
    """A build of the tables of some projections. Made by `open_build`."""

    plan: Plan
    connection: Connection
    resumed: bool
    report: Report
    workers: int
    chunk_events: int
    unswapped: list[Projection] = field(default_factory=list)
    filled: int = field(default=0, init=False)

    async def run(self) -> None:
        """Fill and index the tables, up to `plan.upto`."""
        await self._fill()
        await self._index()
        crash_point("build.counted")

    async def _fill(self) -> None:
        row = await self._one("SELECT last_stream FROM build")
        last: UUID | None = row[0]
        chunks = self._chunks(last)
        with self._workers() as pool:
            running: set[asyncio.Future[int]] = set()
            try:
                async for chunk in chunks:
                    running.add(asyncio.get_running_loop().run_in_executor(pool, fill_chunk, chunk))
                    if len(running) > self.workers:
                        running = await self._some_done(running)
                while running:
                    running = await self._some_done(running)
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    @contextlib.contextmanager
    def _workers(self) -> Iterator[ProcessPoolExecutor]:
        with ProcessPoolExecutor(
            self.workers,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=start_worker,
            initargs=(self.plan, os.getpid()),
        ) as pool:
            yield pool

    async def _some_done(self, running: set[asyncio.Future[int]]) -> set[asyncio.Future[int]]:
        done, waiting = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
        for each in done:
            self.filled += each.result()
            crash_point("build.chunk_filled")
        self.report("events", min(self.filled, self.plan.upto), self.plan.upto)
        return waiting

    async def _chunks(self, last: UUID | None) -> AsyncIterator[Chunk]:
        """Chunks of an interrupted build that are not done, then new ones, each recorded before it is handed out."""
        found = await self._all("SELECT number, after, through, done FROM build_chunks ORDER BY number")
        self.filled = self.chunk_events * sum(row[3] for row in found)
        for number, after, through, done in found:
            if not done:
                yield Chunk(number=number, after=after, through=through)
        number, after = (found[-1][0], found[-1][2]) if found else (0, FIRST)
        while last is not None and after < last:
            end = await self._all(CHUNK_END, after, last, self.chunk_events - 1)
            chunk = Chunk(number=number + 1, after=after, through=end[0][0] if end else last)
            await self.connection.execute(INSERT_CHUNK, (chunk.number, chunk.after, chunk.through))
            yield chunk
            number, after = chunk.number, chunk.through

    async def _index(self) -> None:
        """Give the new tables all that the live ones have beside their rows: indexes, totals and statistics."""
        tables = [table for projection in self.unswapped for table in projection.table_names]
        totals = {each.name for projection in self.unswapped for each in projection.totals}
        wanted = [(table, *row) for table in tables for row in await self._all(INDEXES, f"public.{table}")]
        have = {row[0] for row in await self._all(INDEX_NAMES)}
        done = len(have.intersection(name for _, name, *_ in wanted))
        self.report("indexes", done, len(wanted))

        async def index(connection: Connection, of_index: Sequence[Any]) -> None:
            nonlocal done
            await connection.execute(self._index_statement(*of_index))
            done += 1
            self.report("indexes", done, len(wanted))

        async def finish(connection: Connection, table: str) -> None:
            name = sql.Identifier(self.plan.schema, table)
            await connection.execute(sql.SQL("ANALYZE {}").format(name))
            await connection.execute(sql.SQL("ALTER TABLE {} RESET ({})").format(name, AUTOVACUUM))
            if storage := await _storage(connection, table):
                await connection.execute(sql.SQL("ALTER TABLE {} SET ({})").format(name, storage))

        missing = [each for each in wanted if each[1] not in have]
        missing.sort(key=lambda each: "USING gin" not in each[2])  # the slowest first
        of_rows = [partial(index, of_index=each) for each in missing if each[0] not in totals]
        of_totals = [partial(index, of_index=each) for each in missing if each[0] in totals]
        await self._in_parallel([self._count, *of_rows])
        await self._in_parallel([*of_totals, *(partial(finish, table=table) for table in tables)])

    async def _in_parallel(self, jobs: Sequence[Callable[[Connection], Awaitable[None]]]) -> None:
        """Run jobs in their order, several at a time. They must be repeatable: a crash may undo finished ones."""
        left = list(reversed(jobs))

        async def work() -> None:
            async with await self._connect() as connection:
                await connection.execute(f"SET maintenance_work_mem = '{INDEX_MEMORY}'".encode())
                await connection.execute("SET synchronous_commit = off")
                # There is a connection for each core already, and parallel workers would not run at low priority.
                await connection.execute("SET max_parallel_maintenance_workers = 0")
                await connection.execute("SET max_parallel_workers_per_gather = 0")
                await asyncio.to_thread(lower_server_priority, connection)
                while left:
                    await left.pop()(connection)

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(self.workers):
                    group.create_task(work())
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None  # one is enough: it will be tried again

    def _index_statement(self, table: str, name: str, definition: str, constraint: str | None) -> bytes:
        of = sql.Identifier(self.plan.schema, table).as_bytes(None)
        if constraint is not None:
            return b"ALTER TABLE %s ADD CONSTRAINT %s %s" % (
                of,
                sql.Identifier(name).as_bytes(None),
                constraint.encode(),
            )
        head, _, tail = definition.partition(" ON ")
        return b"%s ON %s USING %s" % (head.encode(), of, tail.partition(" USING ")[2].encode())

    async def _count(self, connection: Connection) -> None:
        """Fill the totals, and set the checkpoints to the position of the tables."""
        async with connection.transaction():
            row = await (await connection.execute("SELECT counted FROM build FOR UPDATE")).fetchone()
            assert row is not None
            if row[0]:
                return
            for projection in self.unswapped:
                for totals in projection.totals:
                    await count_all(connection, totals=totals)
                await connection.execute(
                    "INSERT INTO checkpoints (name, position, version) VALUES (%s, %s, %s)",
                    (projection.name, self.plan.upto, projection.version),
                )
            await connection.execute("UPDATE build SET counted = true")

    async def catch_up(self, projection: Projection, *, upto: int = END_OF_LOG) -> None:
        """Apply what was appended since: up to a position, or until less than a batch is left."""
        while applied := await project_batch(self.connection, projection, upto=upto):
            row = await self._one("SELECT position FROM checkpoints WHERE name = %s", projection.name)
            self.report("catching up", row[0], max(row[0], await self._head()))
            if applied < BATCH_EVENTS:
                return  # events may be appended faster than they can all be applied

    async def swap(self, projection: Projection) -> None:
        """Replace the live tables by the new ones.

        Raises:
            TablesBusy: the live tables are read without a pause.
        """
        self.report("swap", 0, 1)
        for _ in range(SWAP_TRIES):
            await self.catch_up(projection)
            try:
                async with self.connection.transaction():
                    await self._swap(projection)
            except (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected):
                await asyncio.sleep(SWAP_PAUSE * (0.5 + random.random()))  # noqa: S311  # jitter
            else:
                crash_point("build.swapped")
                self.report("swap", 1, 1)
                return
        raise TablesBusy(projection.name)

    async def _swap(self, projection: Projection) -> None:
        await self.connection.execute(f"SET LOCAL lock_timeout = '{STANDSTILL}'".encode())
        await self.connection.execute(
            "INSERT INTO public.checkpoints (name, version) VALUES (%s, %s) ON CONFLICT DO NOTHING",
            (projection.name, projection.version),
        )
        # From here on, the live tables do not change, and the new ones are brought to the same position.
        live = await self._one(
            "SELECT position FROM public.checkpoints WHERE name = %s FOR UPDATE", projection.name
        )
        await self.catch_up(projection, upto=live[0])
        await self._keep_readers_out(projection)
        for table in projection.table_names:
            grants = await self._all(GRANTS, f"public.{table}")
            name = sql.Identifier(table)
            new = sql.Identifier(self.plan.schema, table)
            for grantee, privilege in grants:
                await self.connection.execute(
                    sql.SQL("GRANT {} ON {} TO {}").format(sql.SQL(privilege), new, sql.SQL(grantee))
                )
            await self.connection.execute(sql.SQL("DROP TABLE public.{}").format(name))
            await self.connection.execute(sql.SQL("ALTER TABLE {} SET SCHEMA public").format(new))
        await self.connection.execute(
            """
            UPDATE public.checkpoints c SET position = b.position, version = b.version, updated_at = clock_timestamp()
            FROM checkpoints b WHERE b.name = c.name AND c.name = %s
            """,
            (projection.name,),
        )
        await self.connection.execute(
            "DELETE FROM public.parked_events WHERE reader = %s", (projection.name,)
        )
        await self.connection.execute(
            "INSERT INTO public.parked_events SELECT * FROM parked_events WHERE reader = %s",
            (projection.name,),
        )

    async def _keep_readers_out(self, projection: Projection) -> None:
        await self.connection.execute(f"SET LOCAL lock_timeout = '{SWAP_LOCK}'".encode())
        tables = sql.SQL(", ").join(sql.Identifier("public", table) for table in projection.table_names)
        for turn in range(LOCK_TRIES):
            try:
                async with self.connection.transaction():
                    await self.connection.execute(
                        sql.SQL("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE").format(tables)
                    )
            except psycopg.errors.LockNotAvailable:
                if turn == LOCK_TRIES - 1:
                    raise
                await asyncio.sleep(SWAP_PAUSE * (0.5 + random.random()))  # noqa: S311  # jitter
            else:
                return

    async def _connect(self) -> Connection:
        return await _connect(self.plan.database_url, self.plan.schema)

    async def _head(self) -> int:
        return cast(
            "int", (await self._one("SELECT coalesce(max(notification_id), 0) FROM stored_events"))[0]
        )

    async def _one(self, query: LiteralString, *values: Any) -> TupleRow:
        row = await (await self.connection.execute(query, values)).fetchone()
        assert row is not None
        return row

    async def _all(self, query: LiteralString, *values: Any) -> list[TupleRow]:
        return await (await self.connection.execute(query, values)).fetchall()


async def _connect(database_url: str, schema: str) -> Connection:
    """A connection with the schema first in its search path, and without a limit on how long statements take."""
    connection = await connect(database_url, application_name="payloops build")
    await connection.execute(sql.SQL("SET search_path = {}, public").format(sql.Identifier(schema)))
    await connection.execute("SET statement_timeout = 0")
    await connection.execute("SET idle_in_transaction_session_timeout = 0")
    return connection


@asynccontextmanager
async def open_build(
    *,
    database_url: str,
    projections: Sequence[Projection],
    report: Report,
    workers: int,
    schema: LiteralString = BUILD,
    upto: int | None = None,
    restart: bool = False,
    chunk_events: int = CHUNK_EVENTS,
) -> AsyncIterator[Build]:
    """Begin a build, or resume an interrupted one of the same tables.

    Args:
        upto: the position of the log to fill up to; the newest if None.
        restart: do not resume an interrupted build.

    Raises:
        BuildUnderWay: another process is building.
    """
    async with await _connect(database_url, schema) as connection:
        if not await try_lock(connection, f"payloops.build.{schema}"):
            raise BuildUnderWay
        fingerprint = await _fingerprint(connection, projections)
        unswapped = [] if restart else await _unswapped(connection, schema, projections)
        found = await _interrupted(connection, fingerprint) if unswapped else None
        resumed = found is not None
        if found is None:
            found = await _create(connection, schema, projections, fingerprint, upto)
            crash_point("build.begun")
            unswapped = list(projections)
        yield Build(
            plan=Plan(database_url=database_url, schema=schema, projections=tuple(projections), upto=found),
            connection=connection,
            resumed=resumed,
            report=report,
            workers=workers,
            chunk_events=chunk_events,
            unswapped=unswapped,
        )


async def drop_build(*, database_url: str, schema: LiteralString = BUILD) -> None:
    async with await connect(database_url, application_name="payloops build") as connection:
        await connection.execute(sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(sql.Identifier(schema)))


async def _fingerprint(connection: Connection, projections: Sequence[Projection]) -> str:
    """Digest of all that a build depends on: an interrupted build is only resumed if it is the same."""
    tables = [f"public.{table}" for each in projections for table in each.table_names]
    found = await (await connection.execute(COLUMNS_AND_INDEXES, (tables,))).fetchall()
    of = [[each.name, each.version, sorted(each.families)] for each in projections]
    return hashlib.sha256(json.dumps([of, found]).encode()).hexdigest()


async def _unswapped(
    connection: Connection, schema: str, projections: Sequence[Projection]
) -> list[Projection]:
    """The projections that a build has tables of, which were not swapped yet."""
    return [each for each in projections if await _exists(connection, schema, each.table_names[0])]


async def _interrupted(connection: Connection, fingerprint: str) -> int | None:
    """The position that an interrupted build of the same tables fills up to; None if it is one of others."""
    row = await (
        await connection.execute("SELECT upto FROM build WHERE fingerprint = %s", (fingerprint,))
    ).fetchone()
    return row[0] if row is not None else None


async def _exists(connection: Connection, schema: str, table: str) -> bool:
    row = await (await connection.execute("SELECT to_regclass(%s)", (f"{schema}.{table}",))).fetchone()
    return row is not None and row[0] is not None


async def _storage(connection: Connection, table: str) -> sql.SQL | None:
    """The live table's storage parameters, which LIKE does not copy; None if it has none."""
    row = await (await connection.execute(STORAGE, (f"public.{table}",))).fetchone()
    return sql.SQL(row[0]) if row is not None and row[0] else None


async def _create(
    connection: Connection,
    schema: str,
    projections: Sequence[Projection],
    fingerprint: str,
    upto: int | None,
) -> int:
    """Create empty tables like the live ones, without their indexes; return the position to fill up to."""
    async with connection.transaction():
        name = sql.Identifier(schema)
        await connection.execute(sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(name))
        await connection.execute(sql.SQL("CREATE SCHEMA {}").format(name))
        await connection.execute(CREATE_TABLES, prepare=False)
        for table in (table for each in projections for table in each.table_names):
            await connection.execute(
                sql.SQL("CREATE TABLE {} (LIKE {} INCLUDING ALL EXCLUDING INDEXES) WITH ({} = off)").format(
                    sql.Identifier(schema, table),
                    sql.Identifier("public", table),
                    AUTOVACUUM,  # nothing is deleted from it, and it is analyzed at the end
                )
            )
        row = await (
            await connection.execute("SELECT coalesce(max(notification_id), 0) FROM stored_events")
        ).fetchone()
        assert row is not None
        found = cast("int", row[0]) if upto is None else upto
        await connection.execute(INSERT_BUILD, (fingerprint, found))
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Rebuilt:
    """
    Attributes:
        position: the log was read stream by stream up to here.
        resumed: whether it continued an interrupted rebuild.
    """

    position: int
    resumed: bool


async def rebuild(
    *,
    database_url: str,
    projections: Sequence[Projection],
    report: Report,
    workers: int,
    restart: bool = False,
    chunk_events: int = CHUNK_EVENTS,
) -> Rebuilt:
    """Build the projections' tables again, and replace the live ones.

    Until the swap, the live tables serve and are unchanged. If it is interrupted, the next call resumes it.

    Args:
        workers: how many processes fold streams, and how many indexes are made at a time.
        restart: do not resume an interrupted rebuild.
        chunk_events: how many events, at least, a process takes at a time.

    Raises:
        BuildUnderWay, TablesBusy.
    """
    async with open_build(
        database_url=database_url,
        projections=projections,
        report=report,
        workers=workers,
        restart=restart,
        chunk_events=chunk_events,
    ) as build:
        await build.run()
        for projection in build.unswapped:
            await build.swap(projection)
        await drop_build(database_url=database_url)
        return Rebuilt(position=build.plan.upto, resumed=build.resumed)
