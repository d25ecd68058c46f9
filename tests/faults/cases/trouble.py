"""What cases have in common: the service that they run, and trouble beside the load."""

import asyncio
from collections import Counter
from collections.abc import Sequence

from receiving import Received, receiving

from faults.world import World
from payloops.events.crash_points import CrashPoint


def whole_service(world: World) -> None:
    """Two of each kind of process, but for the worker: one in which everything happens is enough."""
    world.add("api-1", "serve")
    world.add("api-2", "serve")
    world.add("projector-1", "projector")
    world.add("projector-2", "projector")
    world.add("subscriber-1", "subscriber")
    world.add("subscriber-2", "subscriber")
    world.add("worker-1", "worker", "--sandbox")


async def killing(world: World, *names: str, times: int, every: tuple[float, float]) -> None:
    """Kill one of these processes, a few times. `every`: seconds, from and to."""
    for _ in range(times):
        await asyncio.sleep(world.chance.uniform(*every))
        world.kill(world.chance.choice(names))


def doom(world: World, name: str, points: Sequence[CrashPoint], *, lives: int, within: int) -> None:
    """Have a process end at one of these points, in each of its next lives. `within`: passings, at the most."""
    world.crashes[name] = [
        (world.chance.choice(points), world.chance.randrange(1, within)) for _ in range(lives)
    ]
    doomed = " ".join(f"{point}:{n}" for point, n in world.crashes[name])
    world.notes.append(f"{name} {doomed}")


async def listen(world: World) -> str:
    """An endpoint for webhooks, which counts them; its URL."""
    heard = world.heard = Counter[str]()

    def answer(received: Received) -> int:
        heard[received.headers["webhook-id"]] += 1
        return 200

    endpoint = await world.until_rest.enter_async_context(receiving(answer))
    return endpoint.url
