"""The dashboard's orders: every filter, the search, totals, pages, and orders as they were."""

import itertools
import random
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime, timedelta
from string import hexdigits
from typing import Any
from urllib.parse import urlencode
from uuid import UUID

import orjson
import pytest
from calling import Answer, Api, Merchant, running_api
from projecting import append, one, project_orders, projector, reached
from psycopg import sql
from random_orders import new_order, random_order
from uuid_utils.compat import uuid7

from payloops.events.event_store import EventStore
from payloops.events.orders import Order
from payloops.events.timestamps import timestamp_text
from payloops.http.orders import answer_from, create_order
from payloops.projections.order_search import CONDITIONS, TEXTS, search_orders, search_query
from payloops.projections.orders import CHECKPOINT, COUNTS_SINCE
from payloops.projections.rare_parts import common_trigrams, rare_parts
from payloops.settings import Settings

BEGIN = datetime(2026, 3, 1, tzinfo=UTC)


@pytest.fixture
async def api(settings: Settings, database_url: str) -> AsyncIterator[Api]:
    async with running_api(settings) as api, projector(database_url):
        yield api


@pytest.fixture
async def merchant(api: Api) -> Merchant:
    return await api.merchant(processors=False)


async def search(merchant: Merchant, **query: Any) -> Answer:
    return await merchant.dashboard.get(f"/api/orders?{urlencode(query)}")


def shown(order: Order) -> dict[str, Any]:
    """An order as its answer has it."""
    shown: dict[str, Any] = orjson.loads(create_order.render(answer_from(order)))
    return shown


def newest_first(orders: list[Order]) -> list[dict[str, Any]]:
    return [shown(o) for o in sorted(orders, key=lambda o: (o.created_on, o.id), reverse=True)]


async def keep(store: EventStore, *orders: Order) -> None:
    await reached(store, await append(store, *orders))


async def test_every_combination_of_filters_finds_and_counts_what_it_should(
    api: Api, merchant: Merchant, store: EventStore, subtests: pytest.Subtests
) -> None:
    """Against an independent count: the orders' own folds, filtered in Python."""
    chance = random.Random(17)
    other = await api.merchant(processors=False)
    orders = [
        random_order(chance, merchant.id, at=BEGIN + timedelta(hours=chance.randrange(200)))
        for _ in range(80)
    ]
    foreign = [random_order(chance, other.id, at=BEGIN + timedelta(hours=n)) for n in range(20)]
    await keep(store, *orders, *foreign)
    middle = BEGIN + timedelta(hours=100)
    filters: dict[str, list[tuple[Any, Callable[[Order], bool]]]] = {
        "status": [
            ("captured", lambda o: o.status == "captured"),
            ("pending", lambda o: o.status == "pending"),
        ],
        "processor": [("razorpay", lambda o: o.processor == "razorpay")],
        "currency": [("inr", lambda o: o.currency == "INR")],
        "q": [
            ("ZOË@", lambda o: "zoë@" in (o.customer_email or "")),
            ("der-1", lambda o: "der-1" in o.external_id),
        ],
        "from": [(timestamp_text(middle), lambda o: o.created_on >= middle)],
        "to": [(timestamp_text(middle), lambda o: o.created_on < middle)],
    }
    found = 0
    for choice in itertools.product(*([None, *options] for options in filters.values())):
        chosen = {name: option for name, option in zip(filters, choice, strict=True) if option}
        query = {name: value for name, (value, _) in chosen.items()}
        with subtests.test(**query):
            expected = newest_first([o for o in orders if all(fits(o) for _, fits in chosen.values())])
            answer = await search(merchant, **query, limit=100)
            assert answer.status == 200
            assert answer.json["data"] == expected
            assert answer.json["pagination"] == {
                "page": 1,
                "limit": 100,
                "total": len(expected),
                "totalPages": 1 if expected else 0,
            }
            found += len(expected) > 0
    assert found > 40  # the filters found something to find


async def test_how_many_there_are_comes_from_sums_once_there_are_any(
    store: EventStore, database_url: str, merchant_id: UUID
) -> None:
    await append(store, *(new_order(merchant_id) for _ in range(3)))
    await project_orders(database_url)

    async def total(**filters: Any) -> int:
        return (await search_orders(store, merchant_id=merchant_id, page=1, limit=1, **filters))[1]

    assert (await total(), await total(status="pending", currency="USD"), await total(status="failed")) == (
        *(3, 3, 0),
    )
    assert await one(store, "UPDATE order_counts SET orders = 7 RETURNING 1") == 1
    assert (await total(), await total(currency="USD"), await total(text="A-1")) == (7, 7, 3)
    # A projector of the version before keeps the tables up, and no sums.
    assert await one(store, "UPDATE checkpoints SET version = 2 WHERE name = 'orders' RETURNING 1") == 1
    assert await total() == 3


