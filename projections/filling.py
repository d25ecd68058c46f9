"""Filling the new tables of a build with a chunk of streams: the work of the processes that `building.py` starts.

Each row belongs to one stream, so each stream is folded by itself, and its finished rows are written by COPY. A stream
in which anything is unusual is folded event by event instead, as the projector does it, so that it parks the same
events.
"""

import ctypes
import gc
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from operator import attrgetter
from typing import Any, LiteralString
from uuid import UUID

import orjson
import psycopg
from psycopg import sql
from psycopg.rows import TupleRow

from payloops.events.connections import connection_options, is_about_data
from payloops.events.encoding import Decoder, decoder_of, fact_of
from payloops.projections.batches import Change, LoggedEvent, decode, park
from payloops.projections.low_priority import lower_priority, lower_server_priority
from payloops.projections.patches import Handler, Table, Values, column_names, json_columns, merge
from payloops.projections.projection import Projection


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """The streams with ids after one, up to and including another."""

    number: int
    after: UUID
    through: UUID


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What the processes of a build have in common.

    Attributes:
        upto: the position of the log up to which streams are folded.
    """

    database_url: str
    schema: LiteralString
    projections: tuple[Projection, ...]
    upto: int


END_OF_STATE = b"\x1e"
"""Separates the states of a stream's events: it cannot occur in JSON."""
# One row for each stream: rows for each event would cost PostgreSQL more to send, and Python more to read.
READ_STREAMS = r"""
    SELECT originator_id, count(*), max(originator_version), string_agg(topic, ',' ORDER BY originator_version),
           string_agg(state, '\x1e' ORDER BY originator_version), string_agg(personal_key, '')
    FROM readable_events
    WHERE originator_id > %s AND originator_id <= %s AND notification_id <= %s
    GROUP BY originator_id
"""
READ_EVENTS = """
    SELECT notification_id, originator_id, originator_version, topic,
           CASE WHEN split_part(topic, '.', 1) = ANY(%s) THEN state END, personal_key
    FROM readable_events
    WHERE originator_id = ANY(%s) AND notification_id <= %s
    ORDER BY originator_id, originator_version
"""
DONE = "UPDATE build_chunks SET done = true WHERE number = %s AND NOT done"

Stream = tuple[UUID, int, int, str, bytes, bytes | None]
"""A row of `READ_STREAMS`."""

_plan: Plan


def start_worker(plan: Plan, parent: int) -> None:
    """Prepare a worker process, and make it end with the process that started it."""
    global _plan  # noqa: PLW0603  # a process has one
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _end_with(parent)
    lower_priority()
    gc.disable()  # there are no reference cycles here, and looking for them takes a third of the time
    _plan = plan


@cache
def _connection() -> psycopg.Connection[TupleRow]:
    """The process's connection, opened with its first chunk: of an error in `start_worker`, nobody would learn why."""
    options = connection_options("payloops build")
    options["options"] = f"{options['options']} -c search_path={_plan.schema},public -c statement_timeout=0"
    connection = psycopg.Connection.connect(_plan.database_url, **options)  # type: ignore[arg-type]
    connection.execute("SET synchronous_commit = off")
    lower_server_priority(connection)
    return connection


def _end_with(parent: int) -> None:
    """Be killed when the parent dies. Where the system cannot do that, a worker ends when its pipe breaks."""
    if sys.platform == "linux":
        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)


def fill_chunk(chunk: Chunk) -> int:
    """Fold the chunk's streams into the new tables, in one transaction; return how many events were read.

    Changes nothing if the chunk was done already, by a process that was thought dead.
    """
    with _connection().transaction():
        cursor = _connection().cursor(binary=True)
        cursor.execute(READ_STREAMS, (chunk.after, chunk.through, _plan.upto))
        streams: list[Stream] = cursor.fetchall()
        fold = Fold(_plan.projections)
        fold.add(streams)
        for projection in _plan.projections:
            try:
                with _connection().transaction():
                    for table in projection.tables:
                        _copy(table, fold.tables[table.name].csv)
            except Exception as refused:
                if not is_about_data(refused):
                    raise
                _fill_event_by_event(projection, [stream for stream, *_ in streams])
            else:
                _fill_event_by_event(projection, fold.unusual)
        if _connection().execute(DONE, (chunk.number,)).rowcount != 1:
            raise psycopg.Rollback
    return sum(count for _, count, *_ in streams)


# --- folding whole streams -------------------------------------------------------------------------------


