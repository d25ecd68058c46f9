"""Orders in the support console: found, told in full, and shown as they were at any moment."""

import re
from collections.abc import AsyncIterator
from datetime import date
from html import unescape
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit
from uuid import UUID

import pytest
from browsing import fits, photograph
from calling import Api, Merchant, running_api
from console import by_workflow, eventful_order, open_desk, signed_in
from playwright.async_api import Browser, Page
from projecting import insert_raw, project_orders
from psycopg_pool import AsyncConnectionPool
from test_staff import hire
from uuid_utils.compat import uuid7

from payloops.commands.erase_personal_data import erase_personal_data
from payloops.commands.processor_events import keep_processor_event, list_processor_events
from payloops.commands.staff_views import list_staff_views
from payloops.events.event_store import EventStore
from payloops.events.orders import Order
from payloops.events.stream import FACTS
from payloops.events.timestamps import utc_now
from payloops.http.support_orders import DAY, PER_PAGE
from payloops.projections import order_history
from payloops.projections.order_history import State, order_state
from payloops.projections.order_wording import TITLES
from payloops.settings import Settings

MARKUP = '"><script>alert(1)</script><img src=x onerror=alert(2)>{{ 7 * 7 }}'


@pytest.fixture
async def api(settings: Settings) -> AsyncIterator[Api]:
    async with running_api(settings.model_copy(update={"temporal_ui_url": "http://127.0.0.1:8233/"})) as api:
        yield api


def text_of(page: str) -> str:
    """What a reader sees of a page."""
    return re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]+>", " ", page)))


def test_every_kind_of_event_has_a_title() -> None:
    orders = {topic for topic in FACTS if topic.split(".")[0] in ("order", "payment", "refund")}
    assert set(TITLES) == orders


async def test_orders_of_every_merchant_are_found(
    api: Api, merchant: Merchant, pool: AsyncConnectionPool, settings: Settings
) -> None:
    desk, other = await open_desk(api, pool), await api.merchant()
    one = await merchant.order(
        externalId="cart-1", customerEmail="ada@example.com", amount=500, currency="JPY"
    )
    two = await other.order(externalId="cart-2")
    await project_orders(settings.database_url.get_secret_value())
    created = (await merchant.shop.get(f"/v1/orders/{one}")).json["createdAt"]
    today, latest = date.fromisoformat(created[:10]), utc_now().date()
    for query, found in (
        *(("", {one, two}), ("?q=cart-1", {one}), (f"?q=+{two}+", {two}), ("?q=ADA%40example.com", {one})),
        *((f"?merchantId={other.id}&q=", {two}), ("?q=cart", set()), ("?page=2", set())),
        *(
            ("?amount=500+jpy", {one}),
            ("?amount=5.00+USD", set()),
            (f"?from={today}&to={latest}", {one, two}),
        ),
        *((f"?to={today - DAY}", set()), (f"?from={latest + DAY}", set()), ("?to=9999-12-31", {one, two})),
    ):
        page = await desk.page(f"/support{query}")
        assert set(re.findall(r'href="/support/orders/([^"]+)"', page)) == found, query
    assert "500 JPY" in text_of(await desk.page("/support?q=cart-1"))


async def test_a_search_keeps_what_it_was_asked_for(
    api: Api, merchant: Merchant, pool: AsyncConnectionPool, settings: Settings
) -> None:
    """From page to page, and in the record of what staff looked for. What cannot be meant is refused by name."""
    desk = await open_desk(api, pool)
    for _ in range(PER_PAGE + 1):
        await merchant.order(amount=2_599)
    await project_orders(settings.database_url.get_secret_value())
    asked = {"amount": "25.99 USD", "from": "2026-01-01", "to": "2099-12-31"}
    first = await desk.page(f"/support?{urlencode(asked)}")
    [older] = re.findall('rel="next" href="([^"]+)"', first)
    assert dict(parse_qsl(urlsplit(unescape(older)).query)) == asked | {"page": "2"}
    assert len(re.findall('scope="row"', await desk.page(unescape(older)))) == 1
    assert all(f'value="{value}"' in first for value in asked.values())
    [_, view, *_] = await list_staff_views(pool, limit=10)
    assert view.query is not None
    assert asked.items() <= view.query.items()
    for query, field in (
        *(("amount=25.99", "amount"), ("amount=25.999+USD", "amount"), ("amount=5+XYZ", "amount")),
        *(("from=yesterday", "from"), ("from=2026-02-30", "from"), ("from=2026-02-02&to=2026-02-01", "to")),
    ):
        refused = await desk.calls.get(f"/support?{query}")
        assert refused.status == 400, query
        assert f"{field} : Must" in text_of(refused.raw.decode()), query
        assert 'href="/support">Try again' in refused.raw.decode()


