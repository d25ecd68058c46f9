"""A checkout session: paid once however often it is asked for, and over when time or its order say so."""

import asyncio
from dataclasses import replace
from datetime import timedelta
from uuid import UUID

import pytest
from projecting import eventually
from shopping import begun_session
from uuid_utils.compat import uuid7

from payloops.commands.cancel_order import cancel_order
from payloops.commands.create_checkout_session import LIFE, new_session_id
from payloops.commands.pay_checkout_session import pay_checkout_session
from payloops.commands.refund_payment import refund_payment
from payloops.commands.refusals import CheckoutSessionNotFound, WayToPayNotOffered
from payloops.commands.route_payment import EnabledProcessor, ways_to_pay
from payloops.commands.settle_checkout_session import MAX_ATTEMPTS, Checkout, settle_checkout_session
from payloops.commands.settle_checkout_sessions import settle_checkout_sessions
from payloops.commands.update_order_status import update_order_status
from payloops.commands.update_refund_status import update_refund_status
from payloops.daemons.housekeeping import keep_house
from payloops.events.background import in_background
from payloops.events.checkout_sessions import CheckoutSessionCompleted, CheckoutSessionExpired, SessionStatus
from payloops.events.event_store import EventStore
from payloops.events.metadata import Metadata
from payloops.events.orders import OrderStatus, References
from payloops.events.timestamps import utc_now
from payloops.settings import Settings

STRIPE, RAZORPAY = EnabledProcessor("stripe", 50, test_mode=True), EnabledProcessor("razorpay", 10)
PAGE = "https://pay.example/checkout"


class Shop:
    """A merchant with both processors, Stripe in test mode, and its customers."""

    def __init__(self, store: EventStore, merchant_id: UUID, by: Metadata) -> None:
        self.store = store
        self.merchant_id = merchant_id
        self.by = by

    async def session(self, *, currency: str = "USD") -> UUID:
        return await begun_session(
            self.store,
            self.merchant_id,
            self.by,
            currency=currency,
            customer_email="ada@example.com",
            metadata={"cart": "7"},
            line_items=[{"name": "A difference engine", "amount": 2_500, "quantity": 2}],
        )

    async def pay(
        self,
        session_id: UUID,
        *,
        attempt: int = 1,
        method: str = "card",
        token: str | None = "tok_visa",
        after: timedelta = timedelta(0),
    ) -> None:
        await pay_checkout_session(
            self.store,
            session_id=session_id,
            attempt=attempt,
            method=method,
            token=token,
            return_url=PAGE,
            by=self.later(after),
        )

    async def look(self, session_id: UUID, *, after: timedelta = timedelta(0)) -> Checkout:
        return await settle_checkout_session(
            self.store, session_id=session_id, merchant_id=self.merchant_id, by=self.later(after)
        )

    async def report(self, session_id: UUID, status: str) -> None:
        order = (await self.look(session_id)).order
        assert order is not None
        await update_order_status(self.store, order_id=order.id, status=status, by=self.by)

    def later(self, after: timedelta) -> Metadata:
        return replace(self.by, at=self.by.at + after)

    async def topics(self) -> list[str]:
        return [event.stored.topic for event in await self.store.read(after=0, limit=200)]


@pytest.fixture
async def shop(store: EventStore, merchant_id: UUID, by: Metadata) -> Shop:
    async with store.pool.connection() as connection:
        await connection.execute(
            "INSERT INTO merchants VALUES (%s, 'Shop', %s, '', 1, NULL, now(), now())",
            (merchant_id, f"{merchant_id}@example.com"),
        )
        for processor, test_mode in (("stripe", True), ("razorpay", False)):
            await connection.execute(
                "INSERT INTO processor_configs VALUES (%s, %s, %s, true, 1, %s, '', now(), now())",
                (uuid7(), merchant_id, processor, test_mode),
            )
    return Shop(store, merchant_id, by)


