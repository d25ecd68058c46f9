"""Folding whole streams into finished rows: the fast way to fill the tables of a build."""

from collections.abc import Callable, Sequence
from typing import Any
from uuid import UUID

from payloops.events.encoding import Decoder, decoder_of, fact_of
from payloops.projections.csv_rows import Csv, empty_row
from payloops.projections.patches import Handler, Table, Values
from payloops.projections.projection import Projection

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

StoredStream = tuple[UUID, int, int, str, bytes, bytes | None]
"""A row of `READ_STREAMS`."""


class StreamRows(dict[Any, Values]):
    """A table's rows of the current stream, by key.

    Attributes:
        version: of the event that is being applied; the rows that it changes get it.
    """

    def __init__(self, table: Table) -> None:
        super().__init__()
        self.version = 0
        self._empty = empty_row(table.row)

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

    def add(self, streams: Sequence[StoredStream]) -> None:
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
