"""The dashboard's figures, against an independent count in Python over random orders."""

import itertools
import random
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any
from urllib.parse import urlencode
from uuid import UUID

import pytest
from calling import Answer, Api, Merchant, running_api
from ordering import pay, report
from projecting import append, eventually, one, projector, rows
from random_orders import new_order, random_order

from payloops.events.event_store import EventStore
from payloops.events.orders import Order, PaymentCaptured, PaymentCaptureRetracted, PaymentRequested
from payloops.events.timestamps import timestamp_text, utc_now
from payloops.projections.payments import CHECKPOINT, DAILY_VOLUME, PAYMENTS
from payloops.projections.projection import all_projections
from payloops.projections.stats import figures_query, parts_of
from payloops.projections.totals import count_all
from payloops.settings import Settings

BEGIN = datetime(2026, 2, 20, tzinfo=UTC)
MONEY = ("totalVolume", "averageTicket", "volumeByDay")
COUNTS = ("totalTransactions", "successRate", "transactionsByStatus", "transactionsByProcessor")


@pytest.fixture
async def api(settings: Settings, database_url: str) -> AsyncIterator[Api]:
    async with running_api(settings) as api, projector(database_url):
        yield api


@pytest.fixture
async def merchant(api: Api) -> Merchant:
    return await api.merchant(processors=False)


@dataclass(frozen=True)
class Paid:
    """A payment of an order, as its facts tell it."""

    currency: str
    processor: str
    status: str
    begun_at: datetime
    captured_at: datetime | None
    captured: int


def payments_of(order: Order) -> list[Paid]:
    events = list(order.pending_events)
    last = {
        event.attempt: event
        for event in events
        if isinstance(event, PaymentCaptured | PaymentCaptureRetracted)
    }
    captures = {attempt: event for attempt, event in last.items() if isinstance(event, PaymentCaptured)}
    return [
        Paid(
            currency=order.currency,
            processor=event.processor,
            status=order.payments[event.attempt].status.value,
            begun_at=event.timestamp,
            captured_at=captures[event.attempt].timestamp if event.attempt in captures else None,
            captured=captures[event.attempt].amount if event.attempt in captures else 0,
        )
        for event in events
        if isinstance(event, PaymentRequested)
    ]


def days_of(begin: datetime, end: datetime) -> list[date]:
    day, days = begin.date(), []
    while datetime(day.year, day.month, day.day, tzinfo=UTC) < end:
        days.append(day)
        day += timedelta(days=1)
    return days


def ranked(key: str, counts: Counter[str]) -> list[dict[str, Any]]:
    return [
        {key: name, "count": n} for name, n in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    ]


def figures(payments: list[Paid], begin: datetime, end: datetime) -> dict[str, Any]:
    """What the answer has to say of these payments."""
    begun = [each for each in payments if begin <= each.begun_at < end]
    captured = [each for each in payments if each.captured_at and begin <= each.captured_at < end]
    ended = [each for each in begun if each.status in ("captured", "failed", "cancelled")]
    succeeded = [each for each in ended if each.status == "captured"]
    volume = sum(each.captured for each in captured)
    by_day = {
        day: [each.captured for each in captured if each.captured_at and each.captured_at.date() == day]
        for day in days_of(begin, end)
    }
    return {
        "totalVolume": volume,
        "totalTransactions": len(begun),
        "successRate": pytest.approx(len(succeeded) / len(ended) if ended else 0, abs=0.0001),
        "averageTicket": pytest.approx(volume / len(captured) if captured else 0, abs=0.5),
        "volumeByDay": [
            {"date": day.isoformat(), "volume": sum(amounts), "count": len(amounts)}
            for day, amounts in by_day.items()
        ],
        "transactionsByStatus": ranked("status", Counter(each.status for each in begun)),
        "transactionsByProcessor": ranked("processor", Counter(each.processor for each in begun)),
    }


