"""Patches: what events do to rows. Those of a batch are merged into one statement for each table.

An event carries its outcome, so it sets absolute values, and its effect on a row is known without reading the row. The
patches of several events to one row are merged (the later wins), and applying them again changes nothing.
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
"""The values of columns, as JSON types."""
NOTHING: Values = {}
"""For facts that do not make the row. Never modified."""


class Rows(Protocol):
    """A table's rows of one stream, for handlers to change. `key`: identifies a row within its stream."""

    def get(self, key: Any, /) -> Values | None:
        """A row to change; None if it has to be obtained by `make`."""

    def make(self, key: Any, id: UUID | str, new: Values, /) -> Values:
        """A row to change, which may or may not exist.

        Args:
            id: of the row, always of the same type within a table.
            new: further columns, which are set only if the row does not exist.
        """


Handler = Callable[[Any, Rows], object]
"""Changes a table's rows by a fact."""


@dataclass(frozen=True, slots=True, eq=False)
class HandlersByType:
    """Handlers by type of fact. All other facts go to `other`, if there is one."""

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
        name: of the table. Its primary key is `id`; `version` is the stream's version that a row includes.
        row: the dataclass of a row, whose fields are the columns.
        handler: what a fact does to the table.
        every_fact: whether every fact of a stream changes the stream's row, so that a gap in the versions shows a
            missing fact (parked, or of an unknown type). Later facts still change the row then, but it does not claim
            their versions, and readers that must not be stale fold the stream.
    """

    name: LiteralString
    row: type
    handler: Handler
    every_fact: bool = False

    def handler_of(self, fact: type[StreamEvent]) -> Handler | None:
        """The handler of facts of one type; None if they do nothing to this table."""
        return self.handler.of(fact) if isinstance(self.handler, HandlersByType) else self.handler


Patch = tuple[UUID | str, Values, Values]
"""What one fact does to one row: the row's id, the values it sets, and those it also sets if the row is new."""


@dataclass(slots=True)
class Patches:
    """`Rows` that collects patches, without knowing which rows exist: that is found out by the statement."""

    made: list[Patch] = field(default_factory=list)

    def get(self, _: Any, /) -> None:
        return None

    def make(self, _: Any, id: UUID | str, new: Values, /) -> Values:
        values: Values = {}
        self.made.append((id, values, new))
        return values


def patches_of(table: Table, fact: StreamEvent) -> list[Patch]:
    """What a fact does to a table's rows."""
    patches = Patches()
    table.handler(fact, patches)
    return patches.made


def column_names(row: type) -> list[str]:
    """The columns of a row's dataclass, in its order."""
    return [each.name for each in fields(row)]


@cache
def json_columns(row: type) -> list[str]:
    """The columns that contain JSON objects."""
    return [name for name, kind in get_type_hints(row).items() if get_origin(kind) is dict]


@cache
def columns_of(row: type, alias: LiteralString) -> sql.SQL:
    """`o.id, o.status, …`: what to select so that `row(*values)` is the row.

    As a single piece, since each part of a composed statement costs time whenever it is executed.
    """
    names = sql.SQL(", ").join(sql.Identifier(alias, name) for name in column_names(row))
    return sql.SQL(names.as_string())


# LIMIT 1 makes PostgreSQL look the row up by its id, even if it believes that the table is small.
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
    """The statement that writes a batch's rows. Rows that include these versions already are left unchanged."""
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
        first, last: versions of the first and the last fact that change it.
        upto: the last version before the first gap among them.
        set: values to set. new: values to set in addition if the row is new.
    """

    id: UUID | str
    first: int
    upto: int
    last: int
    set: Values
    new: Values


def merge(table: Table, patches: Iterable[tuple[int, Patch]]) -> list[RowPatch]:
    """Merge pairs of version and patch, in the order of the log, into one patch for each row."""
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
    """The parameters of `upsert_statement`."""
    return {"patches": orjson.dumps(rows).decode()}
