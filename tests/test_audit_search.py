"""Support staff find an order by whatever they have in hand, of every merchant, by an index."""

import json
import random
from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from calling import PASSWORD, Api, Caller, running_api
from ordering import BY, pay, report
from processes import run_command
from projecting import append, project_everything
from psycopg import sql
from random_orders import new_order, random_order
from test_staff import EMAIL, hire
from uuid_utils.compat import uuid7

from payloops.commands.cancel_order import cancel
from payloops.commands.capture_payment import request_capture
from payloops.commands.pay_order import request_payment
from payloops.commands.receive_processor_event import ProcessorEvent, receive_processor_event
from payloops.commands.refund_outcomes import succeed_refund
from payloops.commands.refund_payment import request_refund
from payloops.commands.route_payment import Route
from payloops.events.event_store import EventStore
from payloops.events.metadata import Metadata
from payloops.events.orders import (
    Order,
    OrderCancelled,
    OrderCreated,
    PaymentAuthorized,
    PaymentCaptured,
    PaymentRequested,
    PaymentVoidRequested,
    References,
    RefundRequested,
    RefundSucceeded,
)
from payloops.projections.staff_orders import CONDITIONS, StaffSearch, search_all_orders
from payloops.settings import Settings


async def found(store: EventStore, **fields: Any) -> list[UUID]:
    orders, more = await search_all_orders(store, StaffSearch(**fields), page=1, limit=100)
    assert not more
    return [order.id for order in orders]


def asking(correlation_id: str) -> Metadata:
    return replace(BY, correlation_id=correlation_id)


@pytest.fixture
async def shop(store: EventStore, database_url: str) -> dict[str, Order]:
    """Orders of two merchants: `paid` at its second attempt and refunded, `plain`, two that were cancelled."""
    one, two = uuid7(), uuid7()
    paid = new_order(one, at=BY.at, amount=4_999, external_id="cart-7", customer_email="Ada@Example.com")
    for outcome in ("failed", "captured"):
        report(pay(paid), outcome)
    refund = request_refund(paid, amount=100, reason=None, by=asking("refund"))
    succeed_refund(paid, refund.id, processor_transaction_id="re_9", by=BY)
    plain = new_order(two, at=BY.at + timedelta(days=2), amount=4_999, currency="EUR", external_id="cart-7")
    voided = new_order(one, at=BY.at - timedelta(days=9))
    route = Route(processor="stripe", reason="test")
    request_payment(voided, route=route, payment_method=None, capture="manual", by=asking("pay"))
    report(voided, "authorized")
    request_capture(voided, amount=100, by=asking("capture"))
    report(voided, "failed")
    cancel(voided, by=asking("void"))
    cancelled = new_order(two, at=BY.at - timedelta(days=9))
    cancel(cancelled, by=asking("cancel"))
    await append(store, paid, plain, voided, cancelled)
    event = ProcessorEvent(
        processor="stripe",
        event_id="evt_5",
        type="charge.refunded",
        order_id=paid.id,
        outcome="refunded",
        references=References("po_2"),
        amount=50,
        refund_reference="re_10",
    )
    await receive_processor_event(store, merchant_id=one, event=event, body="{}", by=asking("webhook"))
    await project_everything(database_url)
    return {"paid": paid, "plain": plain, "voided": voided, "cancelled": cancelled}


async def test_an_order_is_found_by_everything_that_names_it(
    store: EventStore, shop: dict[str, Order]
) -> None:
    paid, plain = shop["paid"], shop["plain"]
    assert await found(store, external_id="cart-7") == [plain.id, paid.id]
    assert await found(store, email="ada@EXAMPLE.com") == [paid.id]
    for reference in ("po_2", "pt_2", "re_9", "re_10", "evt_5"):
        assert await found(store, reference=reference) == [paid.id], reference
        assert await found(store, text=reference) == [paid.id], reference
    for reference in ("po_1", "pt_1"):  # of a payment that failed, and of one that was authorized
        assert await found(store, reference=reference) == [shop["voided"].id, paid.id]
    for request, order in (
        *(("pay", "voided"), ("capture", "voided"), ("void", "voided")),
        *(("cancel", "cancelled"), ("refund", "paid")),
    ):
        assert await found(store, correlation_id=request) == [shop[order].id], request
        assert await found(store, text=request) == [shop[order].id], request
    assert len(await found(store, correlation_id="test")) == 4
    for text in (str(paid.id), "ada@example.com"):
        assert await found(store, text=text) == [paid.id]
    assert await found(store, amount=4_999) == [plain.id, paid.id]
    assert await found(store, amount=4_999, currency="USD") == [paid.id]
    assert await found(store, external_id="cart-7", merchant_id=UUID(plain.merchant_id)) == [plain.id]
    assert await found(store, created_from=BY.at, created_to=BY.at + timedelta(days=1)) == [paid.id]
    assert await found(store, created_from=BY.at + timedelta(microseconds=1)) == [plain.id]
    for nothing in ({"reference": "test"}, {"correlation_id": "po_1"}, {"text": "po_"}, {"amount": 1}):
        assert await found(store, **nothing) == []
    assert await found(store, external_id="cart-7", created_to=BY.at) == []
    for limit, more in ((1, True), (2, False)):
        assert (await search_all_orders(store, StaffSearch(external_id="cart-7"), page=1, limit=limit))[
            1
        ] is more
    assert await found(store, text=str(uuid7())) == []


