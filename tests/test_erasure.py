"""What is held of a customer is erased wherever it is, whatever is killed when, and nothing else is."""

import asyncio
import json
import os
import signal
import sys
from dataclasses import replace
from typing import Any
from uuid import UUID

import orjson
import psycopg
import pytest
from calling import Answer, Api, Merchant
from eventsourcing.persistence import StoredEvent
from processes import DOOMED, begin_command, environment_of, run_command
from projecting import eventually, project_orders, projector, reached, rows
from psycopg_pool import AsyncConnectionPool
from searching import tables_that_hold
from shopping import go_shopping
from uuid_utils.compat import uuid7

from payloops.commands.erase_personal_data import Erased, erase_personal_data, find_holdings
from payloops.commands.personal_copies import Copies
from payloops.commands.personal_keys import WITH_HELD, Customer
from payloops.commands.processor_events import keep_processor_event, note_effect
from payloops.commands.queue_webhook import queue_webhook
from payloops.commands.record_webhook_attempt import record_webhook_attempt
from payloops.commands.staff_views import record_staff_view
from payloops.commands.webhooks import WebhookAttempt, find_webhook, list_attempts
from payloops.events.authenticity import content_hash, derive_mac_key, is_authentic
from payloops.events.event_store import EventStore
from payloops.events.metadata import Metadata
from payloops.events.orders import Order
from payloops.events.timestamps import utc_now
from payloops.operating import privacy
from payloops.projections.orders import PROJECTION as ORDERS
from payloops.projections.orders import row_from_order
from payloops.projections.verifying import verify
from payloops.settings import Settings
from payloops.workflows_client.order_json import order_json

EMAIL = "Ada.Lovelace@example.com"
DETAILS = {
    "customerEmail": EMAIL,
    "description": "An engine for Lovelace",
    "metadata": {"ship_to": {"name": "Lovelace"}},
}
ERASED = {
    "customerEmail": "[erased]",
    "description": "[erased]",
    "metadata": {"erased": "[erased]"},
}
EVERYTHING = Copies(webhooks=1, webhook_answers=1, processor_events=2, kept_answers=1, staff_searches=2)
OTHER_EMAIL = "charles.babbage@example.com"


@pytest.fixture
def ada(merchant: Merchant) -> Customer:
    return Customer(merchant_id=merchant.id, email=EMAIL.lower())


async def order_with_copies(
    store: EventStore,
    merchant: Merchant,
    *,
    customer_id: str = "cus_ada",
    key: str | None = None,
    **changed: Any,
) -> UUID:
    """An order of Ada's, and a copy of her address in every place that one can get to."""
    body = {"amount": 1_000, "customerId": customer_id, **DETAILS, **changed}
    answer = await merchant.shop.post("/v1/orders", body, key=key or f"key-{uuid7()}")
    assert answer.status == 201
    order_id = UUID(answer.json["id"])
    email = body["customerEmail"]
    await tell(store, merchant, order_id, answers=f"thank you, {email}")
    await processor_told(store, merchant, f'{{"email": "{email}"}}', order_id=order_id)
    await processor_told(store, merchant, f'{{"customer": {{"email": "{email.swapcase()}"}}}}', order_id=None)
    for where in (None, merchant.id):
        await search(store, email, merchant_id=where)
    return order_id


async def tell(
    store: EventStore, merchant: Merchant, order_id: UUID, *, answers: str, order: Order | None = None
) -> UUID:
    """The merchant is told of an order and answers, as a subscriber and a worker do it."""
    order = order or await store.load(Order, order_id)
    assert order is not None
    webhook_id: UUID = uuid7()
    told = order_json(row_from_order(order))
    await queue_webhook(
        store.pool,
        webhook_id=webhook_id,
        merchant_id=merchant.id,
        order_id=order_id,
        event_type="payment.processing",
        payload={"id": str(webhook_id), "data": told, "all": [told]},
        source_position=None,
        at=utc_now(),
    )
    await answer_webhook(store, webhook_id, answers)
    return webhook_id


