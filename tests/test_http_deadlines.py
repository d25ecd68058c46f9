"""Whoever takes too long is ended, and nobody else."""

import asyncio

import pytest

from payloops.events.deadlines import Deadlines

SECONDS = 0.02


async def sleep(deadlines: Deadlines, seconds: float) -> str:
    with deadlines:
        await asyncio.sleep(seconds)
    return "done"


async def test_who_takes_too_long_is_ended_also_after_others_that_were_in_time() -> None:
    deadlines = Deadlines(SECONDS)
    for _ in range(3):
        results = await asyncio.gather(
            sleep(deadlines, 0), sleep(deadlines, 60), sleep(deadlines, 0), sleep(deadlines, 60),
            return_exceptions=True,
        )  # fmt: skip
        assert [type(each) for each in results] == [str, TimeoutError, str, TimeoutError]
        assert await sleep(deadlines, 0) == "done"


async def test_who_is_cancelled_by_others_stays_cancelled() -> None:
    deadlines = Deadlines(60)
    task = asyncio.create_task(sleep(deadlines, 60))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_who_is_cancelled_by_others_and_late_is_cancelled() -> None:
    deadlines = Deadlines(SECONDS)

    async def cancelled_when_late() -> None:
        with deadlines:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                task = asyncio.current_task()
                assert task is not None
                task.cancel()
                raise

    task = asyncio.create_task(cancelled_when_late())
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_who_ends_well_as_he_is_ended_goes_on() -> None:
    deadlines = Deadlines(SECONDS)

    async def held() -> str:
        with deadlines, pytest.raises(asyncio.CancelledError):
            await asyncio.sleep(60)
        await asyncio.sleep(0)
        return "done"

    assert await held() == "done"


async def test_deadlines_inside_are_their_own() -> None:
    outer, inner = Deadlines(60), Deadlines(SECONDS)
    with outer:
        with pytest.raises(TimeoutError), inner:
            await asyncio.sleep(60)
        assert await sleep(inner, 0) == "done"
