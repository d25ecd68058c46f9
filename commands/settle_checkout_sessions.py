"""Records the end of checkout sessions that nobody looks at, periodically."""

from datetime import datetime, timedelta
from uuid import UUID

import structlog

from payloops.commands.create_checkout_session import LIFE
from payloops.commands.settle_checkout_session import settle_checkout_session
from payloops.events.errors import StreamUnreadable
from payloops.events.event_store import EventStore
from payloops.events.metadata import Metadata

LOOK_BACK = timedelta(days=2)
"""How old sessions are looked at: what time has made of older ones is recorded when somebody looks at them."""
BATCH = 200
UNSETTLED = """
    SELECT s.originator_id, s.recorded_at FROM stored_events s
    WHERE s.topic = 'checkout_session.created' AND (s.recorded_at, s.originator_id) > (%(after)s, %(after_id)s)
      AND NOT EXISTS (
          SELECT FROM stored_events e WHERE e.originator_id = s.originator_id
          AND e.topic IN ('checkout_session.completed', 'checkout_session.expired')
      )
      AND (s.recorded_at < %(ended)s OR EXISTS (
          SELECT FROM stored_events e WHERE e.originator_id = s.originator_id
          AND e.topic = 'checkout_session.order_placed'
      ))
    ORDER BY s.recorded_at, s.originator_id LIMIT %(limit)s
"""

log = structlog.get_logger()


async def settle_checkout_sessions(store: EventStore, *, now: datetime) -> int:
    """Settle the sessions of the last two days that have expired, or whose order may have ended; return how many."""
    after, after_id, count = now - LOOK_BACK, UUID(int=0), 0
    by = Metadata(at=now, actor="system", correlation_id="housekeeping")
    while True:
        async with store.pool.connection() as connection:
            cursor = await connection.execute(
                UNSETTLED, {"after": after, "after_id": after_id, "ended": now - LIFE, "limit": BATCH}
            )
            found = await cursor.fetchall()
        for session_id, _ in found:
            try:
                await settle_checkout_session(store, session_id=session_id, merchant_id=None, by=by)
            except StreamUnreadable as error:
                # One that a later version is to settle does not keep others waiting.
                log.warning("checkout_session.unreadable", session_id=str(session_id), error=str(error))
        count += len(found)
        if len(found) < BATCH:
            return count
        after_id, after = found[-1]
