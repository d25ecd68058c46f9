"""Webhooks of processors: who may send them, what is kept, and that each has its effect once."""

import asyncio
import random
import threading
import time
from datetime import UTC, datetime, timedelta
from types import ModuleType
from typing import Any
from uuid import UUID

import orjson
import pytest
from calling import Api, Merchant, running_api
from masking import CARD, shows_card
from multidict import CIMultiDict
from projecting import project_everything
from psycopg_pool import AsyncConnectionPool
from signing import (
    STRIPE_SECRET,
    Labels,
    Processors,
    charge_refunded,
    merchant_with_secrets,
    razorpay_header,
    razorpay_payment,
    razorpay_refund,
    set_secret,
    stripe_event,
    stripe_header,
    stripe_payment,
    stripe_refund,
)
from uuid_utils.compat import uuid7

from payloops.commands import receive_processor_event
from payloops.commands.authenticate_webhook import is_signed_by_stripe
from payloops.commands.change_order import change_order
from payloops.commands.payment_outcomes import report_processing
from payloops.commands.processor_events import count_processor_events, note_effect
from payloops.commands.processors import recorded_reference
from payloops.events.event_store import EventStore
from payloops.events.metadata import Metadata
from payloops.events.timestamps import utc_now
from payloops.http import processor_webhooks, stripe_events
from payloops.settings import Settings

RECEIVED = {"received": True}


@pytest.fixture
async def merchant(api: Api) -> Merchant:
    return await merchant_with_secrets(api)


@pytest.fixture
def processors(api: Api) -> Processors:
    return Processors(api)


async def paying(merchant: Merchant, processor: str = "stripe", **fields: Any) -> Labels:
    """An order that is being paid."""
    order_id = await merchant.order(currency="INR" if processor == "razorpay" else "USD")
    paid = await merchant.shop.post(f"/v1/orders/{order_id}/pay", {"processor": processor, **fields})
    assert paid.status == 200, paid.raw
    return Labels(merchant.id, order_id)


async def order_of(merchant: Merchant, labels: Labels) -> dict[str, Any]:
    answer = await merchant.shop.get(f"/v1/orders/{labels.order_id}")
    assert answer.status == 200
    return dict(answer.json)


async def trail(merchant: Merchant, labels: Labels) -> list[str]:
    answer = await merchant.shop.get(f"/v1/orders/{labels.order_id}/events")
    return [event["type"] for event in answer.json]


async def refunds_of(merchant: Merchant, labels: Labels) -> list[tuple[int, str]]:
    answer = await merchant.shop.get(f"/v1/orders/{labels.order_id}/refunds")
    return [(refund["amount"], refund["status"]) for refund in answer.json]


async def kept(pool: AsyncConnectionPool) -> list[tuple[str, str, str | None, int]]:
    """(type, effect, order, deliveries) of what was kept, oldest first."""
    async with pool.connection() as connection:
        cursor = await connection.execute(
            "SELECT type, effect, order_id::text, deliveries FROM processor_events ORDER BY id"
        )
        return [(row[0], row[1], row[2], row[3]) for row in await cursor.fetchall()]


async def events_in(pool: AsyncConnectionPool) -> int:
    async with pool.connection() as connection:
        row = await (await connection.execute("SELECT count(*) FROM stored_events")).fetchone()
    assert row is not None
    return int(row[0])


# -- who may send them


async def test_what_stripe_says_by_a_right_signature_becomes_the_orders_truth(
    merchant: Merchant, processors: Processors, pool: AsyncConnectionPool
) -> None:
    labels = await paying(merchant)
    event = stripe_payment("succeeded", labels)
    answer = await processors.stripe(event)
    assert (answer.status, answer.json) == (200, RECEIVED)
    order = await order_of(merchant, labels)
    assert (order["status"], order["amountCaptured"], order["processorOrderId"]) == (
        "captured",
        1_000,
        "pi_1",
    )
    assert (await trail(merchant, labels))[-2:] == ["order.processor_event_received", "payment.captured"]
    audit = (await merchant.shop.get(f"/v1/orders/{labels.order_id}/events")).json[-1]
    assert (audit["actor"], audit["causationId"]) == ("processor:stripe", event["id"])
    assert await kept(pool) == [("payment_intent.succeeded", "applied", labels.order_id, 1)]


async def test_what_razorpay_says_by_a_right_signature_becomes_the_orders_truth(
    merchant: Merchant, processors: Processors
) -> None:
    labels = await paying(merchant, "razorpay")
    answer = await processors.razorpay(razorpay_payment("captured", labels), id="evt_1")
    assert (answer.status, answer.json) == (200, RECEIVED)
    assert (await order_of(merchant, labels))["status"] == "captured"


@pytest.mark.parametrize("kind", ["captured", "authorized", "failed"])
@pytest.mark.parametrize("failed_before", [False, True])
async def test_a_cheaper_payment_at_razorpay_pays_no_order_that_its_notes_name(
    merchant: Merchant, processors: Processors, pool: AsyncConnectionPool, kind: str, failed_before: bool
) -> None:
    """The customer's browser writes the notes; a failed try may even have given the order its reference."""
    labels = await paying(merchant, "razorpay", capture="manual")
    if failed_before:
        assert (await processors.razorpay(razorpay_payment("failed", labels))).status == 200
    before = await order_of(merchant, labels)
    cheap = razorpay_payment(
        kind, labels, amount=100, order_id="order_2", id="pay_2", notes={**labels.json, "attempt": "1"}
    )
    assert (await processors.razorpay(cheap)).status == 200
    order = await order_of(merchant, labels)
    assert (order["status"], order["amountCaptured"]) == (before["status"], 0)
    assert order["processorOrderId"] == before["processorOrderId"]
    assert (await kept(pool))[-1][1] == ("unmatched" if failed_before else "contradiction")
    assert (await processors.razorpay(razorpay_payment(kind, labels))).status == 200
    assert (await order_of(merchant, labels))["status"] == kind