async def test_the_page_tells_all_there_is(api: Api, merchant: Merchant, pool: AsyncConnectionPool) -> None:
    desk = await open_desk(api, pool)
    order = await eventful_order(api, merchant)
    page = await desk.page(f"/support/orders/{order}")
    text = text_of(page)
    for said in (
        "The order is paid, and partly refunded: 15.00 USD of the 49.99 USD captured.",
        "Stripe said card_declined",
        "The merchant can refund up to 34.99 USD.",
        *("ada@example.com", "customer-42", "Two tickets", str(merchant.id)),
        *("Payment asked for", "Payment failed", "Customer asked to act", "Payment captured", "Refund made"),
        *("why: preferred for USD", "card_declined: The card was declined.", "reason: damaged"),
        *("pi_3QK2", "ch_3QK2", "re_3QK2", "evt_1QK2", "payment_intent.succeeded", "checkout-7"),
        *("https://shop.example/webhooks", "503", "<h1>Maintenance</h1>", "no answer within 30 s"),
    ):
        assert said in text, said
    workflow_url = api.services.workflow_url
    assert workflow_url is not None
    at = f"http://127.0.0.1:8233/namespaces/{workflow_url.split('/')[4]}/workflows"
    for workflow in (f"payment-{order}", f"payment-{order}-2"):
        assert f'href="{at}/{workflow}"' in page


async def test_without_an_address_of_temporal_nothing_links_there(
    settings: Settings, pool: AsyncConnectionPool
) -> None:
    async with running_api(settings) as api:
        desk = await open_desk(api, pool)
        order = await eventful_order(api, await api.merchant())
        page = await desk.page(f"/support/orders/{order}")
        assert f"payment-{order}-2" in page
        assert "/workflows/" not in page


async def test_any_moment_can_be_asked_for(api: Api, merchant: Merchant, pool: AsyncConnectionPool) -> None:
    desk = await open_desk(api, pool)
    order = await eventful_order(api, merchant)

    async def moment(version: int) -> str:
        page = await desk.page(f"/support/orders/{order}?version={version}")
        return text_of(page[page.index('id="moment"') : page.index('id="transactions"')])

    first = await moment(1)
    assert "pending Order created" in first
    assert "payment 1" not in first
    assert "What this changed" not in first
    failed = await moment(3)
    assert "failed Payment failed" in failed
    assert "status processing failed" in failed
    assert "last error code - card_declined" in failed
    assert "amount captured 0.00 USD" in failed
    captured = await moment(6)
    assert "amount captured 0.00 USD 49.99 USD" in captured
    assert "Nothing of the order's state" in await moment(7)
    assert (await desk.calls.get(f"/support/orders/{order}?version=99")).status == 400
    assert (await desk.calls.get(f"/support/orders/{order}?version=0")).status == 400


