"""The worker's process: `payloops worker`, with `--sandbox` also the simulated processors' workers."""

import asyncio
import socket
from dataclasses import dataclass
from uuid import UUID

import structlog
from psycopg_pool import AsyncConnectionPool

from payloops.commands.cipher import Cipher
from payloops.commands.client_secrets import ClientSecrets
from payloops.commands.credentials import WEBHOOK_SECRET, get_processor_credentials
from payloops.daemons.listening import bind
from payloops.daemons.metrics import serving_metrics
from payloops.daemons.start_checks import check_at_start
from payloops.daemons.stopping import stop_on_signals
from payloops.daemons.temporal_client import connect_unless_stopped
from payloops.events.background import in_background
from payloops.logs import configure_logs
from payloops.sandbox.worker import serve_sandbox
from payloops.settings import Settings
from payloops.wiring import make_audit_keys, make_cipher, open_store
from payloops.workflows_client.activities import BackendActivities
from payloops.workflows_client.webhook_sender import open_sender
from payloops.workflows_client.worker import serve_backend

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class BankOptions:
    """How to serve the sandbox's bank.

    Attributes:
        port: to listen on, at `HOST`.
        url: where browsers reach it.
        webhooks_to: URL of the API that receives webhooks about customers' decisions.
    """

    port: int
    url: str
    webhooks_to: str


async def run_worker(settings: Settings, *, sandbox: bool, bank: BankOptions | None = None) -> None:
    """Run activities until SIGTERM or SIGINT; those that run then have ten seconds to finish.

    If PostgreSQL or Temporal is down, waits until it is up.

    Args:
        sandbox: whether to simulate the processors, too.
        bank: with `sandbox`, how to serve the bank where customers approve payments.

    Raises:
        PortTaken: see there.
    """
    configure_logs(settings, process="worker")
    stop = stop_on_signals()
    cipher = make_cipher(settings)
    listener = bind(settings.host, bank.port, setting="--bank-port") if bank is not None else None
    async with (
        open_store(settings, application_name="payloops worker") as store,
        open_sender(allow_loopback=settings.webhook_allow_loopback) as sender,
        serving_metrics(host=settings.host, port=settings.metrics_port, samplers=[store.sample]),
        in_background(
            check_at_start(store.pool, cipher=cipher, audit_keys=make_audit_keys(settings)),
            name="start_checks",
        ),
    ):
        client = await connect_unless_stopped(settings, stop=stop)
        if client is not None:
            activities = BackendActivities(
                store=store,
                cipher=cipher,
                client_secrets=ClientSecrets(store.pool, cipher),
                sender=sender,
            )
            async with asyncio.TaskGroup() as group:
                group.create_task(serve_backend(client=client, activities=activities, stop=stop))
                if sandbox:
                    bank_url = bank.url if bank is not None else None
                    group.create_task(
                        serve_sandbox(client=client, pool=store.pool, stop=stop, bank_url=bank_url)
                    )
                if bank is not None and listener is not None:
                    group.create_task(_run_bank(bank, listener, pool=store.pool, cipher=cipher, stop=stop))
    log.info("worker.stopped")


async def _run_bank(
    options: BankOptions,
    listener: socket.socket,
    *,
    pool: AsyncConnectionPool,
    cipher: Cipher,
    stop: asyncio.Event,
) -> None:
    from payloops.sandbox.bank import Bank, serve_bank  # noqa: PLC0415  # imports much that most workers do not need
    from payloops.sandbox.merchant_notifier import open_notifier  # noqa: PLC0415

    async def webhook_secret(merchant_id: UUID, processor: str) -> str | None:
        found = await get_processor_credentials(
            pool, merchant_id=merchant_id, processor=processor, cipher=cipher
        )
        return found.credentials.get(WEBHOOK_SECRET) if found is not None else None

    async with open_notifier(pool=pool, url=options.webhooks_to, webhook_secret=webhook_secret) as notifier:
        log.info("bank.listening", url=options.url)
        async with asyncio.TaskGroup() as group:
            group.create_task(notifier.run(stop=stop))
            group.create_task(serve_bank(Bank(pool=pool, notifier=notifier), listener, stop=stop))