@pytest.mark.parametrize("is_in_tables", [True, False])
async def test_what_pays_one_order_at_razorpay_does_not_pay_another_that_its_notes_name(
    merchant: Merchant,
    processors: Processors,
    pool: AsyncConnectionPool,
    settings: Settings,
    is_in_tables: bool,
) -> None:
    """Two orders of one price, and one charge, into whose notes the customer's browser has written the other order."""
    paid, other = await paying(merchant, "razorpay"), await paying(merchant, "razorpay")
    for labels, reference in [(paid, "order_1"), (other, "order_2")]:
        event = razorpay_payment("authorized", labels, order_id=reference, id=f"pay_of_{reference}")
        assert (await processors.razorpay(event)).status == 200
    if is_in_tables:
        await project_everything(settings.database_url.get_secret_value())
    notes = {**other.json, "attempt": "1"}
    assert (await processors.razorpay(razorpay_payment("captured", paid, notes=notes))).status == 200
    assert (await order_of(merchant, other))["status"] == "processing"
    assert (await order_of(merchant, paid))["status"] == ("captured" if is_in_tables else "processing")
    assert (await kept(pool))[-1][1:3] == (
        ("applied", paid.order_id) if is_in_tables else ("unmatched", other.order_id)
    )


async def test_a_wrong_signature_appends_nothing(
    subtests: pytest.Subtests, api: Api, merchant: Merchant, pool: AsyncConnectionPool
) -> None:
    foreign = await merchant_with_secrets(api)
    await set_secret(foreign, "stripe", "whsec_of_another")
    labels = await paying(merchant)
    body = orjson.dumps(stripe_payment("succeeded", labels))
    right = stripe_header(body)
    moment, digest = right.split(",")
    before = await events_in(pool)
    for name, header, code in [  # each is sent some time after it was made: at most 15 seconds
        ("none", None, "missing_signature"),
        ("empty", "", "missing_signature"),
        ("rubbish", "rubbish", "invalid_signature"),
        ("foreign", stripe_header(body, secret="whsec_of_another"), "invalid_signature"),
        ("of another body", stripe_header(body + b" "), "invalid_signature"),
        ("without time", digest, "invalid_signature"),
        ("two times", f"{moment},t=1,{digest}", "invalid_signature"),
        ("no number", f"t=now,{digest}", "invalid_signature"),
        ("another time", f"t={int(moment.removeprefix('t=')) - 5},{digest}", "invalid_signature"),
        ("another scheme", right.replace("v1=", "v0="), "invalid_signature"),
        ("upper case", right.upper(), "invalid_signature"),
        ("no ASCII", f"{moment},v1=\u00e4", "invalid_signature"),
        ("too old", stripe_header(body, at=time.time() - 302), "invalid_signature"),
        ("of the future", stripe_header(body, at=time.time() + 320), "invalid_signature"),
        ("without a secret", stripe_header(body, secret=""), "invalid_signature"),
    ]:
        with subtests.test(name):
            headers = {} if header is None else {"Stripe-Signature": header}
            answer = await api.anyone.call("POST", "/webhooks/stripe", data=body, headers=headers)
            assert (answer.status, answer.code) == (400, code)
    with subtests.test("altered"):
        altered = body.replace(b"1000", b"9000")
        answer = await api.anyone.call(
            "POST", "/webhooks/stripe", data=altered, headers={"Stripe-Signature": right}
        )
        assert (answer.status, answer.code) == (400, "invalid_signature")
    assert await events_in(pool) == before
    assert await kept(pool) == []
    for seconds in (-280, 295):
        header = stripe_header(body, at=time.time() + seconds)
        answer = await api.anyone.call(
            "POST", "/webhooks/stripe", data=body, headers={"Stripe-Signature": header}
        )
        assert answer.status == 200


def test_a_signature_of_stripe_counts_for_300_seconds_before_and_after_its_time() -> None:
    signed_at = int(time.time())
    header = stripe_header(b"{}", at=signed_at)
    for seconds, counts in ((-301, False), (-300, True), (300, True), (301, False)):
        at = datetime.fromtimestamp(signed_at + seconds, UTC)
        assert is_signed_by_stripe(b"{}", signature=header, secret=STRIPE_SECRET, at=at) is counts


async def test_a_wrong_signature_of_razorpay_appends_nothing(
    subtests: pytest.Subtests, api: Api, merchant: Merchant, pool: AsyncConnectionPool
) -> None:
    labels = await paying(merchant, "razorpay")
    body = orjson.dumps(razorpay_payment("captured", labels))
    before = await events_in(pool)
    right = razorpay_header(body)
    for header, code in [
        (None, "missing_signature"),
        ("", "missing_signature"),
        (right[:-1], "invalid_signature"),
        (right[:-1] + ("0" if right[-1] != "0" else "1"), "invalid_signature"),
        (right.upper() if right.upper() != right else "A" * 64, "invalid_signature"),
        ("\u00e4" * 64, "invalid_signature"),
        (razorpay_header(body, secret=STRIPE_SECRET), "invalid_signature"),
        (razorpay_header(body + b"\n"), "invalid_signature"),
    ]:
        with subtests.test(header=header):
            headers = {} if header is None else {"X-Razorpay-Signature": header}
            answer = await api.anyone.call("POST", "/webhooks/razorpay", data=body, headers=headers)
            assert (answer.status, answer.code) == (400, code)
    assert await events_in(pool) == before


@pytest.mark.parametrize("signed", [b"another body", None])
async def test_of_several_signatures_none_counts(
    api: Api, merchant: Merchant, pool: AsyncConnectionPool, signed: bytes | None
) -> None:
    body = orjson.dumps(stripe_payment("succeeded", await paying(merchant)))
    own, other = stripe_header(body), "" if signed is None else stripe_header(signed)
    for signatures in ((own, other), (other, own)):
        headers = CIMultiDict(("Stripe-Signature", signature) for signature in signatures)
        async with api.anyone.session.post("/webhooks/stripe", data=body, headers=headers) as response:
            assert (response.status, (await response.json())["code"]) == (400, "invalid_signature")
    assert await kept(pool) == []


