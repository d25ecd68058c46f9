"""The event store: appending to streams, folding them, and reading the log in its global order."""

import asyncio
import copy
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from typing import Any, Self, TypeVar, cast
from uuid import UUID
from weakref import WeakValueDictionary

import psycopg
import structlog
from eventsourcing.persistence import StoredEvent
from psycopg.rows import TupleRow

from payloops.events.appender import APPEND_BATCH, Appender, Receipt, batch_parameters, propose
from payloops.events.columns import Column, uuids
from payloops.events.conflicts import retry_on_conflict
from payloops.events.crash_points import crash_point
from payloops.events.encoding import decode, encode
from payloops.events.errors import (
    OutcomeUnknown,
    StoreUnavailable,
    StreamNotFound,
    StreamUnreadable,
    VersionConflict,
)
from payloops.events.lookups import Lookup
from payloops.events.personal_data import PersonalKey
from payloops.events.pools import Pool
from payloops.events.stream import S, Stream, StreamEvent
from payloops.events.wakeups import POLL_SECONDS, Notifier, Wakeups

R = TypeVar("R")

log = structlog.get_logger()

LOAD = """
    SELECT originator_version, topic, state, personal_key FROM readable_events
    WHERE originator_id = %s AND (%s::bigint IS NULL OR originator_version <= %s)
    ORDER BY originator_version
"""
LOAD_ON = """
    SELECT originator_version, topic, state, personal_key FROM readable_events
    WHERE originator_id = %s AND originator_version >= %s
    ORDER BY originator_version
"""
# The subquery hides the number of ids from the planner, which would otherwise plan anew for each number.
LOAD_SEVERAL = """
    SELECT e.originator_id, e.originator_version, e.topic, e.state, e.personal_key
    FROM unnest((SELECT $1::uuid[])) AS wanted (id) JOIN readable_events e ON e.originator_id = wanted.id
    ORDER BY e.originator_id, e.originator_version
"""
STREAMS_PER_QUERY = 32
MOST_KEPT = 1_000
"""Streams that a process keeps folded for `load_on`; the least recently used is dropped first."""
READ = """
    SELECT notification_id, recorded_at, personal_key, originator_id, originator_version, topic, state
    FROM readable_events
    WHERE notification_id > %s ORDER BY notification_id LIMIT %s
"""
READ_STREAM = """
    SELECT notification_id, recorded_at, personal_key, originator_id, originator_version, topic, state
    FROM readable_events
    WHERE originator_id = %s ORDER BY originator_version
"""
HEAD = "SELECT coalesce(max(notification_id), 0) FROM stored_events"
APPEND_ONE = (
    f"SELECT head, moved FROM {APPEND_BATCH},"  # noqa: S608  # the text of the call
    " set_config('idle_in_transaction_session_timeout', '1s', true)"
)
ANSWER = """
    UPDATE idempotency_keys SET response_status = %s, response_body = %s
    WHERE merchant_id = %s AND key = %s AND owner = %s AND response_status IS NULL
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedEvent:
    """A row of the log, not yet decoded: `event` decodes it, and raises what `decode` raises.

    Attributes:
        position: in the global order of commits, 1, 2, 3 … without gaps.
        recorded_at: the database's clock at the append.
        personal_key: decrypts the event's personal data (`payloops.events.personal_data`).
    """

    position: int
    recorded_at: datetime
    personal_key: bytes | None = field(repr=False)
    stored: StoredEvent

    @property
    def event(self) -> StreamEvent:
        return decode(self.stored, personal_key=self.personal_key)


class EventReader:
    """The log in PostgreSQL, read-only."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool

    async def load(self, stream: type[S], id: UUID, *, up_to_version: int | None = None) -> S | None:
        """Fold a stream, up to a version if one is given; None if there is no such stream.

        Raises:
            StreamUnreadable: see there.
        """
        aggregate = _folded(id, await self._rows_of(id, up_to_version))
        return aggregate if isinstance(aggregate, stream) else None

    async def _rows_of(self, id: UUID, up_to_version: int | None) -> Sequence[TupleRow]:
        async with self.pool.connection() as connection:
            return await (await connection.execute(LOAD, (id, up_to_version, up_to_version))).fetchall()

    async def read(self, *, after: int, limit: int) -> list[RecordedEvent]:
        """Events after a position, in order. Once a reader has seen position n, no smaller position appears later."""
        async with self.pool.connection() as connection:
            cursor = await connection.execute(READ, (after, limit))
            return [_recorded(row) for row in await cursor.fetchall()]

    async def read_stream(self, id: UUID) -> list[RecordedEvent]:
        """All events of a stream, in order; empty if there is no such stream."""
        async with self.pool.connection() as connection:
            cursor = await connection.execute(READ_STREAM, (id,))
            return [_recorded(row) for row in await cursor.fetchall()]

    async def read_facts(self, id: UUID) -> list[StreamEvent]:
        """As `read_stream`, decoded.

        Raises:
            StreamUnreadable: see there.
        """
        facts = []
        for recorded in await self.read_stream(id):
            stored = recorded.stored
            try:
                facts.append(recorded.event)
            except Exception as error:
                raise StreamUnreadable(id, version=stored.originator_version, topic=stored.topic) from error
        return facts

    async def head(self) -> int:
        """Position of the newest event, 0 if there is none."""
        async with self.pool.connection() as connection:
            row = await (await connection.execute(HEAD)).fetchone()
        assert row is not None
        return cast("int", row[0])


