"""Creating the Temporal client of a process from its settings."""

import asyncio

import structlog
from temporalio.client import Client

from payloops.settings import Settings
from payloops.workflows_client.connection import connect_when_up

log = structlog.get_logger()


async def connect_unless_stopped(settings: Settings, *, stop: asyncio.Event) -> Client | None:
    """Connect, however long Temporal takes to come up; None where `stop` was set first."""
    key = settings.temporal_codec_key
    if key is None:
        log.warning(
            "temporal.histories_readable",
            remedy="set TEMPORAL_CODEC_KEY here and for every worker: processors' credentials are in histories",
        )
    connecting = asyncio.create_task(
        connect_when_up(
            address=settings.temporal_address,
            namespace=settings.temporal_namespace,
            codec_key=None if key is None else key.get_secret_value(),
        )
    )
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait({connecting, stopping}, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if connecting.done():
        return connecting.result()
    connecting.cancel()
    return None