async def test_who_has_no_secret_is_never_believed_and_not_told_from_who_does_not_exist(
    api: Api, processors: Processors, pool: AsyncConnectionPool
) -> None:
    bare = await api.merchant(processors=False)
    unsecured = await api.merchant()
    answers = []
    for merchant_id in (bare.id, unsecured.id, uuid7()):
        event = stripe_payment("succeeded", Labels(merchant_id, str(uuid7())))
        answers += [await processors.stripe(event, secret=secret) for secret in ("", STRIPE_SECRET)]
        answers.append(await processors.stripe(event, path=f"/webhooks/stripe/{merchant_id}"))
    nobody = stripe_event("customer.created", {"id": "cus_1"})
    answers += [await processors.stripe(body) for body in (nobody, b"no JSON", b"[]", b"")]
    answers.append(await processors.stripe(nobody, path="/webhooks/stripe/nobody"))
    assert {(answer.status, answer.code) for answer in answers} == {(400, "no_config")}
    assert len({orjson.dumps(answer.lasting) for answer in answers}) == 1
    assert await kept(pool) == []
    unknown = await processors.stripe(nobody, path=f"/webhooks/paypal/{bare.id}")
    assert (unknown.status, unknown.code) == (404, "not_found")


async def test_the_path_may_name_the_merchant(
    merchant: Merchant, processors: Processors, pool: AsyncConnectionPool
) -> None:
    labels = await paying(merchant)
    event = stripe_payment("succeeded", labels, metadata={"order_id": labels.order_id})
    assert (await processors.stripe(event, path=f"/webhooks/stripe/{merchant.id}")).status == 200
    assert (await order_of(merchant, labels))["status"] == "captured"
    unlabelled = stripe_event("customer.created", {"id": "cus_1"})
    assert (await processors.stripe(unlabelled, path=f"/webhooks/stripe/{merchant.id}")).status == 200
    assert (await kept(pool))[-1] == ("customer.created", "unhandled", None, 1)


async def test_an_order_of_another_merchant_is_never_touched(
    api: Api, merchant: Merchant, processors: Processors, pool: AsyncConnectionPool
) -> None:
    """A merchant can sign whatever it likes with its own secret."""
    thief = await merchant_with_secrets(api)
    await set_secret(thief, "stripe", "whsec_of_a_thief")
    labels = await paying(merchant)
    as_thief = Labels(thief.id, labels.order_id)
    first = await processors.stripe(stripe_payment("succeeded", as_thief), secret="whsec_of_a_thief")
    second = await processors.stripe(
        stripe_payment("succeeded", labels),
        secret="whsec_of_a_thief",
        path=f"/webhooks/stripe/{thief.id}",
    )
    assert (first.status, second.status) == (200, 200)
    assert (await order_of(merchant, labels))["status"] == "processing"
    assert [row[1:3] for row in await kept(pool)] == [("unknown_order", None)] * 2


async def test_a_slower_delivery_that_found_no_order_does_not_take_back_what_a_faster_one_did(
    merchant: Merchant, processors: Processors, pool: AsyncConnectionPool
) -> None:
    """Of one event at the same time: the slower one asked before the order was known by its reference."""
    labels = await paying(merchant)
    event = stripe_payment("succeeded", labels)
    await processors.stripe(event)
    await note_effect(
        pool,
        merchant_id=merchant.id,
        processor="stripe",
        key=event["id"],
        effect="unknown_order",
        order_id=None,
    )
    assert await kept(pool) == [("payment_intent.succeeded", "applied", labels.order_id, 1)]


async def test_the_old_secret_is_accepted_for_24_hours_after_a_change(
    api: Api, merchant: Merchant, processors: Processors
) -> None:
    labels = await paying(merchant)
    await set_secret(merchant, "stripe", "whsec_new")

    async def status(secret: str) -> int:
        event = stripe_payment("requires_action", labels)
        return (await processors.stripe(event, secret=secret)).status

    assert [await status(secret) for secret in (STRIPE_SECRET, "whsec_new")] == [200, 200]
    await set_secret(merchant, "stripe", "whsec_new")  # saved again without a change
    assert await status(STRIPE_SECRET) == 200
    async with api.services.store.pool.connection() as connection:
        row = await (
            await connection.execute(
                "SELECT previous_webhook_expires_at, previous_webhook_secret FROM processor_configs"
                " WHERE merchant_id = %s AND processor = 'stripe'",
                (merchant.id,),
            )
        ).fetchone()
        assert row is not None
        assert abs(row[0] - utc_now() - timedelta(hours=24)) < timedelta(minutes=1)
        assert STRIPE_SECRET.encode() not in bytes(row[1])
        await connection.execute(
            "UPDATE processor_configs SET previous_webhook_expires_at = now()"
            " WHERE previous_webhook_secret IS NOT NULL"
        )
    assert [await status(secret) for secret in (STRIPE_SECRET, "whsec_new")] == [400, 200]
    await set_secret(merchant, "stripe", None)
    assert [await status(secret) for secret in (STRIPE_SECRET, "whsec_new")] == [400, 400]