async def test_paying_places_the_order_and_requests_its_payment_in_one_append(shop: Shop) -> None:
    session_id = await shop.session()
    await shop.pay(session_id)
    session, order = await shop.look(session_id)
    assert order is not None
    assert (order.status, order.attempt, order.amount, order.currency) == ("processing", 1, 5_000, "USD")
    assert (order.customer_email, order.metadata) == ("ada@example.com", {"cart": "7"})
    assert (order.return_url, order.cancel_url) == (PAGE, "https://shop.example/cancel")
    placed, created, requested = await shop.store.read(after=1, limit=9)
    assert [each.stored.topic for each in (placed, created, requested)] == [
        "checkout_session.order_placed",
        "order.created",
        "payment.requested",
    ]
    assert created.event.causation_id == requested.event.causation_id == placed.event.reference
    async with shop.store.pool.connection() as connection:
        cursor = await connection.execute(
            "SELECT count(DISTINCT xid) FROM stored_events WHERE notification_id > 1"
        )
        assert await cursor.fetchone() == (1,)
    assert session.status is SessionStatus.PENDING


async def test_of_fifty_clicks_at_once_one_pays(shop: Shop) -> None:
    session_id = await shop.session()
    await asyncio.gather(*(shop.pay(session_id) for _ in range(50)))
    assert (await shop.topics()).count("order.created") == 1
    assert (await shop.topics()).count("payment.requested") == 1


async def test_of_clicks_at_several_processes_one_pays(
    shop: Shop, settings: Settings, merchant_id: UUID, by: Metadata
) -> None:
    """The turns that commands of one process take are not what keeps two orders apart."""
    from payloops.wiring import open_store  # noqa: PLC0415

    session_id = await shop.session()
    async with (
        open_store(settings, application_name="other") as other,
        open_store(settings, application_name="third") as third,
    ):
        shops = [shop, Shop(other, merchant_id, by), Shop(third, merchant_id, by)]
        await asyncio.gather(*(each.pay(session_id) for each in shops * 5))
    assert (await shop.topics()).count("order.created") == 1
    assert (await shop.topics()).count("payment.requested") == 1


async def test_after_a_decline_the_next_attempt_is_made_once_and_an_old_form_makes_none(shop: Shop) -> None:
    session_id = await shop.session()
    await shop.pay(session_id)
    await shop.pay(session_id, attempt=2)  # not yet due
    await shop.report(session_id, "failed")
    await shop.pay(session_id, attempt=1)
    order = (await shop.look(session_id)).order
    assert order is not None
    assert order.attempt == 1
    await asyncio.gather(*(shop.pay(session_id, attempt=2) for _ in range(10)))
    order = (await shop.look(session_id)).order
    assert order is not None
    assert (order.attempt, order.status) == (2, OrderStatus.PROCESSING)
    topics = await shop.topics()
    assert topics.count("order.created") == 1
    assert topics.count("checkout_session.payment_retried") == 1


@pytest.mark.parametrize("status", ["captured", "authorized"])
async def test_a_session_completes_when_its_order_is_paid(shop: Shop, status: str) -> None:
    session_id = await shop.session()
    await shop.pay(session_id)
    await shop.report(session_id, status)
    for _ in range(2):
        session, _ = await shop.look(session_id)
        assert (session.status, session.completed_at) == (SessionStatus.COMPLETED, shop.by.at)
    assert (await shop.topics()).count("checkout_session.completed") == 1
    await shop.pay(session_id, attempt=2)
    assert (await shop.topics()).count("payment.requested") == 1


@pytest.mark.parametrize("amount", [1_000, None])
async def test_a_session_completes_though_its_order_was_refunded_before_anybody_looked(
    shop: Shop, amount: int | None
) -> None:
    session_id = await shop.session()
    await shop.pay(session_id)
    order = (await shop.look(session_id)).order
    assert order is not None
    references = References("po_1", "pt_1")
    await update_order_status(
        shop.store, order_id=order.id, status="captured", references=references, by=shop.by
    )
    refund = await refund_payment(
        shop.store, order_id=order.id, merchant_id=shop.merchant_id, amount=amount, by=shop.by
    )
    await update_refund_status(shop.store, order_id=order.id, refund_id=refund.id, succeeded=True, by=shop.by)
    assert (await shop.look(session_id, after=LIFE)).session.status is SessionStatus.COMPLETED


