"""The cases: what goes wrong, and what has to come of it beside the invariants."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from faults.journal import Command
from faults.shops import Shop, open_shop, shopping
from faults.world import World
from payloops.events.crash_points import CrashPoint


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """
    Attributes:
        name: on the command line.
        about: one line.
        run: lets it happen; whatever it raises is wrong, too.
    """

    name: str
    about: str
    run: Callable[[World], Awaitable[None]]


class Skipped(Exception):
    """The case cannot be run here; the message says what it takes."""


CASES: dict[str, Case] = {}


def case(run: Callable[[World], Awaitable[None]]) -> Callable[[World], Awaitable[None]]:
    """A function of this name is a case of this name, with dashes; its docstring's first line says what it is."""
    name = run.__name__.replace("_", "-")
    assert run.__doc__ is not None
    CASES[name] = Case(name=name, about=run.__doc__.splitlines()[0], run=run)
    return run


API_POINTS: tuple[CrashPoint, ...] = (
    "idempotency.reserved",
    "append.committed",
    "append_in.appended",
    "command.answered",
    "processor_event.kept",
    "processor_event.recorded",
)


def whole_service(world: World) -> None:
    """Two of each kind of process, but for the worker: one in which everything happens is enough."""
    world.add("api-1", "serve")
    world.add("api-2", "serve")
    world.add("projector-1", "projector")
    world.add("projector-2", "projector")
    world.add("subscriber-1", "subscriber")
    world.add("worker-1", "worker", "--sandbox")


async def killing(world: World, *names: str, every: tuple[float, float]) -> None:
    """Kill one of these processes, every now and then, until cancelled. `every`: seconds, from and to."""
    while True:
        await asyncio.sleep(world.chance.uniform(*every))
        world.kill(world.chance.choice(names))


async def meanwhile(load: Awaitable[None], trouble: Awaitable[None]) -> None:
    """Trouble, for as long as the load takes."""
    task = asyncio.ensure_future(trouble)
    try:
        await load
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@case
async def api_killed(world: World) -> None:
    """API processes are killed under load, at points in the code and at any moment."""
    whole_service(world)
    await world.start_all()
    shop = await open_shop(world)
    point, passings = world.chance.choice(API_POINTS[:4]), world.chance.randrange(1, 30)
    world.notes["point"] = f"{point}:{passings}"
    world.kill("api-1")
    world.crashes["api-1"] = (point, passings)
    await meanwhile(
        shopping(shop, orders=20, at_once=5),
        killing(world, "api-1", "api-2", every=(2.0, 5.0)),
    )


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
    created = await shop.command("create", "/v1/orders", {"amount": amount})
    assert created is not None
    order_id: str = created.json["id"]
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
        created = await shop.command("create", "/v1/orders", {"amount": 1_234})
        assert created is not None
        order_id = created.json["id"]
        path, body = f"/v1/orders/{order_id}/pay", {}
    else:
        order_id = await captured_order(shop, amount=1_234)
        path, body = f"/v1/orders/{order_id}/refund", {"amount": 400}
    victim = world.chance.randrange(2)
    name = world.apis[victim].name
    world.crashes[name] = (world.chance.choice(points), 1)
    world.notes["point"] = f"{kind} {world.crashes[name][0]}"
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
