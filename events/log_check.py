"""Verifies the log against its seals and MACs: whether anybody changed it by hand, and where first.

Sealed events are compared leaf by leaf, so that any change is found; where a leaf is now tells the kind of change.
Events not sealed yet, usually those of the last second, are protected less: their contents by their MACs, their
positions by the order of their times and by whether a row was updated after it was appended.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from enum import StrEnum

import psycopg
from psycopg.rows import TupleRow

from payloops.events.connections import connect
from payloops.events.log_rows import COLUMNS, Fault, LogRow, fault_of, row_leaf
from payloops.events.merkle import merkle_root
from payloops.events.seals import NO_SEAL, Seal, SealedRange, is_signed, seal_of, seals_after

ROWS_PER_FETCH = 2_000
# `original`: the row was not updated since its append, because `xmin`, the lower half of the id of the transaction that
# wrote the row, still matches `xid`. That holds until the database is restored from a dump.
ROWS = f"""
    SELECT {COLUMNS}, xmin::text::bigint = (xid::text::numeric %% 4294967296)::bigint AS original
    FROM stored_events WHERE notification_id BETWEEN %s AND %s ORDER BY notification_id
"""  # noqa: S608  # the columns above
SPANS = (
    "SELECT number, first_position, last_position FROM seals WHERE number > %s ORDER BY number LIMIT 10000"
)
HEAD = "SELECT coalesce(max(notification_id), 0), coalesce(min(notification_id), 1) FROM stored_events"
# The window needs no sort: the primary key has this order.
STREAMS = """
    SELECT notification_id, originator_id, originator_version, topic, versions, before
    FROM (
        SELECT notification_id, originator_id, originator_version, topic,
               row_number() OVER stream AS versions, lag(notification_id) OVER stream AS before
        FROM stored_events WHERE notification_id <= %s
        WINDOW stream AS (PARTITION BY originator_id ORDER BY originator_version)
    ) events
    WHERE versions <> originator_version OR before > notification_id
    ORDER BY notification_id LIMIT 1
