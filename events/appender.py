"""The appender: one per process, through which all commands append their events to the log.

Appends are gathered into batches: while one batch commits, the next gathers, and nothing waits on a timer. A batch is
one call of the database function `append_batch` (migrations/versions/0030_batches_in_few_steps.py), which inserts or
drops each append as a whole. A batch of a single event, usual under low load, is a call of `append_event`
(0029_one_event_at_once.py), which costs PostgreSQL less.

If the connection breaks after a batch was sent, its outcome is unknown at first. The server process that executed it
is then terminated and the log is read: either the batch is there, or it never will be.
"""

import asyncio
import random
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from struct import Struct
from typing import Any
from uuid import UUID

import psycopg
import structlog
from eventsourcing.persistence import StoredEvent
from prometheus_client import Counter, Gauge
from psycopg.rows import TupleRow

from payloops.events.authenticity import content_hash, event_mac
from payloops.events.background import begin
from payloops.events.columns import ColumnType, bigints, byteas, ints, names, texts, uuids
from payloops.events.connections import connect
from payloops.events.crash_points import crash_point
from payloops.events.deadlines import Deadlines
from payloops.events.errors import OutcomeUnknown, ReceiptConflict, StoreUnavailable, VersionConflict
from payloops.events.personal_data import PersonalKey
from payloops.events.statement import Statement
from payloops.events.tally import Histogram, Tally

MAX_BATCH_APPENDS = 256
MAX_BATCH_EVENTS = 2_000
MIN_HALF_APPENDS = 32
"""The least that halving leaves in a batch: smaller ones would cost PostgreSQL more than the process gains."""
SMALL_BATCH_APPENDS = 16
"""A batch of as many is sent without waiting for more of them, which would keep PostgreSQL idle."""
SEND_SECONDS = 8.0
"""How long a sent batch may take: more than PostgreSQL's own statement_timeout, which normally ends it first."""
EXPIRIES = 20
"""How many times per `patience` the queue is searched for appends that have waited too long, at most."""
RESOLVE_SECONDS = 10.0
"""How long to try to find out from the log whether a batch whose answer was lost was committed."""

NAME = "payloops appender"
"""Application name of its connections."""
APPEND_BATCH = """
    append_batch(
        %b::int[], %b::uuid[], %b::bigint[],
        %b::int[], %b::uuid[], %b::bigint[], %b::text[], %b::bytea[], %b::uuid[], %b::bytea[], %b::bytea[],
        %b::int[], %b::uuid[], %b::text[], %b::uuid[], %b::int[], %b::bytea[],
        %b::int[], %b::uuid[], %b::uuid[], %b::bytea[], %b::bytea[], %b::bytea[])
"""
"""The call; `batch_parameters` makes its parameters."""
NUMBERED = APPEND_BATCH.replace("%b", "${}").format(*range(1, APPEND_BATCH.count("%b") + 1))
APPEND = f"SELECT head, moved, answered FROM {NUMBERED}"  # noqa: S608  # the text above
APPEND_SINGLE = """
    SELECT append_event($1::uuid, $2::bigint, $3::text, $4::bytea, $5::uuid, $6::bytea, $7::bytea,
                        $8::uuid, $9::text, $10::uuid, $11::int, $12::bytea, $13::bytea, $14::bytea, $15::bytea)
"""
BATCH, SINGLE = 0, 1
"""Indexes of these two among the prepared statements."""
MOVED, ANSWERED = None, 0
"""What `append_event` returns for a proposal that was dropped, in place of a position."""
END_BACKEND = (
    "SELECT pg_terminate_backend(pid, 3000) FROM pg_stat_activity WHERE pid = %s AND backend_start = %s"
)
LOOK_UP = """
    SELECT s.notification_id FROM stored_events s
    WHERE s.originator_id = %s AND s.originator_version = %s AND s.content_hash = %s
"""
UNAVAILABLE = (psycopg.OperationalError, psycopg.errors.ReadOnlySqlTransaction)
"""Errors that are not caused by the appended events."""