@pytest.mark.parametrize("again", [False, True])
async def test_what_test_mode_signs_is_not_accepted_beside_live_keys(
    merchant: Merchant, processors: Processors, again: bool
) -> None:
    """Whoever knows the public key of a test mode can pay in it, and name an order in Razorpay's notes."""

    async def configure(key: str, secret: str) -> None:
        keys = {"keyId": key, "keySecret": "secret", "webhookSecret": secret}
        body = {"credentials": keys}
        assert (await merchant.dashboard.post("/api/processors/razorpay", body)).status == 200

    async def accepted(*secrets: str) -> list[bool]:
        told = [
            await processors.razorpay(razorpay_payment("failed", labels), secret=each) for each in secrets
        ]
        return [each.status == 200 for each in told]

    labels = await paying(merchant, "razorpay")
    await configure("rzp_test_1", "of_test")
    if again:
        await configure("rzp_test_1", "of_test_2")
        assert await accepted("of_test", "of_test_2") == [True, True]
    await configure("rzp_live_1", "of_live")
    assert await accepted("of_test", "of_test_2", "of_live") == [False, False, True]
    await configure("rzp_live_2", "of_live_2")
    assert await accepted("of_live", "of_live_2") == [True, True]
    await configure("rzp_test_1", "of_test")  # live payments are still under way
    assert await accepted("of_live_2", "of_test") == [True, True]


async def test_a_body_of_another_type_is_read_all_the_same(api: Api, merchant: Merchant) -> None:
    labels = await paying(merchant)
    body = orjson.dumps(stripe_payment("succeeded", labels), option=orjson.OPT_INDENT_2)
    headers = {"Stripe-Signature": stripe_header(body), "Content-Type": "text/plain"}
    assert (await api.anyone.call("POST", "/webhooks/stripe", data=body, headers=headers)).status == 200


# -- once


async def test_ten_duplicates_at_once_have_one_effect(
    merchant: Merchant, processors: Processors, pool: AsyncConnectionPool
) -> None:
    labels = await paying(merchant)
    event = stripe_payment("succeeded", labels)
    answers = await asyncio.gather(*(processors.stripe(event) for _ in range(10)))
    assert {answer.status for answer in answers} == {200}
    topics = await trail(merchant, labels)
    assert topics == [
        "order.created",
        "payment.requested",
        "order.processor_event_received",
        "payment.captured",
    ]
    assert await kept(pool) == [("payment_intent.succeeded", "applied", labels.order_id, 10)]


async def test_duplicates_that_arrive_at_different_processes_have_one_effect(
    settings: Settings, merchant: Merchant, processors: Processors
) -> None:
    """Two APIs, each with its own connections and appender, as two processes have them."""
    labels = await paying(merchant)
    event = stripe_payment("succeeded", labels)
    refund = charge_refunded(labels, 300)
    async with running_api(settings) as other:
        both = [processors, Processors(other)] * 10
        for each in (event, refund):
            answers = await asyncio.gather(*(api.stripe(each) for api in both))
            assert {answer.status for answer in answers} == {200}
    topics = await trail(merchant, labels)
    assert topics[2:] == [
        "order.processor_event_received",
        "payment.captured",
        "order.processor_event_received",
        "refund.discovered",
        "refund.succeeded",
    ]


async def test_many_events_of_one_order_at_once_are_all_kept(
    merchant: Merchant, processors: Processors, pool: AsyncConnectionPool
) -> None:
    labels = await paying(merchant)
    kinds = ("requires_action", "payment_failed", "succeeded", "canceled") * 5
    answers = await asyncio.gather(*(processors.stripe(stripe_payment(kind, labels)) for kind in kinds))
    assert {answer.status for answer in answers} == {200}
    order = await order_of(merchant, labels)
    assert (order["status"], order["amountCaptured"]) == ("captured", 1_000)
    # Of each kind, the first says something that is not remembered yet.
    assert (await trail(merchant, labels)).count("order.processor_event_received") == 4
    events = await kept(pool)
    assert len(events) == 20
    assert {(effect, order_id) for _, effect, order_id, _ in events} == {
        ("applied", order["id"]),
        ("none", order["id"]),
    }


