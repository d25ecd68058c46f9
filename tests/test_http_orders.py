"""Orders, payments and refunds over HTTP: shapes, ownership, lists, and waiting."""

import asyncio
import random
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, cast
from uuid import UUID, uuid4

import psycopg
import pytest
from aiohttp.test_utils import make_mocked_request
from calling import Answer, Api, Merchant, running_api
from masking import shows_card
from projecting import projector
from random_orders import random_order
from uuid_utils.compat import uuid7

from payloops.commands.cipher import Cipher
from payloops.commands.client_secrets import ClientSecrets
from payloops.commands.update_order_status import update_order_status
from payloops.commands.update_refund_status import update_refund_status
from payloops.events.event_store import EventStore
from payloops.events.metadata import Metadata
from payloops.events.orders import Failure, Order, OrderCreated, References, TransactionType
from payloops.events.timestamps import utc_now
from payloops.http.endpoint import _wait
from payloops.http.orders import create_order, created_answer, order_answer, plain_order, read_order
from payloops.projections.orders import row_from_order
from payloops.settings import Settings

ORDER_FIELDS = {
    *("id", "externalId", "amount", "currency", "status", "processor", "processorOrderId", "metadata"),
    *("customerId", "customerEmail", "description", "returnUrl", "cancelUrl", "amountCaptured"),
    *("amountRefunded", "attempt", "lastError", "createdAt", "updatedAt"),
}


class Processor:
    """Reports to the store as a processor's workflow does."""

    def __init__(self, store: EventStore, by: Metadata) -> None:
        self.store = store
        self.by = by

    async def reports(self, order_id: str, status: str, **details: Any) -> None:
        await update_order_status(
            self.store,
            order_id=UUID(order_id),
            status=status,
            attempt=details.pop("attempt", 1),
            by=self.by,
            **details,
        )


@pytest.fixture
def processor(store: EventStore, by: Metadata) -> Processor:
    return Processor(store, by)


async def test_an_order_is_created_with_its_defaults(merchant: Merchant) -> None:
    created = await merchant.shop.post("/v1/orders", {"amount": 1_250})
    assert created.status == 201
    order = created.json
    assert set(order) == ORDER_FIELDS
    assert (order["currency"], order["status"], order["metadata"]) == ("USD", "pending", {})
    assert len(order["externalId"]) == 12
    assert UUID(order["id"]).version == 7
    assert order["createdAt"].endswith("Z")
    read = await merchant.shop.get(f"/v1/orders/{order['id']}")
    assert (read.status, read.json) == (200, order)


def test_an_order_is_written_the_same_with_its_model_and_without() -> None:
    rows = [row_from_order(random_order(random.Random(seed), uuid4())) for seed in range(100)]
    assert (
        len({row.last_error_code is None for row in rows})
        == len({row.processor is None for row in rows})
        == 2
    )
    rows.append(
        replace(rows[0], created_at=datetime(2026, 11, 24, 9, tzinfo=UTC), metadata={"é": 1e17, "a": None})
    )
    for row in rows:
        assert read_order.render(plain_order(row)) == read_order.render(order_answer(row))


@pytest.mark.parametrize("at", [datetime(2026, 11, 24, 9, tzinfo=UTC), utc_now()])
def test_a_new_order_is_answered_as_it_reads_from_then_on(at: datetime, by: Metadata) -> None:
    given: dict[str, Any] = {
        "amount": 5,
        "currency": "USD",
        "external_id": "A-1",
        "customer_id": "c-1",
        "customer_email": None,
        "description": "é",
        "metadata": {"a": [1.5, None]},
        "return_url": None,
        "cancel_url": "https://shop.example/cancel",
    }
    order = Order.create(id=uuid4(), merchant_id=str(uuid4()), by=replace(by, at=at), **given)
    [created] = order.pending_events
    answer = created_answer(cast("OrderCreated", created))
    assert create_order.render(answer) == create_order.render(order_answer(row_from_order(order)))