APPENDS = Counter(
    "payloops_appends",
    "Appends: appended, conflict (the stream had newer events), refused (nothing was done), unknown, or failed",
    ["outcome"],
)
APPENDED, CONFLICT, REFUSED, UNKNOWN, FAILED = (
    APPENDS.labels(outcome) for outcome in ("appended", "conflict", "refused", "unknown", "failed")
)
OUTCOMES = {
    VersionConflict: CONFLICT,
    ReceiptConflict: CONFLICT,
    StoreUnavailable: REFUSED,
    OutcomeUnknown: UNKNOWN,
}
QUEUE = Gauge("payloops_append_queue_length", "Appends that wait to be sent", multiprocess_mode="livesum")
EVENTS_BOUNDS = (1, 2, 5, 10, 25, 50, 100, 250, 500, 1_000, MAX_BATCH_EVENTS)
SECONDS_BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
BATCH_EVENTS = Histogram(
    "payloops_append_batch_events", "Events that were appended together", buckets=EVENTS_BOUNDS
)
BATCH_SECONDS = Histogram(
    "payloops_append_batch_duration_seconds", "How long the database took for them", buckets=SECONDS_BOUNDS
)

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """The answer to a request with an idempotency key, stored in the transaction that appends its events.

    Attributes:
        owner: the reservation that the request holds on the key (`payloops.commands.idempotency`).
        status: HTTP status of the answer.
        body: of the answer, as sent.
    """

    merchant_id: UUID
    key: str
    owner: UUID
    status: int
    body: bytes


EventRow = tuple[UUID, int, str, bytes, UUID, bytes, bytes]


@dataclass(slots=True, kw_only=True)
class Proposal:
    """The events of one command, all or none of which are appended, and what is stored with them.

    Attributes:
        rows: for each event its stream, version, topic, state and merchant, and its hash and MAC
            (`payloops.events.authenticity`).
        receipt: the answer, if the request has an idempotency key.
        personal_keys: keys of the streams that begin with these events.
    """

    rows: Sequence[EventRow]
    merchant_id: UUID
    receipt: Receipt | None
    personal_keys: Sequence[PersonalKey]


def propose(
    events: Sequence[StoredEvent],
    *,
    merchant_id: UUID,
    mac_key: bytes,
    receipt: Receipt | None = None,
    personal_keys: Sequence[PersonalKey] = (),
) -> Proposal:
    """Add hashes and MACs to the events of a command."""
    rows: list[EventRow] = []
    for event in events:
        digest = content_hash(event)
        mac = event_mac(mac_key, content_hash=digest, merchant_id=merchant_id)
        stream: Any = event.originator_id  # typed `UUID | str` by the library
        rows.append((stream, event.originator_version, event.topic, event.state, merchant_id, digest, mac))
    return Proposal(rows=rows, merchant_id=merchant_id, receipt=receipt, personal_keys=personal_keys)


@dataclass(slots=True, kw_only=True)
class _Append:
    """An append in the queue or in a batch. If its caller is cancelled, so is `done`, but the append goes on.

    Attributes:
        queued_at: by the event loop's clock.
        ended: it has succeeded or failed.
    """

    proposal: Proposal
    queued_at: float
    done: asyncio.Future[int]
    ended: bool = False

    def succeed(self, position: int) -> None:
        self.ended = True
        if not self.done.done():
            self.done.set_result(position)

    def fail(self, error: Exception) -> None:
        if self.ended:
            return
        self.ended = True
        OUTCOMES.get(type(error), FAILED).inc()
        if not self.done.done():
            self.done.set_exception(error)


