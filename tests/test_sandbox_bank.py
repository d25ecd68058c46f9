"""The sandbox's bank: a customer's decision is on the books, then the merchant is told as a processor would tell it."""

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from uuid import UUID

import aiohttp
import pytest
import structlog
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from receiving import Endpoint, receiving
from signing import RAZORPAY_SECRET, STRIPE_SECRET, razorpay_header
from uuid_utils.compat import uuid7

from payloops.commands.authenticate_webhook import is_signed_by_razorpay, is_signed_by_stripe
from payloops.events.event_store import EventStore
from payloops.events.orders import References
from payloops.events.timestamps import utc_now
from payloops.http.razorpay_events import razorpay_event, razorpay_labels
from payloops.http.stripe_events import stripe_event, stripe_labels
from payloops.sandbox import ledger, merchant_notifier
from payloops.sandbox.bank import Bank
from payloops.sandbox.ledger import Charge
from payloops.sandbox.merchant_notifier import MerchantNotifier, open_notifier

MERCHANT = uuid7()
SHOP = "https://shop.example/return?a=1&b=2"
FORM = {"Content-Type": "application/x-www-form-urlencoded"}


@dataclass
class Street:
    """A bank, the API that it tells, and a customer's browser without a face. `secrets`: by processor."""

    pool: ledger.Pool
    api: Endpoint
    notifier: MerchantNotifier
    visitor: TestClient[web.Request, web.Application]
    secrets: dict[str, str] = field(
        default_factory=lambda: {"stripe": STRIPE_SECRET, "razorpay": RAZORPAY_SECRET}
    )

    async def charge(
        self, processor: str = "stripe", *, manual: bool = False, back: str | None = SHOP
    ) -> str:
        """A charge that waits for its customer; the path of the bank's page for it."""
        charge, _ = await ledger.charge(
            self.pool,
            order_id=str(uuid7()),
            attempt=2,
            processor=processor,
            amount=4_999,
            currency="INR" if processor == "razorpay" else "USD",
            token="tok_3ds",
            manual_capture=manual,
            merchant_id=str(MERCHANT),
            return_url=back,
            bank_url="http://bank.example",
        )
        assert charge.redirect_url is not None
        assert charge.redirect_url.startswith("http://bank.example/authenticate/")
        return charge.redirect_url.removeprefix("http://bank.example")

    async def decides(self, path: str, decision: str, **headers: str) -> int:
        answer = await self.visitor.post(
            path, data=f"decision={decision}", headers={**FORM, **headers}, allow_redirects=False
        )
        if answer.status == 303:
            assert answer.headers["Location"] == path
        return answer.status

    async def sees(self, path: str) -> str:
        answer = await self.visitor.get(path)
        assert answer.status == 200
        assert "form-action 'self'" in answer.headers["Content-Security-Policy"]
        return await answer.text()

    async def of(self, path: str) -> Charge:
        found = await ledger.find_action(self.pool, processor_order_id=path.rpartition("/")[2])
        assert found is not None
        return found


@pytest.fixture
async def street(store: EventStore) -> AsyncIterator[Street]:
    await ledger.create_schema(store.pool)
    secrets: dict[str, str] = {}

    async def webhook_secret(merchant_id: UUID, processor: str) -> str | None:
        assert merchant_id == MERCHANT
        return secrets.get(processor)

    async with (
        receiving() as api,
        open_notifier(
            pool=store.pool, url=api.url.removesuffix("/hooks"), webhook_secret=webhook_secret
        ) as notifier,
        TestClient(TestServer(Bank(pool=store.pool, notifier=notifier).app())) as visitor,
    ):
        street = Street(pool=store.pool, api=api, notifier=notifier, visitor=visitor)
        secrets |= street.secrets
        street.secrets = secrets
        yield street