async def test_an_order_keeps_what_it_was_given(merchant: Merchant) -> None:
    given = {
        "amount": 99_999_999_999,
        "currency": "inr",
        "externalId": "A-1",
        "customerId": "c-1",
        "customerEmail": "zoë@example.com",
        "description": 'Ein "Tisch" \\ 机\n',
        "metadata": {"b": 1, "a": [1.5, None, True, {"ü": "x"}]},
        "returnUrl": "https://shop.example/return?a=b#c",
        "cancelUrl": "http://localhost:8080/cancel",
    }
    order = (await merchant.shop.post("/v1/orders", given)).json
    assert {name: order[name] for name in given} == {**given, "currency": "INR"}
    assert list(order["metadata"]) == ["b", "a"]
    assert (await merchant.shop.get(f"/v1/orders/{order['id']}")).json == order


PER_ORDER = [
    ("GET", ""),
    ("GET", "/transactions"),
    ("GET", "/refunds"),
    ("GET", "/events"),
    ("POST", "/pay"),
    ("POST", "/capture"),
    ("POST", "/cancel"),
    ("POST", "/refund"),
]


async def test_anothers_order_an_unknown_one_and_no_id_are_answered_alike(
    subtests: pytest.Subtests, api: Api, merchant: Merchant
) -> None:
    for method, suffix in PER_ORDER:
        with subtests.test(method=method, suffix=suffix):
            theirs = await (await api.merchant(processors=False)).order()
            answers = [
                await merchant.shop.call(
                    method, f"/v1/orders/{id}{suffix}", headers={"X-Correlation-ID": "same"}
                )
                for id in (
                    theirs,
                    str(uuid7()),
                    "no-uuid",
                    "1",
                    "x" * 3_000,
                    "%00",
                    "{}",
                    uuid7().hex,
                    str(merchant.id),
                )
            ]
            assert {answer.status for answer in answers} == {404}
            assert answers[0].code == "not_found"
            assert len({answer.raw for answer in answers}) == 1


async def test_a_payments_life_from_order_to_refund(
    merchant: Merchant, processor: Processor, store: EventStore, by: Metadata
) -> None:
    """10.00 are paid, and 3.00 and then the rest given back."""
    order_id = await merchant.order(amount=1_000)
    path = f"/v1/orders/{order_id}"
    paid = await merchant.shop.post(f"{path}/pay")
    assert (paid.status, paid.json) == (
        200,
        {
            "orderId": order_id,
            "status": "processing",
            "processor": "stripe",
            "workflowId": f"payment-{order_id}",
            "redirectUrl": None,
            "clientSecret": None,
            "processorData": None,
        },
    )
    twice = await merchant.shop.post(f"{path}/pay")
    assert (twice.status, twice.code) == (400, "invalid_status")
    assert "processing" in twice.json["message"]
    await processor.reports(order_id, "captured", references=References("pi_1", "ch_1"))
    order = (await merchant.shop.get(path)).json
    assert (order["status"], order["amountCaptured"], order["processorOrderId"]) == (
        "captured",
        1_000,
        "pi_1",
    )

    part = await merchant.shop.post(f"{path}/refund", {"amount": 300, "reason": "broken"})
    assert part.status == 201
    assert (part.json["orderId"], part.json["amount"], part.json["status"]) == (order_id, 300, "pending")
    too_much = await merchant.shop.post(f"{path}/refund", {"amount": 701})
    assert (too_much.status, too_much.code) == (400, "refund_exceeds_captured")
    rest = await merchant.shop.post(f"{path}/refund")
    assert (rest.status, rest.json["amount"]) == (201, 700)
    nothing_left = await merchant.shop.post(f"{path}/refund")
    assert (nothing_left.status, nothing_left.code) == (400, "refund_exceeds_captured")
    await update_refund_status(
        store,
        order_id=UUID(order_id),
        refund_id=part.json["refundId"],
        succeeded=True,
        processor_transaction_id="re_1",
        by=by,
    )
    refunds = (await merchant.shop.get(f"{path}/refunds")).json
    assert [(refund["amount"], refund["status"]) for refund in refunds] == [
        (700, "pending"),
        (300, "success"),
    ]
    assert set(refunds[0]) >= {"refundId", "orderId", "amount", "status"}
    order = (await merchant.shop.get(path)).json
    assert (order["status"], order["amountRefunded"]) == ("partially_refunded", 300)

    transactions = (await merchant.shop.get(f"{path}/transactions")).json
    assert [each["type"] for each in transactions] == ["refund", "refund", "capture"]
    assert set(transactions[0]) == {
        *("id", "orderId", "type", "amount", "status", "processorTransactionId"),
        *("errorCode", "errorMessage", "createdAt"),
    }
    events = (await merchant.shop.get(f"{path}/events")).json
    assert [event["version"] for event in events] == list(range(1, len(events) + 1))
    assert [event["type"] for event in events] == [
        *("order.created", "payment.requested", "payment.captured"),
        *("refund.requested", "refund.requested", "refund.succeeded"),
    ]
    assert events[1]["data"]["routing"] == "preferred for USD"


