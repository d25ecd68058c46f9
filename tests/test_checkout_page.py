"""The checkout page in a real browser: paying, declines, other tabs, time, the keyboard, a phone."""

import asyncio
from datetime import timedelta
from typing import Any

from browsing import fits, photograph, visiting
from calling import Api, running_api
from playwright.async_api import Browser, Page, expect
from shopping import SHOP, Shopping, go_shopping

from payloops.commands.create_checkout_session import LIFE
from payloops.events.event_store import EventStore
from payloops.events.orders import Failure
from payloops.events.timestamps import utc_now
from payloops.settings import Settings

PATIENCE = 90_000


async def shows(page: Page, heading: str) -> None:
    await expect(page.get_by_role("heading", level=1)).to_have_text(heading, timeout=PATIENCE)


async def press_pay(page: Page) -> None:
    await page.get_by_role("button", name="Pay").click()


async def test_a_customer_pays_and_is_taken_back_to_the_shop(shopping: Shopping, browser: Browser) -> None:
    async with visiting(browser) as customer:
        shop = await customer.meets(SHOP)
        shop.clear()
        page = await customer.open(shopping.url)
        await shows(page, "Choose how to pay")
        await photograph(page, "checkout")
        await press_pay(page)
        await shows(page, "Confirming your payment")
        await photograph(page, "checkout-processing")
        await shopping.report("captured")
        await shows(page, "Payment received")
        await photograph(page, "checkout-paid")
        shop.set()
        await page.wait_for_url(f"https://{SHOP}/**", timeout=PATIENCE)
        assert page.url == f"https://{SHOP}/thanks?cart=7&session_id={shopping.id}#top"
    read = await shopping.merchant.shop.get(f"/v1/checkout/sessions/{shopping.id}")
    assert read.json["status"] == "completed"


async def test_after_a_decline_the_customer_is_told_why_and_tries_again(
    shopping: Shopping, browser: Browser
) -> None:
    async with visiting(browser) as customer:
        (await customer.meets(SHOP)).clear()
        page = await customer.open(shopping.url)
        await page.get_by_label("What should happen?").select_option("tok_chargeDeclined")
        await press_pay(page)
        await shows(page, "Confirming your payment")
        await shopping.report("failed", failure=Failure("card_declined", "Declined"))
        alert = page.get_by_role("alert")
        await expect(alert).to_contain_text("Your card was declined.", timeout=PATIENCE)
        await photograph(page, "checkout-declined")
        await page.get_by_label("Wallet").check()
        await press_pay(page)
        await shows(page, "Confirming your payment")
        await shopping.report("captured")
        await shows(page, "Payment received")
    order = await shopping.order()
    assert (order.attempt, order.amount_captured) == (2, 4_999)
    assert (await shopping.topics()).count("order.created") == 1


async def test_a_double_click_pays_once(shopping: Shopping, browser: Browser) -> None:
    async with visiting(browser) as customer:
        page = await customer.open(shopping.url)
        await page.get_by_role("button", name="Pay").dblclick()
        await shows(page, "Confirming your payment")
    assert (await shopping.topics()).count("payment.requested") == 1


async def test_two_tabs_that_pay_at_once_pay_once_and_both_see_it(
    shopping: Shopping, browser: Browser
) -> None:
    async with visiting(browser) as customer:
        await customer.meets(SHOP)
        tabs = [await customer.open(shopping.url) for _ in range(2)]
        await customer.gathers("**/pay", count=2)
        await asyncio.gather(*(press_pay(tab) for tab in tabs))
        for tab in tabs:
            await shows(tab, "Confirming your payment")
        await shopping.report("captured")
        for tab in tabs:
            await tab.wait_for_url(f"https://{SHOP}/**", timeout=PATIENCE)
    assert (await shopping.topics()).count("order.created") == 1
    assert (await shopping.topics()).count("payment.requested") == 1


async def test_a_tab_that_only_looks_on_sees_what_another_one_does(
    shopping: Shopping, browser: Browser
) -> None:
    async with visiting(browser) as customer:
        looking = await customer.open(shopping.url)
        await shows(looking, "Choose how to pay")
        await shopping.pay()
        await shows(looking, "Confirming your payment")
        await shopping.report("failed")
        await shows(looking, "Choose how to pay")


async def test_the_back_button_after_paying_leads_to_what_is_true(
    shopping: Shopping, browser: Browser
) -> None:
    async with visiting(browser) as customer:
        shop = await customer.meets(SHOP)
        page = await customer.open(shopping.url)
        await press_pay(page)
        await shows(page, "Confirming your payment")
        await page.reload()
        await shopping.report("captured")
        await page.wait_for_url(f"https://{SHOP}/**", timeout=PATIENCE)
        shop.clear()
        await page.go_back()
        await shows(page, "Payment received")
    assert (await shopping.topics()).count("payment.requested") == 1


