"""Filling the new tables of a build, chunk by chunk of streams: what the processes of `building.py` do.

A row is of one stream, so each stream is folded by itself, and what comes of it is a line of COPY.
"""

import ctypes
import gc
import os
import re
import signal
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import groupby
from operator import attrgetter
from typing import Any, LiteralString
from uuid import UUID

import orjson
import psycopg
from psycopg import sql
from psycopg.rows import TupleRow

from payloops.events.connections import connection_options
from payloops.events.encoding import decode_state, fact_of
from payloops.events.stream import StreamEvent
from payloops.projections.batches import Change, LoggedEvent, decode, is_about_data, park
from payloops.projections.giving_way import give_way, let_server_give_way
from payloops.projections.patches import (
    Patches,
    RowPatch,
    Table,
    column_names,
    json_columns,
    merge,
    merge_into,
)
from payloops.projections.projection import Projection


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """Streams after one, through another, in the order of their ids."""

    number: int
    after: UUID
    through: UUID


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What every process of a build knows.

    Attributes:
        upto: the position of the log up to which streams are folded.
    """

    database_url: str
    schema: LiteralString
    projections: tuple[Projection, ...]
    upto: int


READ_CHUNK = """
    SELECT notification_id, originator_id, originator_version, topic,
           CASE WHEN split_part(topic, '.', 1) = ANY(%s) THEN state END, personal_key
    FROM readable_events
    WHERE originator_id > %s AND originator_id <= %s AND notification_id <= %s
    ORDER BY originator_id, originator_version
"""
DONE = "UPDATE build_chunks SET done = true WHERE number = %s AND NOT done"

Read = tuple[int, UUID, int, str, bytes | None, bytes | None]
"""A row of `READ_CHUNK`: the values of a `LoggedEvent`, which is made of few."""
Parked = list[tuple[LoggedEvent, Exception]]

_plan: Plan
_connection: psycopg.Connection[TupleRow]


def start_worker(plan: Plan, parent: int) -> None:
    """Of a process that folds: its connection, and that it ends with the one that started it."""
    global _plan, _connection  # noqa: PLW0603  # a process has one
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _end_with(parent)
    give_way()
    gc.disable()  # nothing here is circular, and looking for it takes a third of the time
    _plan = plan
    options = connection_options("payloops build")
    options["options"] = f"{options['options']} -c search_path={plan.schema},public -c statement_timeout=0"
    _connection = psycopg.Connection.connect(plan.database_url, **options)  # type: ignore[arg-type]
    _connection.execute("SET synchronous_commit = off")
    let_server_give_way(_connection)


def _end_with(parent: int) -> None:
    """A killed parent takes its processes with it; where the system does not do that, they end with its pipe."""
    if sys.platform == "linux":
        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)


def fill_chunk(chunk: Chunk) -> int:
    """Fold the chunk's streams into the new tables, in one transaction; how many events were read.

    Where it was done already, by a process that was thought dead, nothing happens.
    """
    families = sorted(frozenset().union(*(each.families for each in _plan.projections)))
    with _connection.transaction():
        cursor = _connection.cursor(binary=True)
        cursor.execute(READ_CHUNK, (families, chunk.after, chunk.through, _plan.upto))
        events: list[Read] = cursor.fetchall()
        for of_projection in _fold(events):
            parked = of_projection.parked
            try:
                with _connection.transaction():
                    for filled in of_projection.tables:
                        filled.copy()
            except Exception as refused:
                if not is_about_data(refused):
                    raise
                [batch] = decode([of_projection.projection], [LoggedEvent(*event) for event in events])
                parked = [*batch.parked, *_copy_streams(of_projection.projection, batch.changes)]
            for event, error in parked:
                _connection.execute(*park(of_projection.projection, event, error))
        if _connection.execute(DONE, (chunk.number,)).rowcount != 1:
            raise psycopg.Rollback
    return len(events)


# --- what streams make of the tables ---------------------------------------------------------------------


@dataclass(slots=True)
class FilledTable:
    """What a chunk makes of a table: lines of COPY, and the rows of the stream at hand."""

    table: Table
    lines: list[bytes] = field(default_factory=list)
    rows: dict[UUID | str, RowPatch] = field(default_factory=dict)
    refused: Exception | None = None

    def end_stream(self) -> None:
        if not self.rows:
            return
        try:
            self.lines += _lines(self.table, self.rows.values())
        except (TypeError, ValueError) as error:
            self.refused = error
        self.rows.clear()

    def copy(self) -> None:
        if self.refused is not None:
            raise self.refused
        _copy(self.table, self.lines)


@dataclass(slots=True)
class FilledProjection:
    """What a chunk makes of a projection's tables, and the events that cannot be applied to them."""

    projection: Projection
    tables: list[FilledTable]
    parked: Parked = field(default_factory=list)


Handlers = list[tuple[FilledTable, Callable[[StreamEvent], Patches]]]


