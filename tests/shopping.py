"""A customer at checkout, for tests: a merchant's session, and a processor that says how its payment stands."""

from dataclasses import dataclass
from typing import Any
from uuid import UUID

from calling import Api, Merchant

from payloops.commands.create_checkout_session import create_checkout_session, new_session_id
from payloops.commands.pay_checkout_session import pay_checkout_session
from payloops.commands.settle_checkout_session import Checkout, load_checkout
from payloops.commands.update_order_status import update_order_status
from payloops.events.event_store import EventStore
from payloops.events.metadata import Metadata
from payloops.events.orders import Order
from payloops.events.timestamps import utc_now

BY = Metadata(at=utc_now(), actor="system", correlation_id="test")
SHOP = "shop.example"
SESSION: dict[str, Any] = {
    "amount": 4_999,
    "currency": "USD",
    "successUrl": f"https://{SHOP}/thanks?cart=7#top",
    "cancelUrl": f"https://{SHOP}/cart",
    "customerEmail": "ada@example.com",
    "lineItems": [
        {"name": "Single-origin coffee, 250 g", "amount": 1_450, "quantity": 2},
        {"name": "The Mythical Man-Month", "amount": 1_999, "quantity": 1},
    ],
}


async def begun_session(
    store: EventStore, merchant_id: UUID, by: Metadata, *, currency: str = "USD", **details: Any
) -> UUID:
    """A session over 50.00, begun by its command."""
    session = await create_checkout_session(
        store,
        session_id=new_session_id(at=by.at),
        merchant_id=merchant_id,
        amount=5_000,
        currency=currency,
        success_url="https://shop.example/success",
        cancel_url="https://shop.example/cancel",
        by=by,
        **details,
    )
    id: UUID = session.id
    return id


@dataclass(frozen=True)
class Shopping:
    """One session, its page, and its order once there is one."""

    api: Api
    store: EventStore
    merchant: Merchant
    id: UUID

    @property
    def path(self) -> str:
        return f"/checkout/{self.id}"

    @property
    def url(self) -> str:
        return self.api.url + self.path

    async def checkout(self) -> Checkout:
        return await load_checkout(self.store, session_id=self.id, merchant_id=None)

    async def order(self) -> Order:
        order = (await self.checkout()).order
        assert order is not None
        return order

    async def pay(self, *, attempt: int = 1, method: str = "card", token: str | None = None) -> None:
        await pay_checkout_session(
            self.store,
            session_id=self.id,
            attempt=attempt,
            method=method,
            token=token,
            return_url=self.url,
            by=BY,
        )

    async def report(self, status: str, **details: Any) -> None:
        """What the processor says of the latest payment."""
        order = await self.order()
        await update_order_status(
            self.store, order_id=order.id, attempt=order.attempt, status=status, by=BY, **details
        )

    async def topics(self) -> list[str]:
        return [event.stored.topic for event in await self.store.read(after=0, limit=500)]


async def go_shopping(api: Api, store: EventStore, *, test_mode: bool = True, **fields: Any) -> Shopping:
    """A session of a merchant with both processors."""
    merchant = await api.merchant()
    for processor in ("stripe", "razorpay"):
        changed = await merchant.dashboard.call(
            "PATCH", f"/api/processors/{processor}", {"testMode": test_mode}
        )
        assert changed.status == 200
    made = await merchant.shop.post("/v1/checkout/sessions", {**SESSION, **fields})
    assert made.status == 201, made.raw
    return Shopping(api=api, store=store, merchant=merchant, id=UUID(made.json["id"]))