async def stats(merchant: Merchant, **query: Any) -> Answer:
    return await merchant.dashboard.get(f"/api/dashboard/stats?{urlencode(query)}")


async def keep(store: EventStore, *orders: Order) -> None:
    """Append, and wait for every projection."""
    position = await append(store, *orders)

    async def done() -> bool:
        behind = "SELECT count(*) FROM checkpoints WHERE name = ANY(%s) AND position < %s"
        return await one(store, behind, [projection.name for projection in all_projections()], position) == 0

    await eventually(done)


async def test_the_figures_are_those_of_an_independent_count(
    api: Api, merchant: Merchant, store: EventStore, subtests: pytest.Subtests
) -> None:
    chance = random.Random(23)
    other = await api.merchant(processors=False)
    orders = [
        random_order(
            chance,
            merchant.id,
            at=BEGIN + timedelta(minutes=chance.randrange(14 * 24 * 60)),
            pace=timedelta(hours=1),
        )
        for _ in range(150)
    ]
    payments = [payment for order in orders for payment in payments_of(order)]
    assert len(payments) > 100
    foreign = [random_order(chance, other.id, at=BEGIN, pace=timedelta(hours=1)) for _ in range(20)]
    await keep(store, *orders, *foreign)
    whole = (BEGIN - timedelta(days=2), BEGIN + timedelta(days=20))
    middle = (BEGIN + timedelta(days=3, hours=5), BEGIN + timedelta(days=9, hours=17, microseconds=1))
    midnight = (BEGIN + timedelta(days=3), BEGIN + timedelta(days=4))
    nothing = (BEGIN - timedelta(days=9), BEGIN - timedelta(days=5))
    for begin, end in (whole, middle, midnight, nothing):
        asked = {"from": timestamp_text(begin), "to": timestamp_text(end)}
        with subtests.test(**asked):
            answer = (await stats(merchant, **asked)).json
            assert (answer["from"], answer["to"]) == (asked["from"], asked["to"])
            by_currency = {each["currency"]: each for each in answer["byCurrency"]}
            expected = {
                currency: figures([p for p in payments if p.currency == currency], begin, end)
                for currency in ("USD", "INR")
            }
            for currency, each in expected.items():
                if each["totalTransactions"] or each["totalVolume"]:
                    assert by_currency[currency] == {**each, "currency": currency}
                else:
                    assert currency not in by_currency
            main = answer["currency"]
            assert main == (answer["byCurrency"][0]["currency"] if by_currency else None)
            of_main = by_currency.get(main) or figures([], begin, end)
            of_all = figures(payments, begin, end)
            assert {name: answer[name] for name in MONEY} == {name: of_main[name] for name in MONEY}
            assert {name: answer[name] for name in COUNTS} == {name: of_all[name] for name in COUNTS}
            for currency in ("inr", "EUR"):
                one_currency = (await stats(merchant, **asked, currency=currency)).json
                only = figures([p for p in payments if p.currency == currency.upper()], begin, end)
                assert {name: one_currency[name] for name in only} == only
                assert one_currency["currency"] == currency.upper()
                assert {each["currency"] for each in one_currency["byCurrency"]} <= {currency.upper()}