class EventStore(EventReader):
    """The log in PostgreSQL, for reading and appending; one per process. Use as an async context manager."""

    def __init__(
        self,
        database_url: str,
        pool: Pool,
        *,
        mac_key: bytes,
        queue_size: int = 2_000,
        patience: float = 0.5,
    ) -> None:
        """
        Args:
            mac_key: for the events' MACs (`payloops.events.authenticity`).
            queue_size: how many appends may wait.
            patience: how long an append may wait, in seconds.
        """
        super().__init__(pool)
        self._mac_key = mac_key
        self._notifier = Notifier(database_url)
        self._appender = Appender(
            database_url,
            mac_key=mac_key,
            queue_size=queue_size,
            patience=patience,
            notify=self._notifier.notify,
        )
        self._loads = Lookup(pool, LOAD_SEVERAL, column=uuids, read=_by_stream, most=STREAMS_PER_QUERY)
        self._kept: dict[UUID, tuple[Stream, TupleRow]] = {}  # each with the row of its last event
        self._locks: WeakValueDictionary[UUID, asyncio.Lock] = WeakValueDictionary()
        # If the listener lost its connection, so did the pool: its idle connections are replaced before they are used.
        self._wakeups = Wakeups(database_url, reconnected=pool.check)

    async def __aenter__(self) -> Self:
        self._appender.start()
        self._notifier.start()
        self._wakeups.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._appender.close()
        await self._notifier.close()
        await self._wakeups.close()

    def sample(self) -> None:
        """Update the metrics of the pool and of the appender."""
        self.pool.sample()
        self._appender.sample()

    async def _rows_of(self, id: UUID, up_to_version: int | None) -> Sequence[TupleRow]:
        """Whole streams that are loaded concurrently share a query."""
        if up_to_version is not None:
            return await super()._rows_of(id, up_to_version)
        return await self._loads.find(id) or ()

    async def load_on(self, stream: type[S], id: UUID) -> S | None:
        """As `load`, but folds only what was appended since this process last called it: for streams that grow as long
        as somebody goes on changing things, while what they fold to stays small.

        Raises:
            StreamUnreadable: see there.
        """
        kept, last = self._kept.pop(id, (None, None))
        rows: Sequence[TupleRow] = ()
        if kept is not None:
            async with self.pool.connection() as connection:
                rows = await (await connection.execute(LOAD_ON, (id, kept.version))).fetchall()
        if rows and rows[0] == last:
            aggregate = _folded(id, rows[1:], begin=kept)
        else:  # the first time, or the database was set back, and may have gone on differently since
            rows = await self._rows_of(id, None)
            aggregate = _folded(id, rows)
        if not isinstance(aggregate, stream):
            return None
        # A copy, because the caller records events on the other.
        self._kept[id] = copy.deepcopy(aggregate), rows[-1]
        if len(self._kept) > MOST_KEPT:
            del self._kept[next(iter(self._kept))]
        return aggregate

    async def append(self, events: Sequence[StreamEvent], *, receipt: Receipt | None = None) -> int:
        """Append the events of one command, all or none, in one round trip; returns the position of the last.

        The first event of each stream must have the version that follows the stream's current one.

        Raises:
            VersionConflict: a stream has newer events. ReceiptConflict: the idempotency key was answered meanwhile.
            StoreUnavailable: overload, or the database is down. In all three cases nothing was appended.
            OutcomeUnknown: the connection was lost, and the log could not be read to see what was appended.
        """
        stored, keys = _encode(events)
        return await self._appender.append(
            stored, merchant_id=_uuid(events[0].merchant_id), receipt=receipt, personal_keys=keys
        )

    @asynccontextmanager
    async def transaction(self) -> AsyncGenerator[psycopg.AsyncConnection[TupleRow]]:
        """A transaction that changes tables and appends events about it with `append_in`.

        Raises:
            StoreUnavailable: the process stalled while it held the log's lock; nothing was committed.
            OutcomeUnknown: the connection was lost during the commit.
        """
        finished = False
        try:
            async with self.pool.connection() as connection, connection.transaction():
                yield connection
                finished = True
        except psycopg.errors.IdleInTransactionSessionTimeout as error:
            raise StoreUnavailable("the transaction stalled, and was ended before its commit") from error
        except psycopg.OperationalError as error:
            if finished:
                raise OutcomeUnknown from error
            raise
        self._notifier.notify()

    async def append_in(
        self, connection: psycopg.AsyncConnection[TupleRow], events: Sequence[StreamEvent]
    ) -> int:
        """Append inside a `transaction`, for events about what the same transaction changes in tables.

        Make it the last statement: from here to the commit, every other append waits. If the process stalls in
        between, the database ends the transaction after a second, before the waiting appends time out.

        Raises:
            VersionConflict: the stream has newer events; roll back.
        """
        stored, keys = _encode(events)
        proposal = propose(
            stored, merchant_id=_uuid(events[0].merchant_id), mac_key=self._mac_key, personal_keys=keys
        )
        parameters = [Column(each) for each in batch_parameters([(0, proposal)])]
        cursor = await connection.execute(APPEND_ONE, parameters)
        row = await cursor.fetchone()
        assert row is not None
        head, moved = row
        if moved:
            raise VersionConflict(events[0].originator_id)
        crash_point("append_in.appended")
        return cast("int", head) + len(events)

    def lock(self, id: UUID) -> asyncio.Lock:
        """A lock for decisions on a stream within this process: made at the same time, they would only conflict."""
        return self._locks.setdefault(id, asyncio.Lock())

    async def change(
        self,
        stream: type[S],
        id: UUID,
        decide: Callable[[S], R],
        *,
        receipt: Callable[[R], Receipt] | None = None,
    ) -> R:
        """Load a stream, decide on it, and append the decided events; return what `decide` returns.

        If others append to the stream meanwhile, `decide` is called again on the new state.

        Args:
            decide: records events on the aggregate, or none, or raises its refusal.
            receipt: the answer to store with the events, if the request has an idempotency key.

        Raises:
            StreamNotFound.
            VersionConflict: the stream kept changing. Other exceptions as `append`.
        """

        async def load_and_decide() -> tuple[Sequence[Stream], R]:
            aggregate = await self.load(stream, id)
            if aggregate is None:
                raise StreamNotFound(id)
            return [aggregate], decide(aggregate)

        return await self.decide(id, load_and_decide, receipt=receipt)

    async def decide(
        self,
        id: UUID,
        decide: Callable[[], Awaitable[tuple[Sequence[Stream], R]]],
        *,
        receipt: Callable[[R], Receipt] | None = None,
    ) -> R:
        """Append the events decided on several streams, all or none. Decides again if one of the streams has changed.

        Args:
            id: of the stream to lock within this process, so that its decisions run one at a time. Decisions in other
                processes show as conflicts.
            decide: loads the streams and records events on them, or raises its refusal.
            receipt: the answer to store with the events, if the request has an idempotency key.

        Raises:
            VersionConflict: the streams kept changing. Other exceptions as `append`.
        """

        async def decide_and_append() -> R:
            streams, result = await decide()
            events = [event for each in streams for event in each.collect_events()]
            answer = receipt(result) if receipt is not None else None
            if events:
                await self.append(events, receipt=answer)
            elif answer is not None:
                await self.answer(answer)
            return result

        async with self.lock(id):
            return await retry_on_conflict(decide_and_append)

    async def answer(self, receipt: Receipt) -> None:
        """Store the answer to a request that appends nothing."""
        async with self.pool.connection() as connection:
            await connection.execute(
                ANSWER, (receipt.status, receipt.body, receipt.merchant_id, receipt.key, receipt.owner)
            )

    def wakeups(self, *, poll_seconds: float = POLL_SECONDS) -> AsyncGenerator[None]:
        """Yields now, then whenever the log may have grown, and at least every `poll_seconds`."""
        return self._wakeups.ticks(poll_seconds=poll_seconds)