class Appender:
    """Gathers appends into batches and writes them over a connection of its own."""

    def __init__(
        self,
        database_url: str,
        *,
        mac_key: bytes,
        queue_size: int,
        patience: float,
        notify: Callable[[], None] = lambda: None,
    ) -> None:
        """
        Args:
            patience: seconds that an append may wait to be sent. While the first in the queue has waited longer, no
                more are accepted.
            notify: called after each append.
        """
        self._notify = notify
        self._database_url = database_url
        self._mac_key = mac_key
        self._queue_size = queue_size
        self._patience = patience
        self._queue: deque[_Append] = deque()
        self._woken: asyncio.Future[None] | None = None
        self._statement: Statement | None = None
        self._task: asyncio.Task[None] | None = None
        self._expiry: asyncio.TimerHandle | None = None
        self._last_batch = 0
        self._last_position = 0
        self._is_only_writer = False
        self._closing = False
        # Since the last `sample`:
        self._appended = 0
        self._batch_events = Tally(EVENTS_BOUNDS)
        self._batch_seconds = Tally(SECONDS_BOUNDS)

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._sent = Deadlines(SEND_SECONDS)
        self._task = begin(self._run(), name="appender")

    async def close(self) -> None:
        """Refuse new appends, write those in the queue, and close the connection."""
        self._closing = True
        self._wake()
        if self._task is not None:
            try:
                await asyncio.wait_for(self._task, SEND_SECONDS)
            except TimeoutError:
                log.error("appender.closed_unfinished", waiting=len(self._queue))
        if self._expiry is not None:
            self._expiry.cancel()
        await self._disconnect()
        self.sample()

    def sample(self) -> None:
        """Update the metrics."""
        QUEUE.set(len(self._queue))
        APPENDED.inc(self._appended)
        self._appended = 0
        self._batch_events.hand_over(BATCH_EVENTS)
        self._batch_seconds.hand_over(BATCH_SECONDS)

    def append(
        self,
        events: Sequence[StoredEvent],
        *,
        merchant_id: UUID,
        receipt: Receipt | None = None,
        personal_keys: Sequence[PersonalKey] = (),
    ) -> asyncio.Future[int]:
        """Append the events of one command, all or none. The future's result is the position of the last.

        Cancelling the future does not undo the append.

        Raises:
            VersionConflict, ReceiptConflict, StoreUnavailable: nothing was appended.
            OutcomeUnknown: they may have been appended.
        """
        loop = self._loop
        now = loop.time()
        if self._closing or len(self._queue) >= self._queue_size:
            REFUSED.inc()
            raise StoreUnavailable("too many appends wait")
        if self._queue and now - self._queue[0].queued_at > self._patience:
            REFUSED.inc()
            raise StoreUnavailable("appends wait for too long")
        proposal = propose(
            events,
            merchant_id=merchant_id,
            mac_key=self._mac_key,
            receipt=receipt,
            personal_keys=personal_keys,
        )
        append = _Append(proposal=proposal, queued_at=now, done=loop.create_future())
        self._queue.append(append)
        self._wake()
        if self._expiry is None:
            self._expiry = loop.call_later(self._patience, self._expire)
        return append.done

    def _expire(self) -> None:
        """Fail appends that have waited too long. They stay in the queue: while its first is overdue, it is closed."""
        self._expiry = None
        now = self._loop.time()
        for append in self._queue:
            if now < append.queued_at + self._patience:
                due = max(append.queued_at + self._patience, now + self._patience / EXPIRIES)
                self._expiry = self._loop.call_at(due, self._expire)
                return
            append.fail(StoreUnavailable("the append waited too long to be sent"))

    def _wake(self) -> None:
        if self._woken is not None and not self._woken.done():
            self._woken.set_result(None)

    async def _run(self) -> None:
        while self._queue or not self._closing:
            if not self._queue:
                self._woken = self._loop.create_future()
                await self._woken
            await self._wait_for_more()
            batch = self._gather()
            try:
                if batch:
                    await self._write(batch)
            except Exception as error:  # no batch may end the appender
                log.exception("appender.batch_failed")
                for append in batch:
                    append.fail(error)

    async def _wait_for_more(self) -> None:
        """Wait while each turn of the event loop brings further appends, and the batch is still small.

        The callers of a batch append again one after the other, as their requests arrive. If the first were sent at
        once, the others would wait for its commit. A lone caller's append is sent at once.
        """
        if self._last_batch <= 1:
            return
        waiting = 0
        while waiting < len(self._queue) < SMALL_BATCH_APPENDS:
            waiting = len(self._queue)
            await asyncio.sleep(0)

    def _gather(self) -> list[_Append]:
        batch: list[_Append] = []
        size = 0
        limit = self._batch_limit()
        while self._queue and len(batch) < limit and size < MAX_BATCH_EVENTS:
            append = self._queue.popleft()
            if append.ended:
                continue  # it waited too long
            size += len(append.proposal.rows)
            batch.append(append)
        self._last_batch = len(batch)
        return batch

    def _batch_limit(self) -> int:
        """How many appends the next batch takes at most.

        If no other process appends, half of those under way: PostgreSQL works on one half while this process answers
        the callers of the other, who then append again. If others do, PostgreSQL works on their batches meanwhile.
        """
        if not self._is_only_writer:
            return MAX_BATCH_APPENDS
        half = (len(self._queue) + self._last_batch) // 2
        return min(MAX_BATCH_APPENDS, max(MIN_HALF_APPENDS, half))

    async def _write(self, batch: list[_Append]) -> None:
        try:
            statement = await self._prepared()
        except (psycopg.Error, OSError, TimeoutError) as error:
            log.warning("appender.cannot_connect", error=type(error).__name__)
            for append in batch:
                append.fail(StoreUnavailable("the database cannot be reached"))
            return
        began = time.perf_counter()
        try:
            with self._sent:
                outcomes = await _appended(statement, [append.proposal for append in batch])
        except (psycopg.Error, OSError, TimeoutError) as error:
            if statement.closed or not isinstance(error, psycopg.Error):
                log.warning("appender.answer_lost", error=type(error).__name__, appends=len(batch))
                await self._resolve(batch, statement)
            else:
                await self._refused(batch, error)
            return
        crash_point("append.committed")
        self._batch_seconds.observe(time.perf_counter() - began)
        self._batch_events.observe(sum([len(append.proposal.rows) for append in batch]))
        appended = last = events = 0
        for append, position in zip(batch, outcomes, strict=True):
            if position is MOVED:
                append.fail(VersionConflict(_stream(append)))
            elif position == ANSWERED:
                append.fail(ReceiptConflict())
            else:
                append.succeed(position)
                appended += 1
                last = position
                events += len(append.proposal.rows)
        if appended:
            self._appended += appended
            # Positions have no gaps, so these show whether other processes have appended since the previous batch.
            self._is_only_writer = last - events == self._last_position
            self._last_position = last
            self._notify()

    async def _refused(self, batch: list[_Append], error: psycopg.Error) -> None:
        """Handle an error reported by the database: nothing of the batch was appended."""
        if isinstance(error, UNAVAILABLE):  # lock timeout, statement timeout, out of disk, read-only, …
            log.warning("appender.refused", error=type(error).__name__, appends=len(batch))
            if isinstance(error, psycopg.errors.ReadOnlySqlTransaction):  # a session that began so stays so
                await self._disconnect()
            for append in batch:
                append.fail(StoreUnavailable(f"the database refused: {type(error).__name__}"))
        elif len(batch) > 1:  # one of them caused it: write each separately, so that only that one fails
            for append in batch:
                await self._write([append])
        elif isinstance(error, psycopg.errors.UniqueViolation):
            batch[0].fail(VersionConflict(_stream(batch[0])))
        else:
            batch[0].fail(error)

    async def _resolve(self, batch: list[_Append], statement: Statement) -> None:
        """Find out whether a batch whose answer was lost is in the log."""
        await self._disconnect()
        try:
            async with asyncio.timeout(RESOLVE_SECONDS):
                while not await self._resolved(batch, statement.backend):  # noqa: ASYNC110  # there is no event for it
                    await asyncio.sleep(0.2 + 0.3 * random.random())  # noqa: S311  # jitter
        except TimeoutError:
            log.error("appender.outcome_unknown", appends=len(batch))
            for append in batch:
                append.fail(OutcomeUnknown())

    async def _resolved(self, batch: list[_Append], backend: tuple[int, datetime]) -> bool:
        """Whether the outcome is known now: not while the database is unreachable, or that backend is still there."""
        try:
            async with await connect(self._database_url, application_name=NAME) as connection:
                # Once the backend that executed the batch is gone, what is not in the log never will be.
                ended = await (await connection.execute(END_BACKEND, backend)).fetchone()
                if ended is not None and not ended[0]:
                    return False
                for append in batch:
                    await self._look_up(append, connection)
        except (psycopg.Error, OSError):
            return False
        return True

    async def _look_up(self, append: _Append, connection: psycopg.AsyncConnection[TupleRow]) -> None:
        stream, version, _, _, _, digest, _ = append.proposal.rows[-1]
        cursor = await connection.execute(LOOK_UP, (stream, version, digest))
        row = await cursor.fetchone()
        if row is None:
            append.fail(StoreUnavailable("the database went away before the append"))
        else:
            APPENDED.inc()
            append.succeed(row[0])
            self._notify()

    async def _prepared(self) -> Statement:
        if self._statement is None or self._statement.closed:
            await self._disconnect()
            self._statement = await Statement.prepare(
                self._database_url, APPEND, APPEND_SINGLE, application_name=NAME
            )
        return self._statement

    async def _disconnect(self) -> None:
        statement, self._statement = self._statement, None
        if statement is not None:
            await statement.close()


