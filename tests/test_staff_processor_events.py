"""What processors told is there for support, also where nothing followed from it."""

import json
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import orjson
import pytest
from calling import PASSWORD, Api, Caller, Merchant
from processes import run_command
from psycopg_pool import AsyncConnectionPool
from signing import Labels, Processors, merchant_with_secrets, razorpay_payment, stripe_payment
from test_staff import EMAIL, hire
from uuid_utils.compat import uuid7

from payloops.commands.processor_events import keep_processor_event
from payloops.commands.staff_views import list_staff_views
from payloops.events.timestamps import utc_now
from payloops.settings import Settings

PATH = "/api/staff/processor-events"


@dataclass(frozen=True)
class World:
    """A merchant with a paid order, the processors, and a member of the staff."""

    merchant: Merchant
    labels: Labels
    processors: Processors
    desk: Caller

    async def tells(self, kind: str, *, labels: Labels | None = None, **fields: Any) -> None:
        """Stripe tells something of the order's payment."""
        body = stripe_payment(kind, labels or self.labels, **fields)
        assert (await self.processors.stripe(body)).status == 200

    async def shown(self, query: str = "") -> list[tuple[str, str, str | None]]:
        answer = await self.desk.get(f"{PATH}{query}")
        assert answer.status == 200, answer.raw
        return [(each["type"], each["effect"], each["orderId"]) for each in answer.json["data"]]


@pytest.fixture
async def world(api: Api, pool: AsyncConnectionPool) -> World:
    merchant = await merchant_with_secrets(api)
    order = await merchant.order()
    assert (await merchant.shop.post(f"/v1/orders/{order}/pay", {"processor": "stripe"})).status == 200
    await hire(pool)
    session = await api.anyone.post("/api/staff/login", {"email": EMAIL, "password": PASSWORD})
    return World(
        merchant=merchant,
        labels=Labels(merchant.id, order),
        processors=Processors(api),
        desk=Caller(api.anyone.session, {"Authorization": f"Bearer {session.json['token']}"}),
    )


async def test_events_are_found_by_what_became_of_them(world: World) -> None:
    order = world.labels.order_id
    await world.tells("processing")
    await world.tells("succeeded", labels=Labels(world.merchant.id, str(uuid7())))
    await world.tells("succeeded", currency="eur")
    await world.tells("succeeded")
    await world.processors.razorpay(razorpay_payment("failed", world.labels))
    unhandled = ("payment_intent.processing", "unhandled", order)
    unknown = ("payment_intent.succeeded", "unknown_order", None)
    false = ("payment_intent.succeeded", "contradiction", order)
    applied = ("payment_intent.succeeded", "applied", order)
    unmatched = ("payment.failed", "unmatched", order)
    assert await world.shown() == [unmatched, applied, false, unknown, unhandled]
    assert await world.shown("?effect=unhandled") == [unhandled]
    assert await world.shown("?effect=unknown_order&processor=razorpay") == []
    assert await world.shown("?processor=razorpay") == [unmatched]
    assert await world.shown(f"?orderId={order}&effect=contradiction") == [false]
    assert await world.shown(f"?merchantId={world.merchant.id}&limit=2&page=2") == [false, unknown]
    assert await world.shown(f"?merchantId={uuid7()}") == []
    page = (await world.desk.get(f"{PATH}?limit=4")).json
    assert (page["page"], page["limit"], page["hasMore"]) == (1, 4, True)
    assert (await world.desk.get(f"{PATH}?limit=5")).json["hasMore"] is False


@pytest.mark.parametrize(
    "query", ["effect=odd", "processor=paypal", "orderId=x", "limit=101", "page=0", "q=1"]
)
async def test_what_cannot_be_asked_for_is_refused(world: World, query: str) -> None:
    assert (await world.desk.get(f"{PATH}?{query}")).fields == {query.partition("=")[0]}


