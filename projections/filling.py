"""Filling the new tables of a build with a chunk of streams: the work of the processes that `building.py` starts.

Each row belongs to one stream, so each stream is folded by itself (whole_streams.py), and its finished rows are written
by COPY (csv_rows.py). A stream in which anything is unusual is folded event by event instead, as the projector does it,
so that it parks the same events.
"""

import ctypes
import gc
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from operator import attrgetter
from typing import LiteralString
from uuid import UUID

import psycopg
from psycopg.rows import TupleRow

from payloops.events.connections import connection_options, is_about_data, session_statement
from payloops.projections.batches import Change, LoggedEvent, decode, park
from payloops.projections.csv_rows import Csv, copy_rows, empty_row
from payloops.projections.low_priority import lower_priority, lower_server_priority
from payloops.projections.patches import merge
from payloops.projections.projection import Projection
from payloops.projections.whole_streams import READ_STREAMS, Fold, StoredStream


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


READ_EVENTS = """
    SELECT notification_id, originator_id, originator_version, topic,
           CASE WHEN split_part(topic, '.', 1) = ANY(%s) THEN state END, personal_key
    FROM readable_events
    WHERE originator_id = ANY(%s) AND notification_id <= %s
    ORDER BY originator_id, originator_version
"""
DONE = "UPDATE build_chunks SET done = true WHERE number = %s AND NOT done"

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
    options = connection_options(_plan.database_url, application_name="payloops build")
    connection = psycopg.Connection.connect(_plan.database_url, **options)
    connection.execute(session_statement(search_path=f"{_plan.schema}, public", statement_timeout="0"))
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
        streams: list[StoredStream] = cursor.fetchall()
        fold = Fold(_plan.projections)
        fold.add(streams)
        for projection in _plan.projections:
            try:
                with _connection().transaction():
                    for table in projection.tables:
                        copy_rows(_connection(), table, fold.tables[table.name].csv)
            except Exception as refused:
                if not is_about_data(refused):
                    raise
                _fill_event_by_event(projection, [stream for stream, *_ in streams])
            else:
                _fill_event_by_event(projection, fold.unusual)
        if _connection().execute(DONE, (chunk.number,)).rowcount != 1:
            raise psycopg.Rollback
    return sum(count for _, count, *_ in streams)


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
                    csv.add(empty_row(table.row) | row.new | row.set | {"id": row.id, "version": version})
                copy_rows(_connection(), table, csv)
    except Exception as error:
        if not is_about_data(error):
            raise
        return error
    return None
