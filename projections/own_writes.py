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
"""How long is waited for a projection that stood still before."""
POLL_SECONDS = (0.003, 0.04)
"""Between checks of the checkpoint: at first, and at most."""

WRITTEN_AND_REACHED = sql.SQL("""
    (SELECT max(notification_id) FROM stored_events WHERE merchant_id = %(merchant_id)s) AS written,
    (SELECT position FROM checkpoints WHERE name = %(projection)s) AS reached
""")
REACHED = "SELECT position FROM checkpoints WHERE name = %s"

_standstills: WeakKeyDictionary[EventStore, dict[str, int]] = WeakKeyDictionary()
"""By projection: the position at which it did not move for a whole wait."""


class ProjectionBehind(Exception):
    """A projection may not yet include what was looked for: the request can be retried."""

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
    """Execute a query; if the projection turns out not to include the merchant's last acknowledged write, execute it
    again once it does, or after a second.

    Args:
        query: must return at least one row. Each begins with `WRITTEN_AND_REACHED`; the rest of it is returned.
        arguments: of the query, including `merchant_id`.
        prepare: see psycopg's `execute`.
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
    """Wait until the projection has reached a position of the log, for at most a second; return whether it has.

    If it did not move at all during that second, further calls in this process only wait briefly until it moves again:
    without a projector, all reads would take a second.
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
        if reached >= position:
            return True
        first = reached if first is None else first
        if time.monotonic() - begun >= (BRIEF_SECONDS if stands else WAIT_SECONDS):
            break
    if reached == first:
        standstills[projection] = reached
    return False
