"""The running API keeps to the contract that it publishes, whatever it is sent: tried by schemathesis.

Every operation, authenticated, with examples, the limits of each rule, random values good and hostile, and
sequences along the document's links. No failure of ours, no answer that is not declared, bad data always
refused, good data never refused for its shape. `tests/contract/` has the configuration.
"""

import asyncio
import itertools
import json
import os
import sys
from pathlib import Path
from uuid import UUID

import pytest
import structlog
from calling import PASSWORD, Api, running_api
from ordering import new_order, pay, report
from projecting import append, projector
from shopping import go_shopping
from test_http_merchant_webhooks import told

from payloops.commands.add_staff import add_staff
from payloops.commands.processor_events import keep_processor_event, list_processor_events
from payloops.events.event_store import EventStore
from payloops.events.orders import Order
from payloops.events.timestamps import utc_now
from payloops.http import checkout
from payloops.http.app import ROUTES
from payloops.settings import Settings

ROOT = Path(__file__).resolve().parent.parent
SECONDS = 900
"""Most of a minute on a machine with nothing else to do: this only ends what hangs."""
STAFF_EMAIL = "staff@payloops.example"

OUT_OF_REACH = {
    ("POST", "/api/auth/password"),  # a success would end the token that the run is made with
    ("POST", "/support/sign-out"),  # takes what only a page of the session knows
    ("POST", "/webhooks/stripe"),  # what only a processor can sign
    ("POST", "/webhooks/razorpay"),
    ("POST", "/webhooks/{processor}/{merchantId}"),
}
"""Routes that are only refused here; tests of their own show what they do."""


async def test_the_api_keeps_to_its_contract(
    settings: Settings, store: EventStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkout, "STREAM_SECONDS", 0.1)
    output = tmp_path / "output"
    with structlog.testing.capture_logs(processors=[structlog.processors.format_exc_info]) as lines:
        async with (
            running_api(settings.model_copy(update={"rate_limits": False})) as api,
            projector(settings.database_url.get_secret_value()),
        ):
            code = await tried(api, store, output)
    succeeded = {(line.get("method"), line.get("route")) for line in lines if line.get("status", 500) < 400}
    unreached = {(each.method, each.path) for each in ROUTES} - succeeded - OUT_OF_REACH
    traces = dict.fromkeys(str(line["exception"]) for line in lines if "exception" in line)
    if code != 0 or traces:
        pytest.fail("\n\n".join([output.read_text(), *traces]), pytrace=False)
    assert unreached == set(), "no request succeeded: nothing was tried beyond its refusal"


async def tried(api: Api, store: EventStore, output: Path) -> int:
    """Run schemathesis; its exit code."""
    # One merchant's key may be used while the other's are revoked.
    shop, dashboard = await api.merchant(), await api.merchant()
    orders: dict[UUID, list[str]] = {}
    for owner in (shop, dashboard):
        given = orders_in_every_state(owner.id)
        await append(store, *given)
        orders[owner.id] = [str(order.id) for order in given]
    # Of the others, what one route has changed is refused by the next: cancelled, for example, before it is captured.
    reserved = {
        "pay": [new_order(merchant_id=shop.id) for _ in range(6)],
        "cancel": [new_order(merchant_id=shop.id) for _ in range(6)],
        "capture": [
            report(pay(new_order(merchant_id=shop.id), capture="manual"), "authorized") for _ in range(6)
        ],
        "refund": [report(pay(new_order(merchant_id=shop.id)), "captured") for _ in range(6)],
    }
    await append(store, *itertools.chain.from_iterable(reserved.values()))
    events = await events_of_processors(store, merchant_id=shop.id)
    # In the currency and the mode in which every way to pay is offered.
    sessions = [str((await go_shopping(api, store, currency="INR")).id) for _ in range(4)]
    webhooks = await told(store.pool, merchant_id=dashboard.id, count=9)
    member = await add_staff(
        store.pool,
        name="Grace",
        email=STAFF_EMAIL,
        password=PASSWORD,
        passwords=api.services.passwords,
        at=utc_now(),
    )
    staff = await api.anyone.post("/api/staff/login", {"email": STAFF_EMAIL, "password": PASSWORD})
    environment = {
        "CONTRACT_API_KEY": shop.shop.headers["X-API-Key"],
        "CONTRACT_TOKEN": dashboard.dashboard.headers["Authorization"].removeprefix("Bearer "),
        "CONTRACT_STAFF_TOKEN": staff.json["token"],
        "CONTRACT_STAFF_SESSION": api.services.staff_sessions.issue(member, now=utc_now()),
        "CONTRACT_LOGINS": json.dumps(
            {
                "/api/auth/login": {"email": shop.email, "password": PASSWORD},
                "/api/staff/login": {"email": STAFF_EMAIL, "password": PASSWORD},
                "/support/sign-in": {"email": STAFF_EMAIL, "password": PASSWORD},
            }
        ),
        "CONTRACT_IDS": json.dumps(
            {
                "/v1/orders": orders[shop.id],
                **{f"/v1/orders/{{id}}/{name}": [str(o.id) for o in of] for name, of in reserved.items()},
                "/api/orders": orders[dashboard.id],
                "/api/staff/orders": orders[shop.id],
                "/checkout": sessions,
                "/support/orders": orders[shop.id],
                "/support/processor-events": events,
                "/api/webhooks": [webhook["id"] for webhook in webhooks],
                "/api/staff/processor-events": events,
            }
        ),
    }
    with output.open("w") as file:
        run = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "schemathesis.cli"),
            *("--config-file", "tests/contract/schemathesis.toml"),
            *("run", f"{api.url}/openapi.json"),
            cwd=ROOT,
            env={**os.environ, **environment},
            stdout=file,
            stderr=file,
        )
        try:
            async with asyncio.timeout(SECONDS):
                return await run.wait()
        except TimeoutError:
            file.write(f"\nnot done after {SECONDS} seconds")
            return 1
        finally:
            if run.returncode is None:
                run.kill()
                await run.wait()


async def events_of_processors(store: EventStore, *, merchant_id: UUID) -> list[str]:
    for number in range(3):
        await keep_processor_event(
            store.pool,
            merchant_id=merchant_id,
            processor="stripe",
            key=str(number),
            event_id=f"evt_{number}",
            type="payout.paid",
            body="{}",
            at=utc_now(),
        )
    rows, _ = await list_processor_events(store.pool)
    return [str(row.id) for row in rows]


def orders_in_every_state(merchant_id: UUID) -> list[Order]:
    """Also in those that only a processor can bring about; more of those that a request can bring forward."""

    def order() -> Order:
        return new_order(merchant_id=merchant_id)

    return [
        *(order() for _ in range(3)),
        *(report(pay(order(), capture="manual"), "authorized") for _ in range(4)),
        *(report(pay(order()), "captured") for _ in range(4)),
        pay(order()),
        *(report(pay(order()), status) for status in ("requires_action", "failed", "cancelled")),
    ]