def _stream(append: _Append) -> UUID:
    return append.proposal.rows[0][0]


_int, _bigint = Struct("!i").pack, Struct("!q").pack
NO_RECEIPT: list[bytes | None] = [None] * 5
NO_KEY: list[bytes | None] = [None] * 3
EMPTY = {column: column.written(()) for column in (ints, bigints, uuids, names, texts, byteas)}
"""Encoded empty columns: most batches have no receipts."""
FIRST = (ints, uuids, bigints)
"""Column types of `_firsts`."""


async def _appended(statement: Statement, proposals: Sequence[Proposal]) -> list[int | None]:
    """The outcome of each proposal: the position of its last event, or `MOVED`, or `ANSWERED`."""
    if len(proposals) == 1 and len(proposals[0].rows) == 1:
        [[position]] = await statement.execute(single_parameters(proposals[0]), number=SINGLE)
        return [position]
    repeats = _repeats(proposals)
    sent = [(number, each) for number, each in enumerate(proposals) if number not in repeats]
    [[position, moved, answered]] = await statement.execute(batch_parameters(sent), number=BATCH)
    outcomes: dict[int, int | None] = dict.fromkeys([*repeats, *(moved or ())], MOVED)
    outcomes |= dict.fromkeys(answered or (), ANSWERED)
    for number, proposal in enumerate(proposals):
        if number not in outcomes:
            position += len(proposal.rows)
            outcomes[number] = position
    return [outcomes[number] for number in range(len(proposals))]


