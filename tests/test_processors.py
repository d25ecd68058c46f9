"""The processors' own libraries, asked about payments, against servers that answer as their documentation says."""

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from aiohttp import web
from answering import answering, intent
from calling import Api
from uuid_utils.compat import uuid7

from payloops.events.event_store import EventStore
from payloops.events.orders import Failure
from payloops.processors import opening
from payloops.processors.port import (
    PaymentQuestion,
    ProcessorPayment,
    ProcessorUnreachable,
    ReferenceNeeded,
)
from payloops.processors.razorpay import RazorpayProcessor
from payloops.processors.stripe import StripeProcessor
from payloops.settings import Settings
from payloops.wiring import make_cipher


async def test_each_merchants_payments_are_asked_about_in_his_own_name_alone(
    api: Api, store: EventStore, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And where his credentials cannot be opened, or are not there any more, in nobody's."""
    keys = []

    async def retrieve(request: web.Request) -> web.Response:
        keys.append(request.headers["Authorization"])
        return web.json_response(intent())

    without = await api.merchant(processors=False)
    one, two, sealed = [await api.merchant() for _ in range(3)]
    for merchant in (one, two, sealed):
        credentials = {"secretKey": f"sk_{merchant.id}", "webhookSecret": "whsec_1"}
        answer = await merchant.dashboard.post("/api/processors/stripe", {"credentials": credentials})
        assert answer.status == 200
    async with store.pool.connection() as connection:
        await connection.execute(
            "UPDATE processor_configs SET credentials = (SELECT credentials FROM processor_configs"
            " WHERE merchant_id = %s AND processor = 'stripe') WHERE merchant_id = %s",
            (one.id, sealed.id),
        )
    async with answering(("/v1/payment_intents/pi_1", retrieve)) as url:
        monkeypatch.setattr(opening, "StripeProcessor", partial(StripeProcessor, base_url=url))
        async with opening.open_processors(store.pool, cipher=make_cipher(settings), sandbox=False) as find:
            for merchant in (one, two, one):
                assert await (await find(merchant.id, "stripe")).look_up(asked()) is not None
            for left, why in ((sealed, "cannot be read"), (without, "the merchant has removed it")):
                with pytest.raises(ProcessorUnreachable, match=why):
                    await find(left.id, "stripe")
    assert keys == [f"Bearer sk_{each.id}" for each in (one, two, one)]


def asked(reference: str | None = "pi_1") -> PaymentQuestion:
    return PaymentQuestion(order_id=str(uuid7()), attempt=2, processor_order_id=reference)


async def ask_stripe(url: str, question: PaymentQuestion) -> ProcessorPayment | None:
    stripe = StripeProcessor(secret_key="sk_test", base_url=url)
    try:
        return await stripe.look_up(question)
    finally:
        await stripe.close()


async def test_stripe_is_asked_by_reference() -> None:
    captured_in_part = {"id": "ch_3", "amount": 1_000, "amount_captured": 600, "amount_refunded": 700}
    answers = iter(
        [
            intent(),
            intent(status="canceled", latest_charge=None),
            intent(
                status="requires_payment_method",
                last_payment_error={"code": "card_declined", "message": "No"},
            ),
            intent(status="requires_capture", latest_charge="ch_2"),
            intent(amount_received=600, latest_charge=captured_in_part),
        ]
    )

    async def retrieve(request: web.Request) -> web.Response:
        assert request.headers["Authorization"] == "Bearer sk_test"
        assert request.query["expand[0]"] == "latest_charge"
        return web.json_response(next(answers))

    async with answering(("/v1/payment_intents/pi_1", retrieve)) as url:
        captured, cancelled, failed, authorized, in_part = [await ask_stripe(url, asked()) for _ in range(5)]
    assert captured == ProcessorPayment(
        status="captured",
        processor_order_id="pi_1",
        processor_transaction_id="ch_1",
        currency="USD",
        amount_captured=1_000,
        amount_refunded=300,
    )
    assert cancelled is not None
    assert failed is not None
    assert authorized is not None
    assert (cancelled.status, cancelled.amount_captured) == ("cancelled", 0)
    assert (failed.status, failed.failure) == ("failed", Failure("card_declined", "No"))
    assert (authorized.status, authorized.processor_transaction_id) == ("authorized", "ch_2")
    assert in_part is not None  # what was released counts in this sum
    assert (in_part.amount_captured, in_part.amount_refunded) == (600, 300)


async def test_stripe_is_asked_by_label_where_no_reference_was_reported() -> None:
    question = asked(None)
    found = [
        intent(id="pi_other", metadata={"attempt": "1"}),
        intent(id="pi_failed", status="requires_payment_method", created=9, metadata={"attempt": "2"}),
        intent(id="pi_right", created=5),
    ]

    async def search(request: web.Request) -> web.Response:
        assert request.query["query"] == f"metadata['order_id']:'{question.order_id}'"
        assert request.query["limit"] == "100"
        return web.json_response({"object": "search_result", "data": found, "has_more": False, "url": ""})

    async with answering(("/v1/payment_intents/search", search)) as url:
        payment = await ask_stripe(url, question)
    assert payment is not None
    assert (payment.processor_order_id, payment.attempt_known) == ("pi_right", False)
    found[2]["metadata"] = {"attempt": "2"}
    async with answering(("/v1/payment_intents/search", search)) as url:
        labelled = await ask_stripe(url, question)
    assert labelled is not None
    assert labelled.attempt_known


async def test_of_two_payments_at_stripe_that_have_money_neither_gives_its_reference() -> None:
    async def search(_: web.Request) -> web.Response:
        found = [intent(id="pi_1"), intent(id="pi_2", status="requires_capture", created=9)]
        return web.json_response({"object": "search_result", "data": found, "has_more": False, "url": ""})

    async with answering(("/v1/payment_intents/search", search)) as url:
        payment = await ask_stripe(url, asked(None))
    assert payment is not None
    assert (payment.status, payment.processor_order_id) == ("captured", None)


async def test_a_payment_at_stripe_that_is_another_attempts_is_none_of_this_one() -> None:
    """Workers need not label attempts: what the first was captured with must not count as the second's, too."""

    async def search(_: web.Request) -> web.Response:
        found = [intent(id="pi_of_the_first_attempt")]
        return web.json_response({"object": "search_result", "data": found, "has_more": False, "url": ""})

    question = replace(asked(None), others=frozenset({"pi_of_the_first_attempt"}))
    async with answering(("/v1/payment_intents/search", search)) as url:
        assert await ask_stripe(url, question) is None


async def test_what_stripe_does_not_know_and_when_it_does_not_answer(unused_tcp_port: int) -> None:
    async def missing(request: web.Request) -> web.Response:
        error = {
            "code": "resource_missing",
            "message": "No such payment_intent",
            "type": "invalid_request_error",
        }
        return web.json_response({"error": error}, status=404)

    async def refuse(request: web.Request) -> web.Response:
        return web.json_response(
            {"error": {"message": "Invalid API Key", "type": "invalid_request_error"}}, status=401
        )

    async with answering(("/v1/payment_intents/pi_1", missing), ("/v1/payment_intents/pi_2", refuse)) as url:
        assert await ask_stripe(url, asked()) is None
        with pytest.raises(ProcessorUnreachable):
            await ask_stripe(url, asked("pi_2"))
    with pytest.raises(ProcessorUnreachable):
        await ask_stripe(f"http://127.0.0.1:{unused_tcp_port}", asked())


def attempt_at_razorpay(id: str, status: str, **fields: Any) -> dict[str, Any]:
    return {
        "id": id,
        "entity": "payment",
        "status": status,
        "amount": 1_000,
        "currency": "INR",
        "amount_refunded": 0,
        "created_at": 1,
        **fields,
    }


async def test_razorpay_is_asked_by_its_order() -> None:
    answers = iter(
        [
            [
                attempt_at_razorpay("pay_1", "failed"),
                attempt_at_razorpay("pay_2", "refunded", amount_refunded=300),
            ],
            [attempt_at_razorpay("pay_1", "failed", error_code="BAD", error_description="No")],
            [],
        ]
    )

    async def payments(request: web.Request) -> web.Response:
        assert request.headers["Authorization"].startswith("Basic ")
        return web.json_response({"entity": "collection", "items": next(answers)})

    async with answering(("/v1/orders/order_1/payments", payments)) as url:
        razorpay = RazorpayProcessor(key_id="id", key_secret="secret", base_url=url)
        captured, failed, nothing = [await razorpay.look_up(asked("order_1")) for _ in range(3)]
        with pytest.raises(ReferenceNeeded):
            await razorpay.look_up(asked(None))
    assert captured is not None
    assert (captured.status, captured.processor_transaction_id) == ("captured", "pay_2")
    assert (captured.amount_captured, captured.amount_refunded, captured.currency) == (1_000, 300, "INR")
    assert failed is not None
    assert (failed.status, failed.failure) == ("failed", Failure("BAD", "No"))
    assert nothing is None


async def test_what_razorpay_does_not_know_and_when_it_does_not_answer(
    unused_tcp_port: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its library's own words would be in the midst of the JSON of `payloops reconcile --json`."""

    async def missing(request: web.Request) -> web.Response:
        error = {"code": "BAD_REQUEST_ERROR", "description": "The id provided does not exist"}
        return web.json_response({"error": error}, status=400)

    async with answering(("/v1/orders/order_1/payments", missing)) as url:
        razorpay = RazorpayProcessor(key_id="id", key_secret="secret", base_url=url)
        assert await razorpay.look_up(asked("order_1")) is None
    away = RazorpayProcessor(key_id="id", key_secret="secret", base_url=f"http://127.0.0.1:{unused_tcp_port}")
    with pytest.raises(ProcessorUnreachable):
        await away.look_up(asked("order_1"))
    assert capsys.readouterr() == ("", "")