async def test_an_event_is_shown_as_it_arrived_without_cards_and_secrets(
    world: World, pool: AsyncConnectionPool
) -> None:
    event = stripe_payment(
        "processing",
        world.labels,
        client_secret="pi_1_secret_x",
        description="4242 4242 4242 4242",
        nested=[{"client_secret": "seti_secret_y"}, {"client_secret": None}],
    )
    await world.processors.stripe(event)
    await world.processors.stripe(event)
    [listed] = (await world.desk.get(PATH)).json["data"]
    shown = await world.desk.get(f"{PATH}/{listed['id']}")
    assert shown.status == 200
    assert {name: value for name, value in shown.json.items() if name != "body"} == listed
    assert (listed["eventId"], listed["deliveries"]) == (event["id"], 2)
    body = json.loads(shown.json["body"])
    assert body["data"]["object"] == event["data"]["object"] | {
        "client_secret": "[redacted]",
        "description": "**** **** **** ****",
        "nested": [{"client_secret": "[redacted]"}, {"client_secret": None}],
    }
    async with pool.connection() as connection:
        [[kept]] = await (await connection.execute("SELECT body FROM processor_events")).fetchall()
    assert kept == shown.json["body"]


async def test_what_holds_no_secret_is_kept_to_the_byte(world: World) -> None:
    raw = orjson.dumps(stripe_payment("processing", world.labels), option=orjson.OPT_INDENT_2)
    await world.processors.stripe(raw)
    [listed] = (await world.desk.get(PATH)).json["data"]
    assert (await world.desk.get(f"{PATH}/{listed['id']}")).json["body"] == raw.decode()


async def test_each_look_is_on_record(world: World, pool: AsyncConnectionPool) -> None:
    await world.tells("processing")
    merchant, order = world.merchant.id, world.labels.order_id
    [listed] = (await world.desk.get(f"{PATH}?orderId={order}&merchantId={merchant}")).json["data"]
    await world.desk.get(f"{PATH}/{listed['id']}")
    nobody = str(uuid7())
    assert (await world.desk.get(f"{PATH}/{nobody}")).status == 404
    assert (await world.desk.get(f"{PATH}/x")).status == 404
    views = [
        (view.route, view.order_id, view.merchant_id, (view.query or {}).get("id"))
        for view in reversed(await list_staff_views(pool, limit=9))
    ]
    assert views == [
        (f"GET {PATH}", UUID(order), merchant, None),
        (f"GET {PATH}/{{id}}", UUID(order), merchant, listed["id"]),
        (f"GET {PATH}/{{id}}", None, None, nobody),
        (f"GET {PATH}/{{id}}", None, None, None),
    ]


async def test_the_operator_sees_them_on_the_command_line(
    settings: Settings, pool: AsyncConnectionPool, merchant_id: UUID
) -> None:
    for key, processor in (("1", "stripe"), ("2", "razorpay")):
        await keep_processor_event(
            pool,
            merchant_id=merchant_id,
            processor=processor,
            key=key,
            event_id=f"evt_{key}",
            type="payout.failed",
            body='{"a": 1}',
            at=utc_now(),
        )

    async def command(*arguments: str) -> tuple[int, str, str]:
        return await run_command(settings, "webhooks", *arguments)

    status, out, _ = await command("received", "--processor", "stripe", "--json")
    [event] = json.loads(out)
    assert (status, event["eventId"], event["effect"]) == (0, "evt_1", "received")
    status, out, _ = await command("received", "--limit", "1")
    assert (status, "evt_1" in out, "razorpay" in out, "and more" in out) == (0, False, True, True)
    status, out, _ = await command("received", "--effect", "unhandled")
    assert (status, out) == (0, "none\n")
    status, out, _ = await command("show", event["id"])
    assert (status, out.splitlines()[-1]) == (0, '{"a": 1}')
    status, out, _ = await command("show", event["id"], "--json")
    assert json.loads(out) == event | {"body": '{"a": 1}'}
    assert await command("received", "--effect", "odd") == (
        2,
        "",
        "payloops: --effect: use one of received, applied, none, contradiction, unmatched, unknown_order, unhandled\n",
    )
    status, out, said = await command("show", str(uuid7()))
    assert (status, out, said.count("\n")) == (1, "", 1)
