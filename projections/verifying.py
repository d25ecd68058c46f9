"""Comparing a projection's live tables with the log.

The tables are built a second time, up to exactly the position of the live ones, and both are read side by side in key
order. The live tables are read in one snapshot, taken before the build began, so writes may go on meanwhile.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any, LiteralString

import psycopg
from psycopg import sql
from psycopg.rows import TupleRow

from payloops.events.connections import connect
from payloops.projections.building import Build, Report, drop_build, open_build
from payloops.projections.projection import Projection

SCRATCH: LiteralString = "payloops_verify"
"""Schema of the tables to compare with."""
FETCHED = 2_000
"""Rows of a table that are held at a time."""
MOST_SHOWN = 20
"""Differences of a table that are kept; all are counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A row that differs from what the log yields.

    Attributes:
        key: of the row, by column.
        live: values of the columns that differ, as text; None if there is no such row.
        rebuilt: the same, of the row that the log yields.
    """

    table: str
    key: dict[str, str]
    live: dict[str, str | None] | None
    rebuilt: dict[str, str | None] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The result for one table.

    Attributes:
        position: of the log, at which both tables were compared.
        rows: how many were compared. differing: how many differ; `differences` are the first of them.
    """

    projection: str
    table: str
    position: int
    rows: int
    differing: int
    differences: list[Difference]


class VersionsDiffer(Exception):
    """The live tables were made by another version of the projection."""

    def __init__(self, projection: Projection, live: int) -> None:
        super().__init__(
            f"{projection.name}: the tables are of version {live}, this program's are of {projection.version}"
        )


async def verify(
    *, database_url: str, projections: Sequence[Projection], report: Report, workers: int
) -> list[Verdict]:
    """Build the projections' tables a second time and compare them: a verdict for each table.

    The second tables are dropped in any case; if the process is killed, by the next verification.

    Raises:
        BuildUnderWay: another process is verifying.
        VersionsDiffer: the live tables were made by another version.
    """
    verdicts: list[Verdict] = []
    async with _snapshot(database_url) as live:
        positions = {each.name: await _position(live, each) for each in projections}
        async with open_build(
            database_url=database_url,
            projections=projections,
            report=report,
            workers=workers,
            schema=SCRATCH,
            upto=min(positions.values(), default=0),
            restart=True,
        ) as build:
            try:
                await build.run()
                for projection in projections:
                    position = positions[projection.name]
                    await build.catch_up(projection, upto=position)
                    for name in projection.table_names:
                        report(f"comparing {name}", 0, 0)
                        verdicts.append(await _compare(live, build, projection, name, position))
            finally:
                await drop_build(database_url=database_url, schema=SCRATCH)
    return verdicts


@asynccontextmanager
async def _snapshot(database_url: str) -> AsyncIterator[psycopg.AsyncConnection[TupleRow]]:
    async with await connect(database_url, application_name="payloops verify") as connection:
        await connection.execute("SET statement_timeout = 0")
        await connection.execute("SET idle_in_transaction_session_timeout = 0")
        await connection.set_isolation_level(psycopg.IsolationLevel.REPEATABLE_READ)
        await connection.set_read_only(True)
        async with connection.transaction():
            yield connection


async def _position(connection: psycopg.AsyncConnection[TupleRow], projection: Projection) -> int:
    query = "SELECT position, version FROM checkpoints WHERE name = %s"
    row = await (await connection.execute(query, (projection.name,))).fetchone()
    if row is None:
        return 0
    if row[1] != projection.version:
        raise VersionsDiffer(projection, row[1])
    return int(row[0])


KEY = """
    SELECT attname FROM pg_index JOIN pg_attribute ON attrelid = indrelid AND attnum = ANY(indkey)
    WHERE indrelid = %s::text::regclass AND indisprimary ORDER BY array_position(indkey::int[], attnum::int)
"""
# As text in one collation, so that both connections and Python order keys alike.
ROWS = "SELECT {key}, t::text FROM {table} t ORDER BY {key}"
ROW = "SELECT to_jsonb(t) FROM {table} t WHERE ({key}) = ({values})"


@dataclass(frozen=True, slots=True)
class _Side:
    """One of the two tables that are compared."""

    connection: psycopg.AsyncConnection[TupleRow]
    schema: str
    table: str
    key: list[str]

    async def rows(self) -> AsyncGenerator[tuple[tuple[str, ...], str]]:
        """Keys, in their order, and whole rows, as text."""
        async with (
            self.connection.transaction(),
            self.connection.cursor(f"compare_{self.table}") as cursor,
        ):
            cursor.itersize = FETCHED
            await cursor.execute(self._format(ROWS))
            async for *key, row in cursor:
                yield tuple(key), row

    async def row(self, key: tuple[str, ...]) -> dict[str, Any] | None:
        """A row's columns; None where there is no such row."""
        found = await (await self.connection.execute(self._format(ROW), key)).fetchone()
        return found[0] if found is not None else None

    def _format(self, query: LiteralString) -> sql.Composed:
        texts = [sql.SQL('t.{}::text COLLATE "C"').format(sql.Identifier(each)) for each in self.key]
        return sql.SQL(query).format(
            key=sql.SQL(", ").join(texts),
            table=sql.Identifier(self.schema, self.table),
            values=sql.SQL(", ").join(sql.Placeholder() * len(self.key)),
        )


async def _compare(
    live: psycopg.AsyncConnection[TupleRow], build: Build, projection: Projection, name: str, position: int
) -> Verdict:
    key = [row[0] for row in await (await live.execute(KEY, (f"public.{name}",))).fetchall()]
    ours, rebuilt = _Side(live, "public", name, key), _Side(build.connection, SCRATCH, name, key)
    compared = differing = 0
    differences: list[Difference] = []
    # Closed in any case: their open transactions would block the DROP of the tables.
    async with aclosing(ours.rows()) as left, aclosing(rebuilt.rows()) as right:
        async for this, same in _merged(left, right):
            compared += 1
            if compared % FETCHED == 0:
                build.report(f"comparing {name}", compared, 0)
            if same:
                continue
            differing += 1
            if len(differences) < MOST_SHOWN:
                differences.append(await _difference(ours, rebuilt, this))
    return Verdict(
        projection=projection.name,
        table=name,
        position=position,
        rows=compared,
        differing=differing,
        differences=differences,
    )


async def _merged(
    left: AsyncIterator[tuple[tuple[str, ...], str]], right: AsyncIterator[tuple[tuple[str, ...], str]]
) -> AsyncIterator[tuple[tuple[str, ...], bool]]:
    """The keys of both sides, in order, and whether both have the same row under each."""
    a, b = await anext(left, None), await anext(right, None)
    while a is not None or b is not None:
        this = min(each[0] for each in (a, b) if each is not None)
        yield this, a == b
        if a is not None and a[0] == this:
            a = await anext(left, None)
        if b is not None and b[0] == this:
            b = await anext(right, None)


async def _difference(ours: _Side, rebuilt: _Side, key: tuple[str, ...]) -> Difference:
    live, true = await ours.row(key), await rebuilt.row(key)
    fields = [name for name in live or true or {} if live is None or true is None or live[name] != true[name]]
    return Difference(
        table=ours.table,
        key=dict(zip(ours.key, key, strict=True)),
        live={name: _text(live[name]) for name in fields} if live is not None else None,
        rebuilt={name: _text(true[name]) for name in fields} if true is not None else None,
    )


def _text(value: Any) -> str | None:
    return None if value is None else str(value)
