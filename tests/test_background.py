"""Work in the background: nobody waits for it, so that it failed must be in the log."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from structlog.testing import capture_logs

from payloops.events.background import in_background


async def fails() -> None:
    raise LookupError("a bug")


async def fails_as_it_is_cancelled() -> None:
    try:
        await asyncio.Event().wait()
    finally:
        raise LookupError("a bug")


async def goes_on() -> None:
    await asyncio.Event().wait()


async def ends() -> None:
    pass


@pytest.mark.parametrize(
    ("work", "meanwhile", "told"),
    [(fails, 1, 1), (fails_as_it_is_cancelled, 0, 1), (goes_on, 0, 0), (ends, 0, 0)],
)
async def test_work_that_fails_is_logged_at_once_and_ends_nothing_else(
    work: Callable[[], Coroutine[Any, Any, None]], meanwhile: int, told: int
) -> None:
    with capture_logs() as lines:
        async with in_background(work(), name="some work"):
            for _ in range(3):
                await asyncio.sleep(0)
            assert len(lines) == meanwhile
    assert len(lines) == told
    for line in lines:
        assert (line["event"], line["task"], line["log_level"]) == ("background.failed", "some work", "error")
        assert repr(line["exc_info"]) == repr(LookupError("a bug"))
