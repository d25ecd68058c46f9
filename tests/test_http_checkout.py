"""The checkout page, without a browser: what it shows, what its form may say, and how it is followed."""

import asyncio
import html
import re
from dataclasses import replace
from datetime import timedelta
from uuid import UUID

import pytest
from calling import Answer, Api, running_api
from shopping import Shopping, go_shopping
from uuid_utils.compat import uuid7

from payloops.commands.create_checkout_session import LIFE
from payloops.commands.settle_checkout_session import MAX_ATTEMPTS
from payloops.events.event_store import EventStore
from payloops.events.orders import Failure, PaymentRequested
from payloops.events.timestamps import utc_now
from payloops.http import admission, checkout
from payloops.http.checkout import TEST_TOKENS, with_session_id
from payloops.http.money import money
from payloops.settings import Settings

FORM = {"Content-Type": "application/x-www-form-urlencoded"}


async def look(shopping: Shopping) -> Answer:
    return await shopping.api.anyone.get(shopping.path)


def text_of(answer: Answer) -> str:
    """What a reader sees of a page."""
    return html.unescape(" ".join(re.sub(r"<[^>]+>", " ", answer.raw.decode()).split()))


async def send(shopping: Shopping, form: str, **headers: str) -> tuple[int, str | None]:
    async with shopping.api.anyone.session.post(
        f"{shopping.path}/pay", data=form, headers={**FORM, **headers}, allow_redirects=False
    ) as answer:
        return answer.status, answer.headers.get("Location")


async def test_the_page_shows_what_is_bought_and_the_total(shopping: Shopping) -> None:
    text = text_of(await look(shopping))
    assert "Single-origin coffee, 250 g 2 \u00d7 $14.50 $29.00" in text
    assert "The Mythical Man-Month $19.99" in text
    assert "Taxes, shipping and fees $1.00" in text
    assert "Total $49.99" in text
    assert "Pay $49.99" in text


async def test_less_than_its_items_come_to_is_a_discount(api: Api, store: EventStore) -> None:
    shopping = await go_shopping(api, store, amount=4_000)
    assert "Discount -$8.99" in text_of(await look(shopping))


@pytest.mark.parametrize(
    ("amount", "currency", "text"),
    [
        (4_999, "USD", "$49.99"),
        (500, "JPY", "¥500"),
        (1_250, "KWD", "KWD 1.250"),
        (12_345_600, "INR", "₹1,23,456.00"),
        (99_999_999_999, "EUR", "€999,999,999.99"),
        (5_000, "IQD", "IQD 5.000"),  # CLDR would leave the decimals out that ISO 4217 has
        (500, "ISK", "ISK 5.00"),  # what Stripe charges for it
        (500, "MGA", "MGA 500"),
        (1, "AUD", "A$0.01"),
    ],
)
def test_amounts_have_the_sign_and_decimals_of_their_currency(amount: int, currency: str, text: str) -> None:
    assert money(amount, currency).replace("\xa0", " ") == text


@pytest.mark.parametrize(
    ("currency", "names"),
    [("USD", ["Card", "Wallet"]), ("INR", ["Card", "UPI", "Net banking", "Wallet"])],
)
async def test_the_ways_to_pay_are_those_that_the_merchants_processors_take(
    api: Api, store: EventStore, currency: str, names: list[str]
) -> None:
    shopping = await go_shopping(api, store, currency=currency)
    found = re.findall(r'name="method"[^>]*>\s*<span>([^<]+)', (await look(shopping)).raw.decode())
    assert found == names
    for processor in ("stripe", "razorpay"):
        await shopping.merchant.dashboard.call("PATCH", f"/api/processors/{processor}", {"enabled": False})
    assert "No way to pay" in text_of(await look(shopping))


async def test_who_chose_a_way_to_pay_that_was_switched_off_meanwhile_is_told_so(shopping: Shopping) -> None:
    assert "Choose how to pay" in text_of(await look(shopping))
    for processor in ("stripe", "razorpay"):
        await shopping.merchant.dashboard.call("PATCH", f"/api/processors/{processor}", {"enabled": False})
    form = b"attempt=1&method=card"
    refused = await shopping.api.anyone.call("POST", f"{shopping.path}/pay", data=form, headers=FORM)
    assert refused.status == 400
    assert "This way to pay is not offered any more" in text_of(refused)
    assert (await shopping.checkout()).order is None


