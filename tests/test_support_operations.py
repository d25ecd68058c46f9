"""How the service gets on, as the support console shows it; and volume and success over time."""

import random
import re
from collections import defaultdict
from datetime import date, timedelta

import pytest
from browsing import fits, photograph
from calling import Api
from console import eventful_order, open_desk, signed_in
from playwright.async_api import Browser
from projecting import POISON, insert_raw, project_orders, projector
from psycopg_pool import AsyncConnectionPool
from random_orders import random_order
from test_http_stats import Paid, keep, payments_of
from test_staff import hire
from test_support_orders import text_of
from uuid_utils.compat import uuid7

from payloops.commands.receive_processor_event import ProcessorEvent, receive_processor_event
from payloops.commands.staff_views import list_staff_views
from payloops.events.event_store import EventStore
from payloops.events.metadata import Metadata
from payloops.events.orders import Order
from payloops.events.timestamps import utc_now
from payloops.http.charts import HEIGHT, WIDTH, bar_chart, round_up
from payloops.http.support_operations import health_of
from payloops.projections.projection import all_projections
from payloops.projections.stats import DayFigures, figures_by_day
from payloops.projections.status import ProjectionStatus
from payloops.settings import Settings


async def trouble(api: Api, settings: Settings) -> str:
    """An event that cannot be applied, an endpoint that fails, a message about no order. The order's id."""
    merchant, store = await api.merchant(), api.services.store
    order = await eventful_order(api, merchant)
    await insert_raw(
        store,
        merchant.id,
        topic="payment.requested",
        state=POISON["a field missing"],
        stream=uuid7(),
        version=1,
    )
    await receive_processor_event(
        store,
        merchant_id=merchant.id,
        event=ProcessorEvent(
            processor="stripe",
            event_id="evt_astray",
            type="charge.refunded",
            order_id=uuid7(),
            outcome="refunded",
        ),
        body="{}",
        by=Metadata(at=utc_now(), actor="processor:stripe", correlation_id="astray"),
    )
    await project_orders(settings.database_url.get_secret_value())
    return str(order)


async def test_operations_show_what_needs_a_look(
    api: Api, pool: AsyncConnectionPool, settings: Settings
) -> None:
    desk = await open_desk(api, pool)
    quiet = text_of(await desk.page("/support/operations"))
    assert "None: every event was applied and forwarded." in quiet
    assert "None: every endpoint's latest attempt was answered well." in quiet
    await trouble(api, settings)
    text = text_of(await desk.page("/support/operations"))
    for projection in all_projections():
        assert f"{projection.name} no process works on it" in text
    assert re.search(r"orders no process works on it 0 events [\d.,]+ (\d+) of \1 1 ", text)
    assert "payment.requested" in text
    assert "AttributeError" in text
    assert "Merchant failing https://shop.example/webhooks" in text
    assert "charge.refunded Stripe · evt_astray unknown order" in text
    async with pool.connection() as connection:
        await connection.execute(
            "UPDATE merchants SET webhook_off_at = now(), webhook_off_reason = 'The endpoint answered 410 Gone'"
            " WHERE webhook_failing_since IS NOT NULL"
        )
    text = text_of(await desk.page("/support/operations"))
    assert "Merchant switched off https://shop.example/webhooks" in text
    assert "The endpoint answered 410 Gone" in text
    assert {view.route for view in await list_staff_views(pool, limit=9)} == {"GET /support/operations"}


@pytest.mark.parametrize(
    ("active", "lag_seconds", "text"),
    [(True, 0.2, "up to date"), (True, 60, "behind"), (False, 0, "no process works on it")],
)
def test_a_reader_is_well_while_somebody_keeps_up(*, active: bool, lag_seconds: float, text: str) -> None:
    status = ProjectionStatus("orders", 1, 2, 1, lag_seconds, 0, active)
    assert health_of(status).text == text


def counted(payments: list[Paid], currency: str, day: date) -> DayFigures:
    """By an independent count."""
    begun = [each for each in payments if each.currency == currency and each.begun_at.date() == day]
    captured = [
        each
        for each in payments
        if each.currency == currency and each.captured_at and each.captured_at.date() == day
    ]
    return DayFigures(
        currency=currency,
        day=day,
        begun=len(begun),
        ended=sum(each.status in ("captured", "failed", "cancelled") for each in begun),
        succeeded=sum(each.status == "captured" for each in begun),
        captured=len(captured),
        volume=sum(each.captured for each in captured),
    )


