"""A request sent twice is done once and answered twice."""

import asyncio
from uuid import UUID

import pytest
from psycopg_pool import AsyncConnectionPool
from uuid_utils.compat import uuid7

from payloops.commands import idempotency
from payloops.commands.create_order import create_order
from payloops.commands.idempotency import (
    IdempotencyInProgress,
    IdempotencyMismatch,
    Replay,
    Reserved,
    delete_expired,
    reserve,
)
from payloops.events.errors import ReceiptConflict
from payloops.events.event_store import EventStore
from payloops.events.metadata import Metadata


async def take(
    pool: AsyncConnectionPool, merchant_id: UUID, *, key: str = "key", fingerprint: bytes = b"f"
) -> Reserved:
    reserved = await reserve(pool, merchant_id=merchant_id, key=key, fingerprint=fingerprint)
    assert isinstance(reserved, Reserved)
    return reserved


async def create(
    store: EventStore, merchant_id: UUID, by: Metadata, reserved: Reserved | None = None
) -> None:
    await create_order(
        store,
        order_id=uuid7(),
        merchant_id=merchant_id,
        amount=5,
        currency="USD",
        by=by,
        receipt=None if reserved is None else lambda _: reserved.receipt(201, b"made"),
    )


async def age(pool: AsyncConnectionPool, column: str, interval: str) -> None:
    async with pool.connection() as connection:
        await connection.execute(
            f"UPDATE idempotency_keys SET {column} = now() - interval '{interval}'".encode()
        )


async def overtaken(pool: AsyncConnectionPool, merchant_id: UUID) -> tuple[Reserved, Reserved]:
    """A request whose lease ran out, and the one that has its key now."""
    slow = await take(pool, merchant_id)
    await age(pool, "lease_expires_at", "1 second")
    return slow, await take(pool, merchant_id)


async def test_the_answer_is_stored_with_the_events_and_replayed(
    store: EventStore, merchant_id: UUID, by: Metadata
) -> None:
    await create(store, merchant_id, by, await take(store.pool, merchant_id))
    again = await reserve(store.pool, merchant_id=merchant_id, key="key", fingerprint=b"f")
    assert again == Replay(status=201, body=b"made")


async def test_of_a_hundred_requests_at_once_one_goes_on(
    pool: AsyncConnectionPool, merchant_id: UUID
) -> None:
    outcomes = await asyncio.gather(*(take(pool, merchant_id) for _ in range(100)), return_exceptions=True)
    assert sum(isinstance(outcome, Reserved) for outcome in outcomes) == 1
    assert sum(isinstance(outcome, IdempotencyInProgress) for outcome in outcomes) == 99


async def test_another_request_under_the_same_key_is_refused(
    pool: AsyncConnectionPool, merchant_id: UUID
) -> None:
    await take(pool, merchant_id)
    with pytest.raises(IdempotencyMismatch):
        await take(pool, merchant_id, fingerprint=b"other")
    await age(pool, "lease_expires_at", "1 second")
    with pytest.raises(IdempotencyMismatch):
        await take(pool, merchant_id, fingerprint=b"other")


async def test_another_key_and_the_same_key_of_another_merchant_have_answers_of_their_own(
    store: EventStore,
) -> None:
    given = {(merchant, key): f"{merchant} {key}".encode() for merchant in (uuid7(), uuid7()) for key in "ab"}
    for (merchant, key), body in given.items():
        reserved = await take(store.pool, merchant, key=key)
        await store.answer(reserved.receipt(200, body))
    for (merchant, key), body in given.items():
        again = await reserve(store.pool, merchant_id=merchant, key=key, fingerprint=b"f")
        assert again == Replay(status=200, body=body)


@pytest.mark.parametrize("others", [0, 2], ids=["alone", "in_a_batch"])
async def test_a_request_that_was_overtaken_after_its_lease_appends_nothing(
    store: EventStore, merchant_id: UUID, by: Metadata, others: int
) -> None:
    slow, heir = await overtaken(store.pool, merchant_id)

    async def outcome(reserved: Reserved) -> object:
        alike = [create(store, merchant_id, by) for _ in range(others)]
        result, *rest = await asyncio.gather(
            create(store, merchant_id, by, reserved), *alike, return_exceptions=True
        )
        assert rest == [None] * others
        return result

    assert isinstance(await outcome(slow), ReceiptConflict)
    assert await store.head() == others
    assert await outcome(heir) is None
    assert isinstance(await outcome(heir), ReceiptConflict), "it was answered"
    assert await store.head() == 3 * others + 1
    again = await reserve(store.pool, merchant_id=merchant_id, key="key", fingerprint=b"f")
    assert again == Replay(status=201, body=b"made")