def _folded(id: UUID, rows: Sequence[TupleRow], *, begin: Stream | None = None) -> Stream | None:
    """What a stream's rows fold to, on top of `begin`."""
    aggregate: Any = begin
    for version, topic, state, personal_key in rows:
        stored = StoredEvent(originator_id=id, originator_version=version, topic=topic, state=state)
        try:
            aggregate = decode(stored, personal_key=personal_key).mutate(aggregate)
        except Exception as error:
            log.error(
                "stream.unreadable",
                stream_id=str(id),
                version=version,
                topic=topic,
                error=type(error).__name__,
            )
            raise StreamUnreadable(id, version=version, topic=topic) from error
    return cast("Stream | None", aggregate)


def _by_stream(rows: Sequence[TupleRow]) -> dict[UUID, list[TupleRow]]:
    found: dict[UUID, list[TupleRow]] = {}
    for id, *row in rows:
        found.setdefault(id, []).append(tuple(row))
    return found


@lru_cache(maxsize=1_024)
def _uuid(text: str) -> UUID:
    """A merchant's id; cached, because the same merchants append again and again."""
    return UUID(text)


def _recorded(row: TupleRow) -> RecordedEvent:
    return RecordedEvent(
        position=row[0], recorded_at=row[1], personal_key=row[2], stored=StoredEvent(*row[3:])
    )


def _encode(events: Sequence[StreamEvent]) -> tuple[list[StoredEvent], list[PersonalKey]]:
    encoded: list[StoredEvent] = []
    keys: list[PersonalKey] = []
    for event in events:
        stored, key = encode(event)
        encoded.append(stored)
        if key is not None:
            keys.append(key)
    return encoded, keys
