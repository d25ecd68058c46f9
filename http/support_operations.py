"""The state of the service, for support staff in a browser. `/support/operations`."""

from typing import NamedTuple

from payloops.commands.merchants import merchant_names
from payloops.commands.processor_events import Effect, list_processor_events
from payloops.commands.webhook_endpoints import list_failing_endpoints
from payloops.http.routing import Call, Nothing, page
from payloops.http.support import support_page
from payloops.projections.parked import list_parked_events
from payloops.projections.status import ProjectionStatus, projections_status

SHOWN = 50
"""Maximum number of rows of each table."""
NOT_APPLIED: tuple[Effect, ...] = ("unknown_order", "unmatched", "contradiction", "received")
"""Effects of processors' events that fit nothing on record."""
LATE_SECONDS = 10.0


class Health(NamedTuple):
    """The health of a reader of the log. `tone`: `good`, `bad`, or empty."""

    text: str
    tone: str


@page(
    "GET",
    "/support/operations",
    auth="staff_session",
    long=True,
    query=Nothing,
    summary="Show lag of the log's readers, parked events, failing endpoints, and unmatched processor events",
)
async def read_support_operations(call: Call[None]) -> bytes:
    pool = call.services.store.pool
    readers = await projections_status(pool)
    parked = await list_parked_events(pool, limit=SHOWN)
    endpoints = await list_failing_endpoints(pool, limit=SHOWN)
    found = [await list_processor_events(pool, effect=effect, limit=SHOWN) for effect in NOT_APPLIED]
    not_applied = sorted(
        (event for events, _ in found for event in events), key=lambda event: event.id, reverse=True
    )
    return support_page(
        call,
        "support_operations.html",
        readers=[(each, health_of(each)) for each in readers],
        parked=parked,
        total_parked=sum(each.parked for each in readers),
        endpoints=endpoints,
        not_applied=not_applied[:SHOWN],
        merchants=await merchant_names(pool, merchant_ids={each.merchant_id for each in not_applied}),
        limit=SHOWN,
    )


def health_of(reader: ProjectionStatus) -> Health:
    """Whether a reader is active, and keeps up."""
    if not reader.active:
        return Health("no process works on it", "bad")
    if reader.lag_seconds > LATE_SECONDS:
        return Health("behind", "")
    return Health("up to date", "good")
