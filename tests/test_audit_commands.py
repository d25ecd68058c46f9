"""`payloops audit`: support staff see what happened to an order, as it was, why, and step by step."""

import asyncio
import json
import signal
from datetime import timedelta
from uuid import UUID, uuid4

import pytest
from calling import running_api
from ordering import BY, pay, report
from processes import begin_command, run_command
from processor_events import told
from projecting import append
from random_orders import new_order, recorded

from payloops.audit.reading import NotUnderstood, moment, moment_or_version
from payloops.commands.receive_processor_event import receive
from payloops.events.event_store import EventStore
from payloops.events.orders import Order, References
from payloops.events.timestamps import parse_timestamp
from payloops.settings import Settings


async def command(settings: Settings, *arguments: str, columns: int | None = None) -> tuple[int, str, str]:
    environment = {} if columns is None else {"COLUMNS": str(columns)}
    return await run_command(settings, "audit", *arguments, environment=environment)


async def printed(settings: Settings, *arguments: str, columns: int | None = None) -> str:
    """What it printed, in success and without a complaint."""
    status, out, err = await command(settings, *arguments, columns=columns)
    assert (status, err) == (0, "")
    return out


@pytest.fixture
async def order(store: EventStore, merchant_id: UUID) -> Order:
    """Failed at the first attempt, paid by the second."""
    made = new_order(
        merchant_id,
        at=BY.at,
        amount=4_999,
        external_id="cart-7",
        customer_email="ada@example.com",
        description="[bold]",
    )
    for outcome in ("failed", "captured"):
        report(pay(made), outcome)
    await append(store, made)
    return made


async def test_the_trail_fits_narrow_and_wide_terminals(settings: Settings, order: Order) -> None:
    for columns in (80, 200):
        out = await printed(settings, "order", str(order.id), columns=columns)
        lines = out.splitlines()
        assert max(map(len, lines)) <= columns
        assert "captured, 49.99 USD ordered, 49.99 USD captured, 0.00 USD refunded" in lines
        whole = (
            *("order.created", "payment.requested", "payment.failed", "payment.captured"),
            *("card_declined: The card was", "49.99 USD", "po_1", "pt_2", "why: test"),
            f"{order.modified_on:%Y-%m-%d %H:%M:%S.%f}",
        )
        for text in whole:
            assert any(text in line for line in lines), (columns, text, out)


async def test_the_heading_has_what_the_order_has_and_not_what_its_processor_said_last(
    settings: Settings, store: EventStore, order: Order
) -> None:
    said = told("refunded", amount_refunded=300, references=References("po_2", "pt_2"))
    assert receive(order, said, by=BY) == "applied"
    assert receive(order, told("captured", event_id="later", currency="eur"), by=BY) == "contradiction"
    await append(store, order)
    out = await printed(settings, "order", str(order.id))
    assert "partially_refunded, 49.99 USD ordered, 49.99 USD captured, 3.00 USD refunded\n" in out


async def test_the_trail_in_json_is_what_the_api_answers(
    settings: Settings, store: EventStore, order: Order
) -> None:
    async with running_api(settings) as api:
        merchant = await api.merchant()
        id = await merchant.order(customerEmail="ada@example.com", metadata={"a": [1]})
        assert (await merchant.shop.post(f"/v1/orders/{id}/pay")).status == 200
        trail = await merchant.dashboard.get(f"/api/orders/{id}/events")
        then = await merchant.dashboard.get(f"/api/orders/{id}/events?asOf=1")
    assert json.loads(await printed(settings, "order", id, "--json")) == trail.json
    assert json.loads(await printed(settings, "order", id, "--json", "--at", "1")) == then.json
    at = trail.json[0]["occurredAt"]
    assert json.loads(await printed(settings, "order", id, "--json", "--at", at)) == then.json


async def test_an_order_is_shown_as_it_was(settings: Settings, order: Order) -> None:
    for at in ("3", f"{order.modified_on:%Y-%m-%d %H:%M:%S.%f}", f"{order.modified_on.isoformat()}"):
        out = await printed(settings, "order", str(order.id), "--at", at, columns=100)
        assert ("failed" if at == "3" else "captured") in out
    out = await printed(settings, "order", str(order.id), "--at", "1", columns=80)
    values = dict(line.split(maxsplit=1) for line in out.splitlines() if len(line.split(maxsplit=1)) == 2)
    assert values["status"].strip() == "pending"
    assert values["amount"].strip() == "49.99 USD"
    assert values["customerEmail"].strip() == "ada@example.com"
    assert values["description"].strip() == "[bold]"


async def test_what_changed_between_two_moments_is_shown(settings: Settings, order: Order) -> None:
    out = await printed(settings, "order", str(order.id), "--diff", "3", "5", columns=80)
    assert "from version 3 to version 5" in out
    rows = [line.split() for line in out.splitlines()]
    assert ["status", "failed", "captured"] in rows
    assert ["amountCaptured", "0.00", "USD", "49.99", "USD"] in rows
    assert ["payment", "2"] in rows
    found = json.loads(await printed(settings, "order", str(order.id), "--diff", "3", "5", "--json"))
    assert {"field": "status", "before": "failed", "after": "captured"} in found
    assert {"field": "payments.2.processorOrderId", "before": None, "after": "po_2"} in found
    assert "nothing changed" in await printed(settings, "order", str(order.id), "--diff", "5", "5")


