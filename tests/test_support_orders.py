"""Orders in the support console: found, told in full, and shown as they were at any moment."""

from collections.abc import AsyncIterator

import pytest
from browsing import fits, photograph
from calling import Api, running_api
from console import eventful_order, signed_in
from playwright.async_api import Browser
from projecting import project_all
from psycopg_pool import AsyncConnectionPool
from test_staff import hire

from payloops.settings import Settings


@pytest.fixture
async def api(settings: Settings) -> AsyncIterator[Api]:
    async with running_api(settings.model_copy(update={"temporal_ui_url": "http://127.0.0.1:8233/"})) as api:
        yield api


async def test_in_a_browser_an_order_is_found_and_told_in_full(
    api: Api, pool: AsyncConnectionPool, browser: Browser, settings: Settings
) -> None:
    await hire(pool)
    merchant = await api.merchant()
    order = await eventful_order(api, merchant)
    for number in range(6):
        await merchant.order(
            amount=1_000 + number, externalId=f"cart-{number + 8}", customerEmail="x@example.com"
        )
    await project_all(settings.database_url.get_secret_value())
    async with signed_in(browser, f"{api.url}/support") as (_, page):
        await photograph(page, "support-search")
        await page.get_by_label("Order's id").fill("ADA@example.com")
        await page.keyboard.press("Enter")
        await page.get_by_role("link", name="cart-7").click()
        await page.get_by_role("heading", name="Timeline").wait_for()
        assert page.url.endswith(f"/support/orders/{order}")
        assert await fits(page)
        await photograph(page, "support-order")
    for phone, dark in ((True, False), (True, True), (False, True)):
        url = f"{api.url}/support/orders/{order}"
        async with signed_in(browser, url, phone=phone, dark=dark) as (_, page):
            await page.get_by_role("heading", name="Timeline").wait_for()
            assert await fits(page)
            await photograph(page, "support-order" + "-phone" * phone + "-dark" * dark)
