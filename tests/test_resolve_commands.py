"""`payloops resolve`: shows an order, asks, records what somebody saw, and what was parked for it is parked no more."""

import asyncio
import json
from dataclasses import replace
from datetime import timedelta
from functools import partial
from uuid import UUID, uuid4

import pytest
from forwarding import caught_up, exists, parked, started, subscribing, until_nothing_is_parked
from masking import CARD
from processes import begin_command, run_command
from projecting import project_everything
from telling import AMOUNT, Orders
from temporalio.client import Client

from payloops.commands.refund_payment import refund_payment
from payloops.commands.refusals import NotResolvable
from payloops.commands.resolve_order import Sighting, resolve_order
from payloops.commands.update_order_status import update_order_status
from payloops.commands.update_refund_status import update_refund_status
from payloops.events.event_store import EventStore
from payloops.events.metadata import Metadata
from payloops.events.orders import NO_REFERENCES, Order, References
from payloops.sandbox import ledger
from payloops.settings import Settings


async def resolving(settings: Settings, *arguments: str) -> tuple[int, str, str]:
    return await run_command(settings, "resolve", *arguments)


async def load(store: EventStore, order_id: UUID) -> Order:
    order = await store.load(Order, order_id)
    assert order is not None
    return order


@pytest.fixture
async def twice_captured(store: EventStore, orders: Orders, by: Metadata) -> UUID:
    """Its second capture waits to be given back: it may be the first's."""
    order_id = await orders.paid()
    await update_order_status(store, order_id=order_id, status="failed", attempt=1, by=by)
    await orders.pay(order_id)
    for attempt, references in ((1, NO_REFERENCES), (2, References("po_2"))):
        await update_order_status(
            store, order_id=order_id, status="captured", attempt=attempt, references=references, by=by
        )
    return order_id


async def test_a_single_charge_ends_what_was_parked_and_running_it_twice_changes_nothing(
    store: EventStore, settings: Settings, client: Client, twice_captured: UUID
) -> None:
    order_id = str(twice_captured)
    async with subscribing(store, settings, client):
        await caught_up(store)
        [(topic, error)] = await parked(store)
        assert (topic, "resolve one-charge" in error) == ("refund.requested", True)
        version = (await load(store, twice_captured)).version
        why = ("--why", "Only po_2 is there")
        status, out, err = await resolving(settings, "one-charge", order_id, "2", *why, "--dry-run", "--json")
        assert (status, err) == (0, "")
        would = json.loads(out)
        assert (would["recorded"], would["amountCaptured"]) == (False, AMOUNT)
        assert (await load(store, twice_captured)).version == version
        status, out, _ = await resolving(settings, "one-charge", order_id, "2", *why, "--yes", "--json")
        done = json.loads(out)
        assert (status, done) == (0, {**would, "recorded": True})
        await until_nothing_is_parked(store)
        order = await load(store, twice_captured)
        assert not await exists(client, f"refund-{list(order.transactions)[-1]}")
        status, _, err = await resolving(settings, "one-charge", order_id, "2", *why, "--yes")
        assert (status, "nothing was recorded" in err) == (1, True)
        assert (await load(store, twice_captured)).version == order.version
    stored = [each.stored.topic for each in await store.read_stream(twice_captured)]
    assert stored[version:] == would["events"]


async def test_it_asks_before_it_records(settings: Settings, store: EventStore, twice_captured: UUID) -> None:
    version = (await load(store, twice_captured)).version
    for answer, status, recorded in ((b"n\n", 1, 0), (b"", 1, 0), (b"y\n", 0, 3)):
        command = await begin_command(
            settings, "resolve", "one-charge", str(twice_captured), "1", "--why", "Only po_2 is there"
        )
        out, err = await command.communicate(answer)
        assert command.returncode == status, err.decode()
        assert "may be one charge" in out.decode()
        assert "The order is then captured: 50.00 USD captured, 0.00 USD refunded." in out.decode()
        assert (await load(store, twice_captured)).version == version + recorded


async def test_what_cannot_be_is_refused_in_one_line_and_recorded_nowhere(
    settings: Settings, store: EventStore, orders: Orders, merchant_id: UUID, by: Metadata
) -> None:
    order_id = await orders.paid()
    await orders.report(order_id, "captured")
    refund = await refund_payment(store, order_id=order_id, merchant_id=merchant_id, amount=1_000, by=by)
    version = (await load(store, order_id)).version
    order, other = str(order_id), str(uuid4())
    for arguments, status, reason in (
        (("no-money", other, "1"), 1, "no order"),
        (("no-money", order, "1"), 1, "attempt 1 is captured already"),
        (("no-money", order, "2"), 1, "has no attempt 2"),
        (("one-charge", order, "1"), 1, "two attempts that are captured"),
        (("refund-made", order, other), 1, "has no refund"),
        (("refund-made", order, refund.id, "--reference", CARD), 2, "card number"),
        (("refund-not-made", order, refund.id, "--json"), 2, "--yes or --dry-run"),
        (("refund-not-made", order, refund.id, "--why", f"as {CARD} says"), 2, "card number"),
        (("refund-not-made", order, refund.id, "--why", " "), 2, "--why"),
        (("refund-not-made", order, refund.id, "--why", "x" * 501), 2, "--why"),
    ):
        why = () if "--why" in arguments else ("--why", "seen")
        ask = () if "--json" in arguments else ("--yes",)
        found, _, err = await resolving(settings, *arguments, *why, *ask)
        assert (found, reason in err, len(err.splitlines())) == (status, True, 1), (arguments, err)
        assert CARD not in err
    assert (await load(store, order_id)).version == version


