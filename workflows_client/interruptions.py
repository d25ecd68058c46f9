"""Deliveries whose worker dies or stops: how another worker takes them over."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from temporalio import activity
from temporalio.exceptions import ApplicationError, ApplicationErrorCategory

BEAT_SECONDS = 3.0
"""Before the first heartbeat and between two: several within `HEARTBEAT_TIMEOUT` of webhook_delivery.py."""


@asynccontextmanager
async def under_way(*, grace: float) -> AsyncIterator[None]:
    """Send a webhook within this context, so that another worker takes over if this one dies or stops.

    An activity that Temporal scheduled sends heartbeats. A local activity needs none, because Temporal notices that its
    workflow task is lost; but the SDK would wait for its end when the worker stops.

    Args:
        grace: seconds for a local activity to finish, once the worker is asked to stop.

    Raises:
        ApplicationError: `grace` is over.
    """
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(None) as limit:

            async def watch() -> None:
                if activity.info().is_local:
                    await activity.wait_for_worker_shutdown()
                    limit.reschedule(loop.time() + grace)
                    return
                while True:
                    await asyncio.sleep(BEAT_SECONDS)
                    activity.heartbeat()

            watching = asyncio.create_task(watch(), name="under way")
            try:
                yield
            finally:
                watching.cancel()
    except TimeoutError:
        raise ApplicationError(
            "The worker stops", type="WorkerStops", category=ApplicationErrorCategory.BENIGN
        ) from None