async def test_pages_together_are_the_whole_list(merchant: Merchant, store: EventStore) -> None:
    orders = [new_order(merchant.id, at=BEGIN + timedelta(hours=n // 3)) for n in range(23)]
    await keep(store, *orders)
    pages = [(await search(merchant, page=page, limit=5)).json for page in range(1, 7)]
    assert [order for page in pages for order in page["data"]] == newest_first(orders)
    assert [len(page["data"]) for page in pages] == [5, 5, 5, 5, 3, 0]
    assert [page["pagination"] for page in pages] == [
        {"page": number, "limit": 5, "total": 23, "totalPages": 5} for number in range(1, 7)
    ]
    first = (await search(merchant)).json
    assert first["pagination"] == {"page": 1, "limit": 20, "total": 23, "totalPages": 2}


async def test_the_search_takes_any_part_of_external_id_and_email_and_both_ends_of_the_id(
    merchant: Merchant, store: EventStore, subtests: pytest.Subtests
) -> None:
    given = [
        ("INV_100%", "Ada.Lovelace@Example.com"),
        ("INV-100x", "ada_lovelace@example.com"),
        (r"back\slash", None),
        ("机-1", "zoë@example.com"),
    ]
    orders = [new_order(merchant.id, external_id=a, customer_email=b) for a, b in given]
    await keep(store, *orders)
    one, two, three, four = (str(order.id) for order in orders)
    for q, expected in [
        ("INV_100%", [one]),
        ("inv_100%", [one]),
        ("INV", [two, one]),
        ("inv-", [two]),
        ("%", [one]),
        ("_", [two, one]),
        ("a_l", [two]),
        ("\\", [three]),
        (r"k\s", [three]),
        ("LOVELACE@EXAMPLE", [two, one]),
        ("机", [four]),
        ("ZOË", [four]),
        (one, [one]),
        (one.upper(), [one]),
        (one[-12:], [one]),
        (one[:28], [one]),
        (one[-15:].upper(), [one]),
        (one.replace("-", ""), [one]),
        (one[:30].replace("-", ""), [one]),
        ("-", [four, two]),
        (4 * "deadbeef" + "-d", []),
        (f"  {two} ", [two]),
        ("x\u0085y", None),
        ("nobody", []),
        ("100xada", []),
        ("'; DROP TABLE orders; --", []),
        (".com", [four, two, one]),
        ("x" * 255, []),
    ]:
        with subtests.test(q=q):
            answer = await search(merchant, q=q)
            if expected is None:
                assert answer.fields == {"q"}
            else:
                assert [order["id"] for order in answer.json["data"]] == expected
                assert answer.json["pagination"]["total"] == len(expected)


async def test_nobody_finds_anothers_orders(api: Api, merchant: Merchant) -> None:
    order_id = await merchant.order(externalId="INV-1", customerEmail="ada@example.com")
    other = await api.merchant(processors=False)
    for q in (order_id, "INV-1", "ada@"):
        assert (await search(merchant, q=q)).json["pagination"]["total"] == 1
        assert (await search(other, q=q)).json["pagination"]["total"] == 0


async def test_nobody_finds_anothers_order_by_its_id_where_a_part_of_that_is_common(
    store: EventStore, database_url: str, merchant_id: UUID
) -> None:
    """Merchants whose own ids begin as ours do."""
    orders = [new_order(merchant_id, external_id=str(uuid7())) for _ in range(30)]
    foreign = new_order(uuid7())
    await append(store, *orders, foreign)
    await project_orders(database_url)
    async with store.pool.connection() as connection:
        await connection.execute("ANALYZE orders")
    for order, found in ((orders[7], 1), (foreign, 0)):
        assert rare_parts(str(order.id), common=await common_trigrams(store))
        rows, total = await search_orders(store, merchant_id=merchant_id, page=1, limit=9, text=str(order.id))
        assert ([row.id for row in rows], total) == ([order.id] * found, found)


async def test_the_list_contains_what_was_just_written(merchant: Merchant) -> None:
    for number in range(1, 6):
        order_id = await merchant.order()
        answer = (await search(merchant, limit=1)).json
        assert (answer["data"][0]["id"], answer["pagination"]["total"]) == (order_id, number)


async def test_absurd_pages_are_refused_or_empty(merchant: Merchant, subtests: pytest.Subtests) -> None:
    await merchant.order()
    for page in ("2", "1000000", "999999999"):
        with subtests.test(page=page):
            answer = await search(merchant, page=page, limit=100)
            assert (answer.status, answer.json["data"]) == (200, [])
            assert answer.json["pagination"]["total"] == 1
    for name, value in [
        *(("page", bad) for bad in ("0", "-1", "1.0", "1e3", "", "9" * 10, "9" * 400, "NaN", "true")),
        *(("limit", bad) for bad in ("0", "101", "-1", "x", "99999999999999999999")),
        *(("q", bad) for bad in ("", "  ", "x" * 256, "a\0b", "a\nb")),
        ("status", "rich"),
        ("status", ""),
        ("processor", "paypal"),
        ("currency", "XXX"),
        ("from", "2026-01-01"),
        ("from", "yesterday"),
        ("to", "9999-12-31T23:59:59-12:00"),
        ("sort", "amount"),
    ]:
        with subtests.test(name=name, value=value):
            assert (await search(merchant, **{name: value})).fields == {name}
    for moment in ("0001-01-01T00:00:00Z", "9999-12-31T23:59:59Z"):
        assert (await search(merchant, **{"from": moment})).status == 200
        assert (await search(merchant, to=moment)).status == 200
    twice = await merchant.dashboard.get("/api/orders?page=1&page=2")
    assert twice.fields == {"page"}


async def test_an_order_reads_as_for_the_shop(merchant: Merchant) -> None:
    order_id = await merchant.order()
    for suffix in ("", "/transactions", "/events"):
        dashboard = await merchant.dashboard.get(f"/api/orders/{order_id}{suffix}")
        shop = await merchant.shop.get(f"/v1/orders/{order_id}{suffix}")
        assert (dashboard.status, dashboard.json) == (200, shop.json)


async def test_anothers_order_an_unknown_one_and_no_id_are_answered_alike(
    api: Api, merchant: Merchant, subtests: pytest.Subtests
) -> None:
    theirs = await (await api.merchant(processors=False)).order()
    for suffix in ("", "/transactions", "/events", "/events?asOf=1", "/events?asOf=2026-01-01T00:00:00Z"):
        with subtests.test(suffix=suffix):
            answers = [
                await merchant.dashboard.get(f"/api/orders/{id}{suffix}", **{"X-Correlation-ID": "same"})
                for id in (theirs, str(uuid7()), str(merchant.id), "no-uuid", "%00", "x" * 500)
            ]
            assert {(answer.status, answer.code) for answer in answers} == {(404, "not_found")}
            assert len({answer.raw for answer in answers}) == 1


async def test_an_order_is_shown_as_it_was(merchant: Merchant, store: EventStore) -> None:
    chance = random.Random(5)
    orders = [random_order(chance, merchant.id, at=BEGIN, pace=timedelta(minutes=1)) for _ in range(20)]
    order = max(orders, key=lambda each: each.version)
    await keep(store, *orders)
    path = f"/api/orders/{order.id}"
    trail = (await merchant.dashboard.get(f"{path}/events")).json
    assert [event["version"] for event in trail] == list(range(1, order.version + 1))
    for version in range(1, order.version + 1):
        then = await store.load(Order, UUID(str(order.id)), up_to_version=version)
        assert then is not None
        answer = (await merchant.dashboard.get(f"{path}/events?asOf={version}")).json
        transactions = answer.pop("transactions")
        assert answer == {**shown(then), "version": version}
        assert {each["id"]: each["status"] for each in transactions} == {
            id: each.status.value for id, each in then.transactions.items()
        }
    for event, following in itertools.pairwise(trail):
        for moment in (event["occurredAt"], event["occurredAt"].replace("Z", "%2B00:00")):
            answer = (await merchant.dashboard.get(f"{path}/events?asOf={moment}")).json
            if following["occurredAt"] > event["occurredAt"]:
                assert answer["version"] == event["version"]
            else:  # several at the same time: as of then, all of them had happened
                assert answer["version"] > event["version"]
    now = (await merchant.dashboard.get(f"{path}/events?asOf=9999-01-01T00:00:00Z")).json
    assert {name: now[name] for name in shown(order)} == (await merchant.dashboard.get(path)).json


async def test_an_order_has_no_state_before_it_was_and_after_it_is(merchant: Merchant) -> None:
    order_id = await merchant.order()
    for message, moments in (
        ("The order has no such version", ("0", "2", "999999999")),
        ("The order did not exist then", ("1999-01-01T00:00:00Z", "0001-01-01T00:00:00Z")),
    ):
        for as_of in moments:
            answer = await merchant.dashboard.get(f"/api/orders/{order_id}/events?asOf={as_of}")
            assert answer.json["errors"] == [{"field": "asOf", "message": message}]
    for as_of in ("", "x", "-1", "1.0", "9" * 10, "2026-01-01", "2026-01-01T00:00:00", "NaN", "9" * 5_000):
        answer = await merchant.dashboard.get(f"/api/orders/{order_id}/events?asOf={as_of}")
        assert answer.fields == {"asOf"}, as_of


OWN = UUID("00000000-0000-7000-8000-000000000007")
FILL = """
    INSERT INTO orders (id, merchant_id, external_id, amount, currency, status, processor, metadata,
                        customer_email, amount_captured, amount_refunded, attempt, created_at, updated_at, version)
    SELECT gen_random_uuid(), CASE WHEN n < 5000 THEN %s ELSE gen_random_uuid() END, 'order-' || n, 1,
           (ARRAY['USD', 'INR'])[1 + mod(n / 3, 2)], (ARRAY['captured', 'failed'])[1 + mod(n / 7, 2)],
           (ARRAY['stripe', 'razorpay'])[1 + mod(n / 5, 2)], '{}', 'customer-' || n || '@example.com',
           0, 0, 1, now() - n * interval '1 minute', now(), 1
    FROM generate_series(0, 29999) n
"""


async def test_no_search_reads_the_whole_table(store: EventStore, subtests: pytest.Subtests) -> None:
    arguments = {
        "merchant_id": OWN,
        "status": "captured",
        "processor": "stripe",
        "currency": "USD",
        "text": "order-4123",
        "literally": "order-4123",
        "parts": "%4123%",
        "created_from": datetime.now(UTC) - timedelta(days=6),
        "created_to": datetime.now(UTC),
        "limit": 20,
        "skip": 40,
        "projection": CHECKPOINT,
        "counts_since": COUNTS_SINCE,
    }
    async with store.pool.connection() as connection:
        await connection.execute("SET statement_timeout = 0")
        await connection.execute(FILL, (OWN,))
        await connection.execute("ANALYZE orders")
        others = [name for name in CONDITIONS if name not in TEXTS | {"merchant_id"}]
        arguments |= {"first_id": UUID(int=0x4123 << 112), "last_id": UUID(int=(0x4124 << 112) - 1)}
        for chosen, first_page in searches(others):
            query = search_query(
                sql.SQL("o.id"), ("merchant_id", *chosen), first_page=first_page, summed=True
            )
            cursor = await connection.execute(sql.SQL("EXPLAIN ") + query, arguments)
            plan = "\n".join(line for (line,) in await cursor.fetchall())
            with subtests.test(chosen=chosen, first_page=first_page):
                assert "Seq Scan on orders" not in plan, plan
                if len(chosen) == 1 and TEXTS.intersection(chosen):
                    assert "orders_by_text" in plan, plan
                if chosen in {("text_or_id",), ("parts_or_id",)}:
                    assert "orders_pkey" in plan, plan
                    assert "orders_by_end_of_id" in plan, plan


def searches(others: list[str]) -> Iterator[tuple[tuple[str, ...], bool]]:
    """Each combination of conditions, with each way to look for a text and with none; and whether it may be bounded."""
    for count in range(len(others) + 1):
        for chosen in itertools.combinations(others, count):
            yield chosen, True
            yield chosen, False
            for text in TEXTS:
                yield (*chosen, text), False


LOOKED_FOR = (
    *("order-4123", "ORDER-412", "order-41", "rder-4123", "order", "4123", "412", "12", "er-4", "-4"),
    *("customer-4123", "4123@example.com", "customer-4123@example.com", "23@EX", "order-4123@example.com"),
    *("order_4123", "order%4123", "ordér-4123", "123 4", "er-4123\ncustomer-4123", "no-such-order"),
)


async def test_a_text_is_found_as_a_whole_whatever_of_it_is_rare(
    store: EventStore, subtests: pytest.Subtests
) -> None:
    async with store.pool.connection() as connection:
        await connection.execute("SET statement_timeout = 0")
        await connection.execute(FILL, (OWN,))
        await connection.execute("ANALYZE orders")
        cursor = await connection.execute(
            "SELECT id, lower(external_id || chr(10) || customer_email) FROM orders WHERE merchant_id = %s"
            " ORDER BY created_at DESC, id DESC",
            (OWN,),
        )
        texts = await cursor.fetchall()
    common = await common_trigrams(store)
    assert rare_parts("order-4123", common=common) == ["4123"]
    assert rare_parts("Jane.Roe@example.com", common=common) == ["Jane", "Roe"]
    assert rare_parts("customer@example.com", common=common) == []
    assert rare_parts("jane.roe", common=common) == []
    assert rare_parts("ordér-4123", common=common) == []
    for text in LOOKED_FOR:
        with subtests.test(text=text):
            rows, total = await search_orders(store, merchant_id=OWN, page=1, limit=20, text=text)
            expected = [id for id, written in texts if fits(id, written, text=text.lower())]
            assert [row.id for row in rows] == expected[:20]
            assert total == len(expected)


def fits(id: UUID, written: str, *, text: str) -> bool:
    digits = text.replace("-", "")
    is_of_id = set(digits) <= set(hexdigits) and (id.hex.startswith(digits) or str(id).endswith(text))
    return text in written or is_of_id