async def test_an_approval_is_told_as_stripe_would_and_leads_back(street: Street) -> None:
    path = await street.charge()
    page = await street.sees(path)
    assert "$49.99" in page
    assert await street.decides(path, "approve") == 303
    [told] = await street.api.has(1)
    assert told.path == "/webhooks/stripe"
    assert is_signed_by_stripe(
        told.body, signature=told.headers["Stripe-Signature"], secret=STRIPE_SECRET, at=utc_now()
    )
    charge = await street.of(path)
    assert (charge.status, charge.amount_captured) == ("captured", 4_999)
    event = stripe_event(told.json)
    assert event is not None
    assert (event.type, event.outcome, event.amount, event.currency) == (
        *("payment_intent.succeeded", "captured", 4_999, "usd"),
    )
    assert event.references == References.of(charge)
    assert stripe_labels(told.json) == {
        "merchant_id": str(MERCHANT),
        "order_id": charge.order_id,
        "attempt": "2",
    }
    done = await street.sees(path)
    assert 'content="1; url=https://shop.example/return?a=1&amp;b=2"' in done
    assert "<form" not in done


async def test_a_refusal_is_told_as_razorpay_would(street: Street) -> None:
    path = await street.charge("razorpay")
    assert await street.decides(path, "decline") == 303
    [told] = await street.api.has(1)
    assert told.path == "/webhooks/razorpay"
    signature = told.headers["X-Razorpay-Signature"]
    assert signature == razorpay_header(told.body)
    assert is_signed_by_razorpay(told.body, signature=signature, secret=RAZORPAY_SECRET, at=utc_now())
    assert told.headers["X-Razorpay-Event-Id"]
    event = razorpay_event(told.json)
    assert event is not None
    assert (event.type, event.outcome, event.failure.code) == (
        *("payment.failed", "failed", "authentication_failed"),
    )
    assert razorpay_labels(told.json)["order_id"] == (await street.of(path)).order_id
    assert (await street.of(path)).status == "declined"


@pytest.mark.parametrize(
    ("processor", "kind"),
    [("stripe", "payment_intent.amount_capturable_updated"), ("razorpay", "payment.authorized")],
)
async def test_where_capture_is_manual_the_money_is_only_held(
    street: Street, processor: str, kind: str
) -> None:
    path = await street.charge(processor, manual=True)
    await street.decides(path, "approve")
    [told] = await street.api.has(1)
    assert kind in told.body.decode()
    assert ((await street.of(path)).status, (await street.of(path)).amount_captured) == ("authorized", 0)


async def test_the_first_decision_counts_however_often_and_whatever_is_sent(street: Street) -> None:
    path = await street.charge()
    await asyncio.gather(*(street.decides(path, "approve") for _ in range(5)))
    assert await street.decides(path, "decline") == 303
    assert (await street.of(path)).status == "captured"
    assert {told.json["id"] for told in street.api.received} == {
        f"evt_{(await street.of(path)).processor_order_id}_captured"
    }


async def test_a_payment_that_was_given_up_can_not_be_approved_any_more(street: Street) -> None:
    path = await street.charge()
    charge = await street.of(path)
    await ledger.cancel_charge(
        street.pool, order_id=charge.order_id, attempt=2, processor="stripe", amount=4_999, currency="USD"
    )
    assert await street.decides(path, "approve") == 303
    assert "Too late" in await street.sees(path)
    assert ((await street.of(path)).status, street.api.received) == ("cancelled", [])