class StreamRows(dict[Any, Values]):
    """A table's rows of the current stream, by key.

    Attributes:
        version: of the event that is being applied; the rows that it changes get it.
    """

    def __init__(self, table: Table) -> None:
        super().__init__()
        self.version = 0
        self._empty = _empty(table.row)

    def get(self, key: Any, /) -> Values | None:  # type: ignore[override]
        row = _find(self, key)
        if row is not None:
            row["version"] = self.version
        return row

    def make(self, key: Any, id: UUID | str, new: Values, /) -> Values:
        row = self[key] = self._empty | new
        row["id"] = id
        row["version"] = self.version
        return row


_find: Callable[[dict[Any, Values], Any], Values | None] = dict.get
"""Faster than `super().get`, which is looked up at each call."""


@cache
def _empty(row: type) -> Values:
    """A row with all columns, in their order, and no values."""
    return dict.fromkeys(column_names(row))


class FilledTable:
    """A chunk's finished rows of a table, and the rows of the current stream."""

    def __init__(self, table: Table) -> None:
        self.rows = StreamRows(table)
        self.csv = Csv(table)

    def end_stream(self) -> None:
        for row in self.rows.values():
            self.csv.add(row)
        self.rows.clear()


Step = tuple[Decoder | None, list[tuple[Handler, StreamRows]]]
"""An event's decoder, None if no projection needs it, and the handlers to call, each with the rows that it changes."""


class Fold:
    """Folds streams into rows of all tables."""

    def __init__(self, projections: Sequence[Projection]) -> None:
        self._projections = projections
        self.tables = {table.name: FilledTable(table) for each in projections for table in each.tables}
        self.unusual: list[UUID] = []
        """Streams that have to be folded event by event."""
        self._paths: dict[str, list[Step] | None] = {}
        self._steps: dict[str, Step | None] = {}

    def add(self, streams: Sequence[Stream]) -> None:
        """Fold streams. Whatever is wrong with an event affects only its own stream."""
        tables = list(self.tables.values())
        for stream, count, last, topics, states, personal_key in streams:
            try:
                path = self._paths[topics]
            except KeyError:
                path = self._paths[topics] = self._path(topics.split(","))
            if path is None or last != count:
                self.unusual.append(stream)
                continue
            try:
                _apply_events(path, stream, states, personal_key)
            except Exception:  # noqa: BLE001  # whatever is wrong: see above
                self.unusual.append(stream)
                for table in tables:
                    table.rows.clear()
            else:
                for table in tables:
                    table.end_stream()

    def _path(self, topics: Sequence[str]) -> list[Step] | None:
        """The steps of a stream with these topics, which many streams share.

        None if one of its events may have to be parked, or does not change a row that every fact of its stream changes.
        """
        families = {_family(topic) for topic in topics}
        for projection in self._projections:
            concerned = families & projection.families
            if concerned and concerned != families and any(table.every_fact for table in projection.tables):
                return None
        steps = [self._step(topic) for topic in topics]
        known = [step for step in steps if step is not None]
        return known if len(known) == len(steps) else None

    def _step(self, topic: str) -> Step | None:
        """The step of an event with this topic; None if a projection needs it, and its type is not known."""
        if topic not in self._steps:
            concerned = [each for each in self._projections if _family(topic) in each.families]
            fact = fact_of(topic) if concerned else None
            found = [
                (table.handler_of(fact), self.tables[table.name].rows)
                for each in concerned
                for table in each.tables
                if fact is not None
            ]
            handlers = [(handler, rows) for handler, rows in found if handler is not None]
            decoder = decoder_of(fact) if fact is not None else None
            self._steps[topic] = None if concerned and decoder is None else (decoder, handlers)
        return self._steps[topic]


def _apply_events(path: Sequence[Step], stream: UUID, states: bytes, personal_key: bytes | None) -> None:
    """Apply the events of a stream. Personal data is in the first."""
    version = 0
    for (decode_fact, handlers), state in zip(path, states.split(END_OF_STATE), strict=True):
        version += 1
        if decode_fact is None:
            continue
        fact = decode_fact(state, stream, version, personal_key if version == 1 else None)
        for handler, rows in handlers:
            rows.version = version
            handler(fact, rows)


def _family(topic: str) -> str:
    return topic.partition(".")[0]


# --- folding event by event ------------------------------------------------------------------------------