async def answer_webhook(store: EventStore, webhook_id: UUID, text: str) -> None:
    attempt = WebhookAttempt(attempted_at=utc_now(), duration_ms=5, status_code=200, error=None, answer=text)
    await record_webhook_attempt(
        store,
        webhook=await find_webhook(store.pool, webhook_id=webhook_id, merchant_id=None),
        key=str(uuid7()),
        url="https://merchant.example",
        attempt=attempt,
        by=BY,
    )


async def processor_told(store: EventStore, merchant: Merchant, body: str, *, order_id: UUID | None) -> None:
    key = str(uuid7())
    await keep_processor_event(
        store.pool,
        merchant_id=merchant.id,
        processor="stripe",
        key=key,
        event_id=key,
        type="charge.succeeded",
        body=body,
        at=utc_now(),
    )
    await note_effect(
        store.pool,
        merchant_id=merchant.id,
        processor="stripe",
        key=key,
        effect="none" if order_id is not None else "unhandled",
        order_id=order_id,
    )


async def search(store: EventStore, text: str, *, merchant_id: UUID | None = None) -> None:
    staff_id = uuid7()
    async with store.pool.connection() as connection:
        await connection.execute(
            "INSERT INTO staff (id, name, email, password_hash, created_at) VALUES (%s, 'S', %s, '', now())",
            (staff_id, f"{staff_id}@staff.example"),
        )
    await record_staff_view(
        store.pool,
        staff_id=staff_id,
        route="GET /api/staff/orders",
        order_id=None,
        merchant_id=merchant_id,
        query={"q": text, "page": 1},
        at=utc_now(),
        correlation_id="test",
    )


BY = Metadata(at=utc_now(), actor="operator:test", correlation_id="erasure")


async def erase(store: EventStore, whom: Customer | UUID) -> Erased:
    done = Erased()
    async for step in erase_personal_data(store, whom, by=BY):
        done += step
    return done


async def traces(pool: AsyncConnectionPool) -> list[str]:
    return await tables_that_hold(pool, EMAIL, "Lovelace")


async def personal(answer: Answer) -> dict[str, Any]:
    assert answer.status == 200
    return {name: answer.json[name] for name in DETAILS}


# -- everywhere


async def test_after_an_erasure_nothing_in_the_database_names_the_customer(
    store: EventStore, settings: Settings, merchant: Merchant, ada: Customer
) -> None:
    async with projector(settings.database_url.get_secret_value()):
        mine = [await order_with_copies(store, merchant) for _ in range(3)]
        other = await order_with_copies(
            store,
            merchant,
            customer_id="cus_charles",
            customerEmail=OTHER_EMAIL,
            description="x",
            metadata={},
        )
        await reached(store, await store.head())
        assert len(await traces(store.pool)) == 6
        done = await erase(store, ada)
        await reached(store, done.position)
    assert (done.streams, done.copies.webhooks, done.copies.processor_events) == (3, 3, 6)
    assert await traces(store.pool) == []
    assert len(await tables_that_hold(store.pool, OTHER_EMAIL)) == 6, "another customer's stays as it was"
    found_by = "SELECT originator_id FROM personal_keys WHERE num_nonnulls(customer_digest, email_digest) > 0"
    assert await rows(store, found_by) == [(other,)]
    for order_id in mine:
        assert await personal(await merchant.shop.get(f"/v1/orders/{order_id}")) == ERASED
    kept = await merchant.shop.get(f"/v1/orders/{other}")
    assert (kept.json["customerEmail"], kept.json["metadata"]) == (OTHER_EMAIL, {})