def _repeats(proposals: Sequence[Proposal]) -> set[int]:
    """Indexes of proposals that share a stream with an earlier one: they were decided without that one's events."""
    repeats: set[int] = set()
    events = [row[0].int for proposal in proposals for row in proposal.rows]
    if len(set(events)) == len(events):  # as in most batches
        return repeats
    seen: set[int] = set()
    for number, proposal in enumerate(proposals):
        streams = {row[0].int for row in proposal.rows}
        if seen.isdisjoint(streams):
            seen |= streams
        else:
            repeats.add(number)
    return repeats


def single_parameters(proposal: Proposal) -> list[bytes | None]:
    """Parameters of `append_event`, for a proposal of one event."""
    [(stream, version, topic, state, merchant_id, digest, mac)], receipt = proposal.rows, proposal.receipt
    parameters = [
        stream.bytes,
        _bigint(version),
        topic.encode(),
        state,
        merchant_id.bytes,
        digest,
        mac,
    ]
    answer: list[bytes | None] = NO_RECEIPT
    if receipt is not None:
        answer = [
            receipt.merchant_id.bytes,
            receipt.key.encode(),
            receipt.owner.bytes,
            _int(receipt.status),
            receipt.body,
        ]
    key: list[bytes | None] = NO_KEY
    if proposal.personal_keys:
        [personal] = proposal.personal_keys
        key = [personal.key, personal.customer_digest, personal.email_digest]
    return [*parameters, *answer, *key]


def batch_parameters(proposals: Sequence[tuple[int, Proposal]]) -> list[bytes]:
    """Parameters of `append_batch`: columns of all proposals, each identified by its number."""
    events = [(n, *row) for n, p in proposals for row in p.rows]
    receipts = [
        (n, p.receipt.merchant_id, p.receipt.key, p.receipt.owner, p.receipt.status, p.receipt.body)
        for n, p in proposals
        if p.receipt is not None
    ]
    keys = [
        (n, key.stream_id, p.merchant_id, key.key, key.customer_digest, key.email_digest)
        for n, p in proposals
        for key in p.personal_keys
    ]
    columns = _columns(events, (*FIRST, names, byteas, uuids, byteas, byteas))
    return [
        *(columns[: len(FIRST)] if len(events) == len(proposals) else _columns(_firsts(proposals), FIRST)),
        *columns,
        *_columns(receipts, (ints, uuids, texts, uuids, ints, byteas)),
        *_columns(keys, (ints, uuids, uuids, byteas, byteas, byteas)),
    ]


def _firsts(proposals: Sequence[tuple[int, Proposal]]) -> list[tuple[int, UUID, int]]:
    """For each proposal and each of its streams: the proposal's number, the stream, the version of its first event."""
    return [
        (number, stream, version)
        for number, proposal in proposals
        for stream, version in {row[0]: row[1] for row in reversed(proposal.rows)}.items()
    ]


def _columns(rows: Sequence[tuple[Any, ...]], types: Sequence[ColumnType]) -> list[bytes]:
    if not rows:
        return [EMPTY[each] for each in types]
    return [column.written(values) for column, values in zip(types, zip(*rows, strict=True), strict=True)]