async def test_an_authorized_payment_is_captured_or_cancelled(
    merchant: Merchant, processor: Processor
) -> None:
    captured, cancelled = await merchant.order(), await merchant.order()
    for order_id in (captured, cancelled):
        await merchant.shop.post(f"/v1/orders/{order_id}/pay", {"capture": "manual"})
        await processor.reports(order_id, "authorized", references=References("pi"))
    too_much = await merchant.shop.post(f"/v1/orders/{captured}/capture", {"amount": 1_001})
    assert (too_much.status, too_much.code) == (400, "capture_exceeds_authorized")
    capture = await merchant.shop.post(f"/v1/orders/{captured}/capture", {"amount": 400})
    cancel = await merchant.shop.post(f"/v1/orders/{cancelled}/cancel")
    assert (capture.status, set(capture.json)) == (200, ORDER_FIELDS)
    assert (cancel.status, set(cancel.json)) == (200, ORDER_FIELDS)
    kinds = [
        (await merchant.shop.get(f"/v1/orders/{id}/transactions")).json[0]["type"]
        for id in (captured, cancelled)
    ]
    assert kinds == ["capture", "void"]


async def test_routing_follows_currency_then_priority_and_what_is_asked_for(
    api: Api, merchant: Merchant
) -> None:
    async def pay(currency: str, body: dict[str, Any] | None = None) -> Answer:
        return await merchant.shop.post(f"/v1/orders/{await merchant.order(currency=currency)}/pay", body)

    assert (await pay("USD")).json["processor"] == "stripe"
    assert (await pay("INR")).json["processor"] == "razorpay"
    assert (await pay("INR", {"processor": "stripe"})).json["processor"] == "stripe"
    await merchant.dashboard.call("PATCH", "/api/processors/stripe", {"enabled": False})
    assert (await pay("USD")).json["processor"] == "razorpay"
    assert (await pay("USD", {"processor": "stripe"})).code == "invalid_processor"
    bare = await api.merchant(processors=False)
    refused = await bare.shop.post(f"/v1/orders/{await bare.order()}/pay")
    assert (refused.status, refused.code) == (400, "no_processor")


async def test_a_payment_that_does_not_fit_is_refused(subtests: pytest.Subtests, merchant: Merchant) -> None:
    for body, field in [
        ({"processor": "paypal"}, "processor"),
        ({"capture": "later"}, "capture"),
        ({"paymentMethod": {"type": "cash"}}, "paymentMethod.type"),
        ({"paymentMethod": {"type": "card", "cvc": "123"}}, "paymentMethod.cvc"),
        ({"paymentMethod": {"type": "card", "token": "4242 4242 4242 4242"}}, "paymentMethod.token"),
    ]:
        with subtests.test(body=body, field=field):
            order_id = await merchant.order()
            answer = await merchant.shop.post(f"/v1/orders/{order_id}/pay", body)
            assert answer.fields == {field}
            assert not shows_card(answer.raw)


async def test_waiting_answers_when_the_payment_has_left_processing(
    merchant: Merchant, processor: Processor, settings: Settings, store: EventStore
) -> None:
    order_id = await merchant.order()
    paying = asyncio.create_task(merchant.shop.post(f"/v1/orders/{order_id}/pay", Prefer="wait=20"))
    await merchant.order_is(order_id, "processing")
    cipher = Cipher(secret=settings.encryption_key.get_secret_value())
    await ClientSecrets(store.pool, cipher).keep(order_id=UUID(order_id), attempt=1, secret="cs_1")
    await processor.reports(
        order_id, "requires_action", references=References("pi_1"), redirect_url="https://bank.example/3ds"
    )
    paid = await paying
    assert paid.headers["Preference-Applied"] == "wait=20"
    assert [paid.json[name] for name in ("status", "redirectUrl", "clientSecret")] == [
        *("requires_action", "https://bank.example/3ds", "cs_1")
    ]
    assert paid.json["processorData"] == {"processorOrderId": "pi_1", "processorTransactionId": None}