async def test_every_view_of_an_erased_order_reads_erased(
    store: EventStore, settings: Settings, merchant: Merchant, ada: Customer
) -> None:
    async with projector(settings.database_url.get_secret_value()):
        order_id = await order_with_copies(store, merchant)
        await reached(store, (await erase(store, ada)).position)
    for path in (f"/api/orders/{order_id}", f"/api/orders/{order_id}/events?asOf=1"):
        assert await personal(await merchant.dashboard.get(path)) == ERASED
    trail = (await merchant.shop.get(f"/v1/orders/{order_id}/events")).json
    assert {name: trail[0]["data"][name] for name in ERASED} == ERASED
    assert (trail[-1]["type"], trail[-1]["actor"]) == ("order.personal_data_erased", "operator:test")
    catching_up = (await merchant.shop.get("/v1/events")).json["data"]
    assert {name: catching_up[0]["data"][name] for name in ERASED} == ERASED
    for text in ("Lovelace", EMAIL):
        assert (await merchant.dashboard.get(f"/api/orders?q={text}")).json["data"] == []
    [found] = (await merchant.dashboard.get("/api/webhooks")).json["data"]
    webhook = (await merchant.dashboard.get(f"/api/webhooks/{found['id']}")).json
    assert {name: webhook["body"]["data"][name] for name in ERASED} == ERASED
    assert [each["response"] for each in webhook["attempts"]] == ["[erased]"]


async def test_a_repeated_request_is_answered_with_what_is_left(
    store: EventStore, merchant: Merchant, ada: Customer
) -> None:
    request = {"amount": 1_000, **DETAILS, "description": None}
    first = await merchant.shop.post("/v1/orders", request, key="again")
    await erase(store, ada)
    again = await merchant.shop.post("/v1/orders", request, key="again")
    assert again.headers["Idempotent-Replayed"] == "true"
    assert again.json == first.json | ERASED | {"description": None}


async def test_tables_folded_anew_are_the_same_as_those_that_lived_through_the_erasure(
    store: EventStore, settings: Settings, merchant: Merchant, ada: Customer
) -> None:
    url = settings.database_url.get_secret_value()
    await order_with_copies(store, merchant)
    await project_orders(url)
    await order_with_copies(store, merchant, description=None)  # not folded when its key is dropped
    await erase(store, ada)
    await project_orders(url)
    verdicts = await verify(database_url=url, projections=[ORDERS], report=lambda *_: None, workers=1)
    assert {each.table: (each.rows, each.differing) for each in verdicts} == {
        "orders": (2, 0),
        "order_counts": (1, 0),
        "transactions": (0, 0),
    }


async def test_hashes_and_macs_of_all_events_hold_after_an_erasure(
    store: EventStore, settings: Settings, merchant: Merchant, ada: Customer
) -> None:
    await order_with_copies(store, merchant)
    columns = "originator_id, originator_version, topic, state, content_hash, merchant_id, mac"
    before = await rows(store, f"SELECT {columns} FROM stored_events ORDER BY notification_id")
    await erase(store, ada)
    after = await rows(store, f"SELECT {columns} FROM stored_events ORDER BY notification_id")
    assert after[: len(before)] == before
    assert len(after) == len(before) + 1
    key = derive_mac_key(settings.audit_key.get_secret_value())
    for *event, stored_hash, merchant_id, mac in after:
        assert content_hash(StoredEvent(*event)) == stored_hash
        assert is_authentic(key, content_hash=stored_hash, merchant_id=merchant_id, mac=mac)


# -- whom


async def test_a_customer_is_erased_by_id_with_what_names_only_their_addresses(
    store: EventStore, merchant: Merchant
) -> None:
    order_id = await order_with_copies(store, merchant)
    shared = await order_with_copies(
        store, merchant, customer_id="cus_family", customerEmail="we@example.com"
    )
    theirs = await order_with_copies(store, merchant, customer_id="cus_ada", customerEmail="we@example.com")
    done = await erase(store, Customer(merchant_id=merchant.id, customer_id="cus_ada"))
    assert done.streams == 2
    assert await tables_that_hold(store.pool, EMAIL) == []
    for erased in (order_id, theirs):
        folded = await store.load(Order, erased)
        assert folded is not None
        assert folded.customer_email == "[erased]"
    # Somebody else has the same address: what names it without an order stays, as it may be theirs.
    held = await find_holdings(store.pool, shared)
    assert held.copies == replace(EVERYTHING, processor_events=3, staff_searches=4)