async def test_an_answer_outlives_the_lease(store: EventStore, merchant_id: UUID, by: Metadata) -> None:
    """Else who asks again after it does everything again."""
    await create(store, merchant_id, by, await take(store.pool, merchant_id))
    await age(store.pool, "lease_expires_at", "1 hour")
    again = await reserve(store.pool, merchant_id=merchant_id, key="key", fingerprint=b"f")
    assert again == Replay(status=201, body=b"made")
    with pytest.raises(IdempotencyMismatch):
        await take(store.pool, merchant_id, fingerprint=b"other")


async def test_a_request_that_was_overtaken_neither_lets_go_of_the_key_nor_changes_its_answer(
    store: EventStore, merchant_id: UUID, by: Metadata
) -> None:
    slow, heir = await overtaken(store.pool, merchant_id)
    with pytest.raises(IdempotencyInProgress):  # the new owner has a lease of its own
        await take(store.pool, merchant_id)
    assert not await slow.release(store.pool)
    await store.answer(slow.receipt(400, b"no"))
    await create(store, merchant_id, by, heir)
    await slow.amend(store.pool, b"of the slow one")
    again = await reserve(store.pool, merchant_id=merchant_id, key="key", fingerprint=b"f")
    assert again == Replay(status=201, body=b"made")


async def test_a_key_that_was_released_can_be_used_again(
    pool: AsyncConnectionPool, merchant_id: UUID
) -> None:
    await (await take(pool, merchant_id)).release(pool)
    await take(pool, merchant_id, fingerprint=b"other")


async def test_nothing_takes_an_answer_away(store: EventStore, merchant_id: UUID, by: Metadata) -> None:
    reserved = await take(store.pool, merchant_id)
    await create(store, merchant_id, by, reserved)
    await reserved.release(store.pool)
    await store.answer(reserved.receipt(500, b"something went wrong after that"))
    again = await reserve(store.pool, merchant_id=merchant_id, key="key", fingerprint=b"f")
    assert again == Replay(status=201, body=b"made")


async def test_a_refusal_is_stored_and_replayed(store: EventStore, merchant_id: UUID) -> None:
    await store.answer((await take(store.pool, merchant_id)).receipt(400, b"no"))
    again = await reserve(store.pool, merchant_id=merchant_id, key="key", fingerprint=b"f")
    assert again == Replay(status=400, body=b"no")


@pytest.mark.parametrize(
    ("age_seconds", "left_seconds", "wait"), [(0, 2_000, 0), (600, 1_400, 600), (1_800, 200, 200)]
)
async def test_who_finds_a_key_taken_is_told_to_wait_as_long_again_but_not_past_the_lease(
    pool: AsyncConnectionPool, merchant_id: UUID, age_seconds: int, left_seconds: int, wait: int
) -> None:
    await take(pool, merchant_id)
    await age(pool, "created_at", f"{age_seconds} seconds")
    await age(pool, "lease_expires_at", f"{-left_seconds} seconds")
    with pytest.raises(IdempotencyInProgress) as found:
        await take(pool, merchant_id)
    assert found.value.seconds == pytest.approx(wait, abs=60)


async def test_keys_are_kept_for_a_day(store: EventStore, merchant_id: UUID, by: Metadata) -> None:
    await create(store, merchant_id, by, await take(store.pool, merchant_id))
    await age(store.pool, "created_at", "23 hours")
    assert await delete_expired(store.pool) == 0
    await age(store.pool, "created_at", "25 hours")
    await take(store.pool, merchant_id, fingerprint=b"other")
    await age(store.pool, "created_at", "25 hours")
    assert await delete_expired(store.pool) == 1


async def test_however_many_keys_have_expired_all_are_deleted(
    pool: AsyncConnectionPool, merchant_id: UUID, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(idempotency, "DELETE_BATCH", 2)
    for number in range(5):
        await take(pool, merchant_id, key=str(number))
    await age(pool, "created_at", "25 hours")
    assert await delete_expired(pool) == 5


async def test_a_key_that_is_used_again_after_its_day_is_as_good_as_new(
    store: EventStore, merchant_id: UUID, by: Metadata
) -> None:
    await create(store, merchant_id, by, await take(store.pool, merchant_id))
    await age(store.pool, "created_at", "25 hours")
    anew = await take(store.pool, merchant_id, fingerprint=b"other")
    with pytest.raises(IdempotencyInProgress):
        await take(store.pool, merchant_id, fingerprint=b"other")
    await create(store, merchant_id, by, anew)
    again = await reserve(store.pool, merchant_id=merchant_id, key="key", fingerprint=b"other")
    assert again == Replay(status=201, body=b"made")
    assert await delete_expired(store.pool) == 0
