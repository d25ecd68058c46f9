"""One run of a case: a world, the trouble, the rest, the invariants."""

import asyncio
import random
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from faults.cases import Case, Skipped
from faults.invariants import come_to_rest, violations
from faults.world import World, drop_database, open_world
from payloops.embedded import EmbeddedServers


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """
    Attributes:
        wrong: what was found, one line each.
        summary: what happened, in figures.
        again: how to repeat it.
    """

    case: str
    seed: int
    outcome: Literal["ok", "wrong", "skipped"]
    seconds: float
    wrong: list[str]
    summary: str
    again: str


async def run_case(servers: EmbeddedServers, case: Case, *, seed: int, folder: Path) -> Report:
    """Run a case with a seed. Logs are left in a folder of its own, which is named `wrong-…` where they matter."""
    began = time.monotonic()
    name = f"{case.name}-{seed}"
    chance = random.Random(f"{case.name} {seed}")
    outcome: Literal["ok", "wrong", "skipped"] = "ok"
    async with open_world(servers, name=name, chance=chance, folder=folder / name) as world:
        try:
            wrong = await _run(world, case)
            summary = _summary(world)
        except Skipped as reason:
            wrong, summary, outcome = [], str(reason), "skipped"
    await asyncio.to_thread(drop_database, servers, name)
    if wrong:
        outcome = "wrong"
        (folder / name).rename(folder / f"wrong-{name}")
    return Report(
        case=case.name,
        seed=seed,
        outcome=outcome,
        seconds=round(time.monotonic() - began, 1),
        wrong=wrong,
        summary=summary,
        again=f'make faults ARGS="--case {case.name} --seed {seed}"',
    )


async def _run(world: World, case: Case) -> list[str]:
    wrong = []
    async with world.kept():
        try:
            await case.run(world)
        except Skipped:
            raise
        except Exception as error:  # noqa: BLE001  # whatever a case stumbles over is a finding
            wrong.append(f"case: {_stumbled_over(error)}")
        wrong += [f"rest: {line}" for line in await come_to_rest(world)]
    await world.stop()
    return wrong + await violations(world)


def _summary(world: World) -> str:
    deaths = sum(process.deaths for process in world.processes.values())
    answers = ", ".join(f"{status}: {count}" for status, count in sorted(world.journal.statuses.items()))
    commands = len(world.journal.commands)
    return "; ".join([f"{commands} commands, {deaths} kills", answers, *world.notes])


def _stumbled_over(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    ours = [each for each in traceback.extract_tb(error.__traceback__) if "/faults/" in each.filename]
    where = f" ({Path(ours[-1].filename).name}:{ours[-1].lineno})" if ours else ""
    return f"{type(error).__name__}: {error}{where}"