async def test_an_address_is_found_however_it_is_written(store: EventStore, merchant: Merchant) -> None:
    told = {"email": "K\u00e4the@Example.com"}
    for body in (json.dumps(told), json.dumps(told, ensure_ascii=False)):
        await processor_told(store, merchant, body, order_id=None)
    held = await find_holdings(store.pool, Customer(merchant_id=merchant.id, email="k\u00e4the@example.com"))
    assert held.copies == Copies(processor_events=2)


async def test_one_order_is_erased_and_others_of_its_customer_are_not(
    store: EventStore, merchant: Merchant, ada: Customer
) -> None:
    one, other = [await order_with_copies(store, merchant) for _ in range(2)]
    done = await erase(store, one)
    assert (done.streams, done.copies) == (
        1,
        Copies(webhooks=1, webhook_answers=1, processor_events=1, kept_answers=1),
    )
    assert await personal(await merchant.shop.get(f"/v1/orders/{one}")) == ERASED
    assert await personal(await merchant.shop.get(f"/v1/orders/{other}")) == DETAILS
    held = await find_holdings(store.pool, ada)
    assert [each.stream_id for each in held.streams] == [other]


async def test_another_merchants_customer_of_the_same_name_is_somebody_else(
    api: Api, store: EventStore, merchant: Merchant
) -> None:
    elsewhere = await api.merchant()
    kept = await order_with_copies(store, elsewhere, key="theirs")
    kept_plain = await plain_order(store, elsewhere)
    await order_with_copies(store, merchant, key="theirs")
    for whom in ({"email": EMAIL}, {"customer_id": "cus_ada"}):
        await erase(store, Customer(merchant_id=merchant.id, **whom))
    assert await personal(await elsewhere.shop.get(f"/v1/orders/{kept}")) == DETAILS
    held = await find_holdings(store.pool, Customer(merchant_id=elsewhere.id, email=EMAIL))
    assert {each.stream_id for each in held.streams if not each.dropped} == {kept, kept_plain}
    # What staff looked for among all merchants' orders is of whom is erased; among another's it is not.
    assert held.copies == replace(EVERYTHING, staff_searches=1)


@pytest.mark.parametrize("whom", [["--email", EMAIL], ["--customer-id", "cus_ada"]])
async def test_a_checkout_session_is_erased_with_the_orders_of_its_customer(
    store: EventStore, merchant: Merchant, settings: Settings, whom: list[str]
) -> None:
    """By the command: its process has met neither orders nor sessions before."""
    asked = {
        "amount": 1_000,
        "successUrl": "https://shop.example/done",
        "cancelUrl": "https://shop.example/back",
        "customerEmail": EMAIL,
        "customerId": "cus_ada",
        "metadata": {"for": "Lovelace"},
        "lineItems": [{"name": "Lovelace's engine", "amount": 1_000, "quantity": 1}],
    }
    made = await merchant.shop.post("/v1/checkout/sessions", asked, key="session")
    await order_with_copies(store, merchant)
    async with projector(settings.database_url.get_secret_value()):
        command = ("privacy", "erase", "--merchant", str(merchant.id), *whom, "--yes", "--json")
        status, out, err = await run_command(settings, *command)
        await reached(store, await store.head())
    assert status == 0, err
    assert json.loads(out)["erased"]["streams"] == 2
    assert await traces(store.pool) == []
    session = (await merchant.shop.get(f"/v1/checkout/sessions/{made.json['id']}")).json
    assert (session["customerEmail"], session["metadata"], session["lineItems"]) == (
        "[erased]",
        {"erased": "[erased]"},
        [],
    )