async def test_a_form_of_a_later_attempt_places_no_order(shop: Shop) -> None:
    session_id = await shop.session()
    await shop.pay(session_id, attempt=2)
    assert await shop.topics() == ["checkout_session.created"]


async def test_a_session_expires_after_half_an_hour_and_takes_no_payment_then(shop: Shop) -> None:
    session_id = await shop.session()
    last = LIFE - timedelta(seconds=1)
    assert (await shop.look(session_id, after=last)).session.status is SessionStatus.PENDING
    await shop.pay(session_id, after=LIFE)
    for _ in range(2):
        session, order = await shop.look(session_id, after=LIFE)
        assert (session.status, session.expired_by, order) == (SessionStatus.EXPIRED, "time", None)
    assert await shop.topics() == ["checkout_session.created", "checkout_session.expired"]


async def test_a_payment_under_way_keeps_a_session_alive_until_it_ends(shop: Shop) -> None:
    session_id = await shop.session()
    await shop.pay(session_id)
    for status in ("requires_action", "processing"):
        assert (await shop.look(session_id, after=LIFE)).session.status is SessionStatus.PENDING
        await shop.report(session_id, status)
    await shop.report(session_id, "failed")
    assert (await shop.look(session_id, after=LIFE)).session.status is SessionStatus.EXPIRED
    await shop.pay(session_id, attempt=2, after=LIFE)
    assert (await shop.topics()).count("payment.requested") == 1


async def test_money_that_a_processor_tells_of_late_completes_an_expired_session(shop: Shop) -> None:
    session_id = await shop.session()
    await shop.pay(session_id)
    await shop.report(session_id, "failed")
    assert (await shop.look(session_id, after=LIFE)).session.status is SessionStatus.EXPIRED
    await shop.report(session_id, "captured")
    assert (await shop.look(session_id, after=LIFE)).session.status is SessionStatus.COMPLETED


async def test_an_order_that_the_merchant_cancels_ends_its_session(shop: Shop) -> None:
    session_id = await shop.session()
    await shop.pay(session_id)
    await shop.report(session_id, "failed")
    order = (await shop.look(session_id)).order
    assert order is not None
    await cancel_order(shop.store, order_id=order.id, merchant_id=shop.merchant_id, by=shop.by)
    session, _ = await shop.look(session_id)
    assert (session.status, session.expired_by) == (SessionStatus.EXPIRED, "order_cancelled")


async def test_a_customer_may_try_only_so_often(shop: Shop) -> None:
    session_id = await shop.session()
    for attempt in range(1, MAX_ATTEMPTS + 2):
        await shop.pay(session_id, attempt=attempt)
        await shop.report(session_id, "failed")
    session, order = await shop.look(session_id)
    assert order is not None
    assert (session.expired_by, order.attempt) == ("attempts", MAX_ATTEMPTS)


async def test_what_no_processor_takes_is_refused_and_so_are_test_tokens_outside_of_test_mode(
    shop: Shop,
) -> None:
    for currency, method, token in (("USD", "upi", None), ("INR", "upi", "tok_visa"), ("USD", "cash", None)):
        session_id = await shop.session(currency=currency)
        with pytest.raises(WayToPayNotOffered):
            await shop.pay(session_id, method=method, token=token)
    assert set(await shop.topics()) == {"checkout_session.created"}


async def test_another_merchants_session_is_not_there(shop: Shop) -> None:
    session_id = await shop.session()
    for merchant_id, id in ((uuid7(), session_id), (shop.merchant_id, uuid7())):
        with pytest.raises(CheckoutSessionNotFound):
            await settle_checkout_session(shop.store, session_id=id, merchant_id=merchant_id, by=shop.by)


async def ended(shop: Shop) -> list[tuple[str, UUID]]:
    """How sessions ended, and which, in the order of the log."""
    events = [each.event for each in await shop.store.read(after=0, limit=99)]
    ends = (CheckoutSessionCompleted, CheckoutSessionExpired)
    return [(each.TOPIC, each.originator_id) for each in events if isinstance(each, ends)]