def _fill_event_by_event(projection: Projection, streams: Sequence[UUID]) -> None:
    """Fold streams as the projector does, event by event, and park those that cannot be applied."""
    if not streams:
        return
    cursor = _connection().cursor(binary=True)
    cursor.execute(READ_EVENTS, (sorted(projection.families), list(streams), _plan.upto))
    [batch] = decode([projection], [LoggedEvent(*row) for row in cursor])
    for event, error in (*batch.parked, *_copy_streams(projection, batch.changes)):
        _connection().execute(*park(projection, event, error))


def _copy_streams(
    projection: Projection, changes: Sequence[Change]
) -> Iterator[tuple[LoggedEvent, Exception]]:
    """Write the rows that the changes make; yield the events that the database refuses, as the projector would find
    them.
    """
    refused = _refused(projection, changes, keep=True)
    if refused is None:
        return
    streams = [list(group) for _, group in groupby(changes, key=attrgetter("logged.originator_id"))]
    if len(streams) > 1:
        for part in (streams[: len(streams) // 2], streams[len(streams) // 2 :]):
            yield from _copy_streams(projection, [change for stream in part for change in stream])
    else:
        yield from _copy_accepted(projection, changes)


def _copy_accepted(
    projection: Projection, changes: Sequence[Change]
) -> Iterator[tuple[LoggedEvent, Exception]]:
    """Write one stream, leaving out each event that the database refuses after those before it."""
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
    """Why the database refuses the rows that the changes make; None if it accepts them. Kept only with `keep`."""
    try:
        with _connection().transaction(force_rollback=not keep):
            for place, table in enumerate(projection.tables):
                csv = Csv(table)
                pairs = ((each.logged.version, patch) for each in changes for patch in each.patches[place])
                for row in merge(table, pairs):
                    version = row.upto if row.first == 1 else 0
                    csv.add(_empty(table.row) | row.new | row.set | {"id": row.id, "version": version})
                _copy(table, csv)
    except Exception as error:
        if not is_about_data(error):
            raise
        return error
    return None


# --- rows as lines of COPY -------------------------------------------------------------------------------

COPY = r"COPY {} ({}) FROM STDIN (FORMAT csv, NULL 'null', ESCAPE '\')"
CONTROL_CHARACTER = re.compile(rb'\\[^"\\]')
"""As orjson writes it."""
END_OF_ROW: Values = {"": 0}
END_OF_LINE = b',{"":0}'
"""As orjson writes `END_OF_ROW`. It cannot occur in a text, whose quotes are escaped."""


class Csv:
    """Rows as CSV. A JSON array is nearly that, so one call of orjson writes the ids, times and texts of all rows."""

    def __init__(self, table: Table) -> None:
        self._values: list[Any] = []
        columns = column_names(table.row)
        self._width = len(columns) + 1
        self._json = [columns.index(each) for each in json_columns(table.row)]

    def __bool__(self) -> bool:
        return bool(self._values)

    def add(self, row: Values) -> None:
        """Add a row with all columns, in their order."""
        self._values += row.values()
        self._values.append(END_OF_ROW)

    def text(self) -> bytes:
        """
        Raises:
            TypeError: a value cannot be written as JSON.
        """
        values = self._values
        for column in self._json:
            for place in range(column, len(values), self._width):
                values[place] = orjson.dumps(values[place]).decode()
        text = orjson.dumps(values)[1 : -len(END_OF_LINE) - 1]
        if CONTROL_CHARACTER.search(text) is None:
            return text.replace(END_OF_LINE + b",", b"\n")
        lines = text.split(END_OF_LINE + b",")
        return b"\n".join(_unescaped(line) if CONTROL_CHARACTER.search(line) else line for line in lines)


def _unescaped(line: bytes) -> bytes:
    """The line with control characters unescaped: CSV has no escapes for them."""
    values = orjson.loads(b"[%s]" % line)
    texts = (_quoted(each) if isinstance(each, str) else orjson.dumps(each) for each in values)
    return b",".join(texts)


def _quoted(text: str) -> bytes:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'.encode()


def _copy(table: Table, csv: Csv) -> None:
    if not csv:
        return
    with _connection().cursor() as cursor, cursor.copy(_copy_statement(table)) as copy:
        copy.write(csv.text())


@cache
def _copy_statement(table: Table) -> bytes:
    columns = sql.SQL(", ").join(map(sql.Identifier, column_names(table.row)))
    return sql.SQL(COPY).format(sql.Identifier(table.name), columns).as_bytes(None)
