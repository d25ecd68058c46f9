"""When API keys were last used: collected in memory and written in the background, to the minute."""

import asyncio
import time
from collections.abc import Callable
from datetime import datetime
from typing import Self
from uuid import UUID

import psycopg
import structlog
from psycopg_pool import AsyncConnectionPool

from payloops.events.background import begin, end

PAUSE = 1.0
"""Seconds between two looks at what there is to write."""
WRITTEN_FOR = 60.0
"""Seconds in which a key that goes on being used is not written again."""
REMEMBERED = 20_000
"""Keys that a process remembers; uses of more are not noted until there is room."""
BATCH = 1_000
"""Keys written by one statement."""
LAST_SECONDS = 2.0
"""How long writing the last may take when the process ends."""

# In the order of ids, past rows that somebody holds: they are written the next time, and nobody waits for another.
WRITE = """
    WITH used AS MATERIALIZED (
        SELECT k.id, u.at FROM api_keys k JOIN unnest(%s::uuid[], %s::timestamptz[]) AS u (id, at) USING (id)
        ORDER BY k.id FOR NO KEY UPDATE OF k SKIP LOCKED
    ), written AS (
        UPDATE api_keys k SET last_used_at = used.at FROM used
        WHERE k.id = used.id AND (k.last_used_at IS NULL OR k.last_used_at < used.at)
    )
    SELECT id FROM used
"""

log = structlog.get_logger()


class KeyUses:
    """Use as an async context manager, one per process; at its end all that is known is written."""

    def __init__(self, pool: AsyncConnectionPool, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._pool = pool
        self._clock = clock
        self._uses: dict[UUID, datetime] = {}
        self._written: dict[UUID, float] = {}
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = begin(self._run(), name="key uses")
        return self

    async def __aexit__(self, *_: object) -> None:
        await end(self._task)
        try:
            async with asyncio.timeout(LAST_SECONDS):
                await self._write(list(self._uses))
        except (psycopg.Error, TimeoutError) as error:
            log.warning("key_uses.lost", error=type(error).__name__, keys=len(self._uses))

    def note(self, api_key_id: UUID, *, at: datetime) -> None:
        """A key was used. Costs no more than remembering it."""
        if len(self._uses) < REMEMBERED or api_key_id in self._uses:
            self._uses[api_key_id] = at

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(PAUSE)
            try:
                await self.write_due()
            except psycopg.Error as error:
                log.warning("key_uses.not_written", error=type(error).__name__, keys=len(self._uses))

    async def write_due(self) -> None:
        """Write what was not written within the last minute."""
        now = self._clock()
        self._written = {id: at for id, at in self._written.items() if now - at < WRITTEN_FOR}
        await self._write([id for id in self._uses if id not in self._written])

    async def _write(self, ids: list[UUID]) -> None:
        for start in range(0, len(ids), BATCH):
            batch = ids[start : start + BATCH]
            times = [self._uses[id] for id in batch]
            async with self._pool.connection() as connection:
                rows = await (await connection.execute(WRITE, (batch, times))).fetchall()
            written = {id for (id,) in rows}
            self._written |= dict.fromkeys(written, self._clock())
            for id, at in zip(batch, times, strict=True):
                # Used again meanwhile: it stays, and is written when it is due.
                if id in written and self._uses.get(id) == at:
                    del self._uses[id]
