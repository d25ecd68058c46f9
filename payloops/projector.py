"""The projector's process: `payloops projector`."""

import asyncio
import signal

import structlog

from payloops.projections.projector import run_projections
from payloops.settings import Settings

log = structlog.get_logger()


async def run_projector(settings: Settings) -> None:
    """Keep the projections up to date until SIGTERM or SIGINT; a batch that has begun is finished first."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for each in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(each, stop.set)
    await run_projections(database_url=settings.database_url.get_secret_value(), stop=stop)
    log.info("projector.stopped")
