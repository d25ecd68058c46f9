"""The projector's process: `payloops projector`."""

import structlog

from payloops.metrics import serving_metrics
from payloops.projections.projector import run_projections
from payloops.settings import Settings
from payloops.stopping import stop_on_signals

log = structlog.get_logger()


async def run_projector(settings: Settings) -> None:
    """Keep the projections up to date until SIGTERM or SIGINT; a batch that has begun is finished first.

    Starts also while PostgreSQL is down, and catches up once it is there.
    """
    stop = stop_on_signals()
    async with serving_metrics(host=settings.host, port=settings.metrics_port):
        await run_projections(database_url=settings.database_url.get_secret_value(), stop=stop)
    log.info("projector.stopped")