@pytest.mark.parametrize(
    ("asked", "said", "end", "error"),
    [
        ("capture", "captured", "captured", None),
        ("cancel", "cancelled", "cancelled", None),
        ("capture", "failed", "authorized", {"code": "expired", "message": None}),
        ("cancel", "failed", "authorized", {"code": "expired", "message": None}),
    ],
)
async def test_capturing_and_cancelling_can_be_waited_for(
    merchant: Merchant, processor: Processor, asked: str, said: str, end: str, error: dict[str, Any] | None
) -> None:
    order_id = await merchant.order()
    await merchant.shop.post(f"/v1/orders/{order_id}/pay", {"capture": "manual"})
    await processor.reports(order_id, "authorized")
    waiting = asyncio.create_task(
        merchant.shop.post(f"/v1/orders/{order_id}/{asked}", key="once", Prefer="wait=30")
    )
    async with asyncio.timeout(60):
        while len((await merchant.shop.get(f"/v1/orders/{order_id}/transactions")).json) < 2:
            await asyncio.sleep(0.01)
    assert not waiting.done()
    operation = (TransactionType.CAPTURE if asked == "capture" else TransactionType.VOID, 1)
    await processor.reports(order_id, said, attempt=None, operation=operation, failure=Failure("expired"))
    async with asyncio.timeout(20):  # or it only ended because its time was over
        answer = await waiting
    assert (answer.status, answer.json["status"], answer.json["lastError"]) == (200, end, error)
    again = await merchant.shop.post(f"/v1/orders/{order_id}/{asked}", key="once", Prefer="wait=30")
    assert again.json == answer.json


async def test_waiting_ends_when_the_time_is_over_and_does_not_count_against_the_requests_own(
    settings: Settings, merchant: Merchant
) -> None:
    async with running_api(settings.model_copy(update={"request_timeout": 2.0})) as api:
        shop = api.anyone.with_headers(**merchant.shop.headers)
        path = f"/v1/orders/{await merchant.order()}/pay"
        paid = await shop.post(path, Prefer="respond-async, wait=2; of=mine")
    assert (paid.status, paid.json["status"]) == (200, "processing")
    assert paid.headers["Preference-Applied"] == "wait=2"


@pytest.mark.parametrize(
    ("prefer", "seconds"),
    [
        ("wait=0", 0),
        ("wait=00", 0),
        ("wait=7", 7),
        ('Wait = "007"', 7),
        ("wait=30", 30),
        ("wait=31", 30),
        ("wait=99999999999", 30),
        ("wait=" + "9" * 5_000, 30),
        ("wait=" + "0" * 50 + "5", 5),
        ("wait=-1", 0),
        ("wait=1.5", 0),
    ],
)
def test_a_client_may_ask_to_wait_for_half_a_minute_at_the_most(prefer: str, seconds: int) -> None:
    request = make_mocked_request("POST", "/v1/orders/1/pay", headers={"Prefer": prefer})
    assert _wait(request) == seconds


async def test_a_preference_that_is_not_understood_is_ignored(
    subtests: pytest.Subtests, merchant: Merchant
) -> None:
    for prefer in ["wait=x", "wait=-1", "wait=", "return=minimal", "wait=0"]:
        with subtests.test(prefer=prefer):
            paid = await merchant.shop.post(f"/v1/orders/{await merchant.order()}/pay", Prefer=prefer)
            assert paid.json["status"] == "processing"
            assert "Preference-Applied" not in paid.headers


async def test_a_failure_while_waiting_is_no_failure_of_the_payment(
    api: Api, merchant: Merchant, processor: Processor, monkeypatch: pytest.MonkeyPatch
) -> None:
    order_id = await merchant.order()
    paying = asyncio.create_task(merchant.shop.post(f"/v1/orders/{order_id}/pay", Prefer="wait=20"))
    await merchant.order_is(order_id, "processing")

    async def fail(*_: object) -> None:
        raise psycopg.OperationalError("gone")

    monkeypatch.setattr(api.services.store, "load", fail)
    await processor.reports(order_id, "captured")
    paid = await paying
    assert (paid.status, paid.json["status"]) == (200, "processing")


