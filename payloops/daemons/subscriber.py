"""The subscriber's process: `payloops subscriber`."""

import asyncio

import structlog

from payloops.daemons.metrics import serving_metrics
from payloops.daemons.stopping import stop_on_signals
from payloops.daemons.temporal_client import connect_unless_stopped
from payloops.logs import configure_logs
from payloops.settings import Settings
from payloops.wiring import open_store
from payloops.workflows_client.payment_subscription import payment_subscription
from payloops.workflows_client.subscriber import run_subscriber
from payloops.workflows_client.webhook_subscription import webhook_subscription

log = structlog.get_logger()


async def run_subscribers(settings: Settings) -> None:
    """Forward events for payments and webhooks to Temporal, until SIGTERM or SIGINT.

    The current batch is finished first. If PostgreSQL or Temporal is down, waits until it is up.
    """
    configure_logs(settings, process="subscriber")
    stop = stop_on_signals()
    async with (
        open_store(settings, application_name="payloops subscriber") as store,
        serving_metrics(host=settings.host, port=settings.metrics_port, samplers=[store.sample]),
    ):
        client = await connect_unless_stopped(settings, stop=stop)
        if client is not None:
            async with asyncio.TaskGroup() as group:
                for subscription in (payment_subscription(store), webhook_subscription(store)):
                    group.create_task(
                        run_subscriber(
                            subscription=subscription,
                            store=store,
                            database_url=settings.database_url.get_secret_value(),
                            client=client,
                            stop=stop,
                        )
                    )
    log.info("subscriber.stopped")