async def test_test_tokens_are_offered_and_taken_in_test_mode_alone(api: Api, store: EventStore) -> None:
    live, test = [await go_shopping(api, store, test_mode=mode) for mode in (False, True)]
    for token in TEST_TOKENS:
        assert token in (await look(test)).raw.decode()
        assert token not in (await look(live)).raw.decode()
    assert (await send(live, "attempt=1&method=card&token=tok_visa"))[0] == 400
    assert (await send(live, "attempt=1&method=card"))[0] == 303
    events = [each.event for each in await live.store.read(after=0, limit=99)]
    [payment] = [each for each in events if isinstance(each, PaymentRequested)]
    assert payment.payment_method == {"type": "card", "token": None}
    assert payment.actor == f"checkout:{live.id}"


async def test_a_form_that_says_something_else_is_refused(shopping: Shopping) -> None:
    for form in (
        "",
        "attempt=1",
        "attempt=0&method=card",
        f"attempt={MAX_ATTEMPTS + 1}&method=card",
        "attempt=1&method=cash",
        "attempt=1&method=upi",  # nobody takes it in USD
        "attempt=1&method=card&token=tok_other",
        "attempt=1&method=card&token=4242424242424242",
        "attempt=1&method=card&card=4242424242424242",
        "attempt=1&method=card&amount=1",
        "attempt=1&attempt=2&method=card",
    ):
        assert (await send(shopping, form))[0] == 400, form
    assert (await send(shopping, "attempt=1&method=card", **{"Sec-Fetch-Site": "cross-site"}))[0] == 403
    assert (await shopping.checkout()).order is None


async def test_paying_leads_back_to_the_page_which_shows_how_it_stands(shopping: Shopping) -> None:
    for _ in range(2):
        assert await send(shopping, "attempt=1&method=card&token=tok_visa") == (303, shopping.path)
        assert "Confirming your payment" in text_of(await look(shopping))
    assert (await shopping.topics()).count("payment.requested") == 1
    return_url = (await shopping.order()).return_url
    assert return_url is not None
    assert return_url.endswith(shopping.path)
    await shopping.report("failed", failure=Failure("card_declined", "do_not_honor: internal"))
    page = await look(shopping)
    assert "Your card was declined. Nothing was charged." in text_of(page)
    assert "internal" not in text_of(page)
    assert 'name="attempt" value="2"' in page.raw.decode()
    await send(shopping, "attempt=2&method=card")
    await shopping.report("captured")
    done = await look(shopping)
    assert "Payment received" in text_of(done)
    assert (await send(shopping, "attempt=3&method=card")) == (303, shopping.path)
    assert (await shopping.topics()).count("payment.requested") == 2


async def test_a_paid_session_leads_to_the_merchant_with_its_id(shopping: Shopping) -> None:
    await shopping.pay()
    await shopping.report("captured")
    url = html.escape(f"https://shop.example/thanks?cart=7&session_id={shopping.id}#top")
    page = (await look(shopping)).raw.decode()
    assert f'content="3; url={url}"' in page
    assert f'href="{url}"' in page


def test_the_sessions_id_is_added_to_any_url() -> None:
    id = UUID(int=7)
    for given, added in (
        ("https://shop.example", f"https://shop.example?session_id={id}"),
        ("https://shop.example/a?", f"https://shop.example/a?session_id={id}"),
        ("https://shop.example/a?b=c%20d&e", f"https://shop.example/a?b=c%20d&e&session_id={id}"),
        ("https://shop.example/#/done?x=1", f"https://shop.example/?session_id={id}#/done?x=1"),
    ):
        assert with_session_id(given, id) == added


async def test_only_a_page_of_the_web_is_where_a_customer_is_sent_to_confirm(shopping: Shopping) -> None:
    await shopping.pay()
    await shopping.report("requires_action", redirect_url="javascript:alert(1)")
    page = (await look(shopping)).raw.decode()
    assert "javascript:" not in page
    assert "Confirming your payment" in page
    await shopping.report("requires_action", redirect_url="https://bank.example/3ds?a=1&b=2")
    assert 'content="1; url=https://bank.example/3ds?a=1&amp;b=2"' in (await look(shopping)).raw.decode()


