"""What has run out is cleaned up in every process of the API, whatever goes wrong in between."""

import asyncio
from uuid import UUID

import psycopg
import pytest
from calling import Api
from projecting import eventually, one

from payloops.commands.idempotency import reserve
from payloops.daemons import housekeeping
from payloops.daemons.housekeeping import keep_house
from payloops.events.background import in_background
from payloops.events.errors import OutcomeUnknown, StoreUnavailable, VersionConflict
from payloops.events.event_store import EventStore


async def test_old_keys_and_sessions_of_staff_are_deleted_while_the_service_runs(
    store: EventStore, merchant_id: UUID
) -> None:
    """Those that have not expired stay."""
    for key in ("old", "new"):
        await reserve(store.pool, merchant_id=merchant_id, key=key, fingerprint=b"f")
    async with store.pool.connection() as connection:
        await connection.execute(
            "UPDATE idempotency_keys SET created_at = now() - interval '25 hours' WHERE key = 'old'"
        )
        for hours in (-1, 1):
            await connection.execute(
                "INSERT INTO ended_staff_sessions VALUES (gen_random_uuid(), now() + make_interval(hours => %s))",
                (hours,),
            )
    left = (
        "SELECT (SELECT count(*) FROM idempotency_keys) || ' ' || (SELECT count(*) FROM ended_staff_sessions)"
    )

    async def cleaned_up() -> bool:
        return await one(store, left) == "1 1"

    async with in_background(keep_house(store, every_seconds=0.05), name="housekeeping"):
        await eventually(cleaned_up)
    assert await one(store, "SELECT key FROM idempotency_keys") == "new"


@pytest.mark.parametrize(
    "trouble",
    [
        psycopg.OperationalError("down"),
        StoreUnavailable("busy"),
        OutcomeUnknown(),
        VersionConflict(UUID(int=1)),
        TypeError("a bug"),
    ],
    ids=repr,
)
async def test_housekeeping_goes_on_after_trouble(
    store: EventStore, monkeypatch: pytest.MonkeyPatch, trouble: Exception
) -> None:
    troubles = [trouble]
    settled = asyncio.Event()

    async def settle(*_: object, **__: object) -> int:
        if troubles:
            raise troubles.pop()
        settled.set()
        return 0

    monkeypatch.setattr(housekeeping, "settle_checkout_sessions", settle)
    async with in_background(keep_house(store, every_seconds=0.01), name="housekeeping"):
        await asyncio.wait_for(settled.wait(), 60)


async def test_housekeeping_runs_in_each_process_of_the_api(api: Api) -> None:
    assert api.services
    assert "housekeeping" in {task.get_name() for task in asyncio.all_tasks()}
