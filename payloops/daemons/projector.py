"""The projector's process: `payloops projector`."""

import asyncio

import structlog

from payloops.daemons.garbage_collection import tune_garbage_collector
from payloops.daemons.metrics import serving_metrics
from payloops.daemons.stopping import stop_on_signals
from payloops.events.sealer import run_sealer
from payloops.logs import configure_logs
from payloops.projections.projection import all_projections
from payloops.projections.projector import run_projections
from payloops.settings import Settings
from payloops.wiring import make_audit_keys

log = structlog.get_logger()


async def run_projector(settings: Settings) -> None:
    """Keep the projections up to date, and the log sealed, until SIGTERM or SIGINT.

    The current batch is finished first. If PostgreSQL is down, waits until it is up.
    """
    configure_logs(settings, process="projector")
    all_projections()  # imports their modules before the garbage collector is tuned
    tune_garbage_collector()
    database_url, stop = settings.database_url.get_secret_value(), stop_on_signals()
    async with (
        serving_metrics(host=settings.host, port=settings.metrics_port),
        asyncio.TaskGroup() as group,
    ):
        group.create_task(run_projections(database_url=database_url, stop=stop))
        group.create_task(run_sealer(database_url=database_url, keys=make_audit_keys(settings), stop=stop))
    log.info("projector.stopped")
