"""Pauses of work that goes on until it is told to stop."""

import asyncio
import contextlib
import random

FIRST_SECONDS = 0.2
LONGEST_SECONDS = 10.0


async def sleep_unless_stopped(seconds: float, *, stop: asyncio.Event) -> None:
    """Sleep, but no longer than until `stop` is set."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await stop.wait()


def pause_seconds(*, attempt: int, first: float = FIRST_SECONDS, longest: float = LONGEST_SECONDS) -> float:
    """How long to wait after failure number `attempt` (from 0): doubling from `first`, half of it jitter.

    The jitter keeps many processes from coming back all at once, on a server that has just recovered.
    """
    ceiling = min(longest, first * 2.0 ** min(attempt, 16))
    return round(ceiling * random.uniform(0.5, 1.0), 3)  # noqa: S311  # no secret