@pytest.mark.parametrize("named", ["order", "session"])
async def test_an_order_and_the_checkout_session_that_placed_it_are_erased_together(
    api: Api, store: EventStore, settings: Settings, named: str
) -> None:
    """Each is a copy of the other, whichever of them is named."""
    bought: dict[str, Any] = {
        "customerEmail": EMAIL,
        "metadata": DETAILS["metadata"],
        "lineItems": [{"name": "Lovelace's engine", "amount": 1_000, "quantity": 1}],
    }
    shopping = await go_shopping(api, store, **bought)
    await shopping.pay()
    order_id = (await shopping.order()).id
    other = await go_shopping(api, store, customerEmail="grace@example.com")
    await other.pay()
    await search(store, EMAIL)
    async with projector(settings.database_url.get_secret_value()):
        await reached(store, await store.head())
        done = await erase(store, order_id if named == "order" else shopping.id)
        await reached(store, done.position)
    assert (done.streams, done.copies) == (2, Copies(staff_searches=1))
    assert await traces(store.pool) == []
    for path in (f"/v1/orders/{order_id}", f"/v1/checkout/sessions/{shopping.id}"):
        read = (await shopping.merchant.shop.get(path)).json
        assert (read["customerEmail"], read["metadata"]) == ("[erased]", {"erased": "[erased]"})
    assert (await find_holdings(store.pool, order_id)).is_empty
    kept = await find_holdings(store.pool, other.id)
    assert ([each.dropped for each in kept.streams], kept.copies) == ([False, False], Copies())
    assert not kept.is_empty, "though there are no copies of it"


async def test_an_order_that_holds_nothing_stays_as_it_is(store: EventStore, merchant: Merchant) -> None:
    order_id = UUID(await merchant.order())
    await processor_told(store, merchant, f'{{"email": "{EMAIL}"}}', order_id=order_id)
    done = await erase(store, order_id)
    assert (done.position, done.copies) == (0, Copies(processor_events=1))
    assert await traces(store.pool) == []
    order = await store.load(Order, order_id)
    assert order is not None
    assert (order.version, order.customer_email, order.metadata) == (1, None, {})


# -- again, at the same time, and interrupted


async def test_erasing_twice_is_as_once(store: EventStore, merchant: Merchant, ada: Customer) -> None:
    order_id = await order_with_copies(store, merchant)
    assert (await erase(store, ada)).copies == EVERYTHING
    head = await store.head()
    for whom in (ada, order_id):
        assert (await erase(store, whom)).copies == Copies()
        assert (await find_holdings(store.pool, whom)).is_empty
    assert await store.head() == head


async def test_two_operators_at_once_record_it_once(
    store: EventStore, merchant: Merchant, ada: Customer
) -> None:
    for _ in range(4):
        await order_with_copies(store, merchant)
    await asyncio.gather(*(erase(store, ada) for _ in range(3)))
    assert await traces(store.pool) == []
    [(facts,)] = await rows(
        store, "SELECT count(*) FROM stored_events WHERE topic = 'order.personal_data_erased'"
    )
    assert facts == 4


async def test_orders_that_are_made_and_paid_meanwhile_are_erased_by_this_run_or_the_next(
    store: EventStore, settings: Settings, merchant: Merchant, ada: Customer
) -> None:
    stop = asyncio.Event()
    bought: list[UUID] = []

    async def keep_buying() -> None:
        while not stop.is_set():
            order_id = await order_with_copies(store, merchant)
            await merchant.shop.post(f"/v1/orders/{order_id}/pay", key=f"pay-{order_id}")
            bought.append(order_id)

    async def many_are_bought() -> bool:
        await erase(store, ada)
        return len(bought) >= 12

    async with projector(settings.database_url.get_secret_value()):
        buyers = [asyncio.create_task(keep_buying()) for _ in range(3)]
        await eventually(many_are_bought)
        stop.set()
        await asyncio.gather(*buyers)
        await erase(store, ada)
        await reached(store, await store.head())
    assert await traces(store.pool) == []
    [(orders, keys)] = await rows(
        store, "SELECT count(*), count(*) FILTER (WHERE key <> '') FROM personal_keys"
    )
    assert orders == len(bought)
    assert keys == 0


