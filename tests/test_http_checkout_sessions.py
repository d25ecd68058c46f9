"""Checkout sessions over HTTP: shapes, limits, and what a merchant reads of them."""

from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from calling import Api, Merchant, running_api
from uuid_utils.compat import uuid7

from payloops.commands.pay_checkout_session import pay_checkout_session
from payloops.commands.update_order_status import update_order_status
from payloops.events.event_store import EventStore
from payloops.events.metadata import Metadata
from payloops.settings import Settings

GIVEN: dict[str, Any] = {
    "amount": 4_999,
    "successUrl": "https://shop.example/success?cart=7",
    "cancelUrl": "https://shop.example/cart",
}
FIELDS = {
    *("id", "url", "amount", "currency", "status", "orderId", "customerId", "customerEmail", "metadata"),
    *("lineItems", "expiresAt", "completedAt", "createdAt"),
}


@pytest.fixture
async def api(settings: Settings) -> AsyncIterator[Api]:
    async with running_api(settings.model_copy(update={"checkout_base_url": "https://pay.example/"})) as api:
        yield api


async def make(merchant: Merchant, **fields: Any) -> dict[str, Any]:
    answer = await merchant.shop.post("/v1/checkout/sessions", {**GIVEN, **fields})
    assert answer.status == 201, answer.raw
    made: dict[str, Any] = answer.json
    return made


async def read(merchant: Merchant, id: str) -> dict[str, Any]:
    answer = await merchant.shop.get(f"/v1/checkout/sessions/{id}")
    assert answer.status == 200, answer.raw
    session: dict[str, Any] = answer.json
    return session


async def test_a_session_is_made_with_the_page_to_send_the_customer_to(merchant: Merchant) -> None:
    made = await make(merchant)
    assert set(made) == {"id", "url", "expiresAt"}
    assert made["url"] == f"https://pay.example/checkout/{made['id']}"
    session = await read(merchant, made["id"])
    assert set(session) == FIELDS
    assert (session["status"], session["currency"]) == ("pending", "USD")
    assert (session["metadata"], session["lineItems"]) == ({}, [])
    assert [session[name] for name in ("orderId", "customerId", "customerEmail", "completedAt")] == [None] * 4
    lives = datetime.fromisoformat(session["expiresAt"]) - datetime.fromisoformat(session["createdAt"])
    assert lives == timedelta(minutes=30)


async def test_a_session_keeps_what_it_was_given(merchant: Merchant) -> None:
    given = {
        "currency": "kwd",
        "customerId": "customer-42",
        "customerEmail": "ada@example.com",
        "metadata": {"cart": {"id": 7}},
        "lineItems": [
            {"name": "Coffee ☕", "amount": 1_500, "quantity": 2},
            {"name": "Book", "amount": 99_999_999_999, "quantity": 999_999},
        ],
    }
    session = await read(merchant, (await make(merchant, **given))["id"])
    assert {name: session[name] for name in given} == {**given, "currency": "KWD"}


async def test_what_does_not_fit_is_refused_by_name(merchant: Merchant, subtests: pytest.Subtests) -> None:
    item = {"name": "Coffee", "amount": 1, "quantity": 1}
    faults: list[tuple[dict[str, Any], str]] = [
        ({"amount": 0}, "amount"),
        ({"currency": "XXX"}, "currency"),
        ({"successUrl": "javascript:alert(1)"}, "successUrl"),
        ({"successUrl": "https://user:pass@shop.example/"}, "successUrl"),
        ({"cancelUrl": "/cart"}, "cancelUrl"),
        ({"cancelUrl": None}, "cancelUrl"),
        ({"customerEmail": "ada"}, "customerEmail"),
        ({"lineItems": [{**item, "name": " "}]}, "lineItems.0.name"),
        ({"lineItems": [item, {**item, "amount": 0}]}, "lineItems.1.amount"),
        ({"lineItems": [{**item, "quantity": 0}]}, "lineItems.0.quantity"),
        ({"lineItems": [{**item, "price": 1}]}, "lineItems.0.price"),
        ({"lineItems": [item] * 101}, "lineItems"),
        ({"returnUrl": "https://shop.example"}, "returnUrl"),
    ]
    for fields, named in faults:
        with subtests.test(fields=str(fields)[:80]):
            answer = await merchant.shop.post("/v1/checkout/sessions", {**GIVEN, **fields})
            assert answer.fields == {named}
            assert "validation" not in answer.json["errors"][0]["message"]


async def test_a_session_asked_for_twice_under_one_key_is_one(merchant: Merchant) -> None:
    first, again = [
        await merchant.shop.post("/v1/checkout/sessions", GIVEN, key="session-1") for _ in range(2)
    ]
    assert (first.raw, again.headers["Idempotent-Replayed"]) == (again.raw, "true")


async def test_a_session_that_is_none_is_not_found(merchant: Merchant) -> None:
    order = await merchant.order()
    for id in (str(uuid7()), "none", order):
        answer = await merchant.shop.get(f"/v1/checkout/sessions/{id}")
        assert (answer.status, answer.code) == (404, "not_found")
    session = await make(merchant)
    assert (await merchant.shop.get(f"/v1/orders/{session['id']}")).status == 404


async def test_a_merchant_reads_that_a_session_is_completed_as_soon_as_its_order_is_paid(
    merchant: Merchant, store: EventStore, by: Metadata
) -> None:
    made = await make(merchant)
    await pay_checkout_session(
        store,
        session_id=UUID(made["id"]),
        attempt=1,
        method="card",
        token=None,
        return_url=made["url"],
        by=by,
    )
    session = await read(merchant, made["id"])
    assert (session["status"], session["completedAt"]) == ("pending", None)
    await update_order_status(store, order_id=UUID(session["orderId"]), status="captured", by=by)
    session = await read(merchant, made["id"])
    assert session["status"] == "completed"
    assert session["completedAt"] >= session["createdAt"]
    order = (await merchant.shop.get(f"/v1/orders/{session['orderId']}")).json
    assert (order["status"], order["amountCaptured"], order["returnUrl"]) == ("captured", 4_999, made["url"])