# A request to capture or cancel is found until the payment is asked for something else.
LASTING = OrderCreated | OrderCancelled | PaymentRequested | PaymentVoidRequested | RefundRequested
ENDED = PaymentAuthorized | PaymentCaptured | RefundSucceeded


@pytest.mark.parametrize("seed", range(3))
async def test_an_order_is_found_by_what_its_facts_mention(
    store: EventStore, database_url: str, merchant_id: UUID, seed: int
) -> None:
    orders = [random_order(random.Random(seed * 10 + number), merchant_id) for number in range(10)]
    for order in orders:
        await append(store, order)
    await project_everything(database_url)
    for order in orders:
        for recorded in await store.read_stream(order.id):
            fact = recorded.event
            if isinstance(fact, LASTING):
                assert order.id in await found(store, correlation_id=fact.correlation_id)
            if isinstance(fact, ENDED) and fact.processor_transaction_id is not None:
                assert order.id in await found(store, reference=fact.processor_transaction_id)


WANTED = {
    "merchant_id": uuid7(),
    "external_id": "a",
    "email": "a@b",
    "reference": "po_1",
    "correlation_id": "c",
    "amount": 1,
    "created_from": BY.at,
    "created_to": BY.at,
    "text": "a",
    "order_id": uuid7(),
}


@pytest.mark.parametrize("name", [*WANTED])
async def test_no_search_reads_the_whole_table(store: EventStore, name: str) -> None:
    """Where the planner may use nothing but bitmaps of indexes, a condition without one would be a sequential scan."""
    assert set(WANTED) == {*CONDITIONS} - {"currency"}, "a currency alone is half of all orders"
    query = sql.SQL("EXPLAIN SELECT o.id FROM orders o WHERE {}").format(CONDITIONS[name])
    async with store.pool.connection() as connection, connection.transaction():
        await connection.execute("SET LOCAL enable_seqscan = off")
        await connection.execute("SET LOCAL enable_indexscan = off")
        await connection.execute("SET LOCAL enable_indexonlyscan = off")
        plan = "\n".join(
            row[0] for row in await (await connection.execute(query, {**WANTED, "text": "a"})).fetchall()
        )
    assert "Bitmap Index Scan" in plan
    assert "Seq Scan" not in plan, plan


async def test_staff_find_by_reference_and_amount_over_http(
    settings: Settings, store: EventStore, shop: dict[str, Order]
) -> None:
    await hire(store.pool)
    async with running_api(settings) as api:
        desk = await at_the_desk(api, EMAIL, PASSWORD)

        async def answered(query: str) -> list[str]:
            answer = await desk.get(f"/api/staff/orders?{query}")
            assert answer.status == 200, answer.raw
            return [order["id"] for order in answer.json["data"]]

        assert await answered("q=po_2") == [str(shop["paid"].id)]
        assert await answered("q=test&currency=eur") == [str(shop["plain"].id)]
        assert await answered("amount=4999&currency=USD") == [str(shop["paid"].id)]
        assert await answered("from=2999-01-01T00:00:00Z") == []
        for query, field in (("amount=0", "amount"), ("amount=1.5", "amount"), ("currency=XX", "currency")):
            assert (await desk.get(f"/api/staff/orders?{query}")).fields == {field}


async def at_the_desk(api: Api, email: str, password: str) -> Caller:
    answer = await api.anyone.post("/api/staff/login", {"email": email, "password": password})
    return Caller(api.anyone.session, {"Authorization": f"Bearer {answer.json['token']}"})


async def test_the_command_prints_what_fits(settings: Settings, shop: dict[str, Order]) -> None:
    paid = shop["paid"]
    for columns in ("80", "200"):
        status, out, err = await run_command(
            settings, "audit", "search", "po_1", environment={"COLUMNS": columns}
        )
        assert (status, err) == (0, "")
        assert max(map(len, out.splitlines())) <= int(columns)
        for text in (str(paid.id), "49.99 USD", "partially_refunded", "cart-7", "Ada@Example.com"):
            assert text in out
    arguments = ("audit", "search", "--amount", "49.99 USD", "--from", "2020-01-01", "--json")
    status, out, _ = await run_command(settings, *arguments)
    assert [order["id"] for order in json.loads(out)] == [str(paid.id)]
    status, out, _ = await run_command(settings, "audit", "search", "--limit", "1")
    assert (status, "and more, older" in out) == (0, True)
    assert await run_command(settings, "audit", "search", "nothing") == (1, "no order matches\n", "")
    reversed_times = ("--from", "2026-11-24", "--to", "2026-11-23")
    for wrong in (("--amount", "49.99"), ("--from", "yesterday"), reversed_times):
        status, out, err = await run_command(settings, "audit", "search", *wrong)
        assert (status, out, err.count("\n")) == (2, "", 1)