@pytest.mark.parametrize(
    ("whom", "crash"),
    [
        ("email", ("erasure.mentions_erased", 1)),
        ("email", ("append_in.appended", 2)),
        ("email", ("erasure.key_dropped", 1)),
        ("email", ("erasure.copies_erased", 1)),
        # The addresses are not known any more where all keys are dropped.
        ("customer_id", ("erasure.mentions_erased", 1)),
        ("customer_id", ("erasure.key_dropped", 3)),
    ],
)
async def test_an_erasure_that_was_killed_is_finished_by_the_next(
    store: EventStore, settings: Settings, merchant: Merchant, whom: str, crash: tuple[str, int]
) -> None:
    for _ in range(2):
        await order_with_copies(store, merchant)
    plain = await plain_order(store, merchant)
    await tell(store, merchant, plain, answers=EMAIL)
    of_whom = ["--email", EMAIL] if whom == "email" else ["--customer-id", "cus_ada"]
    erasing = ["privacy", "erase", "--merchant", str(merchant.id), *of_whom, "--yes"]
    killed = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-c", DOOMED, crash[0], str(crash[1]), *erasing),
        env=os.environ | environment_of(settings),
        stdout=asyncio.subprocess.DEVNULL,
    )
    assert await asyncio.wait_for(killed.wait(), 120) == -9
    named = {"email": EMAIL} if whom == "email" else {"customer_id": "cus_ada"}
    await erase(store, Customer(merchant_id=merchant.id, **named))
    await project_orders(settings.database_url.get_secret_value())
    assert await traces(store.pool) == ["stored_events"]  # the plain one
    trail = await rows(
        store, "SELECT originator_id FROM stored_events WHERE topic = 'order.personal_data_erased'"
    )
    assert len(trail) == len(set(trail)) == 3


# -- what is copied later


async def test_what_is_copied_of_an_order_after_its_erasure_reads_erased(
    store: EventStore, merchant: Merchant, ada: Customer
) -> None:
    order_id = await order_with_copies(store, merchant)
    [(webhook_id,)] = await rows(store, "SELECT id FROM webhook_events")
    before = await store.load(Order, order_id)
    await erase(store, ada)
    await tell(store, merchant, order_id, answers=EMAIL, order=before)  # it had loaded the order before
    await answer_webhook(store, webhook_id, EMAIL)  # it was being sent meanwhile
    await processor_told(store, merchant, f'{{"receipt_email": "{EMAIL}"}}', order_id=order_id)
    assert await traces(store.pool) == []
    assert [each.attempt.answer for each in await list_attempts(store.pool, webhook_id=webhook_id)] == [
        "[erased]"
    ] * 2


INSERT_BODY = f"""
    {WITH_HELD}
    INSERT INTO processor_events
        (id, merchant_id, processor, key, event_id, type, order_id, body, effect, received_at)
    SELECT %(id)s, %(merchant_id)s, 'stripe', 'k', 'k', 't', %(order_id)s, %(text)s, 'none', now()
    FROM held WHERE NOT erased
"""
RECORD_ANSWER = """
    WITH locked AS (SELECT id FROM webhook_events WHERE order_id = %(order_id)s FOR UPDATE)
    UPDATE webhook_attempts SET answer = %(text)s FROM locked WHERE webhook_event_id = locked.id
"""
"""As who records an attempt does it, after it looked whether the key is there."""


@pytest.mark.parametrize("copying", [INSERT_BODY, RECORD_ANSWER])
async def test_a_copy_that_is_being_made_is_waited_for(
    store: EventStore, merchant: Merchant, ada: Customer, copying: str
) -> None:
    """Its transaction began before the key was dropped: the erasure goes on when it is over, and finds it."""
    order_id = await order_with_copies(store, merchant)
    async with store.pool.connection() as connection:
        await connection.execute("UPDATE webhook_attempts SET answer = ''")
        async with connection.transaction():
            given = {"id": uuid7(), "merchant_id": merchant.id, "order_id": order_id, "text": EMAIL}
            await connection.execute(copying.encode(), given)
            erasing = asyncio.create_task(erase(store, ada))

            async def it_waits() -> bool:
                waiting = "SELECT FROM pg_locks WHERE locktype = 'transactionid' AND NOT granted"
                return erasing.done() or bool(await rows(store, waiting))

            await eventually(it_waits)
    await erasing
    assert await traces(store.pool) == []


