"""The service's own processes are killed under load."""

from faults.cases.registry import case
from faults.cases.trouble import doom, killing, listen, meanwhile, whole_service
from faults.shops import open_shop, shopping
from faults.world import World

API_POINTS = ("idempotency.reserved", "append.committed", "command.answered", "processor_event.kept")
PROJECTOR_POINTS = ("projector.applied", "projector.moved")
SUBSCRIBER_POINTS = ("subscriber.forwarded", "webhook.queued")
WORKER_POINTS = (
    "append.committed",
    "order_status.reported",
    "order_status.recorded",
    "refund_status.reported",
    "refund_status.recorded",
    "sandbox.charged",
    "sandbox.operated",
)
WEBHOOK_POINTS = ("webhook.sent", "webhook.recorded")


@case
async def api_killed(world: World) -> None:
    """API processes are killed with -9 under load, at points in the code and at any moment."""
    whole_service(world)
    await world.start_all()
    shop = await open_shop(world)
    doom(world, "api-1", (*API_POINTS, "processor_event.recorded"), lives=3, within=25)
    world.kill("api-1")
    await meanwhile(
        shopping(shop, orders=20, at_once=5),
        killing(world, "api-1", "api-2", every=(2.0, 5.0)),
    )


@case
async def projector_killed(world: World) -> None:
    """Projectors are killed with -9 under load, in the middle of a batch and at any moment."""
    whole_service(world)
    for name in ("projector-1", "projector-2"):
        doom(world, name, PROJECTOR_POINTS, lives=3, within=15)
    await world.start_all()
    shop = await open_shop(world)
    await meanwhile(
        shopping(shop, orders=25, at_once=5),
        killing(world, "projector-1", "projector-2", every=(1.0, 3.0)),
    )


@case
async def subscriber_killed(world: World) -> None:
    """Subscribers are killed with -9 under load, between a workflow's start and the checkpoint, and at any moment."""
    whole_service(world)
    for name in ("subscriber-1", "subscriber-2"):
        doom(world, name, SUBSCRIBER_POINTS, lives=3, within=12)
    await world.start_all()
    shop = await open_shop(world, webhook_url=await listen(world))
    await meanwhile(
        shopping(shop, orders=20, at_once=5),
        killing(world, "subscriber-1", "subscriber-2", every=(1.0, 4.0)),
    )


@case
async def worker_killed(world: World) -> None:
    """Workers are killed with -9 under load, between what they do and what they say of it."""
    whole_service(world)
    world.add("worker-2", "worker", "--sandbox")
    for name in ("worker-1", "worker-2"):
        doom(world, name, WORKER_POINTS, lives=2, within=10)
    await world.start_all()
    shop = await open_shop(world)
    await meanwhile(
        shopping(shop, orders=15, at_once=5),
        killing(world, "worker-1", "worker-2", every=(3.0, 8.0)),
    )


@case
async def webhooks_interrupted(world: World) -> None:
    """Workers are killed with -9 between sending a webhook and keeping that it was sent."""
    whole_service(world)
    doom(world, "worker-1", WEBHOOK_POINTS, lives=2, within=12)
    await world.start_all()
    shop = await open_shop(world, webhook_url=await listen(world))
    await shopping(shop, orders=8, at_once=4)
