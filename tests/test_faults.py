"""The harness of faults: a few cheap runs of it, and that its invariants notice what they are there for."""

import random
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest
from faults.cases import CASES
from faults.cases.money import captured_order
from faults.cases.trouble import whole_service
from faults.invariants import CHECKS, come_to_rest, violations
from faults.running import run_case
from faults.shops import Life, open_shop
from faults.world import World, open_world

from payloops.embedded import EmbeddedServers
from payloops.events.connections import connect

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.usefixtures("databases")
@pytest.mark.parametrize(("name", "seed"), [("refunds", 1)])
async def test_a_run_finds_nothing(servers: EmbeddedServers, tmp_path: Path, name: str, seed: int) -> None:
    report = await run_case(servers, CASES[name], seed=seed, folder=tmp_path)
    assert (report.outcome, report.wrong) == ("ok", [])


def test_the_docs_name_every_case_and_every_invariant() -> None:
    page = (ROOT / "docs/faults.md").read_text()
    assert [name for name in (*CASES, *CHECKS) if f"| `{name}` |" not in page] == []


@pytest.fixture
async def world(servers: EmbeddedServers, databases: object, tmp_path: Path) -> AsyncIterator[World]:
    """A service at rest, after an order was paid at checkout, and another captured and partly refunded."""
    name = f"world-{uuid4()}"
    async with open_world(servers, name=name, chance=random.Random(1), folder=tmp_path / name) as world:
        whole_service(world)
        await world.start_all()
        shop = await open_shop(world)
        await Life(shop=shop, tokens={"tok_visa": 1}).check_out()
        order_id = await captured_order(shop, amount=1_000)
        await shop.command("refund", f"/v1/orders/{order_id}/refund", {"amount": 300}, order_id=order_id)
        assert await come_to_rest(world) == []
        await world.stop()
        yield world


TABLES = (
    "merchants",
    "stored_events",
    "orders",
    "transactions",
    "payments",
    "parked_events",
    "sandbox.charges",
)
STATE = (
    "UPDATE stored_events SET state = convert_to(replace(convert_from(state, 'UTF8'), '{}', '{}'), 'UTF8')"
)
TAMPERING = (
    ("log", "stands where 2 should", "UPDATE stored_events SET notification_id = 1000 + notification_id"),
    (
        "log",
        " follows ",
        "UPDATE stored_events SET originator_version = 90 + originator_version WHERE topic = 'refund.succeeded'",
    ),
    (
        "log",
        "is not what its hash says",
        "UPDATE stored_events SET content_hash = '' WHERE notification_id = 2",
    ),
    ("log", "is not authentic", "UPDATE stored_events SET mac = '' WHERE notification_id = 2"),
    ("acknowledged", "and not in the log: refund", "DELETE FROM stored_events WHERE topic LIKE 'refund.%'"),
    ("money", "3000 refunded of 1000", STATE.format('"amount_refunded":300', '"amount_refunded":3000')),
    ("money", "refunds of 3000 of a", STATE.format('"amount":300', '"amount":3000')),
    ("ledger", "there (1000, 301)", "UPDATE sandbox.charges SET amount_refunded = 301"),
    ("ledger", "is captured, there authorized", "UPDATE sandbox.charges SET status = 'authorized'"),
    ("ledger", "charged, and not asked for", "UPDATE sandbox.charges SET attempt = 2"),
    ("checkouts", "placed an order that there is not", STATE.format('"order_id":"', '"order_id":"0')),
    (
        "checkouts",
        "is completed, and nothing was paid",
        "DELETE FROM stored_events WHERE topic LIKE 'payment.captured'",
    ),
    ("workflows", "has 0 runs", STATE.format('"refund_id":"', '"refund_id":"0')),
    ("projections", "orders: ", "UPDATE orders SET amount_refunded = 299"),
    ("projections", "is None, not", "DELETE FROM transactions WHERE type = 'refund'"),
    ("projections", "payments: ", "UPDATE payments SET status = 'failed'"),
    ("accounts", "and its stream says", "UPDATE merchants SET name = 'Somebody else'"),
    (
        "parked",
        "orders parked event 1",
        "INSERT INTO parked_events VALUES ('orders', 1, gen_random_uuid(), 1, 'order.created', 'why')",
    ),
    ("secrets", "card number stands in orders", "UPDATE orders SET description = 'it is 4242424242424242'"),
    ("reconciled", "recorded", "UPDATE sandbox.charges SET amount_refunded = 900"),
)
"""The invariant, what it says, and what was done that it has to notice."""


async def test_the_invariants_notice_what_is_wrong(world: World) -> None:
    """One thing at a time, from a state in which nothing is wrong."""
    assert await violations(world) == []
    await what_the_database_holds(world)
    await what_clients_were_told(world)
    await what_is_given_away(world)


async def what_the_database_holds(world: World) -> None:
    url = world.settings.database_url.get_secret_value()
    async with await connect(url, application_name="test") as connection:
        await connection.execute("SET session_replication_role = replica")  # events may be changed, here
        for table in TABLES:
            await connection.execute(f"CREATE TEMP TABLE kept_{table.replace('.', '_')} AS TABLE {table}")
        for name, says, statement in TAMPERING:
            await connection.execute(statement)
            found = await violations(world, name)
            assert any(line.startswith(f"{name}: ") and says in line for line in found), (name, says, found)
            for table in reversed(TABLES):
                await connection.execute(f"DELETE FROM {table}")
                await connection.execute(f"INSERT INTO {table} TABLE kept_{table.replace('.', '_')}")


async def what_clients_were_told(world: World) -> None:
    (tried,) = world.journal.commands[-1].tries
    assert tried.answer is not None
    refund = tried.answer

    async def told(status: int, raw: bytes = refund.raw) -> str:
        tried.answer = replace(refund, status=status, raw=raw)
        return "\n".join(await violations(world, "acknowledged"))

    assert "refused and in the log" in await told(400)
    assert "answered 503 ('nothing was done'), and in the log" in await told(503)
    assert "is not about what is in the log" in await told(201, refund.raw.replace(b'Id":"0', b'Id":"1'))
    assert await told(504) == ""


async def what_is_given_away(world: World) -> None:
    password = world.canaries["0 password of a merchant"]
    (world.folder / "api-1.log").write_text(f"password={password}\nTraceback (most recent call last):\n")
    assert await violations(world, "secrets") == ["secrets: 0 password of a merchant stands in api-1.log"]
    assert len(await violations(world, "logs")) == 1
    await world.temporal.start_workflow(
        "PaymentWorkflow", id=f"payment-{password}", task_queue="stripe-payments"
    )
    assert any("nothing called for payment-" in line for line in await violations(world, "workflows"))
    assert any("stands in temporal.db" in line for line in await violations(world, "secrets"))
