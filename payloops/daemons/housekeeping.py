"""Periodic clean-up in every API process: deletes expired rows, and settles expired checkout sessions."""

import asyncio
import random

import psycopg
import structlog

from payloops.commands.idempotency import delete_expired
from payloops.commands.settle_checkout_sessions import settle_checkout_sessions
from payloops.commands.staff_sessions import forget_ended_staff_sessions
from payloops.events.errors import OutcomeUnknown, StoreUnavailable, VersionConflict
from payloops.events.event_store import EventStore
from payloops.events.timestamps import utc_now

EVERY_SECONDS = 300.0

log = structlog.get_logger()


async def keep_house(store: EventStore, *, every_seconds: float = EVERY_SECONDS) -> None:
    """Clean up periodically, without end."""
    while True:
        await asyncio.sleep(every_seconds * random.uniform(0.5, 1.5))  # noqa: S311  # jitter
        try:
            deleted = await delete_expired(store.pool)
            await forget_ended_staff_sessions(store.pool, now=utc_now())
            settled = await settle_checkout_sessions(store, now=utc_now())
        except (psycopg.Error, StoreUnavailable, OutcomeUnknown, VersionConflict) as error:
            log.warning("housekeeping.failed", error=type(error).__name__)
        except Exception:  # a bug must not stop housekeeping until the process is restarted
            log.exception("housekeeping.broken")
        else:
            log.info("housekeeping.done", idempotency_keys=deleted, checkout_sessions=settled)