def _fold(events: Sequence[Read]) -> list[FilledProjection]:
    """As `decode` and `merge` of each stream, in one go."""
    folded = [
        FilledProjection(each, [FilledTable(table) for table in each.tables]) for each in _plan.projections
    ]
    tables = [table for each in folded for table in each.tables]
    handlers: dict[str, Handlers] = {}
    stream = UUID(int=0)
    for event in events:
        _, of, version, topic, state, personal_key = event
        if state is None:
            continue
        if of.int != stream.int:
            for table in tables:
                table.end_stream()
            stream = of  # one object for all of its events: to compare two of them takes long
        try:
            of_topic = handlers.get(topic)
            if of_topic is None:
                of_topic = handlers[topic] = _handlers_of(topic, folded)
            fact = decode_state(topic, state, stream_id=stream, version=version, personal_key=personal_key)
            made = [handler(fact) for _, handler in of_topic]
        except Exception:  # noqa: BLE001  # whatever is wrong with an event stops nothing but itself
            _fold_apart(LoggedEvent(*event), folded)
            continue
        for (filled, _), patches in zip(of_topic, made, strict=True):
            for patch in patches:
                merge_into(filled.rows, filled.table, version, patch)
    for table in tables:
        table.end_stream()
    return folded


def _handlers_of(topic: str, folded: Sequence[FilledProjection]) -> Handlers:
    """What an event of a topic goes through."""
    family, kind = topic.partition(".")[0], fact_of(topic)
    if kind is None:
        return []  # it cannot be decoded either
    concerned = [table for each in folded if family in each.projection.families for table in each.tables]
    found = [(table, table.table.handler_of(kind)) for table in concerned]
    return [(table, handler) for table, handler in found if handler is not None]


def _fold_apart(event: LoggedEvent, folded: Sequence[FilledProjection]) -> None:
    """Of an event that raises: apply it to those projections that it can be applied to, and park it at the others."""
    for each in folded:
        [batch] = decode([each.projection], [event])
        each.parked += batch.parked
        for change in batch.changes:
            for filled, patches in zip(each.tables, change.patches, strict=True):
                for patch in patches:
                    merge_into(filled.rows, filled.table, event.version, patch)


# --- where the database refuses what was folded ----------------------------------------------------------


def _copy_streams(
    projection: Projection, changes: Sequence[Change]
) -> Iterator[tuple[LoggedEvent, Exception]]:
    """Write what the streams' changes make; yields the events whose data is refused, as the projector finds them."""
    refused = _refused(projection, changes, keep=True)
    if refused is None:
        return
    streams = [list(group) for _, group in groupby(changes, key=attrgetter("logged.originator_id"))]
    if len(streams) > 1:
        for part in (streams[: len(streams) // 2], streams[len(streams) // 2 :]):
            yield from _copy_streams(projection, [change for stream in part for change in stream])
    else:
        yield from _copy_what_goes(projection, changes)


def _copy_what_goes(
    projection: Projection, changes: Sequence[Change]
) -> Iterator[tuple[LoggedEvent, Exception]]:
    """Of one stream, leave out each event that cannot follow those before it."""
    kept: list[Change] = []
    for change in changes:
        refused = _refused(projection, [*kept, change])
        if refused is None:
            kept.append(change)
        else:
            yield change.logged, refused
    if kept:
        yield from _copy_streams(projection, kept)


def _refused(projection: Projection, changes: Sequence[Change], *, keep: bool = False) -> Exception | None:
    """Why the database does not take what the changes make; None where it does, and has it if it is to be kept."""
    try:
        with _connection.transaction(force_rollback=not keep):
            for place, table in enumerate(projection.tables):
                pairs = ((each.logged.version, patch) for each in changes for patch in each.patches[place])
                _copy(table, _lines(table, merge(table, pairs)))
    except Exception as error:
        if not is_about_data(error):
            raise
        return error
    return None


# --- rows as lines of COPY -------------------------------------------------------------------------------

COPY = r"COPY {} ({}) FROM STDIN (FORMAT csv, NULL 'null', ESCAPE '\')"
CONTROL_CHARACTER = re.compile(rb'\\[^"\\]')
"""As JSON writes it."""


def _lines(table: Table, rows: Collection[RowPatch]) -> Iterator[bytes]:
    """Rows as CSV, which JSON arrays nearly are: one call writes ids, times and texts of a row."""
    nothing, as_json = _nothing(table.row), json_columns(table.row)
    for row in rows:
        values = nothing | row.new | row.set
        values["id"] = row.id
        values["version"] = row.upto if row.first == 1 else 0
        for column in as_json:
            values[column] = orjson.dumps(values[column]).decode()
        line = orjson.dumps(list(values.values()))[1:-1]
        yield line if CONTROL_CHARACTER.search(line) is None else _plainly(line)


@cache
def _nothing(row: type) -> dict[str, Any]:
    return dict.fromkeys(column_names(row))


def _plainly(line: bytes) -> bytes:
    """The line with control characters as they are: in CSV they have no escapes."""
    values = orjson.loads(b"[%s]" % line)
    texts = (_quoted(each) if isinstance(each, str) else orjson.dumps(each) for each in values)
    return b",".join(texts)


def _quoted(text: str) -> bytes:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'.encode()


def _copy(table: Table, lines: Iterable[bytes]) -> None:
    written = b"\n".join(lines)
    if not written:
        return
    with _connection.cursor() as cursor, cursor.copy(_copy_statement(table)) as copy:
        copy.write(written)


@cache
def _copy_statement(table: Table) -> bytes:
    columns = sql.SQL(", ").join(map(sql.Identifier, column_names(table.row)))
    return sql.SQL(COPY).format(sql.Identifier(table.name), columns).as_bytes(None)
