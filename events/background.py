"""Work in tasks of its own: in the background of other work, or shared by all who wait for it."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import structlog

T = TypeVar("T")

log = structlog.get_logger()


def begin(work: Coroutine[Any, Any, None], *, name: str) -> asyncio.Task[None]:
    """A task that may go on for as long as the process. If it fails, that is logged at once: nobody may be waiting."""
    task = asyncio.create_task(work, name=name)
    task.add_done_callback(_tell)
    return task


async def end(task: asyncio.Task[None] | None) -> None:
    """Cancel a task, if there is one, and wait until it has ended."""
    if task is not None:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def _tell(task: asyncio.Task[None]) -> None:
    error = None if task.cancelled() else task.exception()
    if error is not None:
        log.error("background.failed", task=task.get_name(), exc_info=error)


@asynccontextmanager
async def in_background(work: Coroutine[Any, Any, None], *, name: str) -> AsyncIterator[None]:
    """Do the work in a task of this name while the context lasts; its end cancels the task."""
    task = begin(work, name=name)
    try:
        yield
    finally:
        await end(task)


def shared(work: Callable[[], Coroutine[Any, Any, T]], *, name: str) -> Callable[[], Awaitable[T]]:
    """A function that does the work; calls at the same time share one result. A caller that leaves ends it for none."""
    task: asyncio.Task[T] | None = None

    async def result() -> T:
        nonlocal task
        if task is None or task.done():
            task = asyncio.create_task(work(), name=name)
        return await asyncio.shield(task)

    return result