async def test_a_moment_is_made_of_two_states_however_much_has_happened(
    api: Api, merchant: Merchant, pool: AsyncConnectionPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each has all payments and transactions: with one for each event, hundreds took seconds, and much memory."""
    desk = await open_desk(api, pool)
    order = await eventful_order(api, merchant)
    made: list[int] = []

    def counted(state_of: Order) -> State:
        made.append(state_of.version)
        return order_state(state_of)

    monkeypatch.setattr(order_history, "order_state", counted)
    await desk.page(f"/support/orders/{order}?version=6")
    assert made == [5, 6]


async def test_what_a_processor_told_is_shown_as_it_arrived(
    api: Api, merchant: Merchant, pool: AsyncConnectionPool
) -> None:
    desk = await open_desk(api, pool)
    order = await eventful_order(api, merchant)
    [path] = re.findall(
        r'href="(/support/processor-events/[^"]+)"', await desk.page(f"/support/orders/{order}")
    )
    text = text_of(await desk.page(path))
    assert '"id": "evt_1QK2"' in text
    assert "It told nothing new." in text
    [view, _] = await list_staff_views(pool, limit=10)
    assert (view.route, view.order_id) == ("GET /support/processor-events/{id}", order)


async def test_what_is_nested_deep_in_a_large_event_is_shown_without_growing(
    api: Api, merchant: Merchant, pool: AsyncConnectionPool
) -> None:
    """Its merchant signs it: indented, a megabyte of it would take the memory of all requests."""
    desk = await open_desk(api, pool)
    body = "[" * 200 + "0," * 50_000 + "0" + "]" * 200
    event: dict[str, Any] = {"key": "evt_1", "event_id": "evt_1", "type": "charge.failed", "body": body}
    await keep_processor_event(pool, merchant_id=merchant.id, processor="stripe", at=utc_now(), **event)
    [row], _ = await list_processor_events(pool)
    page = await desk.page(f"/support/processor-events/{row.id}")
    assert body in page
    assert len(page) < len(body) + 10_000


async def test_each_look_is_on_record(api: Api, merchant: Merchant, pool: AsyncConnectionPool) -> None:
    desk = await open_desk(api, pool)
    order, unknown = await merchant.order(), str(uuid7())
    for path in (f"{order}?version=1", unknown, "x"):
        await desk.calls.get(f"/support/orders/{path}")
    views = await list_staff_views(pool, limit=10)
    assert {view.route for view in views} == {"GET /support/orders/{id}"}
    assert [(view.order_id, view.merchant_id, view.query) for view in reversed(views)] == [
        (UUID(order), merchant.id, {"version": 1}),
        (UUID(unknown), None, None),
        (None, None, None),
    ]
    async with pool.connection() as connection:
        await connection.execute("ALTER TABLE staff_views RENAME TO elsewhere")
    answer = await desk.calls.get(f"/support/orders/{order}")
    assert answer.status >= 500
    assert order.encode() not in answer.raw.replace(f"/support/orders/{order}".encode(), b"")


async def test_what_merchants_and_processors_write_is_text(
    api: Api, pool: AsyncConnectionPool, settings: Settings
) -> None:
    desk = await open_desk(api, pool)
    registered = await api.anyone.post(
        "/api/auth/register", {"name": MARKUP, "email": "evil@example.com", "password": "p" * 12}
    )
    token = {"Authorization": f"Bearer {registered.json['token']}"}
    issued = await api.anyone.call("POST", "/api/api-keys", {"name": "shop"}, headers=token)
    made = await api.anyone.call(
        "POST",
        "/v1/orders",
        {
            "amount": 1,
            "externalId": MARKUP,
            "customerId": MARKUP,
            "description": MARKUP,
            "metadata": {MARKUP: MARKUP},
            "returnUrl": "https://evil.example/?" + MARKUP.replace(" ", ""),
        },
        headers={"X-API-Key": issued.json["secret"]},
    )
    assert made.status == 201, made.raw
    await project_orders(settings.database_url.get_secret_value())
    order = made.json["id"]
    for path in (f"/support/orders/{order}", "/support", f"/support?q={MARKUP.replace(' ', '+')}"):
        page = await desk.page(path)
        assert "<script>alert" not in page
        assert "<img src=x" not in page
        assert "onerror=alert(2)&gt;{{ 7 * 7 }}" in page, path
        assert not re.search(r'href="(?!/|\?|#|http://127)', page)


async def test_what_was_erased_is_shown_as_erased(
    api: Api, merchant: Merchant, pool: AsyncConnectionPool, store: EventStore, settings: Settings
) -> None:
    desk = await open_desk(api, pool)
    order = await eventful_order(api, merchant)
    assert "ada@example.com" in await desk.page(f"/support/orders/{order}")
    async for _ in erase_personal_data(store, order, by=by_workflow(order)):
        pass
    await project_orders(settings.database_url.get_secret_value())
    for path in (f"/support/orders/{order}", f"/support/orders/{order}?version=1", "/support"):
        page = await desk.page(path)
        assert "[erased]" in page
        assert "ada@example.com" not in page
        assert "Two tickets" not in page


async def test_an_order_with_events_of_a_newer_version_is_left_to_newer_processes(
    api: Api, merchant: Merchant, pool: AsyncConnectionPool, store: EventStore
) -> None:
    desk = await open_desk(api, pool)
    order = await merchant.order()
    await insert_raw(store, merchant.id, topic="payment.invented", state=b"{}", stream=UUID(order))
    answer = await desk.calls.get(f"/support/orders/{order}")
    assert (answer.status, answer.headers["Retry-After"]) == (503, "2")


async def opened(page: Page) -> None:
    await page.get_by_role("heading", name="Timeline").wait_for()


async def test_in_a_browser_an_order_is_found_and_told_in_full(
    api: Api, merchant: Merchant, pool: AsyncConnectionPool, browser: Browser, settings: Settings
) -> None:
    await hire(pool)
    order = await eventful_order(api, merchant)
    for number in range(6):
        await merchant.order(
            amount=1_000 + number, externalId=f"cart-{number + 8}", customerEmail="x@example.com"
        )
    await project_orders(settings.database_url.get_secret_value())
    async with signed_in(browser, f"{api.url}/support") as (_, page):
        await photograph(page, "support-search")
        await page.get_by_label("Order's id").fill("ADA@example.com")
        await page.keyboard.press("Enter")
        await page.get_by_role("link", name="cart-7").click()
        await opened(page)
        assert page.url.endswith(f"/support/orders/{order}")
        assert await fits(page)
        await photograph(page, "support-order")
    for phone, dark in ((True, False), (False, True)):
        url = f"{api.url}/support/orders/{order}"
        async with signed_in(browser, url, phone=phone, dark=dark) as (_, page):
            await opened(page)
            assert await fits(page)
            await photograph(page, "support-order" + "-phone" * phone + "-dark" * dark)


async def test_in_a_browser_time_is_travelled_by_keyboard_and_by_mouse(
    api: Api, merchant: Merchant, pool: AsyncConnectionPool, browser: Browser
) -> None:
    await hire(pool)
    order = await eventful_order(api, merchant)
    async with signed_in(browser, f"{api.url}/support/orders/{order}") as (_, page):
        slider = page.get_by_role("slider", name="After event 9 of 9")
        moment = page.locator("#moment")
        await moment.get_by_text("Refund made").wait_for()
        await slider.focus()
        for _ in range(3):
            await page.keyboard.press("ArrowLeft")
        await moment.get_by_text("Payment captured").wait_for()
        assert await page.locator("#version").get_attribute("aria-valuetext") == "6: Payment captured"
        assert await page.evaluate("document.activeElement.id") == "version"
        current = page.locator("#events [aria-current=step]")
        assert await current.locator(".title").text_content() == "Payment captured"
        await page.wait_for_url("**?version=6")
        await page.keyboard.press("Home")
        await moment.get_by_text("Order created").wait_for()
        await page.get_by_role("link", name="After →").click()
        await moment.get_by_text("Payment asked for").wait_for()
        await page.get_by_role("link", name="Payment failed").click()
        await moment.get_by_text("Payment failed").wait_for()
        await photograph(page, "support-order-then")
        await page.reload()
        await moment.get_by_text("Payment failed").wait_for()


async def test_in_a_browser_without_scripts_time_is_travelled_by_links_and_a_form(
    api: Api, merchant: Merchant, pool: AsyncConnectionPool, browser: Browser
) -> None:
    await hire(pool)
    order = await eventful_order(api, merchant)
    async with signed_in(browser, f"{api.url}/support/orders/{order}", scripts=False) as (_, page):
        await page.get_by_role("link", name="← Before").click()
        await page.wait_for_url("**?version=8#moment")
        await page.get_by_role("link", name="Payment failed").click()
        await page.wait_for_url("**?version=3#moment")
        await page.get_by_role("slider").focus()
        await page.keyboard.press("End")
        await page.get_by_role("button", name="Show").click()
        await page.wait_for_url("**?version=9#moment")


async def test_in_a_browser_a_session_that_ends_meanwhile_is_told_of(
    api: Api, merchant: Merchant, pool: AsyncConnectionPool, browser: Browser
) -> None:
    await hire(pool)
    order = await eventful_order(api, merchant)
    async with signed_in(browser, f"{api.url}/support/orders/{order}") as (visitor, page):
        await visitor.forget()
        await page.get_by_role("slider").focus()
        await page.keyboard.press("Home")
        await page.get_by_role("heading", name="Sign in").wait_for()
