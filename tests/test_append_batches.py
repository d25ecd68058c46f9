"""Appends that share a batch: each is taken whole or dropped whole, whatever becomes of the others."""

import asyncio
import random
from collections.abc import Iterable
from dataclasses import dataclass
from uuid import UUID

import pytest
from eventsourcing.persistence import StoredEvent
from projecting import one
from uuid_utils.compat import uuid7

from payloops.events.appender import Receipt
from payloops.events.errors import ReceiptConflict, VersionConflict
from payloops.events.event_store import EventStore
from payloops.events.personal_data import PersonalKey

MERCHANT = UUID("01900000-0000-7000-8000-000000000001")
BATCHES = 40
APPENDS = 12
"""In a batch, at the most: fewer than what is written in halves."""
RESERVED = """
    INSERT INTO idempotency_keys (merchant_id, key, fingerprint, owner, lease_expires_at) VALUES (%s, %s, '', %s, now())
"""
EVENTS = (
    "SELECT notification_id, originator_id, originator_version FROM stored_events ORDER BY notification_id"
)
TRANSACTIONS = "SELECT count(DISTINCT xid) FROM stored_events WHERE notification_id = ANY(%s)"
ANSWERS = "SELECT key FROM idempotency_keys WHERE response_status IS NOT NULL"
KEYS = "SELECT originator_id FROM personal_keys"


@dataclass(frozen=True, slots=True)
class Append:
    """What is appended: to each stream, events from a version on; and whether its receipt is one's own, if any."""

    events: dict[UUID, range]
    receipt: Receipt | None
    overtaken: bool

    @property
    def begins(self) -> list[UUID]:
        return [stream for stream, versions in self.events.items() if versions[0] == 1]


class Model:
    """What there has to be, by the plain rules of one append after the other."""

    def __init__(self) -> None:
        self.versions: dict[UUID, int] = {}
        self.events: list[tuple[int, UUID, int]] = []
        self.answers: set[str] = set()
        self.keys: set[UUID] = set()

    def batch(self, appends: Iterable[Append]) -> list[int | type[Exception]]:
        before = dict(self.versions)
        touched: set[UUID] = set()
        return [self._append(each, before=before, touched=touched) for each in appends]

    def _append(
        self, append: Append, *, before: dict[UUID, int], touched: set[UUID]
    ) -> int | type[Exception]:
        if not touched.isdisjoint(append.events):
            return VersionConflict
        touched.update(append.events)
        if any(versions[0] != before.get(stream, 0) + 1 for stream, versions in append.events.items()):
            return VersionConflict
        if append.overtaken:
            return ReceiptConflict
        for stream, versions in append.events.items():
            self.versions[stream] = versions[-1]
            self.events += [(len(self.events) + n, stream, each) for n, each in enumerate(versions, 1)]
        self.keys.update(append.begins)
        if append.receipt is not None:
            self.answers.add(append.receipt.key)
        return len(self.events)


def some_append(draw: random.Random, model: Model, *, name: str) -> Append:
    """Of new streams and of known ones, some of which are behind or ahead."""
    known = sorted(model.versions)
    streams = {
        draw.choice(known) if known and draw.random() < 0.5 else uuid7()
        for _ in range(draw.choice((1, 1, 2)))
    }
    events: dict[UUID, range] = {}
    for stream in streams:
        first = max(1, model.versions.get(stream, 0) + 1 + draw.choice((0, 0, 0, 0, -1, 1)))
        events[stream] = range(first, first + draw.choice((1, 1, 2, 3)))
    receipt = None
    if draw.random() < 0.4:
        receipt = Receipt(merchant_id=MERCHANT, key=name, owner=uuid7(), status=201, body=name.encode())
    return Append(events, receipt, overtaken=receipt is not None and draw.random() < 0.3)


async def outcome_of(store: EventStore, append: Append) -> int | type[Exception]:
    try:
        return await store._appender.append(
            [
                StoredEvent(stream, version, "test.counted", b"{}")
                for stream, versions in append.events.items()
                for version in versions
            ],
            merchant_id=MERCHANT,
            receipt=append.receipt,
            personal_keys=[
                PersonalKey(stream_id=each, key=bytes(32), customer_digest=None, email_digest=None)
                for each in append.begins
            ],
        )
    except (VersionConflict, ReceiptConflict) as error:
        return type(error)


@pytest.mark.parametrize("seed", range(3))
async def test_a_batch_does_what_its_appends_would_do_one_by_one(store: EventStore, seed: int) -> None:
    draw, model = random.Random(seed), Model()
    for batch in range(BATCHES):
        appends = [
            some_append(draw, model, name=f"{batch}.{number}") for number in range(draw.randint(1, APPENDS))
        ]
        async with store.pool.connection() as connection:
            for each in appends:
                if each.receipt is not None:
                    owner = uuid7() if each.overtaken else each.receipt.owner
                    await connection.execute(RESERVED, (MERCHANT, each.receipt.key, owner))
            outcomes = await asyncio.gather(*(outcome_of(store, each) for each in appends))
            assert outcomes == model.batch(appends), f"batch {batch}"
            assert await (await connection.execute(EVENTS)).fetchall() == model.events
            assert {row[0] for row in await (await connection.execute(ANSWERS)).fetchall()} == model.answers
            assert {row[0] for row in await (await connection.execute(KEYS)).fetchall()} == model.keys
    assert len(model.events) > BATCHES


async def test_appends_in_successive_turns_of_the_loop_share_a_batch_and_a_lone_one_waits_for_none(
    store: EventStore,
) -> None:
    async def append_after(turns: int) -> int:
        for _ in range(turns):
            await asyncio.sleep(0)
        append = Append({uuid7(): range(1, 2)}, None, overtaken=False)
        position = await outcome_of(store, append)
        assert isinstance(position, int)
        return position

    async def transactions_of(positions: Iterable[int]) -> object:
        return await one(store, TRANSACTIONS, list(positions))

    alone = await asyncio.gather(append_after(0), append_after(1))
    assert await transactions_of(alone) == 2
    await asyncio.gather(*(append_after(0) for _ in range(2)))
    several = await asyncio.gather(*(append_after(turns) for turns in range(8)))
    assert await transactions_of(several) == 1
