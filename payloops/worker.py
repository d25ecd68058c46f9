"""The worker's process: `payloops worker`, with `--sandbox` also the processors' workers."""

import asyncio

import structlog

from payloops.commands.client_secrets import ClientSecrets
from payloops.logs import configure_logs
from payloops.metrics import serving_metrics
from payloops.sandbox.worker import serve_sandbox
from payloops.settings import Settings
from payloops.stopping import stop_on_signals
from payloops.temporal import connect_unless_stopped
from payloops.wiring import make_cipher, open_store
from payloops.workflows_client.activities import BackendActivities
from payloops.workflows_client.delivery import open_sender
from payloops.workflows_client.worker import serve_backend

log = structlog.get_logger()


async def run_worker(settings: Settings, *, sandbox: bool) -> None:
    """Serve activities until SIGTERM or SIGINT; those that run then have ten seconds to finish.

    Starts also while PostgreSQL or Temporal is down, and serves once they are there.
    """
    configure_logs(settings, process="worker")
    stop = stop_on_signals()
    async with (
        open_store(settings, application_name="payloops worker") as store,
        open_sender(allow_loopback=settings.webhook_allow_loopback) as sender,
        serving_metrics(host=settings.host, port=settings.metrics_port, samplers=[store.sample]),
    ):
        client = await connect_unless_stopped(settings, stop=stop)
        if client is not None:
            cipher = make_cipher(settings)
            activities = BackendActivities(
                store=store,
                cipher=cipher,
                client_secrets=ClientSecrets(store.pool, cipher),
                sender=sender,
            )
            async with asyncio.TaskGroup() as group:
                group.create_task(serve_backend(client=client, activities=activities, stop=stop))
                if sandbox:
                    group.create_task(serve_sandbox(client=client, pool=store.pool, stop=stop))
    log.info("worker.stopped")
