"""The service's own processes are killed under load, or asked to go."""

from faults.cases.registry import case
from faults.cases.trouble import doom, killing, listen, whole_service
from faults.shops import open_shop, under_load
from faults.world import World
from payloops.events.crash_points import CrashPoint

API_POINTS: tuple[CrashPoint, ...] = (
    "idempotency.reserved",
    "append.committed",
    "append_in.appended",
    "command.answered",
    "processor_event.kept",
    "processor_event.recorded",
)
PROJECTOR_POINTS: tuple[CrashPoint, ...] = ("projector.applied", "projector.moved")
SUBSCRIBER_POINTS: tuple[CrashPoint, ...] = ("subscriber.forwarded", "webhook.queued")
WORKER_POINTS: tuple[CrashPoint, ...] = (
    "append.committed",
    "order_status.reported",
    "order_status.recorded",
    "refund_status.reported",
    "refund_status.recorded",
    "sandbox.charged",
    "sandbox.operated",
)
WEBHOOK_POINTS: tuple[CrashPoint, ...] = ("webhook.sent", "webhook.recorded")


@case
async def api_killed(world: World) -> None:
    """API processes are killed with -9 under load, at points in the code and at any moment."""
    whole_service(world)
    await world.start_all()
    shop = await open_shop(world)
    doom(world, "api-1", API_POINTS, lives=3, within=25)
    world.kill("api-1")
    await under_load(shop, killing(world, "api-1", "api-2", times=4, every=(2.0, 5.0)))


@case
async def projector_killed(world: World) -> None:
    """Projectors are killed with -9 under load, in the middle of a batch and at any moment."""
    whole_service(world)
    for name in ("projector-1", "projector-2"):
        doom(world, name, PROJECTOR_POINTS, lives=3, within=15)
    await world.start_all()
    shop = await open_shop(world)
    await under_load(shop, killing(world, "projector-1", "projector-2", times=6, every=(1.0, 3.0)))


@case
async def subscriber_killed(world: World) -> None:
    """Subscribers are killed with -9 under load, between a workflow's start and the checkpoint, and at any moment."""
    whole_service(world)
    for name in ("subscriber-1", "subscriber-2"):
        doom(world, name, SUBSCRIBER_POINTS, lives=3, within=12)
    await world.start_all()
    shop = await open_shop(world, webhook_url=await listen(world))
    await under_load(
        shop, killing(world, "subscriber-1", "subscriber-2", times=5, every=(1.0, 4.0)), at_once=4
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
    await under_load(shop, killing(world, "worker-1", "worker-2", times=3, every=(3.0, 8.0)))


@case
async def webhooks_interrupted(world: World) -> None:
    """Workers are killed with -9 between sending a webhook and keeping that it was sent."""
    whole_service(world)
    doom(world, "worker-1", WEBHOOK_POINTS, lives=2, within=12)
    await world.start_all()
    shop = await open_shop(world, webhook_url=await listen(world))
    await under_load(shop, world.outlived("worker-1", seconds=20), at_once=3)