async def test_the_days_are_those_of_an_independent_count(store: EventStore, database_url: str) -> None:
    chance, first = random.Random(7), utc_now() - timedelta(days=9)
    merchants = [uuid7(), uuid7()]
    payments: dict[object, list[Paid]] = defaultdict(list)
    orders: list[Order] = []
    for number in range(80):
        at = first + timedelta(minutes=chance.randrange(6 * 24 * 60))
        order = random_order(chance, merchants[number % 2], at=at, pace=timedelta(hours=1))
        payments[merchants[number % 2]] += payments_of(order)
        orders.append(order)
    async with projector(database_url):
        await keep(store, *orders)
    days = [first.date() + timedelta(days=number) for number in range(10)]
    for merchant_id in (None, *merchants):
        of = [each for owner in merchants if merchant_id in (None, owner) for each in payments[owner]]
        found = await figures_by_day(store, first=days[0], last=days[-1], merchant_id=merchant_id)
        expected = [counted(of, currency, day) for currency in ("INR", "USD") for day in days]
        assert found == [each for each in expected if each.begun or each.captured]
        assert len(found) > 10


def test_a_chart_fills_its_room_and_hides_nothing() -> None:
    chart = bar_chart([0, 1, 900, 4_999])
    assert (chart.top, chart.bars[0]) == (5_000, None)
    drawn = [bar for bar in chart.bars if bar is not None]
    assert all(bar.x >= 0 and bar.x + bar.width <= WIDTH for bar in drawn)
    assert all(bar.height >= 1 and bar.y + bar.height == HEIGHT for bar in drawn)
    assert drawn[2].height == pytest.approx(4_999 / 5_000 * HEIGHT, abs=0.01)
    assert bar_chart([]).bars == []
    assert [round_up(value) for value in (0, 1, 3, 10, 11, 5_001, 10**12)] == [
        1,
        1,
        5,
        10,
        20,
        10_000,
        10**12,
    ]


async def test_volume_is_shown_in_each_currency_by_itself(
    api: Api, pool: AsyncConnectionPool, settings: Settings
) -> None:
    desk = await open_desk(api, pool)
    assert "There was no payment" in text_of(await desk.page("/support/volume"))
    merchants = [await fill(pool, seed=1), await fill(pool, seed=2)]
    page = await desk.page("/support/volume")
    text = text_of(page)
    assert len(re.findall("<svg", page)) == 6
    assert len(re.findall("The same as a table", page)) == 3
    assert re.search(r"USD \$[\d,.]+ [\d,]+ \$[\d.]+ [\d.]+%", text)
    assert re.search(r"JPY ¥[\d,]+ [\d,]+ ¥[\d,]+ [\d.]+%", text)
    assert "KWD" in text
    one = text_of(await desk.page(f"/support/volume?days=7&merchantId={merchants[0]}"))
    assert one != text
    [view, *_] = await list_staff_views(pool, limit=1)
    assert (view.merchant_id, view.query) == (merchants[0], {"days": 7, "merchantId": str(merchants[0])})
    for query in ("days=0", "days=367", "days=x", "merchantId=x"):
        assert (await desk.calls.get(f"/support/volume?{query}")).status == 400


async def fill(pool: AsyncConnectionPool, *, seed: int) -> object:
    """Ninety days of a merchant's payments; its id."""
    chance, merchant_id, rows = random.Random(seed), uuid7(), []
    for number in range(90):
        day = utc_now().date() - timedelta(days=number)
        busy = 1 if day.weekday() >= 5 else 3
        for currency, ticket in (("USD", 4_999), ("JPY", 1_200), ("KWD", 7_500)):
            captured = busy * chance.randrange(20, 40)
            volume = sum(ticket * chance.randrange(50, 150) // 100 for _ in range(captured))
            rows.append((merchant_id, day, currency, "stripe", "captured", captured, captured, volume))
            rows.append((merchant_id, day, currency, "stripe", "failed", chance.randrange(2, 12), 0, 0))
    async with pool.connection() as connection, connection.cursor() as cursor:
        await cursor.executemany("INSERT INTO daily_volume VALUES (%s, %s, %s, %s, %s, %s, %s, %s)", rows)
    return merchant_id


async def test_in_a_browser_the_figures_and_the_troubles_are_legible(
    api: Api, pool: AsyncConnectionPool, browser: Browser, settings: Settings
) -> None:
    await hire(pool)
    await trouble(api, settings)
    await fill(pool, seed=1)
    for phone, dark in ((False, False), (True, True)):
        async with signed_in(browser, f"{api.url}/support", phone=phone, dark=dark) as (_, page):
            suffix = "-phone" * phone
            await page.get_by_role("link", name="Volume").click()
            await page.get_by_role("img", name=re.compile(r"^USD captured by day: \$")).wait_for()
            assert await fits(page)
            await photograph(page, f"support-volume{suffix}")
            await page.get_by_text("The same as a table").first.click()
            await page.get_by_role("region", name=re.compile("^[A-Z]{3} by day$")).wait_for()
            await page.get_by_role("link", name="7 days").click()
            await page.wait_for_url("**?days=7")
            await page.get_by_role("link", name="Operations").click()
            await page.get_by_role("heading", name="Parked events").wait_for()
            assert await fits(page)
            await photograph(page, f"support-operations{suffix}")
            await page.get_by_role("link", name="charge.refunded").click()
            await page.get_by_role("heading", name="As it arrived").wait_for()
            assert await fits(page)
            await photograph(page, f"support-processor-event{suffix}")