# -- versions before keys


async def plain_order(store: EventStore, merchant: Merchant) -> UUID:
    """An order whose first event is as versions before keys wrote it."""
    order_id = UUID(await merchant.order(**DETAILS, customerId="cus_ada"))
    async with store.pool.connection() as connection:
        await connection.execute("ALTER TABLE stored_events DISABLE TRIGGER stored_events_are_facts")
        row = await (
            await connection.execute("SELECT state FROM stored_events WHERE originator_id = %s", (order_id,))
        ).fetchone()
        assert row is not None
        state = orjson.loads(row[0])
        del state["class_version"], state["sealed"]
        state |= {"customer_email": EMAIL, "description": "Lovelace", "metadata": {"name": "Lovelace"}}
        await connection.execute(
            "UPDATE stored_events SET state = %s, mac = NULL WHERE originator_id = %s",
            (orjson.dumps(state), order_id),
        )
        await connection.execute("DELETE FROM personal_keys WHERE originator_id = %s", (order_id,))
        await connection.execute("ALTER TABLE stored_events ENABLE TRIGGER stored_events_are_facts")
    return order_id


@pytest.mark.parametrize("whom", [{"email": EMAIL}, {"customer_id": "cus_ada"}])
async def test_an_order_of_a_version_before_keys_reads_erased_and_stands_in_the_log_alone(
    store: EventStore, settings: Settings, merchant: Merchant, whom: dict[str, str]
) -> None:
    order_id = await plain_order(store, merchant)
    await tell(store, merchant, order_id, answers=EMAIL)
    customer = Customer(merchant_id=merchant.id, **whom)
    held = await find_holdings(store.pool, customer)
    assert [(each.stream_id, each.plain) for each in held.streams] == [(order_id, True)]
    await erase(store, customer)
    await project_orders(settings.database_url.get_secret_value())
    assert await traces(store.pool) == ["stored_events"]
    assert await personal(await merchant.shop.get(f"/v1/orders/{order_id}")) == ERASED
    trail = (await merchant.shop.get(f"/v1/orders/{order_id}/events")).json
    assert {name: trail[0]["data"][name] for name in ERASED} == ERASED
    assert (await find_holdings(store.pool, customer)).is_empty


# -- what staff looked at


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE staff_views SET route = 'x'",
        "UPDATE staff_views SET query = NULL",
        """UPDATE staff_views SET query = '{"q": "[erased]"}'""",
        """UPDATE staff_views SET query = query || '{"q": "somebody else"}'""",
        """UPDATE staff_views SET query = query || '{"q": "[erased]"}', viewed_at = now()""",
        "DELETE FROM staff_views",
        "TRUNCATE staff_views",
    ],
)
async def test_nothing_of_what_staff_looked_at_is_changed_but_what_they_searched_for(
    store: EventStore, merchant: Merchant, change: str
) -> None:
    await search(store, EMAIL)
    async with store.pool.connection() as connection:
        with pytest.raises(psycopg.errors.RaiseException, match="refused"):
            await connection.execute(change.encode())
        await connection.execute("""UPDATE staff_views SET query = query || '{"q": "[erased]"}'""")


# -- the command


async def command(
    settings: Settings, *arguments: str, answer: str = "", **environment: str
) -> tuple[int, str, str]:
    return await run_command(settings, "privacy", *arguments, stdin=answer, environment=environment)


async def test_the_command_shows_asks_erases_and_says_what_it_cannot_erase(
    store: EventStore, settings: Settings, merchant: Merchant
) -> None:
    for _ in range(2):
        await order_with_copies(store, merchant)
    await plain_order(store, merchant)
    whom = ("--merchant", str(merchant.id), "--email", EMAIL.upper())
    async with projector(settings.database_url.get_secret_value()):
        status, out, _ = await command(settings, "show", *whom, "--json")
        assert (status, json.loads(out)["held"]) == (0, {"orders": 3})
        status, _, err = await command(settings, "erase", *whom, answer="n\n")
        assert status == 1
        assert err.endswith("payloops: nothing was erased\n")
        assert (await find_holdings(store.pool, Customer(merchant_id=merchant.id, email=EMAIL))).streams
        status, out, err = await command(settings, "erase", *whom, answer="y\n")
        assert status == 0, err
        assert "erasing: 3 of 3" in err
        assert "Temporal's workflow histories" in out
        assert "the first events of 1 orders" in out
        status, out, _ = await command(settings, "erase", *whom, "--yes", "--json")
    report = json.loads(out)
    assert (status, set(report["erased"].values()), report["shown"]) == (0, {0}, True)
    assert await traces(store.pool) == ["stored_events"]  # the plain one


