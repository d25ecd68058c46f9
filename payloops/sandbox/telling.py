"""Notifying merchants of what their customers decided at the sandbox's bank: at once, and again until it has arrived.

The decision is in the ledger before anybody is notified: if the process dies in between, the next one sends it. A
notification that arrives twice is the same event.
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

from payloops.events.timestamps import utc_now
from payloops.sandbox import ledger
from payloops.sandbox.ledger import Charge
from payloops.sandbox.webhooks import signed_webhook
from payloops.workflows_client.connection import sleep_unless_stopped

SECONDS = 5.0
"""For a webhook: name, connection, answer."""
PAUSE_SECONDS = 5.0
"""Between two looks at what could not be told."""
TELLINGS = 200
"""Tries for a decision."""
BATCH = 20

WebhookSecret = Callable[[UUID, str], Awaitable[str | None]]
"""The webhook secret that a merchant has configured for a processor, None where it has none."""

log = structlog.get_logger(__name__)


class Teller:
    """Sends webhooks to where this service takes them. Made by `open_teller`."""

    def __init__(
        self, *, pool: ledger.Pool, session: aiohttp.ClientSession, url: str, webhook_secret: WebhookSecret
    ) -> None:
        self._pool = pool
        self._session = session
        self._url = url.rstrip("/")
        self._webhook_secret = webhook_secret

    async def tell(self, charge: Charge) -> bool:
        """Tell a merchant once how a charge stands; whether it has arrived. What goes wrong is logged."""
        arrived = await self._send(charge)
        await ledger.note_telling(self._pool, processor_order_id=charge.processor_order_id, arrived=arrived)
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
            return True  # nothing that its processor would tell
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
        """Tell again what has not arrived, until `stop` is set."""
        while not stop.is_set():
            with contextlib.suppress(psycopg.errors.UndefinedTable):  # the books are not open yet
                await self._tell_untold()
            await sleep_unless_stopped(PAUSE_SECONDS * random.uniform(0.5, 1.5), stop=stop)  # noqa: S311  # jitter

    async def _tell_untold(self) -> None:
        try:
            untold = await ledger.untold_decisions(self._pool, tellings=TELLINGS, limit=BATCH)
            for charge in untold:
                await self.tell(charge)
        except psycopg.OperationalError as error:
            log.warning("sandbox.telling_interrupted", error=type(error).__name__)


@asynccontextmanager
async def open_teller(*, pool: ledger.Pool, url: str, webhook_secret: WebhookSecret) -> AsyncIterator[Teller]:
    """
    Args:
        url: of the API, whose `/webhooks/{processor}` is told.
    """
    timeout = aiohttp.ClientTimeout(total=SECONDS)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        yield Teller(pool=pool, session=session, url=url, webhook_secret=webhook_secret)
