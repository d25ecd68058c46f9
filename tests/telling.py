"""A merchant with an endpoint, and all that it takes to tell it things: subscriber and worker, in this process."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import forwarding
from temporalio.client import Client
from uuid_utils.compat import uuid7

from payloops.commands.capture_payment import capture_payment
from payloops.commands.change_profile import change_profile
from payloops.commands.cipher import Cipher
from payloops.commands.client_secrets import ClientSecrets
from payloops.commands.configure_processor import configure_processor
from payloops.commands.create_order import create_order
from payloops.commands.hashing import Hasher
from payloops.commands.pay_order import request_payment
from payloops.commands.register_merchant import register_merchant
from payloops.commands.route_payment import Route
from payloops.commands.update_order_status import update_order_status
from payloops.commands.webhook_secrets import WebhookSecret, get_webhook_secret
from payloops.commands.webhooks import (
    RecordedAttempt,
    Webhook,
    find_webhook,
    list_attempts,
)
from payloops.events.event_store import EventStore
from payloops.events.merchants import ProcessorChoice
from payloops.events.metadata import Metadata
from payloops.events.orders import Order, References
from payloops.events.timestamps import utc_now
from payloops.settings import Settings
from payloops.workflows_client.activities import GRACE_SECONDS, BackendActivities
from payloops.workflows_client.endpoint_places import EndpointPlaces
from payloops.workflows_client.webhook_sender import open_sender
from payloops.workflows_client.webhook_subscription import READER, webhook_subscription
from payloops.workflows_client.worker import ACTIVITIES, GRACE, backend_worker

SECONDS = 60
AMOUNT = 5_000
CIPHER = Cipher(secret="a key of tests, long enough to encrypt")
BY = Metadata(at=utc_now(), actor="system", correlation_id="test")


@dataclass
class Orders:
    """What a merchant and its processors do to orders, without HTTP."""

    store: EventStore
    merchant_id: UUID
    by: Metadata = field(default_factory=lambda: BY)

    async def create(self, **details: Any) -> UUID:
        created = await create_order(
            self.store,
            order_id=uuid7(),
            merchant_id=self.merchant_id,
            amount=AMOUNT,
            currency="USD",
            by=self.by,
            **details,
        )
        return created.originator_id

    async def pay(self, order_id: UUID, **details: Any) -> None:
        route = Route(processor="stripe", reason="test")
        payment: dict[str, Any] = {"route": route, "payment_method": None, "capture": "automatic"}
        await self.store.change(
            Order, order_id, lambda order: request_payment(order, **payment | details, by=self.by)
        )

    async def paid(self, **details: Any) -> UUID:
        order_id = await self.create()
        await self.pay(order_id, **details)
        return order_id

    async def report(self, order_id: UUID, status: str, **details: Any) -> None:
        await update_order_status(
            self.store,
            order_id=order_id,
            status=status,
            references=References(f"po_{order_id}", f"pt_{order_id}"),
            **details,
            by=self.by,
        )

    async def authorized(self) -> UUID:
        order_id = await self.paid(capture="manual")
        await self.report(order_id, "authorized")
        return order_id

    async def captured_without_reference(self) -> UUID:
        """An order whose capture was asked for, and whose payment's reference the processor never told."""
        order_id = await self.paid(capture="manual")
        await update_order_status(self.store, order_id=order_id, status="authorized", by=self.by)
        await capture_payment(self.store, order_id=order_id, merchant_id=self.merchant_id, by=self.by)
        return order_id


@dataclass
class Shop(Orders):
    """A merchant, its orders and its webhooks."""

    async def listen_at(self, url: str | None) -> None:
        await change_profile(self.store, merchant_id=self.merchant_id, webhook_url=url, by=BY)

    async def takes_stripe(self, *, secret_key: str) -> None:
        await configure_processor(
            self.store,
            merchant_id=self.merchant_id,
            processor="stripe",
            credentials={"secretKey": secret_key},
            choice=ProcessorChoice(enabled=True, priority=1, test_mode=True),
            cipher=CIPHER,
            by=BY,
        )

    async def secret(self) -> WebhookSecret:
        return await get_webhook_secret(
            self.store.pool, merchant_id=self.merchant_id, cipher=CIPHER, now=utc_now()
        )

    async def queued(self) -> list[tuple[UUID, str]]:
        """Id and type of its webhooks, in the order of what they tell of."""
        async with self.store.pool.connection() as connection:
            cursor = await connection.execute(
                "SELECT id, event_type FROM webhook_events WHERE merchant_id = %s ORDER BY source_position",
                (self.merchant_id,),
            )
            return [(row[0], row[1]) for row in await cursor.fetchall()]

    async def webhook(self, webhook_id: UUID) -> Webhook:
        return await find_webhook(self.store.pool, webhook_id=webhook_id, merchant_id=self.merchant_id)

    async def attempts(self, webhook_id: UUID) -> list[RecordedAttempt]:
        return await list_attempts(self.store.pool, webhook_id=webhook_id)

    async def becomes(self, webhook_id: UUID, status: str) -> Webhook:
        async with asyncio.timeout(SECONDS):
            while (webhook := await self.webhook(webhook_id)).status != status:
                await asyncio.sleep(0.02)
        return webhook


async def open_shop(store: EventStore, *, url: str | None = None) -> Shop:
    async with Hasher(rounds=4) as passwords:
        merchant = await register_merchant(
            store,
            name="Shop",
            email=f"{uuid7()}@example.com",
            password="p" * 12,
            passwords=passwords,
            by=BY,
        )
    shop = Shop(store, merchant.id)
    await shop.listen_at(url)
    return shop


def subscribing(
    store: EventStore, settings: Settings, client: Client
) -> contextlib.AbstractAsyncContextManager[asyncio.Task[None]]:
    """The subscriber of webhooks."""
    return forwarding.subscribing(store, settings, client, webhook_subscription(store))


async def caught_up(store: EventStore) -> None:
    """Wait until it has done all that the log has now."""
    await forwarding.caught_up(store, READER)


@contextlib.asynccontextmanager
async def backend(
    store: EventStore,
    *,
    allow_loopback: bool = True,
    deadline: float = 30,
    places: EndpointPlaces | None = None,
    sending_grace: float = GRACE_SECONDS,
    now: Callable[[], datetime] = utc_now,
) -> AsyncIterator[BackendActivities]:
    """The activities, not served."""
    async with open_sender(allow_loopback=allow_loopback, deadline=deadline, now=now) as sender:
        yield BackendActivities(
            store=store,
            cipher=CIPHER,
            client_secrets=ClientSecrets(store.pool, CIPHER),
            sender=sender,
            places=places,
            grace=sending_grace,
            now=now,
        )


@contextlib.asynccontextmanager
async def delivering(
    store: EventStore,
    client: Client,
    *,
    slots: int = ACTIVITIES,
    grace: timedelta = GRACE,
    **options: Any,
) -> AsyncIterator[BackendActivities]:
    """The worker of `backend-operations`."""
    async with (
        backend(store, **options) as activities,
        backend_worker(client=client, activities=activities, slots=slots, grace=grace),
    ):
        yield activities
