"""A request sent twice under one Idempotency-Key is done once and answered twice."""

import asyncio
import threading
from uuid import UUID

import pytest
from aiohttp.test_utils import make_mocked_request
from calling import Api, Merchant
from multidict import CIMultiDict
from psycopg_pool import AsyncConnectionPool

from payloops.commands.cipher import Cipher
from payloops.commands.client_secrets import ClientSecrets
from payloops.commands.update_order_status import update_order_status
from payloops.events.event_store import EventStore
from payloops.events.metadata import Metadata
from payloops.http import endpoint
from payloops.http.bodies import fingerprint
from payloops.http.problems import Problem
from payloops.settings import Settings


async def count(pool: AsyncConnectionPool, topic: str) -> int:
    async with pool.connection() as connection:
        row = await (
            await connection.execute("SELECT count(*) FROM stored_events WHERE topic = %s", (topic,))
        ).fetchone()
    assert row is not None
    return int(row[0])


async def test_the_second_request_gets_the_first_ones_answer(
    merchant: Merchant, pool: AsyncConnectionPool
) -> None:
    first = await merchant.shop.post("/v1/orders", {"amount": 1, "currency": "EUR"}, key="one")
    again = await merchant.shop.post("/v1/orders", {"currency": "EUR", "amount": 1}, key="one")
    assert (first.status, again.status, again.raw) == (201, 201, first.raw)
    assert again.headers["Idempotent-Replayed"] == "true"
    assert again.headers["Content-Type"] == first.headers["Content-Type"]
    assert "Idempotent-Replayed" not in first.headers
    assert await count(pool, "order.created") == 1


async def test_many_at_once_do_it_once(merchant: Merchant, pool: AsyncConnectionPool) -> None:
    answers = await asyncio.gather(
        *(merchant.shop.post("/v1/orders", {"amount": 1}, key="one") for _ in range(30))
    )
    assert await count(pool, "order.created") == 1
    done = [answer for answer in answers if answer.status == 201]
    assert len({answer.raw for answer in done}) == 1
    for answer in answers:
        if answer.status != 201:
            assert (answer.status, answer.code) == (409, "idempotency_in_progress")
            assert answer.headers["Retry-After"]


async def test_a_refund_sent_twice_gives_the_money_back_once(
    merchant: Merchant, store: EventStore, by: Metadata
) -> None:
    """There is money left for a second one: nothing but the key keeps it from being made."""
    order_id = await merchant.order(amount=1_000)
    await merchant.shop.post(f"/v1/orders/{order_id}/pay")
    await update_order_status(store, order_id=UUID(order_id), status="captured", by=by)
    first, again = [
        await merchant.shop.post(f"/v1/orders/{order_id}/refund", {"amount": 300}, key="back")
        for _ in range(2)
    ]
    assert (first.status, again.status, again.raw) == (201, 201, first.raw)
    assert again.headers["Idempotent-Replayed"] == "true"
    assert await count(store.pool, "refund.requested") == 1


async def test_what_was_asked_for_before_is_answered_once_and_for_all_too(
    merchant: Merchant, store: EventStore
) -> None:
    """A second cancellation records nothing: its answer is stored all the same."""
    order_id = await merchant.order()
    await merchant.shop.post(f"/v1/orders/{order_id}/pay")
    _, first, again = [
        await merchant.shop.post(f"/v1/orders/{order_id}/cancel", key=key)
        for key in ("one", "another", "another")
    ]
    assert (first.status, again.status, again.raw) == (200, 200, first.raw)
    assert again.headers["Idempotent-Replayed"] == "true"
    assert await count(store.pool, "payment.cancel_requested") == 1


async def test_another_request_under_the_same_key_is_refused(merchant: Merchant) -> None:
    order_id = await merchant.order()
    await merchant.shop.post("/v1/orders", {"amount": 1}, key="one")
    for path, body in (("/v1/orders", {"amount": 2}), (f"/v1/orders/{order_id}/pay", None)):
        answer = await merchant.shop.post(path, body, key="one")
        assert (answer.status, answer.code) == (409, "idempotency_mismatch")


async def test_a_refund_of_one_order_is_no_answer_for_another(merchant: Merchant) -> None:
    """Under the same key and with the same body, as a merchant's mistake may have it."""
    first, second = await merchant.order(), await merchant.order()
    bodies = [None, {"amount": 300}]
    for number, body in enumerate(bodies):
        key = str(number)
        await merchant.shop.post(f"/v1/orders/{first}/refund", body, key=key)
        for path in (f"{second}/refund", f"{first}/pay", f"{first}/refund?a=1"):
            answer = await merchant.shop.post(f"/v1/orders/{path}", body, key=key)
            assert (answer.status, answer.code) in {
                *((409, "idempotency_mismatch"), (400, "validation_error")),
            }
            assert "Idempotent-Replayed" not in answer.headers


async def test_a_key_is_its_merchants_own(api: Api, merchant: Merchant) -> None:
    other = await api.merchant()
    first = await merchant.shop.post("/v1/orders", {"amount": 1}, key="one")
    second = await other.shop.post("/v1/orders", {"amount": 2}, key="one")
    assert (first.status, second.status) == (201, 201)
    assert first.json["id"] != second.json["id"]


async def test_a_request_that_did_not_fit_leaves_the_key_free(merchant: Merchant) -> None:
    wrong = await merchant.shop.post("/v1/orders", {"amount": 0}, key="one")
    right = await merchant.shop.post("/v1/orders", {"amount": 1}, key="one")
    assert (wrong.status, right.status) == (400, 201)