async def test_an_order_takes_no_more_events_than_any_payment_causes(
    merchant: Merchant, processors: Processors, pool: AsyncConnectionPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refused, a processor would send it again and again, and then none of the merchant's any more. Staff see it."""
    monkeypatch.setattr(receive_processor_event, "MAX_RECORDED", 2)
    labels = await paying(merchant)
    for kind in ("requires_action", "payment_failed"):
        assert (await processors.stripe(stripe_payment(kind, labels))).status == 200
    one_too_many = stripe_payment("succeeded", labels)
    for _ in range(2):
        assert (await processors.stripe(one_too_many)).json == RECEIVED
    assert (await processors.stripe(stripe_payment("payment_failed", labels))).status == 200
    assert [effect for _, effect, _, _ in await kept(pool)] == ["applied", "applied", "received", "none"]
    assert (await kept(pool))[2][2:] == (labels.order_id, 2)
    assert (await order_of(merchant, labels))["status"] == "failed"


async def test_references_that_no_processor_makes_keep_no_order_out_of_the_lists(
    merchant: Merchant, processors: Processors, settings: Settings
) -> None:
    labels = await paying(merchant)
    event = stripe_payment("succeeded", labels)
    long = "".join(random.Random(1).choices([chr(each) for each in range(0x4E00, 0x9FFF)], k=2_000))
    event["id"] = event["data"]["object"]["id"] = event["data"]["object"]["latest_charge"] = long
    assert (await processors.stripe(event)).status == 200
    assert (await processors.stripe(event)).status == 200
    await project_everything(settings.database_url.get_secret_value())
    [order] = (await merchant.shop.get("/v1/orders")).json["data"]
    assert (order["status"], order["processorOrderId"]) == ("captured", recorded_reference(long))


async def test_charges_whose_long_references_differ_only_at_their_ends_are_two(
    merchant: Merchant, processors: Processors
) -> None:
    labels = await paying(merchant)
    for number, kind in enumerate(("payment_failed", "succeeded")):
        if number:
            paid = await merchant.shop.post(f"/v1/orders/{labels.order_id}/pay", {"processor": "stripe"})
            assert paid.status == 200
        event = stripe_payment(kind, labels)
        event["data"]["object"]["id"] = "pi_" + "x" * 1_000 + str(number)
        assert (await processors.stripe(event)).status == 200
    assert (await order_of(merchant, labels))["status"] == "captured"
    listed = (await merchant.shop.get(f"/v1/orders/{labels.order_id}/transactions")).json
    assert [each["status"] for each in listed] == ["success", "failed"]


async def test_an_event_of_razorpay_counts_once_per_id_and_once_per_body(
    merchant: Merchant, processors: Processors
) -> None:
    labels = await paying(merchant, "razorpay")
    body = orjson.dumps(razorpay_payment("captured", labels))
    for id in ("evt_1", "evt_1", "evt_2", None, "x" * 300):
        assert (await processors.razorpay(body, id=id)).status == 200
    another = razorpay_refund("processed", labels, reference="rfnd_1", amount=400, total=400)
    assert (await processors.razorpay(another, id="evt_1")).status == 200
    assert (await trail(merchant, labels)).count("order.processor_event_received") == 1


async def test_a_body_that_is_repeated_under_another_id_keeps_no_event_of_that_id_out(
    merchant: Merchant, processors: Processors
) -> None:
    """Razorpay's signature does not cover the id: whoever repeats a body chooses it."""
    labels = await paying(merchant, "razorpay")
    captured = orjson.dumps(razorpay_payment("captured", labels))
    for id in ("evt_1", "evt_2"):
        assert (await processors.razorpay(captured, id=id)).status == 200
    refund = razorpay_refund("processed", labels, reference="rfnd_1", amount=400, total=400)
    assert (await processors.razorpay(refund, id="evt_2")).status == 200
    assert await refunds_of(merchant, labels) == [(400, "success")]


async def test_an_event_that_said_nothing_new_has_no_effect_when_it_is_repeated(
    merchant: Merchant, processors: Processors, store: EventStore, by: Metadata
) -> None:
    labels = await paying(merchant)
    again = stripe_payment("requires_action", labels)
    for event in (stripe_payment("requires_action", labels), again):
        assert (await processors.stripe(event)).status == 200
    await change_order(
        store,
        order_id=UUID(labels.order_id),
        merchant_id=None,
        decide=lambda order: report_processing(order, order.payments[1], processor_order_id=None, by=by),
    )
    assert (await processors.stripe(again)).status == 200
    assert (await order_of(merchant, labels))["status"] == "processing"


async def test_an_event_whose_effect_was_not_noted_is_dealt_with_when_it_comes_again(
    merchant: Merchant, processors: Processors, pool: AsyncConnectionPool
) -> None:
    """The process was killed between the append and the note, and again before the append."""
    labels = await paying(merchant)
    event = stripe_payment("succeeded", labels)
    await processors.stripe(event)
    async with pool.connection() as connection:
        await connection.execute("UPDATE processor_events SET effect = 'received', order_id = NULL")
    await processors.stripe(event)
    assert await kept(pool) == [("payment_intent.succeeded", "applied", labels.order_id, 2)]
    assert (await trail(merchant, labels)).count("payment.captured") == 1


# -- what is kept


async def test_events_without_an_order_and_unhandled_ones_are_kept_and_counted(
    merchant: Merchant, processors: Processors, pool: AsyncConnectionPool, settings: Settings
) -> None:
    labels = await paying(merchant)
    await project_everything(settings.database_url.get_secret_value())
    before = await events_in(pool)
    for event in (
        stripe_payment("succeeded", Labels(merchant.id, str(uuid7()))),
        stripe_payment("succeeded", Labels(merchant.id, "no id")),
        stripe_payment("processing", labels),
        stripe_payment("amount_capturable_updated", labels, amount_capturable=0),
        stripe_refund("re_1", 5, metadata=labels.json, status="pending"),
    ):
        answer = await processors.stripe(event)
        assert (answer.status, answer.json) == (200, RECEIVED)
    assert await events_in(pool) == before
    assert [row[1:3] for row in await kept(pool)] == [
        *[("unknown_order", None)] * 2,
        *[("unhandled", labels.order_id)] * 3,
    ]
    counts = {(each.effect, each.events) for each in await count_processor_events(pool)}
    assert counts == {("unknown_order", 2), ("unhandled", 3)}


async def test_card_numbers_are_masked_in_what_is_kept(
    merchant: Merchant, processors: Processors, pool: AsyncConnectionPool
) -> None:
    labels = await paying(merchant)
    body = orjson.dumps(
        stripe_payment("succeeded", labels, description="4242 4242 4242 4242", n=4242424242424242)
    )
    escaped = orjson.dumps(stripe_payment("succeeded", labels, description="CARD", event_id="evt_2"))
    escaped = escaped.replace(b"CARD", b"\\u0034242424242424242")
    plain = orjson.dumps(stripe_payment("succeeded", labels, description="4242", event_id="evt_3"))
    twice = plain.replace(b"evt_3", b"evt_4").replace(b'"4242"', b'"4242424242424242","description":"later"')
    for each in (body, escaped, plain, twice):
        assert (await processors.stripe(each)).status == 200
    async with pool.connection() as connection:
        rows = await (await connection.execute("SELECT body FROM processor_events ORDER BY id")).fetchall()
    bodies = [row[0] for row in rows]
    assert all(digits not in each for each in bodies for digits in ("4242 4242", "42424242"))
    assert "**** **** **** ****" in bodies[0]
    assert all(labels.order_id in each for each in bodies)
    assert bodies[2].encode() == plain


@pytest.mark.parametrize("size", [100, 900_000])
async def test_a_large_event_keeps_nobody_waiting(
    merchant: Merchant, processors: Processors, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """To mask the digits of one that is made of them takes a second."""
    seen: set[tuple[str, bool]] = set()

    def watch(module: ModuleType, name: str) -> None:
        read = getattr(module, name)

        def watched(*given: Any) -> Any:
            seen.add((name, threading.current_thread() is threading.main_thread()))
            return read(*given)

        monkeypatch.setattr(module, name, watched)

    watch(processor_webhooks, "_parsed")
    watch(processor_webhooks, "_stored_body")
    watch(stripe_events, "text")
    error = {"code": "no", "message": "4 " * (size // 2)}
    event = stripe_payment("payment_failed", await paying(merchant), last_payment_error=error)
    assert (await processors.stripe(event)).status == 200
    assert seen == {(name, size == 100) for name in ("_parsed", "_stored_body", "text")}


async def test_card_numbers_are_masked_in_what_is_recorded(
    merchant: Merchant, processors: Processors, pool: AsyncConnectionPool
) -> None:
    labels = await paying(merchant)
    error = {"code": "card_declined", "message": "\uff14242 4242-4242.4242 was declined" + " " * 946 + CARD}
    await processors.stripe(
        stripe_payment("payment_failed", labels, last_payment_error=error, latest_charge=f"ch_{CARD}")
    )
    assert (await order_of(merchant, labels))["lastError"]["message"].startswith(
        "**** ****-****.**** was declined "
    )
    async with pool.connection() as connection:
        states = await (await connection.execute("SELECT state FROM stored_events")).fetchall()
    assert not any(shows_card(bytes(row[0])) for row in states)


async def test_a_signed_body_that_is_no_event_is_refused(
    merchant: Merchant, processors: Processors, pool: AsyncConnectionPool
) -> None:
    path = f"/webhooks/stripe/{merchant.id}"
    deep = b'{"id": "e", "type": "x", "data": {"object": {"a": ' + b"[" * 900 + b"]" * 900 + b"}}}"
    for body in (
        b"",
        b"no JSON",
        b"[]",
        b"{}",
        b'{"id": 5, "type": "x", "data": {"object": {}}}',
        b"\xff",
        deep,
    ):
        answer = await processors.stripe(body, path=path)
        assert answer.status == 400
    for odd in (b"5", b'{"event": null}'):
        assert (await processors.razorpay(odd, path=f"/webhooks/razorpay/{merchant.id}")).status == 400
    for hollow in (
        {"event": "payment.captured", "payload": []},
        {"event": "payment.captured", "payload": {"payment": {"entity": {"notes": [], "amount": "5"}}}},
        {"event": "refund.processed", "payload": {"refund": 5}},
    ):
        assert (await processors.razorpay(hollow, path=f"/webhooks/razorpay/{merchant.id}")).status == 200
    assert {row[1] for row in await kept(pool)} == {"unknown_order"}


# -- what follows


async def test_a_payment_that_failed_can_be_made_again_and_late_news_of_it_change_nothing(
    merchant: Merchant, processors: Processors
) -> None:
    labels = await paying(merchant)
    error = {"code": "card_declined", "message": "Your card was declined.\0"}
    await processors.stripe(stripe_payment("payment_failed", labels, last_payment_error=error))
    order = await order_of(merchant, labels)
    assert order["status"] == "failed"
    assert order["lastError"] == {"code": "card_declined", "message": "Your card was declined."}
    await merchant.shop.post(f"/v1/orders/{labels.order_id}/pay", {"processor": "stripe"})
    await processors.stripe(stripe_payment("payment_failed", labels))
    await processors.stripe(stripe_payment("canceled", labels))
    assert (await order_of(merchant, labels))["status"] == "processing"
    await processors.stripe(_renamed(labels, "pi_2"))
    order = await order_of(merchant, labels)
    assert (order["status"], order["attempt"], order["processorOrderId"]) == ("captured", 2, "pi_2")


def _renamed(labels: Labels, reference: str) -> dict[str, Any]:
    event = stripe_payment("succeeded", labels)
    event["data"]["object"] |= {"id": reference, "latest_charge": None}
    return event


@pytest.mark.parametrize("processor", ["stripe", "razorpay"])
async def test_an_event_that_names_no_order_is_of_the_order_with_its_reference_once_tables_know_it(
    merchant: Merchant, processors: Processors, pool: AsyncConnectionPool, settings: Settings, processor: str
) -> None:
    """Of an earlier attempt, too. Until then the processor is told to tell it again: it would not by itself."""
    labels = await paying(merchant, processor)
    if processor == "stripe":
        failed = stripe_payment("payment_failed", labels)
        captured = stripe_payment("succeeded", labels)
        captured["data"]["object"] |= {"metadata": {}, "latest_charge": None}  # one reference is enough
    else:
        failed = razorpay_payment("failed", labels)
        captured = razorpay_payment("captured", labels)
        captured["payload"]["payment"]["entity"]["notes"] = []
    tell = getattr(processors, processor)
    assert (await tell(failed)).status == 200
    await merchant.shop.post(f"/v1/orders/{labels.order_id}/pay", {"processor": processor})
    path = f"/webhooks/{processor}/{merchant.id}"
    early = await tell(captured, path=path)
    assert (early.status, early.code, early.headers["Retry-After"]) == (503, "unavailable", "2")
    assert len(await kept(pool)) == 1
    await project_everything(settings.database_url.get_secret_value())
    assert (await tell(captured, path=path)).status == 200
    order = await order_of(merchant, labels)
    assert (order["status"], order["amountCaptured"]) == ("captured", 1_000)


async def test_a_reference_that_another_merchant_has_too_is_of_the_merchants_own_order(
    api: Api, merchant: Merchant, processors: Processors, settings: Settings
) -> None:
    theirs = await paying(await merchant_with_secrets(api))
    assert (await processors.stripe(stripe_payment("succeeded", theirs))).status == 200
    labels = await paying(merchant)
    assert (await processors.stripe(stripe_payment("payment_failed", labels))).status == 200
    await merchant.shop.post(f"/v1/orders/{labels.order_id}/pay", {"processor": "stripe"})
    await project_everything(settings.database_url.get_secret_value())
    captured = stripe_payment("succeeded", labels, metadata={})
    assert (await processors.stripe(captured, path=f"/webhooks/stripe/{merchant.id}")).status == 200
    assert (await order_of(merchant, labels))["status"] == "captured"


async def test_what_the_customer_has_to_do_reaches_the_order(
    merchant: Merchant, processors: Processors
) -> None:
    labels = await paying(merchant)
    action = {"type": "redirect_to_url", "redirect_to_url": {"url": "https://bank.example/3ds"}}
    await processors.stripe(stripe_payment("requires_action", labels, next_action=action))
    assert (await order_of(merchant, labels))["status"] == "requires_action"


async def test_an_authorization_waits_for_its_capture_and_a_part_may_be_captured_at_the_processor(
    merchant: Merchant, processors: Processors
) -> None:
    labels = await paying(merchant, capture="manual")
    await processors.stripe(stripe_payment("amount_capturable_updated", labels))
    assert (await order_of(merchant, labels))["status"] == "authorized"
    await processors.stripe(stripe_payment("succeeded", labels, amount_received=600))
    order = await order_of(merchant, labels)
    assert (order["status"], order["amountCaptured"]) == ("captured", 600)


async def test_what_razorpay_authorizes_to_capture_it_by_itself_is_processing(
    merchant: Merchant, processors: Processors
) -> None:
    labels = await paying(merchant, "razorpay")
    await processors.razorpay(razorpay_payment("authorized", labels))
    order = await order_of(merchant, labels)
    assert (order["status"], order["processorOrderId"]) == ("processing", "order_1")


async def test_what_contradicts_the_order_is_recorded_and_not_believed(
    merchant: Merchant, processors: Processors, pool: AsyncConnectionPool
) -> None:
    labels = await paying(merchant)
    untrue: list[dict[str, Any]] = [{"currency": "eur"}]
    untrue += [{"amount_received": each} for each in (1_001, 0, -1, 1_000.5, "1000", True, 10**17)]
    for fields in untrue:
        await processors.stripe(stripe_payment("succeeded", labels, **fields))
    assert (await order_of(merchant, labels))["status"] == "processing"
    await processors.stripe(stripe_payment("succeeded", labels))
    await processors.stripe(charge_refunded(labels, 1_001))
    await processors.stripe(charge_refunded(labels, 5, currency="eur"))
    order = await order_of(merchant, labels)
    assert (order["status"], order["amountRefunded"]) == ("captured", 0)
    assert [row[1] for row in await kept(pool)] == [
        *["contradiction"] * len(untrue),
        "applied",
        *["contradiction"] * 2,
    ]


async def test_a_payment_that_the_order_does_not_have_is_not_taken_for_one_that_it_has(
    merchant: Merchant, processors: Processors, pool: AsyncConnectionPool
) -> None:
    unpaid = Labels(merchant.id, await merchant.order())
    await processors.stripe(stripe_payment("succeeded", unpaid))
    assert (await order_of(merchant, unpaid))["status"] == "pending"
    labels = await paying(merchant)
    await processors.stripe(stripe_payment("requires_action", labels))
    await processors.stripe(_renamed(labels, "pi_of_something_else"))
    assert (await order_of(merchant, labels))["status"] == "requires_action"
    assert [row[1] for row in await kept(pool)] == ["unmatched", "applied", "unmatched"]


# -- refunds


@pytest.mark.parametrize(
    ("version", "counted"),
    [("2020-08-27", 400), ("2025-02-24.acacia", 400), (None, 400), ("2025-03-31.basil", 0)],
)
@pytest.mark.parametrize("release_first", [False, True])
async def test_what_a_partial_capture_releases_is_no_refund(
    merchant: Merchant, processors: Processors, version: str | None, counted: int, release_first: bool
) -> None:
    """Earlier versions of Stripe's API count it as one, and report it."""
    labels = await paying(merchant, capture="manual")
    await processors.stripe(stripe_payment("amount_capturable_updated", labels))
    release = stripe_refund("re_0", 400, metadata=labels.json) | {"api_version": version}
    before, after = ([release], []) if release_first else ([], [release])
    for event in [*before, stripe_payment("succeeded", labels, amount_received=600), *after]:
        await processors.stripe(event)
    for refunded, status in [(0, "captured"), (100, "partially_refunded"), (600, "refunded")]:
        event = charge_refunded(labels, counted + refunded, amount_captured=600) | {"api_version": version}
        await processors.stripe(event)
        order = await order_of(merchant, labels)
        assert (order["status"], order["amountCaptured"], order["amountRefunded"]) == (status, 600, refunded)


@pytest.mark.parametrize(
    ("version", "amounts", "refunded"),
    [
        ("2020-08-27", {"amount": 1_000, "amount_captured": 600, "amount_refunded": 399}, 399),
        ("2025-03-31.basil", {"amount": 1_000, "amount_captured": 600, "amount_refunded": 700}, 300),
        ("2020-08-27", {"amount": 1_000, "captured": False, "amount_refunded": 1_000}, 0),
        ("2020-08-27", {"amount": 1_000, "amount_captured": 1_000, "amount_refunded": 300}, 300),
        ("2020-08-27", {"amount": 1_000, "amount_captured": 600, "amount_refunded": "400"}, 10**15 - 400),
        ("2020-08-27", {"amount": 1_000, "amount_refunded": 400}, 400),
        ("2020-08-27", {"amount": 1_000, "amount_captured": 600}, None),
    ],
)
def test_where_amounts_show_whether_a_release_counts_the_version_does_not_matter(
    version: str, amounts: dict[str, Any], refunded: int | None
) -> None:
    """A charge may be captured by another version than it is written in."""
    assert stripe_events.refunded_sum(amounts, version=version) == refunded


async def test_a_refund_of_as_much_as_a_partial_capture_released_counts_once(
    merchant: Merchant, processors: Processors
) -> None:
    labels = await paying(merchant, capture="manual")
    await processors.stripe(stripe_payment("amount_capturable_updated", labels))
    await processors.stripe(stripe_payment("succeeded", labels, amount_received=600))
    made = [
        stripe_refund("re_1", 400, metadata=labels.json),
        charge_refunded(labels, 800, amount_captured=600),
    ]
    for event in [*made, *reversed(made)]:
        assert (await processors.stripe(event)).status == 200
    assert await refunds_of(merchant, labels) == [(400, "success")]
    assert (await order_of(merchant, labels))["amountRefunded"] == 400
    await processors.stripe(stripe_refund("re_1", 400, status="failed", metadata=labels.json))
    order = await order_of(merchant, labels)
    assert (order["status"], order["amountRefunded"]) == ("captured", 0)


@pytest.mark.parametrize("captured", [0, None])
async def test_what_a_cancellation_releases_is_no_refund(
    merchant: Merchant, processors: Processors, captured: int | None
) -> None:
    labels = await paying(merchant, capture="manual")
    await processors.stripe(stripe_payment("amount_capturable_updated", labels))
    event = charge_refunded(labels, 1_000, amount_captured=captured, captured=False)
    await processors.stripe(event | {"api_version": "2020-08-27"})
    assert (await trail(merchant, labels))[-1] == "payment.authorized"  # nothing new was said
    await processors.stripe(stripe_payment("canceled", labels))
    assert (await order_of(merchant, labels))["status"] == "failed"


async def test_refunds_in_the_dashboard_of_stripe_appear_once(
    merchant: Merchant, processors: Processors
) -> None:
    labels = await paying(merchant)
    await processors.stripe(stripe_payment("succeeded", labels))
    for total in (300, 300, 500, 300):
        await processors.stripe(charge_refunded(labels, total))
    await processors.stripe(stripe_refund("re_1", 300, metadata=labels.json))
    await processors.stripe(stripe_refund("re_2", 200, metadata=labels.json))
    assert sorted(await refunds_of(merchant, labels)) == [(200, "success"), (300, "success")]
    order = await order_of(merchant, labels)
    assert (order["status"], order["amountRefunded"]) == ("partially_refunded", 500)
    await processors.stripe(charge_refunded(labels, 1_000))
    assert (await order_of(merchant, labels))["status"] == "refunded"


async def test_a_refund_that_names_no_order_is_found_by_its_payment(
    merchant: Merchant, processors: Processors, settings: Settings
) -> None:
    labels = await paying(merchant)
    await processors.stripe(stripe_payment("succeeded", labels))
    await project_everything(settings.database_url.get_secret_value())
    answer = await processors.stripe(stripe_refund("re_1", 300), path=f"/webhooks/stripe/{merchant.id}")
    assert answer.status == 200
    assert await refunds_of(merchant, labels) == [(300, "success")]


async def test_a_refund_that_started_here_is_not_counted_again(
    merchant: Merchant, processors: Processors
) -> None:
    labels = await paying(merchant)
    await processors.stripe(stripe_payment("succeeded", labels))
    asked = await merchant.shop.post(f"/v1/orders/{labels.order_id}/refund", {"amount": 300})
    await processors.stripe(charge_refunded(labels, 300))
    assert await refunds_of(merchant, labels) == [(300, "pending")]
    named = labels.json | {"refund_id": asked.json["refundId"]}
    await processors.stripe(stripe_refund("re_1", 300, metadata=named))
    assert await refunds_of(merchant, labels) == [(300, "success")]
    await processors.stripe(charge_refunded(labels, 450))
    assert sorted(await refunds_of(merchant, labels)) == [(150, "success"), (300, "success")]


async def test_refunds_of_razorpay_appear_once_and_a_failed_one_frees_its_amount(
    merchant: Merchant, processors: Processors
) -> None:
    labels = await paying(merchant, "razorpay")
    await processors.razorpay(razorpay_payment("captured", labels))
    asked = await merchant.shop.post(f"/v1/orders/{labels.order_id}/refund", {"amount": 400})
    named = labels.json | {"refund_id": asked.json["refundId"]}
    failed = razorpay_refund("failed", labels, reference="rfnd_1", amount=400, total=0, notes=named)
    made = razorpay_refund("processed", labels, reference="rfnd_2", amount=700, total=700)
    for event in (failed, made, failed, made):
        assert (await processors.razorpay(event)).status == 200
    assert sorted(await refunds_of(merchant, labels)) == [(400, "failed"), (700, "success")]
    order = await order_of(merchant, labels)
    assert (order["status"], order["amountRefunded"]) == ("partially_refunded", 700)


async def test_a_refund_that_comes_back_was_not_given_and_can_be_asked_for_again(
    merchant: Merchant, processors: Processors
) -> None:
    labels = await paying(merchant)
    await processors.stripe(stripe_payment("succeeded", labels))
    asked = await merchant.shop.post(f"/v1/orders/{labels.order_id}/refund")
    assert asked.json["amount"] == 1_000
    named = labels.json | {"refund_id": asked.json["refundId"]}
    await processors.stripe(stripe_refund("re_1", 1_000, metadata=named))
    assert (await order_of(merchant, labels))["status"] == "refunded"
    failed = stripe_refund(
        "re_1", 1_000, metadata=named, status="failed", failure_reason="expired_or_canceled_card"
    )
    for _ in range(2):
        assert (await processors.stripe(failed)).status == 200
    order = await order_of(merchant, labels)
    assert (order["status"], order["amountRefunded"]) == ("captured", 0)
    assert order["lastError"] == {"code": "expired_or_canceled_card", "message": None}
    transactions = (await merchant.shop.get(f"/v1/orders/{labels.order_id}/transactions")).json
    assert [(each["type"], each["status"], each["processorTransactionId"]) for each in transactions] == [
        ("refund", "failed", "re_1"),
        ("capture", "success", "ch_1"),
    ]
    trail = (await merchant.shop.get(f"/v1/orders/{labels.order_id}/events")).json
    assert [each["type"] for each in trail][-2:] == ["order.processor_event_received", "refund.reversed"]
    again = await merchant.shop.post(f"/v1/orders/{labels.order_id}/refund")
    assert (again.status, again.json["amount"]) == (201, 1_000)