async def test_many_wait_at_once(merchant: Merchant, processor: Processor) -> None:
    order_ids = [await merchant.order() for _ in range(20)]
    paying = [
        asyncio.create_task(merchant.shop.post(f"/v1/orders/{order_id}/pay", Prefer="wait=30"))
        for order_id in order_ids
    ]
    for order_id in order_ids:
        await merchant.order_is(order_id, "processing")
        await processor.reports(order_id, "captured")
    answers = await asyncio.gather(*paying)  # who was not told would still be processing
    assert {answer.json["status"] for answer in answers} == {"captured"}


@pytest.fixture
async def projected(database_url: str) -> AsyncIterator[None]:
    """A projector runs."""
    async with projector(database_url):
        yield


@pytest.mark.usefixtures("projected")
async def test_a_list_holds_ones_own_orders_newest_first_page_by_page(api: Api, merchant: Merchant) -> None:
    await (await api.merchant(processors=False)).order()
    newest_first = [await merchant.order() for _ in range(7)][::-1]
    page = (await merchant.shop.get("/v1/orders?limit=3")).json
    assert {name: page[name] for name in ("object", "url", "hasMore")} == {
        "object": "list",
        "url": "/v1/orders",
        "hasMore": True,
    }
    assert set(page["data"][0]) == ORDER_FIELDS
    seen = [order["id"] for order in page["data"]]
    while page["hasMore"]:
        page = (await merchant.shop.get(f"/v1/orders?limit=3&starting_after={seen[-1]}")).json
        seen += [order["id"] for order in page["data"]]
    assert seen == newest_first
    back = (await merchant.shop.get(f"/v1/orders?limit=3&ending_before={seen[-1]}")).json
    assert [order["id"] for order in back["data"]] == newest_first[3:6]
    assert back["hasMore"] is True


@pytest.mark.usefixtures("projected")
async def test_a_list_is_filtered(merchant: Merchant) -> None:
    euros = await merchant.order(currency="EUR", externalId="A 1")
    dollars = await merchant.order()
    await merchant.shop.post(f"/v1/orders/{dollars}/cancel")
    middle = (await merchant.shop.get(f"/v1/orders/{dollars}")).json["createdAt"]

    async def listed(query: str) -> list[str]:
        answer = await merchant.shop.get(f"/v1/orders?{query}")
        assert answer.status == 200, answer.raw
        return [order["id"] for order in answer.json["data"]]

    assert await listed("currency=eur") == [euros]
    assert await listed("status=cancelled") == [dollars]
    assert await listed("externalId=A%201") == [euros]
    assert await listed(f"createdFrom={middle}") == [dollars]
    assert await listed(f"createdTo={middle}") == [euros]
    assert await listed("status=failed") == []
    assert await listed(f"createdFrom={middle}&createdTo={middle}") == []
    for path, start, end in (("/v1/orders", "createdFrom", "createdTo"), ("/api/orders", "from", "to")):
        caller = merchant.shop if path.startswith("/v1") else merchant.dashboard
        query = f"{end}={middle}&{start}={middle.replace('Z', '%2B00:00').replace('20', '21', 1)}"
        message = f"Must not be before {start}"
        assert (await caller.get(f"{path}?{query}")).json["errors"] == [{"field": end, "message": message}]


async def test_a_page_starts_at_ones_own_order_only(api: Api, merchant: Merchant) -> None:
    theirs = await (await api.merchant(processors=False)).order()
    for parameter in ("starting_after", "ending_before"):
        for id in (theirs, str(uuid7())):
            answer = await merchant.shop.get(f"/v1/orders?{parameter}={id}")
            assert (answer.status, answer.code) == (404, "not_found")
            assert answer.json["errors"] == [{"field": parameter, "message": "Must be the id of an order"}]
    mine = await merchant.order()
    assert (await merchant.shop.get(f"/v1/orders?starting_after={mine}&ending_before={mine}")).fields == {
        "ending_before"
    }


async def test_an_unknown_parameter_is_refused(merchant: Merchant) -> None:
    order_id = await merchant.order()
    assert (await merchant.shop.get("/v1/orders?page=1")).fields == {"page"}
    assert (await merchant.shop.get(f"/v1/orders/{order_id}?expand=all")).fields == {"expand"}
    assert (await merchant.shop.post(f"/v1/orders/{order_id}/cancel", {"reason": "x"})).fields == {"reason"}
