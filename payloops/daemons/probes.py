"""Whether the dependencies of the API answer: asked with a deadline, for `/ready`, metrics and the log."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

from payloops.events.background import shared

Probe = Callable[[], Awaitable[object]]
"""Returns if a dependency answers, raises if it does not."""

PROBE_SECONDS = 2.0
"""How long a dependency may take to answer when the readiness of the process is asked for."""

T = TypeVar("T")


def dependencies(probes: Mapping[str, Probe]) -> Callable[[], Awaitable[Mapping[str, Exception | None]]]:
    """A function that returns why each dependency does not answer; None if it does.

    Calls at the same time share one look: anybody may ask, without limit, and must not take all connections by it.
    """
    return shared(lambda: ask_all(probes, seconds=PROBE_SECONDS), name="readiness")


async def ask_all(probes: Mapping[str, Probe], *, seconds: float) -> dict[str, Exception | None]:
    """Why each dependency does not answer within this time; None if it does."""
    troubles = await asyncio.gather(*(_trouble(probe, seconds) for probe in probes.values()))
    return dict(zip(probes, troubles, strict=True))


async def _trouble(probe: Probe, seconds: float) -> Exception | None:
    try:
        await within(probe(), seconds=seconds)
    except Exception as error:  # noqa: BLE001  # any exception means that it is down
        return error
    return None


_abandoned: set[asyncio.Future[Any]] = set()
"""Cancelled tasks that have not ended yet; kept here so that they are not garbage-collected."""


async def within(awaitable: Awaitable[T], *, seconds: float) -> T:
    """As `asyncio.wait_for`, but without waiting for the cancelled task to end.

    If the database hangs, psycopg takes ten seconds to react to a cancellation.

    Raises:
        TimeoutError.
    """
    task = asyncio.ensure_future(awaitable)
    try:
        done, _ = await asyncio.wait({task}, timeout=seconds)
        if not done:
            raise TimeoutError
        return task.result()
    finally:
        if task.cancel():
            _abandoned.add(task)
            task.add_done_callback(_forget)


def _forget(task: asyncio.Future[Any]) -> None:
    _abandoned.discard(task)
    if not task.cancelled():
        task.exception()  # marks it as retrieved: asyncio would log it otherwise
