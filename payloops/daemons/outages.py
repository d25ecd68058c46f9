"""Logs when a dependency of the API stops answering, and when it answers again: once, however many requests need it."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping

import structlog

from payloops.events.connections import one_line

EVERY_SECONDS = 3.0

log = structlog.get_logger()


async def log_outages(
    dependencies: Callable[[], Awaitable[Mapping[str, Exception | None]]],
    *,
    every_seconds: float = EVERY_SECONDS,
) -> None:
    """Ask periodically, without end.

    Args:
        dependencies: as `Services.dependencies`.
    """
    down: set[str] = set()
    while True:
        await asyncio.sleep(every_seconds * random.uniform(0.5, 1.5))  # noqa: S311  # jitter, and time to connect
        for name, trouble in (await dependencies()).items():
            if trouble is not None and name not in down:
                log.warning("dependency.down", dependency=name, error=one_line(trouble))
                down.add(name)
            elif trouble is None and name in down:
                log.info("dependency.up", dependency=name)
                down.remove(name)
