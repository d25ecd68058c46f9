"""The support console for tests: somebody signed in, and an order that has been through much."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

from browsing import Visitor, visiting
from calling import PASSWORD, Api, Caller, Merchant
from playwright.async_api import Browser, Page
from psycopg_pool import AsyncConnectionPool
from test_staff import EMAIL, hire
from uuid_utils.compat import uuid7

from payloops.commands.queue_webhook import queue_webhook
from payloops.commands.receive_processor_event import ProcessorEvent, receive_processor_event
from payloops.commands.record_webhook_attempt import record_webhook_attempt
from payloops.commands.staff import StaffRow
from payloops.commands.update_order_status import update_order_status
from payloops.commands.update_refund_status import update_refund_status
from payloops.commands.webhooks import WebhookAttempt, find_webhook
from payloops.events.metadata import Metadata
from payloops.events.orders import Failure, References
from payloops.events.timestamps import utc_now

COOKIE = "payloops-staff"
URL = "https://shop.example/webhooks"


@dataclass(frozen=True)
class Desk:
    """A member of the staff, signed in to the console."""

    member: StaffRow
    calls: Caller

    async def page(self, path: str) -> str:
        """A page that is there."""
        answer = await self.calls.get(path)
        assert answer.status == 200, (path, answer.status, answer.raw)
        return answer.raw.decode()


async def open_desk(api: Api, pool: AsyncConnectionPool) -> Desk:
    member = await hire(pool)
    session = api.services.staff_sessions.issue(member, now=utc_now())
    return Desk(member, Caller(api.anyone.session, {"Cookie": f"{COOKIE}={session}"}))


async def fill_in(page: Page, *, email: str = EMAIL, password: str = PASSWORD) -> None:
    """The form that staff sign in by."""
    await page.get_by_label("Email").fill(email)
    await page.get_by_label("Password").fill(password)
    await page.keyboard.press("Enter")


@asynccontextmanager
async def signed_in(browser: Browser, url: str, **options: Any) -> AsyncIterator[tuple[Visitor, Page]]:
    """Somebody on the staff, who was asked to sign in and then sees the page."""
    async with visiting(browser, **options) as visitor:
        page = await visitor.open(url)
        await fill_in(page)
        await page.get_by_role("button", name="Sign out").wait_for()
        yield visitor, page


def by_workflow(order_id: UUID, attempt: int = 1) -> Metadata:
    id = f"payment-{order_id}" + (f"-{attempt}" if attempt > 1 else "")
    return Metadata(at=utc_now(), actor=f"workflow:{id}", correlation_id="checkout-7")


async def eventful_order(api: Api, merchant: Merchant) -> UUID:
    """Declined, paid at the second attempt, told of by the processor, partly refunded, and its webhooks failed."""
    order_id = UUID(
        await merchant.order(
            amount=4_999,
            externalId="cart-7",
            customerEmail="ada@example.com",
            customerId="customer-42",
            description="Two tickets",
            metadata={"cart": "7"},
        )
    )
    await _paid(api, merchant, order_id)
    await _told(api, merchant, order_id)
    await _refunded(api, merchant, order_id)
    await _webhook_failed(api, merchant, order_id)
    return order_id


async def _paid(api: Api, merchant: Merchant, order_id: UUID) -> None:
    store = api.services.store
    pay: dict[str, Any] = {"paymentMethod": {"type": "card", "token": "tok_visa"}}
    assert (await merchant.shop.post(f"/v1/orders/{order_id}/pay", pay)).status == 200
    await update_order_status(
        store,
        order_id=order_id,
        status="failed",
        references=References("pi_3QK1"),
        failure=Failure("card_declined", "The card was declined."),
        by=by_workflow(order_id),
    )
    assert (await merchant.shop.post(f"/v1/orders/{order_id}/pay", pay)).status == 200
    for status in ("requires_action", "captured"):
        await update_order_status(
            store,
            order_id=order_id,
            status=status,
            attempt=2,
            references=References("pi_3QK2", "ch_3QK2" if status == "captured" else None),
            by=by_workflow(order_id, 2),
        )


async def _told(api: Api, merchant: Merchant, order_id: UUID) -> None:
    event = ProcessorEvent(
        processor="stripe",
        event_id="evt_1QK2",
        type="payment_intent.succeeded",
        order_id=order_id,
        attempt=2,
        outcome="captured",
        references=References("pi_3QK2", "ch_3QK2"),
        amount=4_999,
        currency="USD",
    )
    await receive_processor_event(
        api.services.store,
        merchant_id=merchant.id,
        event=event,
        body='{"id": "evt_1QK2", "type": "payment_intent.succeeded", "data": {"object": {"id": "pi_3QK2"}}}',
        by=Metadata(
            at=utc_now(), actor="processor:stripe", correlation_id="evt-1QK2", causation_id="evt_1QK2"
        ),
    )


async def _refunded(api: Api, merchant: Merchant, order_id: UUID) -> None:
    refund = await merchant.shop.post(f"/v1/orders/{order_id}/refund", {"amount": 1_500, "reason": "damaged"})
    assert refund.status == 201, refund.raw
    await update_refund_status(
        api.services.store,
        order_id=order_id,
        refund_id=refund.json["refundId"],
        succeeded=True,
        processor_transaction_id="re_3QK2",
        by=Metadata(
            at=utc_now(), actor=f"workflow:refund-{refund.json['refundId']}", correlation_id="refund-7"
        ),
    )


async def _webhook_failed(api: Api, merchant: Merchant, order_id: UUID) -> None:
    store, webhook_id = api.services.store, uuid7()
    changed = await merchant.dashboard.call("PUT", "/api/merchants/me", {"webhookUrl": URL})
    assert changed.status == 200, changed.raw
    await queue_webhook(
        store.pool,
        webhook_id=webhook_id,
        merchant_id=merchant.id,
        order_id=order_id,
        event_type="payment.captured",
        payload={},
        source_position=None,
        at=utc_now(),
    )
    webhook = await find_webhook(store.pool, webhook_id=webhook_id, merchant_id=None)
    for number, (status, error) in enumerate(((503, "answered 503"), (None, "no answer within 30 s"))):
        attempt = WebhookAttempt(
            attempted_at=utc_now() + timedelta(minutes=number),
            duration_ms=120,
            status_code=status,
            error=error,
            answer="<h1>Maintenance</h1>" if status else None,
        )
        await record_webhook_attempt(
            store,
            webhook=webhook,
            key=f"{webhook_id}/{number}",
            url=URL,
            attempt=attempt,
            by=Metadata(at=utc_now(), actor="system", correlation_id="test"),
        )
