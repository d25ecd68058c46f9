"""Waiting until a projection contains what its reader wrote before."""

import asyncio
import time
from typing import cast
from uuid import UUID

from payloops.events.event_store import EventStore

WAIT_SECONDS = 1.0
POLL_SECONDS = (0.003, 0.04)
"""Between looks at the checkpoint: at first, and at most."""

WRITTEN_AND_REACHED = """
    SELECT (SELECT max(notification_id) FROM stored_events WHERE merchant_id = %s),
           (SELECT position FROM checkpoints WHERE name = %s)
"""
REACHED = "SELECT position FROM checkpoints WHERE name = %s"


async def wait_for_own_writes(store: EventStore, *, merchant_id: UUID, projection: str) -> None:
    """Wait until the projection contains the merchant's last acknowledged write, for a second at the most."""
    async with store.pool.connection() as connection:
        cursor = await connection.execute(WRITTEN_AND_REACHED, (merchant_id, projection))
        written, reached = cast("tuple[int | None, int | None]", await cursor.fetchone())
    if (reached or 0) < (written or 0):
        await wait_for_position(store, position=written or 0, projection=projection)


async def wait_for_position(store: EventStore, *, position: int, projection: str) -> None:
    """Wait until the projection has come to a position of the log, for a second at the most."""
    deadline = time.monotonic() + WAIT_SECONDS
    pause, longest = POLL_SECONDS
    while time.monotonic() < deadline:
        await asyncio.sleep(pause)
        pause = min(pause * 2, longest)
        async with store.pool.connection() as connection:
            row = await (await connection.execute(REACHED, (projection,))).fetchone()
        if row is not None and row[0] >= position:
            return