async def test_a_definite_refusal_is_the_answer_from_then_on(merchant: Merchant) -> None:
    order_id = await merchant.order()
    refused = await merchant.shop.post(f"/v1/orders/{order_id}/refund", key="one")
    assert (refused.status, refused.code) == (400, "invalid_status")
    again = await merchant.shop.post(f"/v1/orders/{order_id}/refund", key="one")
    assert (again.status, again.raw) == (refused.status, refused.raw)
    assert again.headers["Idempotent-Replayed"] == "true"
    assert again.headers["Content-Type"] == "application/problem+json"


@pytest.mark.parametrize("id", ["01900000-0000-7000-8000-00000000dead", "no-uuid", "%00", "{x}"])
async def test_an_unknown_order_and_no_id_at_all_are_answered_alike(merchant: Merchant, id: str) -> None:
    first = await merchant.shop.post(f"/v1/orders/{id}/pay", key="one")
    again = await merchant.shop.post(f"/v1/orders/{id}/pay", key="one")
    assert (first.status, first.code, again.raw) == (404, "not_found", first.raw)
    assert again.headers["Idempotent-Replayed"] == "true"


async def test_a_key_that_does_not_fit_is_refused(subtests: pytest.Subtests, merchant: Merchant) -> None:
    for key in ["", "x" * 256, "ü", "a\tb", "4242424242424242"]:
        with subtests.test(key=key):
            answer = await merchant.shop.post("/v1/orders", {"amount": 1}, key=key)
            assert answer.fields == {"Idempotency-Key"}


def test_two_keys_are_none() -> None:
    headers = CIMultiDict([("Idempotency-Key", "one"), ("Idempotency-Key", "one")])
    with pytest.raises(Problem) as refusal:
        endpoint._idempotency_key(make_mocked_request("POST", "/v1/orders", headers=headers))
    assert [error.field for error in refusal.value.errors or ()] == ["Idempotency-Key"]


async def test_a_key_may_be_any_printable_text(merchant: Merchant) -> None:
    for key in ("x" * 255, "order 7 / second try (~!)"):
        assert (await merchant.shop.post("/v1/orders", {"amount": 1}, key=key)).status == 201


async def test_a_failed_append_leaves_the_key_free(
    settings: Settings, merchant: Merchant, pool: AsyncConnectionPool
) -> None:
    async with pool.connection() as connection:
        await connection.execute("ALTER TABLE stored_events RENAME TO gone")
        failed = await merchant.shop.post("/v1/orders", {"amount": 1}, key="one")
        await connection.execute("ALTER TABLE gone RENAME TO stored_events")
    again = await merchant.shop.post("/v1/orders", {"amount": 1}, key="one")
    assert (failed.status >= 500, again.status) == (True, 201)
    assert await count(pool, "order.created") == 1


async def test_a_payment_that_was_waited_for_is_replayed_as_it_was_answered(
    merchant: Merchant, store: EventStore, by: Metadata
) -> None:
    order_id = await merchant.order()
    paying = asyncio.create_task(
        merchant.shop.post(f"/v1/orders/{order_id}/pay", key="one", Prefer="wait=20")
    )
    await merchant.order_is(order_id, "processing")
    from uuid import UUID  # noqa: PLC0415

    await update_order_status(store, order_id=UUID(order_id), status="captured", attempt=1, by=by)
    paid = await paying
    assert (paid.json["status"], paid.headers["Preference-Applied"]) == ("captured", "wait=20")
    again = await merchant.shop.post(f"/v1/orders/{order_id}/pay", key="one", Prefer="wait=20")
    assert again.raw == paid.raw


async def test_a_client_secret_is_not_stored_with_the_answer_and_yet_replayed(
    merchant: Merchant, settings: Settings, store: EventStore, by: Metadata
) -> None:
    order_id = await merchant.order()
    path = f"/v1/orders/{order_id}/pay"
    paying = asyncio.create_task(merchant.shop.post(path, key="once", Prefer="wait=20"))
    await merchant.order_is(order_id, "processing")
    cipher = Cipher(secret=settings.encryption_key.get_secret_value())
    await ClientSecrets(store.pool, cipher).keep(order_id=UUID(order_id), attempt=1, secret="for the browser")
    await update_order_status(
        store, order_id=UUID(order_id), status="requires_action", redirect_url="https://bank.example", by=by
    )
    first = await paying
    assert (first.json["status"], first.json["clientSecret"]) == ("requires_action", "for the browser")
    again = await merchant.shop.post(path, key="once", Prefer="wait=20")
    assert (again.json, again.headers["Idempotent-Replayed"]) == (first.json, "true")
    async with store.pool.connection() as connection:
        cursor = await connection.execute("SELECT response_body FROM idempotency_keys")
        bodies = [bytes(body) for (body,) in await cursor.fetchall()]
    assert all(b"for the browser" not in body for body in bodies)


@pytest.mark.parametrize("kib", [1, 900])
async def test_a_large_body_keeps_nobody_waiting(
    merchant: Merchant, monkeypatch: pytest.MonkeyPatch, kib: int
) -> None:
    threads: set[bool] = set()

    def seen(method: str, path: str, raw: bytes) -> bytes:
        threads.add(threading.current_thread() is threading.main_thread())
        return fingerprint(method, path, raw)

    monkeypatch.setattr(endpoint, "fingerprint", seen)
    padding = " " * (kib * 1024)
    for _ in range(2):
        answer = await merchant.shop.call(
            "POST",
            "/v1/orders",
            data=f'{{"amount": {padding} 4999}}'.encode(),
            headers={"Idempotency-Key": "large"},
        )
        assert answer.status == 201, answer.raw
    assert threads == {kib == 1}
