"""Notifies merchants by webhook of what their customers decided at the sandbox's bank, until the webhook has arrived.

The decision is recorded in the ledger first: if the process dies before it sends the webhook, the next one sends it. A
webhook that is sent twice contains the same event.
"""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from uuid import UUID

import aiohttp
import psycopg
import structlog

from payloops.events.pauses import sleep_unless_stopped
from payloops.events.timestamps import utc_now
from payloops.sandbox import ledger
from payloops.sandbox.ledger import Charge
from payloops.sandbox.webhooks import signed_webhook

SECONDS = 5.0
"""Timeout for sending a webhook, including DNS and connecting."""
PAUSE_SECONDS = 5.0
"""Pause between retries."""
MAX_ATTEMPTS = 200
"""Attempts to notify a merchant of a decision."""
BATCH = 20

WebhookSecret = Callable[[UUID, str], Awaitable[str | None]]
"""Returns the webhook secret that a merchant has configured for a processor; None if it has none."""

log = structlog.get_logger(__name__)


class MerchantNotifier:
    """Sends webhooks to this service, as the processors would. Created by `open_notifier`."""

    def __init__(
        self, *, pool: ledger.Pool, session: aiohttp.ClientSession, url: str, webhook_secret: WebhookSecret
    ) -> None:
        self._pool = pool
        self._session = session
        self._url = url.rstrip("/")
        self._webhook_secret = webhook_secret

    async def notify(self, charge: Charge) -> bool:
        """Send the status of a charge to its merchant, once. Returns whether it arrived; errors are logged."""
        arrived = await self._send(charge)
        await ledger.record_notification(
            self._pool, processor_order_id=charge.processor_order_id, arrived=arrived
        )
        return arrived

    async def _send(self, charge: Charge) -> bool:
        about = {"processor": charge.processor, "order_id": charge.order_id}
        secret = None
        if charge.merchant_id is not None:
            secret = await self._webhook_secret(UUID(charge.merchant_id), charge.processor)
        if secret is None:
            log.warning("sandbox.no_webhook_secret", **about)
            return False
        webhook = signed_webhook(charge, secret=secret, at=utc_now())
        if webhook is None:
            return True  # its processor has no event for this status
        try:
            async with self._session.post(
                f"{self._url}/webhooks/{charge.processor}",
                data=webhook.body,
                headers=webhook.headers,
                allow_redirects=False,
            ) as response:
                status = response.status
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            log.warning("sandbox.webhook_failed", **about, error=type(error).__name__)
            return False
        if not response.ok:
            log.warning("sandbox.webhook_refused", **about, status=status)
        return response.ok

    async def run(self, *, stop: asyncio.Event) -> None:
        """Retry what has not arrived, until `stop` is set."""
        while not stop.is_set():
            with contextlib.suppress(psycopg.errors.UndefinedTable):  # the schema does not exist yet
                await self._retry()
            await sleep_unless_stopped(PAUSE_SECONDS * random.uniform(0.5, 1.5), stop=stop)  # noqa: S311  # jitter

    async def _retry(self) -> None:
        try:
            for charge in await ledger.unreported_decisions(
                self._pool, max_attempts=MAX_ATTEMPTS, limit=BATCH
            ):
                await self.notify(charge)
        except psycopg.OperationalError as error:
            log.warning("sandbox.merchant_notifier_interrupted", error=type(error).__name__)


@asynccontextmanager
async def open_notifier(
    *, pool: ledger.Pool, url: str, webhook_secret: WebhookSecret
) -> AsyncIterator[MerchantNotifier]:
    """
    Args:
        url: of the API, whose `/webhooks/{processor}` receives the webhooks.
    """
    timeout = aiohttp.ClientTimeout(total=SECONDS)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        yield MerchantNotifier(pool=pool, session=session, url=url, webhook_secret=webhook_secret)