async def test_an_expired_session_is_gone_and_leads_back(
    shopping: Shopping, monkeypatch: pytest.MonkeyPatch
) -> None:
    object.__setattr__(shopping.api.services, "now", lambda: utc_now() + LIFE)
    page = await look(shopping)
    assert page.status == 410
    assert "This checkout has expired" in text_of(page)
    assert f'href="https://shop.example/cart?session_id={shopping.id}"' in page.raw.decode()
    assert "<form" not in page.raw.decode()
    assert await send(shopping, "attempt=1&method=card") == (303, shopping.path)
    assert (await shopping.checkout()).order is None


@pytest.mark.parametrize("by_api", [False, True])
async def test_who_has_tried_too_often_is_shown_no_form_and_led_back(
    shopping: Shopping, by_api: bool
) -> None:
    """The tries that the merchant makes by the API, which takes more of them, count as well."""
    await shopping.pay()
    await shopping.report("failed")
    order = await shopping.order()
    for attempt in range(2, MAX_ATTEMPTS + 1):
        assert "<form" in (await look(shopping)).raw.decode()
        if by_api:
            assert (await shopping.merchant.shop.post(f"/v1/orders/{order.id}/pay")).status == 200
        else:
            await shopping.pay(attempt=attempt)
        await shopping.report("failed")
    page = await look(shopping)
    assert page.status == 410
    assert "Too many tries" in text_of(page)
    assert "Please begin again at Merchant." in text_of(page)
    assert f'href="https://shop.example/cart?session_id={shopping.id}"' in page.raw.decode()
    assert "<form" not in page.raw.decode()
    assert await send(shopping, f"attempt={MAX_ATTEMPTS}&method=card") == (303, shopping.path)
    assert (await shopping.order()).attempt == MAX_ATTEMPTS


async def test_what_is_no_session_is_a_page_that_says_so(shopping: Shopping) -> None:
    await shopping.pay()
    order = await shopping.order()
    for id in (uuid7(), order.id, "none", shopping.merchant.id):
        answer = await shopping.api.anyone.get(f"/checkout/{id}")
        assert (answer.status, answer.headers["Content-Type"]) == (404, "text/html; charset=utf-8")
        assert (await shopping.api.anyone.get(f"/checkout/{id}/events")).status == 404


async def test_names_are_shown_as_text_whatever_is_in_them(api: Api, store: EventStore) -> None:
    hostile = "<script>alert(1)</script>\"&'{{ 7*7 }}"
    item = {"name": hostile, "amount": 1, "quantity": 1}
    shopping = await go_shopping(api, store, lineItems=[item])
    changed = await shopping.merchant.dashboard.call("PUT", "/api/merchants/me", {"name": hostile})
    assert changed.status == 200
    page = await look(shopping)
    assert "<script>alert" not in page.raw.decode()
    assert text_of(page).count(hostile) >= 3


async def test_nothing_of_the_merchants_or_the_customers_secrets_is_in_the_page(shopping: Shopping) -> None:
    await shopping.pay()
    await shopping.report("requires_action", redirect_url="https://bank.example", client_secret="a_secret")
    page = (await look(shopping)).raw.decode()
    for secret in ("ada@example.com", shopping.merchant.email, str(shopping.merchant.id), "sk_", "a_secret"):
        assert secret not in page
    assert str((await shopping.order()).id) not in page


async def events(shopping: Shopping, *, count: int, **headers: str) -> list[str]:
    """The first lines of the stream that are not empty."""
    found: list[str] = []
    async with (
        asyncio.timeout(60),
        shopping.api.anyone.session.get(f"{shopping.path}/events", headers=headers) as answer,
    ):
        assert answer.status == 200
        assert answer.headers["Content-Type"] == "text/event-stream"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        async for line in answer.content:
            if line.strip():
                found.append(line.decode().strip())
            if len(found) == count:
                break
    return found