async def test_housekeeping_records_what_nobody_looked_at(shop: Shop) -> None:
    """Sessions that have run out, and those whose order was paid after the customer had gone."""
    paid, untouched, under_way = [await shop.session() for _ in range(3)]
    for session_id in (paid, under_way):
        await shop.pay(session_id)
    await shop.report(paid, "captured")
    assert await settle_checkout_sessions(shop.store, now=utc_now()) == 2
    assert await ended(shop) == [("checkout_session.completed", paid)]
    assert await settle_checkout_sessions(shop.store, now=utc_now() + LIFE) == 2
    assert await ended(shop) == [
        ("checkout_session.completed", paid),
        ("checkout_session.expired", untouched),
    ]
    assert await settle_checkout_sessions(shop.store, now=utc_now() + LIFE) == 1  # still under way


async def test_a_session_that_nobody_looks_at_ends_while_the_service_runs(shop: Shop) -> None:
    paid = await shop.session()
    await shop.pay(paid)
    await shop.report(paid, "captured")

    async def settled() -> bool:
        return await ended(shop) == [("checkout_session.completed", paid)]

    async with in_background(keep_house(shop.store, every_seconds=0.05), name="housekeeping"):
        await eventually(settled)


async def test_unsettled_sessions_are_found_in_batches(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    from payloops.commands import settle_checkout_sessions as module  # noqa: PLC0415

    monkeypatch.setattr(module, "BATCH", 2)
    for _ in range(5):
        await shop.session()
    assert await settle_checkout_sessions(shop.store, now=utc_now() + LIFE) == 5


async def test_who_buys_and_what_is_sealed_in_the_log_and_gone_with_the_key(shop: Shop) -> None:
    session_id = await shop.session()
    [recorded] = await shop.store.read(after=0, limit=1)
    for text in (
        b"ada@example.com",
        b'"cart"',
        b"difference engine",
    ):  # none that ciphertext may hold by chance
        assert text not in recorded.stored.state
    async with shop.store.pool.connection() as connection:
        await connection.execute("UPDATE personal_keys SET key = ''")
    session = (await shop.look(session_id)).session
    assert session.customer_email == "[erased]"
    assert (session.metadata, session.line_items) == ({"erased": "[erased]"}, [])


def test_ids_of_sessions_are_of_version_7_and_nobody_can_guess_them() -> None:
    at = utc_now()
    ids = [new_session_id(at=at) for _ in range(1_000)]
    assert {(id.version, id.variant) for id in ids} == {(7, "specified in RFC 4122")}
    assert {id.int >> 80 for id in ids} == {int(at.timestamp() * 1000)}
    # No bit but those of the time, version and variant is the same in all.
    always, ever = ids[0].int, 0
    for id in ids:
        always &= id.int
        ever |= id.int
    assert (ever & ~always).bit_count() == 74


@pytest.mark.parametrize(
    ("currency", "enabled", "ways"),
    [
        ("USD", [STRIPE, RAZORPAY], {"card": ("stripe", True), "wallet": ("stripe", True)}),
        (
            "INR",
            [STRIPE, RAZORPAY],
            {
                "card": ("razorpay", False),
                "upi": ("razorpay", False),
                "netbanking": ("razorpay", False),
                "wallet": ("razorpay", False),
            },
        ),
        ("INR", [STRIPE], {"card": ("stripe", True), "wallet": ("stripe", True)}),
        ("USD", [RAZORPAY], {"card": ("razorpay", False), "wallet": ("razorpay", False)}),
        ("USD", [], {}),
    ],
)
def test_customers_choose_among_what_the_merchants_processors_take(
    currency: str, enabled: list[EnabledProcessor], ways: dict[str, tuple[str, bool]]
) -> None:
    found = ways_to_pay(merchant_id=uuid7(), currency=currency, enabled=enabled)
    assert {way.method: (way.route.processor, way.test_mode) for way in found} == ways
