"""Paying an order: routing, attempts, and never twice."""

import asyncio
from uuid import UUID

import pytest
from ordering import AMOUNT, BY, facts, new_order, pay, report, transactions
from uuid_utils.compat import uuid7

from payloops.commands.change_order import MAX_REQUESTS
from payloops.commands.create_order import create_order
from payloops.commands.pay_order import pay_order
from payloops.commands.refusals import InvalidProcessor, InvalidStatus, NoProcessor, OrderNotFound
from payloops.commands.route_payment import EnabledProcessor, route_payment
from payloops.events.event_store import EventStore
from payloops.events.metadata import Metadata
from payloops.events.orders import OrderStatus

MERCHANT = uuid7()
STRIPE, RAZORPAY = EnabledProcessor("stripe", 50), EnabledProcessor("razorpay", 10)


@pytest.mark.parametrize(
    ("currency", "wanted", "enabled", "chosen", "reason"),
    [
        ("USD", None, [STRIPE, RAZORPAY], "stripe", "preferred for USD"),
        ("INR", None, [STRIPE, RAZORPAY], "razorpay", "preferred for INR"),
        ("USD", "razorpay", [STRIPE, RAZORPAY], "razorpay", "named in the request"),
        ("INR", None, [STRIPE], "stripe", "priority 50; razorpay, preferred for INR, is not enabled"),
        ("USD", None, [RAZORPAY], "razorpay", "priority 10; stripe, preferred for USD, is not enabled"),
        (
            "USD",
            None,
            [EnabledProcessor("adyen", 20), RAZORPAY],
            "razorpay",
            "priority 10; stripe, preferred for USD, is not enabled",
        ),
    ],
)
def test_a_payment_goes_to_the_processor_of_the_rule(
    currency: str, wanted: str | None, enabled: list[EnabledProcessor], chosen: str, reason: str
) -> None:
    route = route_payment(merchant_id=MERCHANT, currency=currency, wanted=wanted, enabled=enabled)
    assert (route.processor, route.reason) == (chosen, reason)


def test_without_an_enabled_processor_there_is_no_payment() -> None:
    with pytest.raises(NoProcessor):
        route_payment(merchant_id=MERCHANT, currency="USD", wanted=None, enabled=[])
    with pytest.raises(InvalidProcessor):
        route_payment(merchant_id=MERCHANT, currency="USD", wanted="stripe", enabled=[RAZORPAY])


def test_a_payment_opens_the_transaction_of_its_capture_method() -> None:
    assert transactions(pay(new_order())) == [("capture", "pending", AMOUNT)]
    assert transactions(pay(new_order(), capture="manual")) == [("authorization", "pending", AMOUNT)]


def test_a_failed_order_can_be_paid_again_as_the_next_attempt() -> None:
    order = report(pay(new_order()), "failed")
    assert order.last_error is not None
    assert pay(order).attempt == 2
    assert order.status is OrderStatus.PROCESSING
    assert order.last_error is None


@pytest.mark.parametrize(
    "reports", [[], ["processing"], ["requires_action"], ["authorized"], ["captured"], ["cancelled"]]
)
def test_an_order_is_payable_only_when_pending_or_failed(reports: list[str]) -> None:
    order = pay(new_order())
    for status in reports:
        report(order, status)
    version = order.version
    with pytest.raises(InvalidStatus, match=f"Order is {order.status}"):
        pay(order)
    assert facts(order, after=version) == []


def test_an_order_that_fails_again_and_again_is_not_paid_without_end() -> None:
    order = new_order()
    for _ in range(MAX_REQUESTS):
        report(pay(order), "failed")
    version = order.version
    with pytest.raises(
        InvalidStatus, match=r"Order is failed, and takes no more than 200 .* create a new order"
    ):
        pay(order)
    assert facts(order, after=version) == []


async def configure(store: EventStore, merchant_id: UUID) -> None:
    async with store.pool.connection() as connection:
        await connection.execute(
            "INSERT INTO merchants VALUES (%s, 'Shop', %s, '', 1, NULL, now(), now())",
            (merchant_id, f"{merchant_id}@example.com"),
        )
        await connection.execute(
            "INSERT INTO processor_configs VALUES (%s, %s, 'stripe', true, 1, true, '', now(), now())",
            (uuid7(), merchant_id),
        )


async def test_of_fifty_clients_paying_one_order_at_once_one_pays(
    store: EventStore, merchant_id: UUID, by: Metadata
) -> None:
    await configure(store, merchant_id)
    created = await create_order(
        store, order_id=uuid7(), merchant_id=merchant_id, amount=5, currency="USD", by=by
    )
    outcomes = await asyncio.gather(
        *(
            pay_order(store, order_id=created.originator_id, merchant_id=merchant_id, by=BY)
            for _ in range(50)
        ),
        return_exceptions=True,
    )
    assert sum(isinstance(outcome, InvalidStatus) for outcome in outcomes) == 49
    assert [event.stored.topic for event in await store.read(after=0, limit=9)] == [
        "order.created",
        "payment.requested",
    ]


async def test_another_merchants_order_is_not_there(
    store: EventStore, merchant_id: UUID, by: Metadata
) -> None:
    created = await create_order(
        store, order_id=uuid7(), merchant_id=uuid7(), amount=5, currency="USD", by=by
    )
    await configure(store, merchant_id)
    with pytest.raises(OrderNotFound):
        await pay_order(store, order_id=created.originator_id, merchant_id=merchant_id, by=BY)
    assert await store.head() == 1
