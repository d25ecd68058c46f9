"""Clients that ask for the same money many times, and processors that tell the truth late, twice or not at all."""

import asyncio
from collections.abc import Sequence
from typing import Any
from uuid import uuid4

from psycopg.rows import class_row

from faults.cases.registry import case
from faults.cases.trouble import doom, whole_service
from faults.journal import Command
from faults.shops import Shop, create_order, event_of, open_shop, refund_events, shopping
from faults.world import World
from payloops.events.crash_points import CrashPoint
from payloops.sandbox import ledger


@case
async def refunds(world: World) -> None:
    """20 refunds of 60 of an order of 100, at once at two API processes: as many are made as fit."""
    whole_service(world)
    await world.start_all()
    shop = await open_shop(world)
    for amount, each in ((100, 60), (world.chance.randrange(50, 500), world.chance.randrange(10, 200))):
        order_id = await captured_order(shop, amount=amount)
        answers = await asyncio.gather(
            *(
                shop.command(
                    "refund",
                    f"/v1/orders/{order_id}/refund",
                    {"amount": each},
                    order_id=order_id,
                    keyed=world.chance.random() < 0.5,
                )
                for _ in range(20)
            )
        )
        made = sum(answer is not None and answer.status == 201 for answer in answers)
        codes = {answer.code for answer in answers if answer is not None and answer.status != 201}
        assert made == min(20, amount // each), f"{made} refunds of {each} of {amount}"
        assert codes <= {"refund_exceeds_captured"}, codes


async def captured_order(shop: Shop, *, amount: int, token: str = "tok_visa") -> str:
    """An order that was paid; its id."""
    order_id = await create_order(shop, amount=amount)
    body = {"paymentMethod": {"type": "card", "token": token}}
    await shop.command("pay", f"/v1/orders/{order_id}/pay", body, order_id=order_id)
    order = await shop.becomes(order_id, lambda order: order["status"] == "captured")
    assert order is not None, f"order {order_id} was not captured"
    return order_id


@case
async def one_key(world: World) -> None:
    """One idempotency key a hundred times over two API processes, and the one that holds it is killed."""
    whole_service(world)
    points: tuple[CrashPoint, ...] = ("idempotency.reserved", "append.committed", "command.answered")
    await world.start_all()
    shop = await open_shop(world)
    kind = world.chance.choice(["create", "pay", "refund"])
    if kind == "create":
        order_id, path, body = None, "/v1/orders", {"amount": 1_234}
    elif kind == "pay":
        order_id = await create_order(shop, amount=1_234)
        path, body = f"/v1/orders/{order_id}/pay", {}
    else:
        order_id = await captured_order(shop, amount=1_234)
        path, body = f"/v1/orders/{order_id}/refund", {"amount": 400}
    victim = world.chance.randrange(2)
    name = world.apis[victim].name
    world.notes.append(kind)
    doom(world, name, points, lives=1, within=2)
    world.kill(name)
    await world.restarted(name)
    command = Command(kind=kind, order_id=order_id, key="the key")
    world.journal.commands.append(command)
    asking = [asyncio.create_task(shop.carry_out(command, path, body, api=victim))]
    if world.chance.random() < 0.7:
        await world.died(name)  # or another may hold the key
    asking += [asyncio.create_task(shop.carry_out(command, path, body)) for _ in range(99)]
    bodies = {None if answer is None else answer.raw for answer in await asyncio.gather(*asking)}
    assert len(bodies) == 1, f"{len(bodies)} different answers to one key"


@case
async def pay_at_once(world: World) -> None:
    """50 clients pay one order, at once at two API processes: it is paid once."""
    whole_service(world)
    await world.start_all()
    shop = await open_shop(world)
    for declined in (0.0, world.chance.uniform(0.1, 0.6)):
        order_id = await create_order(shop, amount=world.chance.randrange(100, 10_000))
        answers = await asyncio.gather(*(pay(shop, order_id, declined=declined) for _ in range(50)))
        paid = sum(answer == 200 for answer in answers)
        order = await shop.becomes(order_id, lambda order: order["status"] in {"captured", "failed"})
        assert order is not None
        assert set(answers) <= {200, 400}, answers
        assert order["attempt"] == paid, f"{paid} payments were accepted, and {order['attempt']} made"
        assert declined > 0 or paid == 1, f"{paid} payments were accepted"


async def pay(shop: Shop, order_id: str, *, declined: float) -> int | None:
    token = "tok_chargeDeclined" if shop.chance.random() < declined else "tok_visa"
    answer = await shop.command(
        "pay",
        f"/v1/orders/{order_id}/pay",
        {"paymentMethod": {"type": "card", "token": token}},
        order_id=order_id,
        keyed=shop.chance.random() < 0.5,
        wait=shop.chance.choice([0, 2]),
    )
    return None if answer is None else answer.status


@case
async def lost_answers(world: World) -> None:
    """The processor charges and its answer is lost; the worker dies in between as well."""
    whole_service(world)
    points: tuple[CrashPoint, ...] = ("sandbox.charged", "sandbox.operated", "order_status.reported")
    doom(world, "worker-1", points, lives=2, within=12)
    await world.start_all()
    shop = await open_shop(world)
    await shopping(shop, orders=15, at_once=5, tokens={"tok_lost": 5, "tok_authorize": 1, "tok_visa": 1})


@case
async def shuffled_events(world: World) -> None:
    """Processors tell of payments and refunds several times and in any order: also of those made or returned there."""
    whole_service(world)
    await world.start_all()
    shop = await open_shop(world)
    await asyncio.gather(*(told_at_random(shop) for _ in range(8)))


async def told_at_random(shop: Shop) -> None:
    """One order, of which its processor tells everything about three times, while it happens and after."""
    chance, pool = shop.chance, shop.world.store.pool
    amount = chance.randrange(100, 10_000)
    currency = chance.choice(["USD", "INR"])
    created = await shop.command("create", "/v1/orders", {"amount": amount, "currency": currency})
    assert created is not None
    order_id = created.json["id"]
    token = chance.choice(["tok_visa", "tok_3ds", "tok_lost"])
    await shop.command(
        "pay",
        f"/v1/orders/{order_id}/pay",
        {"paymentMethod": {"type": "card", "token": token}},
        order_id=order_id,
    )
    charge = await charged(shop, order_id)
    told: list[Any] = [event_of(charge, shop.id)] if charge.status == "captured" else []
    if charge.status == "requires_action":
        charge = await ledger.complete_action(
            pool, order_id=order_id, attempt=1, success=chance.random() < 0.8, processor_transaction_id=None
        )
        told = [event_of(charge, shop.id)]
    telling = asyncio.create_task(tell_all(shop, charge.processor, told * 3))
    if charge.status == "captured":
        told += await refunds_at_random(shop, charge)
    await telling
    await tell_all(shop, charge.processor, told * 2)


async def tell_all(shop: Shop, processor: str, events: Sequence[Any]) -> None:
    """Tell these events, in any order and a few at a time."""
    left = iter(shop.chance.sample(events, len(events)))

    async def tell_some() -> None:
        for event in left:
            await shop.tell_until_heard(processor, event)

    await asyncio.gather(*(tell_some() for _ in range(3)))


async def charged(shop: Shop, order_id: str) -> ledger.Charge:
    """The order's first charge, as soon as the sandbox has made it."""
    async with asyncio.timeout(60):
        while True:
            charge = await ledger.find_charge(shop.world.store.pool, order_id=order_id, attempt=1)
            if charge is not None:
                return charge
            await asyncio.sleep(0.05)


async def refunds_at_random(shop: Shop, charge: ledger.Charge) -> list[dict[str, Any]]:
    """Refunds asked for here and in the processor's dashboard, one of which may come back; what tells of them."""
    told: list[dict[str, Any]] = []
    for _ in range(shop.chance.randrange(1, 5)):
        amount = shop.chance.randrange(1, max(2, charge.amount // 2))
        if shop.chance.random() < 0.5:
            await shop.command(
                "refund",
                f"/v1/orders/{charge.order_id}/refund",
                {"amount": amount},
                order_id=charge.order_id,
            )
        else:
            told += await refund_in_dashboard(shop, charge, amount=amount)
    told += await events_of_refunds(shop, charge)
    if shop.chance.random() < 0.5:
        told += await come_back(shop, charge)
    return told


async def come_back(shop: Shop, charge: ledger.Charge) -> list[dict[str, Any]]:
    """A refund that was made comes back, as where a card is closed; the events that tell of it."""
    made = await refunds_made(shop, charge)
    if not made:
        return []
    refund = shop.chance.choice(made)
    async with shop.world.store.pool.connection() as connection:
        await connection.execute(COME_BACK, (refund.amount, charge.processor_order_id))
    shop.world.notes.append(f"{refund.amount} of {charge.amount} came back")
    now = await charge_now(shop, charge)
    return refund_events(now, [refund], shop.id, chance=shop.chance, failed=True)


async def refund_in_dashboard(shop: Shop, charge: ledger.Charge, *, amount: int) -> list[dict[str, Any]]:
    await ledger.operate(
        shop.world.store.pool,
        kind="refund",
        request_id=f"dashboard-{uuid4()}",
        order_id=charge.order_id,
        processor_order_id=charge.processor_order_id,
        amount=amount,
        currency=charge.currency,
    )
    return await events_of_refunds(shop, charge)


MADE = """
    SELECT request_id, kind, processor_order_id, amount, processor_transaction_id, error_code, error_message,
           created_at
    FROM sandbox.operations WHERE processor_order_id = %s AND kind = 'refund' AND error_code IS NULL
"""


COME_BACK = "UPDATE sandbox.charges SET amount_refunded = amount_refunded - %s WHERE processor_order_id = %s"


async def events_of_refunds(shop: Shop, charge: ledger.Charge) -> list[dict[str, Any]]:
    """What the processor tells of a charge's refunds as of now."""
    now = await charge_now(shop, charge)
    return refund_events(now, await refunds_made(shop, charge), shop.id, chance=shop.chance)


async def charge_now(shop: Shop, charge: ledger.Charge) -> ledger.Charge:
    now = await ledger.find_charge(shop.world.store.pool, order_id=charge.order_id, attempt=charge.attempt)
    assert now is not None
    return now


async def refunds_made(shop: Shop, charge: ledger.Charge) -> list[ledger.Operation]:
    async with (
        shop.world.store.pool.connection() as connection,
        connection.cursor(row_factory=class_row(ledger.Operation)) as cursor,
    ):
        await cursor.execute(MADE, (charge.processor_order_id,))
        return await cursor.fetchall()