async def test_refunds_and_payments_end(
    settings: Settings, store: EventStore, merchant_id: UUID, by: Metadata
) -> None:
    """What was requested long ago."""
    by = replace(by, at=by.at - timedelta(hours=1))
    orders = Orders(store, merchant_id, by)
    order_id = await orders.paid()
    await orders.report(order_id, "captured")
    made, not_made = [
        await refund_payment(store, order_id=order_id, merchant_id=merchant_id, amount=each, by=by)
        for each in (1_000, 700)
    ]
    arguments = ("--why", "seen", "--yes")
    done = [
        await resolving(settings, "refund-made", str(order_id), made.id, "--reference", "re_1", *arguments),
        await resolving(settings, "refund-not-made", str(order_id), not_made.id, *arguments),
    ]
    assert [(status, err) for status, _, err in done] == [(0, ""), (0, "")]
    order = await load(store, order_id)
    assert (order.amount_refunded, order.refundable) == (1_000, AMOUNT - 1_000)
    assert order.transactions[made.id].processor_transaction_id == "re_1"
    waiting = await orders.paid()
    status, _, err = await resolving(settings, "no-money", str(waiting), "1", *arguments)
    assert (status, err) == (0, "")
    assert (await load(store, waiting)).status == "failed"


async def test_a_reference_is_asked_about_before_it_is_recorded_and_what_waited_for_it_goes_on(
    settings: Settings, store: EventStore, client: Client, orders: Orders, merchant_id: UUID, by: Metadata
) -> None:
    """Money is refunded by it: that of another payment would give away somebody else's."""
    order_id = await orders.paid()
    await update_order_status(store, order_id=order_id, status="captured", by=by)
    refund = await refund_payment(store, order_id=order_id, merchant_id=merchant_id, amount=1_000, by=by)
    another = await orders.paid()
    await orders.report(another, "captured")
    await project_everything(settings.database_url.get_secret_value())
    await ledger.create_schema(store.pool)

    async def charge(currency: str) -> str:
        async with store.pool.connection() as connection:
            await connection.execute("DELETE FROM sandbox.charges")
        made, _ = await ledger.charge(
            store.pool,
            order_id=str(order_id),
            attempt=1,
            processor="stripe",
            amount=AMOUNT,
            currency=currency,
            token=None,
            manual_capture=False,
        )
        return made.processor_order_id

    async def say(reference: str) -> tuple[int, str]:
        arguments = (str(order_id), "1", reference, "--why", "seen", "--yes", "--sandbox")
        status, _, err = await resolving(settings, "reference", *arguments)
        return status, err

    async with subscribing(store, settings, client):
        await caught_up(store)
        assert [topic for topic, _ in await parked(store)] == ["refund.requested"]
        version = (await load(store, order_id)).version
        euros = await charge("EUR")
        for reference, status, reason in (
            (f"po_{another}", 1, f"of order {another}"),
            ("po_unknown", 1, "knows no such payment"),
            (euros, 1, "50.00 EUR is captured"),
            (CARD, 2, "card number"),
        ):
            found, err = await say(reference)
            assert (found, reason in err) == (status, True), err
        assert (await load(store, order_id)).version == version
        reference = await charge("USD")
        assert await say(reference) == (0, "")
        assert (await say(reference))[0] == 1
        await run_command(settings, "projections", "retry-parked")
        start = await started(client, f"refund-{refund.id}")
        assert start["input"]["processorOrderId"] == reference


async def test_what_is_said_by_several_at_once_and_reported_meanwhile_is_recorded_once(
    store: EventStore, orders: Orders, twice_captured: UUID, merchant_id: UUID, by: Metadata
) -> None:
    seen = Sighting(shows="one_charge", attempt=2, note="seen")
    late = partial(update_order_status, store, order_id=twice_captured, status="captured", by=by)
    said = (resolve_order(store, order_id=twice_captured, seen=seen, by=by) for _ in range(4))
    done = await asyncio.gather(*said, late(attempt=1), late(attempt=2), return_exceptions=True)
    assert [type(each) for each in done if each is not None].count(NotResolvable) == 3
    order = await load(store, twice_captured)
    assert (order.amount_captured, order.refundable) == (AMOUNT, AMOUNT)
    order_id = await orders.paid()
    await orders.report(order_id, "captured")
    refund = await refund_payment(store, order_id=order_id, merchant_id=merchant_id, amount=1_000, by=by)
    seen = Sighting(shows="refund_made", refund_id=refund.id, note="seen")
    await asyncio.gather(
        *(resolve_order(store, order_id=order_id, seen=seen, by=by) for _ in range(2)),
        update_refund_status(store, order_id=order_id, refund_id=refund.id, succeeded=True, by=by),
        return_exceptions=True,
    )
    assert (await load(store, order_id)).amount_refunded == 1_000
    facts = [each.stored.topic for each in await store.read_stream(order_id)]
    assert facts.count("refund.succeeded") == 1