async def test_no_id_is_broken_on_a_narrow_terminal(settings: Settings, order: Order) -> None:
    for arguments in (("order", "--at", "5"), ("order", "--diff", "1", "5"), ("replay",)):
        name, *options = arguments
        out = await printed(settings, name, str(order.id), *options, columns=80)
        for id in order.transactions:
            assert id in out, arguments


async def test_why_is_told_in_sentences(settings: Settings, order: Order) -> None:
    out = " ".join((await printed(settings, "why", str(order.id), columns=80)).split())
    assert "The order is paid: 49.99 USD is captured, and nothing was refunded." in out
    assert 'Stripe said card_declined, "The card was declined".' in out
    assert "The merchant can refund up to 49.99 USD." in out
    told = json.loads(await printed(settings, "why", str(order.id), "--json"))
    assert (told["orderId"], told["version"], told["status"]) == (str(order.id), 5, "captured")
    assert told["pending"] == []
    assert told["next"] == ["The merchant can refund up to 49.99 USD."]


async def test_a_replay_shows_the_state_after_each_event(settings: Settings, order: Order) -> None:
    out = await printed(settings, "replay", str(order.id), columns=80)
    states = [line.strip().removeprefix("→ ").split(",")[0] for line in out.splitlines() if "→" in line]
    assert states == ["pending", "processing", "failed", "processing", "captured"]
    steps = json.loads(await printed(settings, "replay", str(order.id), "--at", "3", "--json"))
    assert [step["state"]["status"] for step in steps] == ["pending", "processing", "failed"]
    assert {"field": "status", "before": "processing", "after": "failed"} in steps[2]["changes"]
    assert parse_timestamp(steps[0]["occurredAt"]) == order.created_on


async def test_who_follows_an_order_sees_what_happens_next(
    settings: Settings, store: EventStore, merchant_id: UUID
) -> None:
    order = new_order(merchant_id)
    await append(store, order)
    follower = await begin_command(settings, "audit", "order", str(order.id), "--follow", "--json")
    assert follower.stdout is not None

    async def next_type() -> str:
        assert follower.stdout is not None
        line = await asyncio.wait_for(follower.stdout.readline(), 90)
        return str(json.loads(line)["type"])

    try:
        assert await next_type() == "order.created"
        await store.append(recorded(pay(order)))
        assert await next_type() == "payment.requested"
        await store.append(recorded(report(order, "captured")))
        assert await next_type() == "payment.captured"
        follower.send_signal(signal.SIGINT)
        assert await asyncio.wait_for(follower.wait(), 90) == 0
    finally:
        if follower.returncode is None:
            follower.kill()
            await follower.wait()


async def test_what_is_not_there_is_said_in_one_line(settings: Settings, order: Order) -> None:
    unknown = str(uuid4())
    for arguments in (
        ("order", unknown),
        ("why", unknown),
        ("replay", unknown),
        ("order", unknown, "--at", "1"),
    ):
        assert await command(settings, *arguments) == (1, "", f"payloops: no order {unknown}\n")
    id = str(order.id)
    before = f"{order.created_on - timedelta(days=1):%Y-%m-%dT%H:%M:%S}"
    for beyond in (
        ("order", id, "--at", "9"),
        ("order", id, "--diff", "1", "9"),
        ("replay", id, "--at", "9"),
    ):
        assert await command(settings, *beyond) == (1, "", f"payloops: order {id} has no version 9\n")
    status, out, err = await command(settings, "order", id, "--at", before)
    assert (status, out) == (1, "")
    assert err.startswith(f"payloops: order {id} has no state at {before[:10]} ")
    status, _, err = await command(settings, "order", id, "--at", "yesterday")
    assert (status, err.count("\n")) == (2, 1)
    status, _, err = await command(settings, "order", id, "--at", "1", "--follow")
    assert (status, err) == (2, "payloops: give only one of --at, --diff and --follow\n")


async def test_events_of_a_later_version_are_in_the_trail(
    settings: Settings, store: EventStore, order: Order
) -> None:
    async with store.pool.connection() as connection:
        await connection.execute(
            """INSERT INTO stored_events (originator_id, originator_version, topic, state, notification_id,
                                          merchant_id, content_hash)
               SELECT originator_id, originator_version + 1, 'order.blessed', state,
                      notification_id + 1, merchant_id, content_hash
               FROM stored_events WHERE originator_id = %s AND originator_version = 5""",
            (order.id,),
        )
    assert "order.blessed" in await printed(settings, "order", str(order.id), columns=80)
    status, out, err = await command(settings, "why", str(order.id))
    assert (status, out) == (1, "")
    assert "order.blessed" in err


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        ("3", 3),
        ("2027-01-31", "2027-01-31T00:00:00Z"),
        ("2027-01-31 15:40:02.123456", "2027-01-31T15:40:02.123456Z"),
        ("2027-01-31 15:40:02 UTC", "2027-01-31T15:40:02Z"),
        ("2027-01-31T15:40:02+01:00", "2027-01-31T14:40:02Z"),
    ],
)
def test_moments_are_understood_as_they_are_shown(text: str, meaning: int | str) -> None:
    expected = meaning if isinstance(meaning, int) else parse_timestamp(meaning)
    assert moment_or_version(text) == expected


@pytest.mark.parametrize("text", ["", "x", "-1", "3.5", "٣", "9999999999999999999999", "2027-13-01"])
def test_what_is_no_moment_is_refused(text: str) -> None:
    with pytest.raises(NotUnderstood, match="or a version"):
        moment_or_version(text)
    with pytest.raises(NotUnderstood, match=r"in UTC$"):
        moment(text)
