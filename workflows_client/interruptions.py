"""Deliveries that their worker did not live to see the end of.

While a webhook is under way, heartbeats tell Temporal what is being sent where. When the worker dies they cease:
Temporal has the activity run again, and hands over what the last one told.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime

from temporalio import activity

from payloops.events.timestamps import parse_timestamp, timestamp_text

BEAT_SECONDS = 3.0
"""Between two heartbeats: several within `HEARTBEAT_TIMEOUT` of webhook_delivery.py."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Interrupted:
    """An attempt whose end nobody saw. `lasted_ms`: so long it lasted at least."""

    url: str
    began_at: datetime
    lasted_ms: int


@asynccontextmanager
async def under_way(*, url: str, now: datetime) -> AsyncIterator[None]:
    """Tell Temporal of a delivery, from before the first byte, and for as long as the context lasts."""
    began = time.monotonic()

    def beat() -> None:
        activity.heartbeat(url, timestamp_text(now), round((time.monotonic() - began) * 1000))

    async def keep_beating() -> None:
        while True:
            await asyncio.sleep(BEAT_SECONDS)
            beat()

    beat()
    beating = asyncio.create_task(keep_beating(), name="heartbeats")
    try:
        yield
    finally:
        beating.cancel()


def interrupted_attempt() -> Interrupted | None:
    """What was under way when an earlier run of this activity ended; None where nothing was."""
    match activity.info().heartbeat_details:
        case (str(url), str(began), int(lasted_ms)):
            return Interrupted(url=url, began_at=parse_timestamp(began), lasted_ms=lasted_ms)
        case _:
            return None
