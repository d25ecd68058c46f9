"""Changing a stream again if others have appended to it meanwhile."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

from payloops.events.errors import VersionConflict

R = TypeVar("R")

ATTEMPTS = 30
"""With the pauses in between, they take about half a second."""
LONGEST_PAUSE = 0.03
"""Seconds. It does not grow: whoever has waited longest would wait longer still."""


async def retry_on_conflict(change: Callable[[], Awaitable[R]]) -> R:
    """Make a change, which loads the stream, decides and appends; again if there was a conflict.

    Raises:
        VersionConflict: the stream kept changing. Other exceptions as `change`.
    """
    for _ in range(ATTEMPTS - 1):
        try:
            return await change()
        except VersionConflict:
            await asyncio.sleep(random.uniform(0, LONGEST_PAUSE))  # noqa: S311  # jitter
    return await change()
