"""Waiting until a projection contains the reader's own last write."""

import asyncio
import time
from collections.abc import Mapping
from typing import Any, cast
from uuid import UUID
from weakref import WeakKeyDictionary

from psycopg import sql

from payloops.events.event_store import EventStore

WAIT_SECONDS = 1.0
BRIEF_SECONDS = 0.01
"""For a projection that stands still."""
POLL_SECONDS = (0.003, 0.04)
"""Between looks at the checkpoint: at first, and at most."""

WRITTEN_AND_REACHED = sql.SQL("""
    (SELECT max(notification_id) FROM stored_events WHERE merchant_id = %(merchant_id)s) AS written,
    (SELECT position FROM checkpoints WHERE name = %(projection)s) AS reached
""")
REACHED = "SELECT position FROM checkpoints WHERE name = %s"

_standstills: WeakKeyDictionary[EventStore, dict[str, int]] = WeakKeyDictionary()
"""Where projections were, by name, when they did not move for as long as anybody waits."""


class ProjectionBehind(Exception):
    """A projection does not contain yet what may be the answer; ask again."""

    def __init__(self, projection: str) -> None:
        super().__init__(f"the projection {projection} is behind")
        self.projection = projection


async def wait_for_own_writes(store: EventStore, *, merchant_id: UUID, projection: str) -> bool:
    """Wait until the projection contains the merchant's last acknowledged write, for a second at the most.

    Returns:
        Whether it does.
    """
    query = sql.SQL("SELECT {}").format(WRITTEN_AND_REACHED)
    async with store.pool.connection() as connection:
        cursor = await connection.execute(query, {"merchant_id": merchant_id, "projection": projection})
        written, reached = cast("tuple[int | None, int | None]", await cursor.fetchone())
    if (reached or 0) >= (written or 0):
        return True
    return await wait_for_position(store, position=written or 0, projection=projection)


async def read_own_writes(
    store: EventStore,
    query: bytes,
    arguments: Mapping[str, Any],
    *,
    projection: str,
    prepare: bool | None = None,
) -> list[tuple[Any, ...]]:
    """What a query finds, by itself where the projection contains the merchant's last acknowledged write then.

    Else it is asked again once that is there, or a second is over.

    Args:
        query: begins each row, of which it has one at the least, with `WRITTEN_AND_REACHED`; the rest is returned.
        arguments: of the query; `merchant_id` is among them.
        prepare: as psycopg takes it.
    """
    arguments = {**arguments, "projection": projection}
    rows = await _rows(store, query, arguments, prepare=prepare)
    written, reached = rows[0][:2]
    if (reached or 0) < (written or 0):
        await wait_for_position(store, position=written, projection=projection)
        rows = await _rows(store, query, arguments, prepare=prepare)
    return [row[2:] for row in rows]


async def _rows(
    store: EventStore, query: bytes, arguments: Mapping[str, Any], *, prepare: bool | None
) -> list[tuple[Any, ...]]:
    async with store.pool.connection() as connection:
        return await (await connection.execute(query, arguments, prepare=prepare)).fetchall()


async def wait_for_position(store: EventStore, *, position: int, projection: str) -> bool:
    """Wait until the projection has come to a position of the log, for a second at the most; whether it has.

    Once it did not move for the whole of that second, nobody in this process waits as long again until it does:
    without a projector, reads would hold up each other.
    """
    standstills = _standstills.setdefault(store, {})
    begun = time.monotonic()
    first: int | None = None
    pause, longest = POLL_SECONDS
    while True:
        await asyncio.sleep(pause)
        pause = min(pause * 2, longest)
        async with store.pool.connection() as connection:
            row = await (await connection.execute(REACHED, (projection,))).fetchone()
        reached = row[0] if row is not None else 0
        stands = standstills.get(projection) == reached
        if not stands:
            standstills.pop(projection, None)
        if reached >= position:
            return True
        first = reached if first is None else first
        if time.monotonic() - begun >= (BRIEF_SECONDS if stands else WAIT_SECONDS):
            break
    if reached == first:
        standstills[projection] = reached
    return False