async def test_the_command_says_when_the_tables_do_not_show_it_yet_and_when_there_are_others(
    store: EventStore,
    settings: Settings,
    merchant: Merchant,
    monkeypatch: pytest.MonkeyPatch,
    capsysbinary: pytest.CaptureFixture[bytes],
) -> None:
    await order_with_copies(store, merchant)
    async with store.pool.connection() as connection:
        await connection.execute("CREATE SCHEMA payloops_build")  # of a rebuild that was interrupted
    monkeypatch.setattr(privacy, "PROJECTION_SECONDS", 0.2)  # and no projector runs
    whom = Customer(merchant_id=merchant.id, email=EMAIL)
    capsysbinary.readouterr()  # what was logged
    assert await privacy.erase(settings, subject=whom, ask=False, as_json=True)
    report = json.loads(capsysbinary.readouterr().out)
    assert (report["shown"], report["stays"]["unfinishedBuilds"]) == (False, True)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "give --merchant with one of --customer-id and --email, or --order alone"),
        (["--email", EMAIL], "give --merchant with"),
        (["--order", str(UUID(int=1)), "--merchant", str(UUID(int=2))], "give --merchant with"),
        (["--order", str(UUID(int=1))], f"no order {UUID(int=1)}"),
        (["--merchant", str(UUID(int=2)), "--email", EMAIL], f"no merchant {UUID(int=2)}"),
    ],
)
async def test_the_command_says_in_one_line_what_is_wrong(
    settings: Settings, arguments: list[str], complaint: str
) -> None:
    for name in ("show", "erase"):
        status, out, err = await command(settings, name, *arguments)
        assert (status > 0, out, err.count("\n")) == (True, "", 1)
        assert complaint in err


async def test_a_merchants_id_is_no_orders(settings: Settings, merchant: Merchant) -> None:
    for arguments in (["show"], ["erase", "--yes"]):
        answer = await command(settings, *arguments, "--order", str(merchant.id))
        assert answer == (1, "", f"payloops: no order {merchant.id}\n")


async def test_the_command_asks_for_what_it_needs_first(settings: Settings) -> None:
    order = ("--order", str(UUID(int=1)))
    status, _, err = await command(settings, "erase", *order, "--json")
    assert (status, err) == (2, "payloops: --json cannot ask for confirmation: give --yes as well\n")
    status, _, err = await command(settings, "erase", *order, "--yes", AUDIT_KEY="short")
    assert (status, err) == (2, "payloops: AUDIT_KEY: must have at least 32 characters\n")
    status, _, err = await command(settings, "show", *order, AUDIT_KEY="short")
    assert (status, err) == (1, f"payloops: no order {UUID(int=1)}\n")


async def test_who_interrupts_the_question_has_erased_nothing(
    settings: Settings, store: EventStore, merchant: Merchant, database_url: str
) -> None:
    order_id = await order_with_copies(store, merchant)
    await project_orders(database_url)
    child = await begin_command(settings, "privacy", "erase", "--order", str(order_id))  # and nobody answers
    try:
        assert child.stderr is not None
        await asyncio.wait_for(child.stderr.readuntil(b"[y/N]"), 90)
        child.send_signal(signal.SIGINT)
        said = await asyncio.wait_for(child.stderr.read(), 90)
        assert (await child.wait(), said.split(b"\n")[-2]) == (1, b"payloops: nothing was erased")
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
    assert not (await find_holdings(store.pool, order_id)).is_empty