async def test_an_expired_session_says_so_and_leads_back(shopping: Shopping, browser: Browser) -> None:
    """Also one that was open when its time ran out: sending its form charges nothing."""
    async with visiting(browser) as customer:
        await customer.meets(SHOP)
        page = await customer.open(shopping.url)
        await shows(page, "Choose how to pay")
        object.__setattr__(shopping.api.services, "now", lambda: utc_now() + LIFE + timedelta(seconds=1))
        await press_pay(page)
        await shows(page, "This checkout has expired")
        await photograph(page, "checkout-expired")
        await page.get_by_role("link", name="Back to Merchant").click()
        await page.wait_for_url(f"https://{SHOP}/cart?session_id={shopping.id}", timeout=PATIENCE)
    assert (await shopping.checkout()).order is None


async def test_a_customer_who_cancels_is_back_at_the_shop(shopping: Shopping, browser: Browser) -> None:
    async with visiting(browser) as customer:
        await customer.meets(SHOP)
        page = await customer.open(shopping.url)
        await page.get_by_role("link", name="Cancel and return").click()
        await page.wait_for_url(f"https://{SHOP}/cart?session_id={shopping.id}", timeout=PATIENCE)


async def test_the_page_can_be_used_without_a_mouse(api: Api, store: EventStore, browser: Browser) -> None:
    shopping = await go_shopping(api, store, currency="INR")
    async with visiting(browser) as customer:
        page = await customer.open(shopping.url)
        focused = "document.activeElement.value || document.activeElement.textContent.trim()"
        await page.keyboard.press("Tab")
        assert await page.evaluate(focused) == "card"
        await page.keyboard.press("ArrowDown")
        assert await page.evaluate(focused) == "upi"
        await photograph(page, "checkout-keyboard")
        await page.keyboard.press("Tab")
        assert await page.evaluate(focused) == "tok_visa"
        await page.keyboard.press("Tab")
        assert (await page.evaluate(focused)).startswith("Pay ")
        await page.keyboard.press("Enter")
        await shows(page, "Confirming your payment")
    payment = (await shopping.order()).payment
    assert payment is not None
    assert payment.processor == "razorpay"


async def test_the_page_fits_on_a_phone(api: Api, store: EventStore, browser: Browser) -> None:
    items = [{"name": "Donaudampfschifffahrtsgesellschaft" * 4, "amount": 99_999_999_999, "quantity": 2}]
    pages: tuple[tuple[str, bool, dict[str, Any]], ...] = (
        ("checkout-phone", False, {}),
        ("checkout-phone-dark", True, {}),
        ("checkout-phone-long", False, {"lineItems": items, "amount": 99_999_999_999, "currency": "KWD"}),
    )
    for name, dark, fields in pages:
        shopping = await go_shopping(api, store, **fields)
        async with visiting(browser, phone=True, dark=dark) as customer:
            page = await customer.open(shopping.url)
            await shows(page, "Choose how to pay")
            assert await fits(page)
            await photograph(page, name)
            await page.get_by_role("button", name="Pay").tap()
            await shows(page, "Confirming your payment")
            assert await fits(page)


async def test_the_page_works_without_scripts(shopping: Shopping, browser: Browser) -> None:
    async with visiting(browser, scripts=False) as customer:
        shop = await customer.meets(SHOP)
        shop.clear()
        page = await customer.open(shopping.url)
        await press_pay(page)
        await shows(page, "Confirming your payment")
        await shopping.report("captured")
        await shows(page, "Payment received")  # the page refreshes itself
        shop.set()
        await page.wait_for_url(f"https://{SHOP}/**", timeout=PATIENCE)


async def test_when_the_service_is_busy_the_customer_is_told_and_nothing_is_charged(
    settings: Settings, store: EventStore, browser: Browser
) -> None:
    async with running_api(settings.model_copy(update={"max_in_flight": 1})) as api:
        shopping = await go_shopping(api, store)
        async with visiting(browser) as customer:
            page = await customer.open(shopping.url)
            await shows(page, "Choose how to pay")
            with api.services.admission.admit("work"):
                await press_pay(page)
                await shows(page, "We are busy right now")
            await page.get_by_role("link", name="Try again").click()
            await press_pay(page)
            await shows(page, "Confirming your payment")
    assert (await shopping.topics()).count("payment.requested") == 1
