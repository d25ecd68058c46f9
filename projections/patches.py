"""What a batch of events does to rows: merged into one statement per table.

An event carries its outcome, so its effect on a row is known without reading the row: it sets absolute values. Several
events of one row are merged (the later wins), and applying them again changes nothing.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cache
from typing import Any, LiteralString, Protocol, get_origin, get_type_hints
from uuid import UUID

import orjson
from psycopg import sql

from payloops.events.stream import StreamEvent

Values = dict[str, Any]
"""Columns and what they hold, as JSON has it."""
NOTHING: Values = {}
"""For a row that the fact does not make. Nobody writes into it."""


class Rows(Protocol):
    """A table's rows of one stream, which a fact writes into. `key`: what tells them apart within the stream."""

    def get(self, key: Any, /) -> Values | None:
        """A row to write into; None where it is to be had by `make`."""

    def make(self, key: Any, id: UUID | str, new: Values, /) -> Values:
        """A row to write into.

        Args:
            id: of the row, always of one form in a table.
            new: further columns, which count only where the fact makes the row.
        """


Handler = Callable[[Any, Rows], object]
"""Writes what a fact does to a table's rows."""


@dataclass(frozen=True, slots=True, eq=False)
class HandlersByType:
    """A handler for each type of fact. Others go to `other`; where there is none, they do nothing."""

    handlers: Mapping[type[StreamEvent], Handler]
    other: Handler | None = None

    def __call__(self, fact: StreamEvent, rows: Rows) -> None:
        handler = self.of(type(fact))
        if handler is not None:
            handler(fact, rows)

    def of(self, fact: type[StreamEvent]) -> Handler | None:
        return self.handlers.get(fact, self.other)


@dataclass(frozen=True, kw_only=True)
class Table:
    """A projected table.

    Attributes:
        name: of the table; its key is `id`, and `version` the stream's version that a row holds.
        row: the dataclass of a row: the names of its fields are the columns.
        handler: what a fact does to the table.
        every_fact: every fact of a stream writes into the stream's row, so that a gap in the versions is a fact that
            is missing (parked, or of a type this code does not know). Later facts then still change the row,
            but it does not claim their versions, and readers that need the truth fold the stream.
    """

    name: LiteralString
    row: type
    handler: Handler
    every_fact: bool = False

    def handler_of(self, fact: type[StreamEvent]) -> Handler | None:
        """What facts of one type go through; None where they do nothing here."""
        return self.handler.of(fact) if isinstance(self.handler, HandlersByType) else self.handler


Patch = tuple[UUID | str, Values, Values]
"""What one fact does to one row: the row's id, what it writes, and what it writes where it makes the row."""


@dataclass(slots=True)
class Patches:
    """What one fact does to the rows of a table that it does not see: whether it makes them is found out later."""

    made: list[Patch] = field(default_factory=list)

    def get(self, _: Any, /) -> None:
        return None

    def make(self, _: Any, id: UUID | str, new: Values, /) -> Values:
        values: Values = {}
        self.made.append((id, values, new))
        return values


def patches_of(table: Table, fact: StreamEvent) -> list[Patch]:
    """What a fact does to a table."""
    patches = Patches()
    table.handler(fact, patches)
    return patches.made


def column_names(row: type) -> list[str]:
    """The columns of a row's dataclass, in its order."""
    return [each.name for each in fields(row)]


@cache
def json_columns(row: type) -> list[str]:
    """Those of its columns that hold JSON."""
    return [name for name, kind in get_type_hints(row).items() if get_origin(kind) is dict]


@cache
def columns_of(row: type, alias: LiteralString) -> sql.SQL:
    """`o.id, o.status, …`: what to select so that `row(*values)` is the row.

    In one piece: each part of a statement costs each time that it is executed.
    """
    names = sql.SQL(", ").join(sql.Identifier(alias, name) for name in column_names(row))
    return sql.SQL(names.as_string())


# What is limited to one row is looked for by its id, however few rows PostgreSQL takes the table to have.
UPSERT = """
    INSERT INTO {table} (id, {columns}, version)
    SELECT p.id, {new_columns},
           CASE WHEN p.first <= coalesce(o.version, 0) + 1 THEN greatest(o.version, p.upto)
                ELSE coalesce(o.version, 0) END
    FROM json_to_recordset(%(patches)s) AS p (id uuid, first bigint, upto bigint, last bigint, new json, set json)
    LEFT JOIN LATERAL (SELECT t.id, t.version, t AS now FROM {table} t WHERE t.id = p.id LIMIT 1) o ON true
    CROSS JOIN LATERAL json_populate_record(
        CASE WHEN o.id IS NULL THEN json_populate_record(NULL::{table}, p.new) ELSE o.now END, p.set
    ) AS n
    WHERE o.id IS NULL OR o.version < p.last
    ON CONFLICT (id) DO UPDATE SET ({columns}, version) = ROW ({excluded_columns}, excluded.version)
"""


@cache
def upsert_statement(table: Table) -> bytes:
    """Writes a batch's rows; those that hold its versions already stay as they are."""
    names = [name for name in column_names(table.row) if name not in {"id", "version"}]
    comma = sql.SQL(", ")
    query = sql.SQL(UPSERT).format(
        table=sql.Identifier(table.name),
        columns=comma.join(sql.Identifier(name) for name in names),
        new_columns=comma.join(sql.Identifier("n", name) for name in names),
        excluded_columns=comma.join(sql.Identifier("excluded", name) for name in names),
    )
    return query.as_bytes(None)


@dataclass(slots=True)
class RowPatch:
    """All that a batch does to one row.

    Attributes:
        first, last: versions of the first and the last fact that touch it.
        upto: the last version before the first gap between them.
    """

    id: UUID | str
    first: int
    upto: int
    last: int
    set: Values
    new: Values


def merge(table: Table, patches: Iterable[tuple[int, Patch]]) -> list[RowPatch]:
    """One patch per row of (version, patch) pairs, which come in the order of the log."""
    rows: dict[UUID | str, RowPatch] = {}
    for version, (id, values, new) in patches:
        row = rows.get(id)
        if row is None:
            rows[id] = RowPatch(id, version if table.every_fact else 1, version, version, values.copy(), new)
            continue
        if row.upto == version - 1 or not table.every_fact:
            row.upto = version
        row.last = version
        row.set.update(values)
        if new:
            row.new = new | row.new
    return list(rows.values())


def patches_parameters(rows: Sequence[RowPatch]) -> dict[str, str]:
    """What `upsert_statement` takes."""
    return {"patches": orjson.dumps(rows).decode()}