async def test_what_does_not_arrive_is_told_again_by_whichever_process_comes_to_it(
    street: Street, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the browser is not sent back before: the shop would only send it here again."""
    street.api.answer = lambda _: 503
    path = await street.charge()
    assert await street.decides(path, "approve") == 303
    page = await street.sees(path)
    assert "has not been told yet" in page
    assert 'http-equiv="refresh" content="2"' in page
    assert SHOP.partition("?")[0] not in page
    street.api.answer = lambda _: 200
    monkeypatch.setattr(merchant_notifier, "PAUSE_SECONDS", 0.05)
    async with retrying(street):
        [_, told, *_] = await street.api.has(2)
    assert told.json["id"].endswith("_captured")
    assert "You are on your way back" in await street.sees(path)
    async with retrying(street):
        await asyncio.sleep(0.3)
    assert len(street.api.received) == 2


@contextlib.asynccontextmanager
async def retrying(street: Street) -> AsyncIterator[None]:
    stop = asyncio.Event()
    task = asyncio.create_task(street.notifier.run(stop=stop))
    yield
    async with asyncio.timeout(20):
        while await ledger.unreported_decisions(street.pool, max_attempts=99, limit=1):
            await asyncio.sleep(0.02)
    stop.set()
    await task


async def test_retrying_ends_after_so_many_attempts(street: Street, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merchant_notifier, "PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(merchant_notifier, "MAX_ATTEMPTS", 3)
    street.api.answer = lambda _: 400
    path = await street.charge()
    await street.decides(path, "approve")
    stop = asyncio.Event()
    task = asyncio.create_task(street.notifier.run(stop=stop))
    async with asyncio.timeout(20):
        while (await street.of(path)).tellings < 3:
            await asyncio.sleep(0.02)
    stop.set()
    await task
    assert await ledger.unreported_decisions(street.pool, max_attempts=3, limit=1) == []
    assert ((await street.of(path)).tellings, (await street.of(path)).told_at) == (3, None)


async def test_without_a_webhook_secret_nobody_is_told_and_the_page_says_so(street: Street) -> None:
    street.secrets.clear()
    path = await street.charge()
    with structlog.testing.capture_logs() as lines:
        await street.decides(path, "approve")
    assert "no webhook secret" in await street.sees(path)
    assert street.api.received == []
    assert [line["event"] for line in lines] == ["sandbox.no_webhook_secret"]


async def test_nothing_else_is_decided_here(street: Street) -> None:
    path = await street.charge(back=None)
    for decision in ("", "maybe", "approve&decision=decline"):
        if "&" not in decision:
            assert await street.decides(path, decision) == 400
    assert await street.decides(path, "approve", **{"Sec-Fetch-Site": "cross-site"}) == 403
    assert (await street.of(path)).status == "requires_action"
    captured, _ = await ledger.charge(
        street.pool,
        order_id=str(uuid7()),
        attempt=1,
        processor="stripe",
        amount=1,
        currency="USD",
        token=None,
        manual_capture=False,
    )
    for unknown in (
        f"/authenticate/{captured.processor_order_id}",
        "/authenticate/x",
        "/nowhere",
        "/static/x",
    ):
        answer = await street.visitor.get(unknown)
        assert (answer.status, answer.content_type) == (404, "text/html")
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
    await street.decides(path, "approve")
    assert "You can close this page" in await street.sees(path)


async def test_the_page_is_made_of_files_that_are_served_there(street: Street) -> None:
    page = await street.sees(await street.charge())
    named = re.findall(r'(?:src|href)="(/static/[^"]+)"', page)
    assert named
    for path in named:
        assert (await street.visitor.get(path)).status == 200


async def test_secrets_are_in_no_line_of_the_log(street: Street) -> None:
    street.api.answer = lambda _: 500
    with structlog.testing.capture_logs() as lines:
        await street.decides(await street.charge(), "approve")
    assert [line["event"] for line in lines] == ["sandbox.webhook_refused"]
    assert STRIPE_SECRET not in json.dumps(lines, default=str)


async def test_an_api_that_is_not_there_is_no_failure_of_the_bank(street: Street) -> None:
    async with aiohttp.ClientSession() as session:

        async def secret(merchant_id: UUID, processor: str) -> str | None:
            return STRIPE_SECRET

        nobody = MerchantNotifier(
            pool=street.pool, session=session, url="http://127.0.0.1:1", webhook_secret=secret
        )
        path = await street.charge()
        await street.decides(path, "approve")
        assert not await nobody.notify(await street.of(path))