"""


class Tampering(StrEnum):
    """A kind of change by hand."""

    INSERTED = "inserted"
    EDITED = "edited"
    REMOVED = "removed"
    REORDERED = "reordered"
    UNSEALED = "no longer sealed"
    """The seal was changed or removed, not an event."""


@dataclass(frozen=True, slots=True)
class Finding:
    """The first event or seal of a span that is not as the service wrote it.

    Attributes:
        position: in the log; for a removed event, its former position.
        event: `payment.captured 019ab3c8-…:5`; None if the event is gone.
    """

    position: int
    tampering: Tampering
    event: str | None
    detail: str


@dataclass(frozen=True, slots=True)
class Span:
    """A part of the log that is checked in one step.

    Attributes:
        first, last: positions, both inclusive.
        first_seal, last_seal: numbers of the seals that cover it, 0 if it is not sealed.
    """

    first: int
    last: int
    first_seal: int
    last_seal: int


@dataclass(slots=True)
class SpanReport:
    """The result of checking a span.

    Attributes:
        findings: the first event and the first seal that are not as they were written, if any.
        without_mac: number of events without a MAC.
        first_without_mac, last_without_mac: their first and last position.
    """

    span: Span
    findings: list[Finding] = field(default_factory=list)
    without_mac: int = 0
    first_without_mac: int = 0
    last_without_mac: int = 0

    def note_without_mac(self, position: int) -> None:
        self.without_mac += 1
        self.first_without_mac = self.first_without_mac or position
        self.last_without_mac = position


@asynccontextmanager
async def checking_connection(database_url: str) -> AsyncIterator[psycopg.AsyncConnection[TupleRow]]:
    """A connection without a statement timeout."""
    async with await connect(database_url, application_name="payloops audit verify") as connection:
        await connection.execute("SET statement_timeout = 0")
        yield connection


async def log_ends(connection: psycopg.AsyncConnection[TupleRow]) -> tuple[int, int]:
    """The positions of the newest event, 0 if there is none, and of the oldest, which should be 1."""
    row = await (await connection.execute(HEAD)).fetchone()
    assert row is not None
    return row[0], row[1]


async def spans(
    connection: psycopg.AsyncConnection[TupleRow], *, size: int, upto: int
) -> AsyncIterator[Span]:
    """Divide the log into spans of about `size` events, which never divide a seal's range. Last come unsealed events.

    Args:
        upto: position of the newest event. Seals may reach further, if events were removed.
    """
    begun: Span | None = None
    number = last = 0
    while rows := await (await connection.execute(SPANS, (number,))).fetchall():
        for number, first, last in rows:  # their last values are used below
            begun = Span(begun.first if begun else first, last, begun.first_seal if begun else number, number)
            if begun.last - begun.first >= size - 1:
                yield begun
                begun = None
    if begun is not None:
        yield begun
    while last < upto:
        yield Span(last + 1, min(last + size, upto), 0, 0)
        last += size


async def check_span(
    connection: psycopg.AsyncConnection[TupleRow],
    span: Span,
    *,
    mac_keys: Sequence[bytes],
    public_keys: Mapping[str, bytes],
) -> SpanReport:
    """Check a span, up to the first event in it that is not as it was written.

    Args:
        mac_keys: of the current AUDIT_KEY and of older ones.
        public_keys: of the keys that may have signed seals, by id.
    """
    report = SpanReport(span)
    broken, leaves = None, list[bytes]()
    if span.first_seal:
        leaves, broken = await _sealed_leaves(connection, span, public_keys)
    found = await _check_sealed(connection, report, leaves, mac_keys)
    sealed_upto = span.first + len(leaves) - 1
    if found is None and sealed_upto < span.last:
        found = await _check_unsealed(connection, report, mac_keys, first=sealed_upto + 1)
    report.findings = [finding for finding in (found, broken) if finding is not None]
    return report


async def check_streams(connection: psycopg.AsyncConnection[TupleRow], *, upto: int) -> Finding | None:
    """The first event whose stream lacks events before it, or has them in another order: versions must be 1, 2, 3 …,
    in the order of positions.
    """
    row = await (await connection.execute(STREAMS, (upto,))).fetchone()
    if row is None:
        return None
    position, stream_id, version, topic, versions, before = row
    event = f"{topic} {stream_id}:{version}"
    if versions != version:
        missing = f"{version - versions} earlier events of its stream are missing, the first is {stream_id}:{versions}"
        return Finding(position, Tampering.REMOVED, event, missing)
    return Finding(
        position, Tampering.REORDERED, event, f"the previous event of its stream is at position {before}"
    )


async def _check_sealed(
    connection: psycopg.AsyncConnection[TupleRow],
    report: SpanReport,
    leaves: Sequence[bytes],
    mac_keys: Sequence[bytes],
) -> Finding | None:
    """Compare the sealed rows of a span with their leaves."""
    first = due = report.span.first
    last = first + len(leaves) - 1
    async with _rows(connection, first, last) as rows:
        async for row, _ in rows:
            if row.position != due or row_leaf(row) != leaves[due - first]:
                break
            fault = fault_of(row, mac_keys=mac_keys)
            if fault is Fault.NO_MAC:
                report.note_without_mac(due)
            elif fault is not None:
                # A leaf contains the content's hash, not the content, so it does not show when that was edited.
                since = ", which is as it was sealed"
                if fault is not Fault.CONTENT:
                    since = "; this was so already when it was sealed"
                return Finding(due, Tampering.EDITED, event_text(row), f"{fault}{since}")
            due += 1
    if due > last:
        return None
    return await _explain(connection, due, first=first, leaves=leaves, mac_keys=mac_keys)


async def _explain(
    connection: psycopg.AsyncConnection[TupleRow],
    position: int,
    *,
    first: int,
    leaves: Sequence[bytes],
    mac_keys: Sequence[bytes],
) -> Finding:
    """What happened to the event that was sealed at a position, and is not there any more."""
    sealed_at = await _sealed_positions(connection, first=first, leaves=leaves)
    start, end = min(sealed_at.values()), max(sealed_at.values())
    async with _rows(connection, start, end) as found:
        rows = [row async for row, _ in found]
    there = next((row for row in rows if row.position == position), None)
    moved = next((row for row in rows if row_leaf(row, position=position) == leaves[position - first]), None)
    if there is None:
        following = next((row.position for row in rows if row.position > position), end + 1)
        return _vacated(position, moved=moved, following=following)
    came_from = next(
        (n for n in range(start, end + 1) if sealed_at.get(row_leaf(there, position=n)) == n), None
    )
    if came_from is None:
        return _never_sealed(there, moved=moved, fault=fault_of(there, mac_keys=mac_keys))
    event = event_text(there)
    if moved is not None:
        return Finding(position, Tampering.REORDERED, event, f"it was sealed at position {came_from}")
    detail = f"it was sealed, and is gone: {event}, which was sealed at {came_from}, is at its position now"
    return Finding(position, Tampering.REMOVED, None, detail)


def _vacated(position: int, *, moved: LogRow | None, following: int) -> Finding:
    """No event is at a position that was sealed.

    Args:
        moved: the event that was sealed there, if it is at another position now.
        following: the next position with an event.
    """
    if moved is not None:
        detail = f"it was sealed at position {position}, and is at {moved.position} now"
        return Finding(position, Tampering.REORDERED, event_text(moved), detail)
    more = f", and {following - position - 1} after it" if following > position + 1 else ""
    return Finding(position, Tampering.REMOVED, None, f"it was sealed, and is gone{more}")


def _never_sealed(row: LogRow, *, moved: LogRow | None, fault: Fault | None) -> Finding:
    """An event is at a position that was sealed, and was itself not sealed as it is now.

    Args:
        moved: the event that was sealed there, if it is at another position now.
    """
    position, event = row.position, event_text(row)
    if moved is not None:
        detail = f"the event sealed at this position, {event_text(moved)}, is at {moved.position} now"
        return Finding(position, Tampering.INSERTED, event, f"{fault}; {detail}" if fault else detail)
    detail = str(fault) if fault else "its content is authentic, but its position or time was changed"
    return Finding(position, Tampering.EDITED, event, f"it differs from what was sealed: {detail}")


async def _sealed_positions(
    connection: psycopg.AsyncConnection[TupleRow], *, first: int, leaves: Sequence[bytes]
) -> dict[bytes, int]:
    """The sealed position of each of these leaves, and of those of the seals right before and after them."""
    positions = {leaf: first + n for n, leaf in enumerate(leaves)}
    for adjacent in (first - 1, first + len(leaves)):
        sealed = await seal_of(connection, position=adjacent)
        if sealed is not None:
            positions |= {leaf: sealed.seal.first_position + n for n, leaf in enumerate(sealed.leaves)}
    return positions


async def _check_unsealed(
    connection: psycopg.AsyncConnection[TupleRow],
    report: SpanReport,
    mac_keys: Sequence[bytes],
    *,
    first: int,
) -> Finding | None:
    """Check the rows of a span that are not sealed: positions, MACs, order of times, updates after the append."""
    due = first
    async with _rows(connection, first - 1, first) as rows:
        before = [each async for each in rows]
    # After a restore from a dump no row is original, which then means nothing.
    in_place = bool(before) and before[0][1]
    latest = before[0][0] if before else None
    async with _rows(connection, first, report.span.last) as rows:
        async for row, original in rows:
            fault = fault_of(row, mac_keys=mac_keys)
            if row.position != due:
                return _missing(due, row.position - 1)
            if fault not in (None, Fault.NO_MAC):
                by = Tampering.INSERTED if in_place and original else Tampering.EDITED
                return Finding(due, by, event_text(row), str(fault))
            if in_place and not original:
                by = Tampering.REORDERED if fault is None else Tampering.EDITED
                detail = "the row was updated after it was appended, with another position, time or MAC"
                return Finding(due, by, event_text(row), detail)
            if latest is not None and _time(row) < _time(latest):
                return _out_of_order(latest if latest.position >= first else row)
            if fault is Fault.NO_MAC:
                report.note_without_mac(due)
            latest = row if latest is None or _time(row) > _time(latest) else latest
            due += 1
    return _missing(due, report.span.last) if due <= report.span.last else None


def _time(row: LogRow) -> int:
    return int.from_bytes(row.recorded, "big", signed=True)


def _missing(first: int, last: int) -> Finding:
    more = f", and {last - first} after it" if last > first else ""
    return Finding(first, Tampering.REMOVED, None, f"there is no event here{more}, but there are later ones")


def _out_of_order(row: LogRow) -> Finding:
    detail = "its time does not fit those around it (or the server's clock was set back just then)"
    return Finding(row.position, Tampering.REORDERED, event_text(row), detail)


async def _sealed_leaves(
    connection: psycopg.AsyncConnection[TupleRow], span: Span, public_keys: Mapping[str, bytes]
) -> tuple[list[bytes], Finding | None]:
    """The leaves of a span, up to the first seal that breaks the chain; and what is wrong with that one, if any."""
    number = max(0, span.first_seal - 2)
    found = await seals_after(connection, number=number, limit=span.last_seal - number)
    before = found.pop(0).seal if found[0].seal.number < span.first_seal else None
    leaves: list[bytes] = []
    for sealed in found:
        broken = _broken_link(before, sealed, public_keys)
        if broken is not None:
            return leaves, broken
        leaves += sealed.leaves
        before = sealed.seal
    return leaves, None


def _broken_link(
    before: Seal | None, sealed: SealedRange, public_keys: Mapping[str, bytes]
) -> Finding | None:
    """What is wrong with a seal as the successor of `before`; None if nothing is.

    Its own signature is verified too: by the chain, that of a later seal covers all that it signs, but evidence about
    an order has the seals of its events only.
    """
    seal = sealed.seal
    number, previous, due = (
        (before.number, before.hash, before.last_position + 1) if before else (0, NO_SEAL, 1)
    )
    if seal.number != number + 1:
        return Finding(due, Tampering.UNSEALED, None, f"seal {number + 1} is missing")
    if seal.previous != previous:
        detail = f"seal {seal.number} does not continue the chain: it or {number} was changed"
        return Finding(due, Tampering.UNSEALED, None, detail)
    if seal.first_position > due:
        until = seal.first_position - 1
        gone = f"events {due} to {until} were missing already when seal {seal.number} was made"
        return Finding(due, Tampering.REMOVED, None, gone)
    public = public_keys.get(seal.key_id)
    wrong = None
    if len(sealed.leaves) != seal.last_position - seal.first_position + 1 or seal.first_position != due:
        wrong = "its leaves are not those of its range"
    elif merkle_root(sealed.leaves) != seal.root:
        wrong = "its leaves do not lead to its root"
    elif public is None:
        wrong = f"its key {seal.key_id} is neither AUDIT_KEY nor of AUDIT_KEYS_OLDER"
    elif not is_signed(seal.statement, signature=seal.signature, public=public):
        wrong = "its signature is wrong"
    if wrong is None:
        return None
    return Finding(seal.first_position, Tampering.UNSEALED, None, f"seal {seal.number} was changed: {wrong}")


@asynccontextmanager
async def _rows(
    connection: psycopg.AsyncConnection[TupleRow], first: int, last: int
) -> AsyncIterator[AsyncIterator[tuple[LogRow, bool]]]:
    """Rows between two positions, each with whether it is original; fetched in batches."""

    async def each() -> AsyncGenerator[tuple[LogRow, bool]]:
        while rows := await cursor.fetchmany(ROWS_PER_FETCH):
            for row in rows:
                yield LogRow(*row[:-1]), row[-1]

    async with connection.transaction(), connection.cursor(name="rows", binary=True) as cursor:
        await cursor.execute(ROWS, (first, last))
        async with aclosing(each()) as rows:
            yield rows


def event_text(row: LogRow) -> str:
    """`payment.captured 019ab3c8-…:5`."""
    return f"{row.topic} {row.stream_id}:{row.version}"
