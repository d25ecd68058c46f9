"""The subscriber's process: `payloops subscriber`."""

import structlog

from payloops.logs import configure_logs
from payloops.settings import Settings
from payloops.stopping import stop_on_signals
from payloops.temporal import connect_unless_stopped
from payloops.wiring import open_store
from payloops.workflows_client import subscriber
from payloops.workflows_client.payments import payments

log = structlog.get_logger()


async def run_subscriber(settings: Settings) -> None:
    """Forward the log to Temporal until SIGTERM or SIGINT; the batch that has begun is finished first.

    Starts also while PostgreSQL or Temporal is down, and forwards once they are there.
    """
    configure_logs(settings, process="subscriber")
    stop = stop_on_signals()
    client = await connect_unless_stopped(settings, stop=stop)
    if client is not None:
        async with open_store(settings, application_name="payloops subscriber") as store:
            await subscriber.run_subscriber(
                subscription=payments(),
                store=store,
                database_url=settings.database_url.get_secret_value(),
                client=client,
                stop=stop,
            )
    log.info("subscriber.stopped")
