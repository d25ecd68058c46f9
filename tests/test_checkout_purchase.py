"""Money from the checkout page to the sandbox's books and back, through real processes, in a real browser.

The page, the bank's page, Temporal, subscriber and worker are what `payloops dev` runs; the signed webhooks of the
bank arrive at the API.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest
from browsing import photograph, visiting
from calling import Api, running_api
from playwright.async_api import Browser, Page, expect
from processes import charged, process
from reserving import reserved_port
from shopping import SHOP, Shopping, go_shopping

from payloops.events.checkout_sessions import SessionStatus
from payloops.events.event_store import EventStore
from payloops.settings import Settings

PATIENCE = 120_000

pytestmark = pytest.mark.usefixtures("browser")  # before all others: without one, nothing is started


@pytest.fixture
def settings(settings: Settings, namespaces: Iterator[str]) -> Iterator[Settings]:
    with reserved_port() as port:
        yield settings.model_copy(
            update={"temporal_namespace": next(namespaces), "checkout_base_url": f"http://127.0.0.1:{port}"}
        )


@pytest.fixture
async def api(settings: Settings) -> AsyncIterator[Api]:
    """The API, and the processes that bring its payments to the sandbox."""
    port = int(settings.checkout_base_url.rpartition(":")[2])
    with reserved_port() as bank_port:
        bank = ("--bank-port", str(bank_port))
        async with (
            running_api(settings, port=port) as api,
            process(settings, "subscriber"),
            process(settings, "worker", "--sandbox", *bank),
        ):
            yield api


async def shop_in(api: Api, store: EventStore, currency: str) -> Shopping:
    """With the webhook secrets that the sandbox signs with."""
    shopping = await go_shopping(api, store, currency=currency)
    for body in (
        {"processor": "stripe", "credentials": {"secretKey": "sk", "webhookSecret": "whsec_shop"}},
        {
            "processor": "razorpay",
            "credentials": {"keyId": "id", "keySecret": "secret", "webhookSecret": "shop"},
        },
    ):
        answer = await shopping.merchant.dashboard.post("/api/processors", {**body, "testMode": True})
        assert answer.status == 200
    return shopping


async def pay(page: Page, token: str) -> None:
    await page.get_by_label("What should happen?").select_option(token)
    await page.get_by_role("button", name="Pay").click()


async def test_two_tabs_and_many_clicks_charge_once(api: Api, store: EventStore, browser: Browser) -> None:
    """Both tabs are double-clicked at once; both end at the shop; the processor has charged one payment."""
    shopping = await shop_in(api, store, "USD")
    async with visiting(browser) as customer:
        await customer.meets(SHOP)
        tabs = [await customer.open(shopping.url) for _ in range(2)]
        await customer.gathers("**/pay", count=2)
        await asyncio.gather(*(tab.get_by_role("button", name="Pay").dblclick() for tab in tabs))
        for tab in tabs:
            await tab.wait_for_url(f"https://{SHOP}/thanks?*", timeout=PATIENCE)
    order = await shopping.order()
    assert (order.status, order.amount_captured) == ("captured", 4_999)
    assert await charged(store) == [(str(order.id), 1, 4_999)]
    read = await shopping.merchant.shop.get(f"/v1/checkout/sessions/{shopping.id}")
    assert (read.json["status"], read.json["orderId"]) == ("completed", str(order.id))


@pytest.mark.parametrize(("currency", "processor"), [("USD", "stripe"), ("INR", "razorpay")])
async def test_declined_refused_at_the_bank_then_approved_there(
    api: Api, store: EventStore, browser: Browser, currency: str, processor: str
) -> None:
    """Three attempts, one of which brings the money: a decline, a 3-D Secure refusal, a 3-D Secure approval."""
    shopping = await shop_in(api, store, currency)
    async with visiting(browser) as customer:
        await customer.meets(SHOP)
        page = await customer.open(shopping.url)
        alert = page.get_by_role("alert")

        await pay(page, "tok_chargeDeclined")
        await expect(alert).to_contain_text("Your card was declined.", timeout=PATIENCE)

        await pay(page, "tok_3ds")
        await page.get_by_role("button", name="Decline").wait_for(timeout=PATIENCE)
        await photograph(page, "bank")
        await page.get_by_role("button", name="Decline").click()
        await expect(alert).to_contain_text("Your bank did not confirm the payment.", timeout=PATIENCE)
        assert page.url == shopping.url

        await pay(page, "tok_3ds")
        await page.get_by_role("button", name="Approve").click(timeout=PATIENCE)
        await page.wait_for_url(f"https://{SHOP}/thanks?*", timeout=PATIENCE)
    session, order = await shopping.checkout()
    assert session.status is SessionStatus.COMPLETED
    assert order is not None
    assert [payment.processor for payment in order.payments.values()] == [processor] * 3
    assert (order.status, order.amount_captured) == ("captured", 4_999)
    books = await charged(store)
    assert sorted(books) == [
        (str(order.id), attempt, captured) for attempt, captured in ((1, 0), (2, 0), (3, 4_999))
    ]
    topics = await shopping.topics()
    assert topics.count("order.created") == 1
    assert topics.count("order.processor_event_received") == 2