async def test_a_page_is_told_at_once_what_it_should_show_and_of_each_change(shopping: Shopping) -> None:
    following = asyncio.create_task(events(shopping, count=8))
    async with asyncio.timeout(60):
        while not shopping.api.services.watch._waiting:
            await asyncio.sleep(0.01)
    await shopping.pay()
    async with asyncio.timeout(60):
        while (await shopping.order()).id not in [
            id for id, _ in shopping.api.services.watch._waiting.values()
        ]:
            await asyncio.sleep(0.01)
    await shopping.report("failed")
    async with asyncio.timeout(60):
        while ((await shopping.order()).id, (await shopping.order()).version) not in list(
            shopping.api.services.watch._waiting.values()
        ):
            await asyncio.sleep(0.01)
    await shopping.pay(attempt=2)
    assert await following == [
        *("id: open-0", "data: open-0"),
        *("id: processing-1", "data: processing-1"),
        *("id: declined-1", "data: declined-1"),
        *("id: processing-2", "data: processing-2"),
    ]


async def test_a_page_that_comes_back_is_told_only_what_it_does_not_know(shopping: Shopping) -> None:
    assert await events(shopping, count=1, **{"Last-Event-ID": "open-0"}) == [": still here"]
    assert await events(shopping, count=2, **{"Last-Event-ID": "declined-1"}) == [
        "id: open-0",
        "data: open-0",
    ]


async def test_a_stream_ends_with_the_session_and_after_a_time(
    shopping: Shopping, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkout, "HEARTBEAT_SECONDS", 0.05)
    lines = await events(shopping, count=4)
    assert lines == ["id: open-0", "data: open-0", ": still here", ": still here"]
    monkeypatch.setattr(checkout, "STREAM_SECONDS", 0.2)
    lines = await events(shopping, count=99)
    assert lines[:2] == ["id: open-0", "data: open-0"]
    assert set(lines[2:]) <= {": still here"}
    monkeypatch.setattr(checkout, "STREAM_SECONDS", 60)
    await shopping.pay()
    await shopping.report("captured")
    assert await events(shopping, count=99) == ["id: paid-1", "data: paid-1"]


async def test_a_stream_lasts_longer_than_other_requests_may(
    settings: Settings, shopping: Shopping, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkout, "STREAM_SECONDS", 0.8)
    async with running_api(settings.model_copy(update={"request_timeout": 0.4})) as api:
        lines = await events(replace(shopping, api=api), count=99)
    assert lines == ["id: open-0", "data: open-0", ": still here"]


async def test_a_stream_notices_by_itself_that_time_has_run_out(
    shopping: Shopping, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkout, "HEARTBEAT_SECONDS", 0.05)
    following = asyncio.create_task(events(shopping, count=99))
    async with asyncio.timeout(60):
        while not shopping.api.services.watch._waiting:
            await asyncio.sleep(0.01)
    object.__setattr__(shopping.api.services, "now", lambda: utc_now() + LIFE + timedelta(seconds=1))
    assert (await following)[-1] == "data: expired-0"


async def test_streams_have_a_limit_of_their_own(
    settings: Settings, store: EventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(admission.SHARES, "stream", 4)
    async with running_api(settings.model_copy(update={"max_in_flight": 1})) as api:
        shopping = await go_shopping(api, store)
        session, path = api.anyone.session, f"{shopping.path}/events"
        open_streams = [await session.get(path) for _ in range(4)]
        one_more = await api.anyone.get(path)
        assert (one_more.status, one_more.code) == (503, "unavailable")
        assert one_more.headers["Retry-After"]
        assert (await look(shopping)).status == 200
        for each in open_streams:
            each.close()


async def test_a_process_that_ends_lets_its_streams_go(settings: Settings, store: EventStore) -> None:
    async with running_api(settings) as api:
        shopping = await go_shopping(api, store)
        following = asyncio.create_task(events(shopping, count=99))
        async with asyncio.timeout(60):
            while not api.services.watch._waiting:
                await asyncio.sleep(0.01)
        api.services.stopping.set()
        api.services.watch.stop_waiting()
        assert await following == ["id: open-0", "data: open-0", ": still here"]