async def test_where_nothing_is_named_it_is_the_last_30_days(merchant: Merchant, store: EventStore) -> None:
    answer = await stats(merchant)
    assert answer.status == 200
    empty = answer.json
    assert set(empty) == {*MONEY, *COUNTS, "byCurrency", "currency", "from", "to"}
    assert [empty[name] for name in ("totalVolume", "totalTransactions", "successRate", "averageTicket")] == [
        0
    ] * 4
    assert (empty["currency"], empty["byCurrency"], empty["transactionsByStatus"]) == (None, [], [])
    today = (datetime.fromisoformat(empty["to"]) - timedelta(microseconds=1)).date()
    assert [day["date"] for day in empty["volumeByDay"]] == [
        (today - timedelta(days=before)).isoformat() for before in range(29, -1, -1)
    ]
    order = report(pay(new_order(merchant.id, amount=1_250)), "captured")
    [paid] = payments_of(order)
    assert paid.captured_at is not None
    await keep(store, order)
    # Yesterday, where midnight has passed since the run began.
    captured_on = paid.captured_at.date().isoformat()
    now = (await stats(merchant)).json
    assert (now["totalVolume"], now["averageTicket"], now["successRate"], now["currency"]) == (
        1250,
        1250,
        1,
        "USD",
    )
    assert [day for day in now["volumeByDay"] if day["count"]] == [
        {"date": captured_on, "volume": 1250, "count": 1}
    ]
    assert now["transactionsByStatus"] == [{"status": "captured", "count": 1}]
    assert now["transactionsByProcessor"] == [{"processor": "stripe", "count": 1}]


async def test_money_of_different_currencies_is_never_added(merchant: Merchant, store: EventStore) -> None:
    """Two payments of 10.00 USD against one of 5,000,000 JPY: the flat figures are dollars."""
    orders = [
        new_order(merchant.id, amount=amount, currency=currency)
        for amount, currency in ((1_000, "USD"), (1_000, "USD"), (5_000_000, "JPY"))
    ]
    await keep(store, *(report(pay(order), "captured") for order in orders))
    answer = (await stats(merchant)).json
    assert (answer["currency"], answer["totalVolume"], answer["averageTicket"]) == ("USD", 2_000, 1_000)
    assert answer["totalTransactions"] == 3
    assert [
        (each["currency"], each["totalVolume"], each["totalTransactions"]) for each in answer["byCurrency"]
    ] == [
        ("USD", 2_000, 2),
        ("JPY", 5_000_000, 1),
    ]


async def test_a_failed_attempt_counts_for_its_own_processor(merchant: Merchant, store: EventStore) -> None:
    order = report(pay(new_order(merchant.id)), "failed")
    order = report(pay(order), "captured")
    await keep(store, order)
    answer = (await stats(merchant)).json
    assert (answer["totalTransactions"], answer["successRate"], answer["totalVolume"]) == (2, 0.5, 1_000)
    assert {each["status"]: each["count"] for each in answer["transactionsByStatus"]} == {
        "captured": 1,
        "failed": 1,
    }


async def test_figures_contain_what_was_just_written(api: Api) -> None:
    merchant = await api.merchant()
    for number in range(1, 4):
        await merchant.shop.post(f"/v1/orders/{await merchant.order()}/pay")
        assert (await stats(merchant)).json["totalTransactions"] == number


async def test_a_window_that_does_not_fit_is_refused(merchant: Merchant, subtests: pytest.Subtests) -> None:
    for query, field in [
        ({"from": "2026-01-02T00:00:00Z", "to": "2026-01-02T00:00:00Z"}, "from"),
        ({"from": "2026-01-02T00:00:00Z", "to": "2026-01-01T00:00:00Z"}, "from"),
        ({"from": "2025-01-01T00:00:00Z", "to": "2026-01-02T00:00:00.000001Z"}, "from"),
        ({"from": "0001-01-01T00:00:00Z"}, "from"),
        ({"to": "0001-01-01T00:00:00Z"}, "from"),
        ({"from": "9999-12-31T23:59:59Z"}, "from"),
        ({"from": "2026-01-01"}, "from"),
        ({"to": "now"}, "to"),
        ({"to": ""}, "to"),
        ({"currency": "XXX"}, "currency"),
        ({"currency": "US"}, "currency"),
        ({"days": "7"}, "days"),
    ]:
        with subtests.test(query=query):
            assert (await stats(merchant, **query)).fields == {field}
    for query, days in [
        ({"from": "2025-01-01T00:00:00Z", "to": "2026-01-02T00:00:00Z"}, 366),
        ({"from": "2026-01-01T23:59:59.999999Z", "to": "2026-01-02T00:00:00.000001Z"}, 2),
        ({"from": "2026-01-02T04:30:00+05:30", "to": "2026-01-02T05:30:00+05:30"}, 1),
        ({"to": "2026-03-01T00:00:00Z"}, 30),
        ({"to": "9999-12-31T23:59:59Z"}, 30),
        ({"to": "0001-01-02T00:00:00Z"}, 1),
        ({"from": "0001-01-01T00:00:00Z", "to": "0001-01-01T00:00:01Z"}, 1),
    ]:
        with subtests.test(query=query):
            answer = await stats(merchant, **query)
            assert (answer.status, len(answer.json["volumeByDay"])) == (200, days)


async def test_payments_are_projected_as_they_are_folded(
    api: Api, merchant: Merchant, store: EventStore
) -> None:
    chance = random.Random(29)
    orders = [random_order(chance, merchant.id) for _ in range(60)]
    expected = {
        (order.id, payment.attempt): (payment.processor, payment.amount, payment.status, order.currency)
        for order in orders
        for payment in order.payments.values()
    }
    await keep(store, *orders)
    found = await rows(
        store, "SELECT order_id, attempt, processor, amount, status, currency, merchant_id FROM payments"
    )
    assert {(row[0], row[1]): row[2:6] for row in found} == expected
    assert {row[6] for row in found} == {merchant.id}
    assert await one(store, "SELECT count(*) FROM parked_events") == 0


async def test_payments_delivered_twice_stay_as_they_are(
    api: Api, merchant: Merchant, store: EventStore
) -> None:
    chance = random.Random(31)
    await keep(store, *(random_order(chance, merchant.id) for _ in range(30)))
    table = f"SELECT p::text FROM {PAYMENTS.name} p ORDER BY id"
    before = await rows(store, table)
    async with store.pool.connection() as connection:
        await connection.execute("UPDATE checkpoints SET position = 0 WHERE name = 'payments'")
    await keep(store, new_order(merchant.id))
    assert await rows(store, table) == before


OWN = UUID("00000000-0000-7000-8000-000000000007")
FILL = """
    INSERT INTO payments (id, order_id, merchant_id, attempt, processor, amount, currency, status,
                          amount_captured, created_at, captured_at, version)
    SELECT gen_random_uuid(), gen_random_uuid(), CASE WHEN n < 5000 THEN %s ELSE gen_random_uuid() END,
           1, 'stripe', 1, (ARRAY['USD', 'INR'])[1 + mod(n, 2)], 'captured', 1,
           now() - n * interval '1 minute', now() - n * interval '1 minute', 1
    FROM generate_series(0, 29999) n
"""


async def test_no_figure_reads_the_whole_table(store: EventStore, subtests: pytest.Subtests) -> None:
    begin, end = utc_now() - timedelta(days=3), utc_now()
    arguments = {
        "merchant_id": OWN,
        "begin": begin,
        "end": end,
        "currency": "USD",
        "projection": CHECKPOINT,
        **parts_of(begin, end),
    }
    async with store.pool.connection() as connection:
        await connection.execute("SET statement_timeout = 0")
        await connection.execute(FILL, (OWN,))
        await count_all(connection, totals=DAILY_VOLUME)
        await connection.execute("ANALYZE payments, daily_volume", prepare=False)
        for one_currency, whole_days in itertools.product((False, True), repeat=2):
            query = figures_query(one_currency=one_currency, whole_days=whole_days)
            cursor = await connection.execute(b"EXPLAIN " + query, arguments)
            plan = "\n".join(line for (line,) in await cursor.fetchall())
            with subtests.test(one_currency=one_currency, whole_days=whole_days):
                assert "Seq Scan on payments" not in plan, plan
                assert "Seq Scan on daily_volume" not in plan, plan
