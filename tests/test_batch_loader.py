"""What many ask for at the same time is looked up together, and nobody is given what was looked up before he asked."""

import asyncio
from collections.abc import Sequence

import pytest

from payloops.events.batch_loader import BatchLoader


class Table:
    """Counts what it is asked, and answers with that count when it is let."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []
        self.answering = asyncio.Event()
        self.broken: set[str] = set()

    async def look_up(self, keys: Sequence[str]) -> dict[str, int]:
        self.asked.append(list(keys))
        number = len(self.asked)
        await self.answering.wait()
        if self.broken & set(keys):
            raise LookupError(number)
        return {key: number for key in keys if key != "absent"}


async def asking(table: Table, loader: BatchLoader[str, int], *keys: str) -> list[asyncio.Task[int | None]]:
    tasks = [asyncio.create_task(loader.find(key)) for key in keys]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    await asyncio.sleep(0)  # the query has begun
    return tasks


async def test_who_comes_while_a_query_is_under_way_is_answered_by_the_next_one_together() -> None:
    table = Table()
    loader = BatchLoader(table.look_up, most=10)
    tasks = await asking(table, loader, "a")
    tasks += await asking(table, loader, "a", "b", "absent", "b")
    assert table.asked == [["a"]]
    table.answering.set()
    assert await asyncio.gather(*tasks) == [1, 2, 2, None, 2]
    assert table.asked == [["a"], ["a", "b", "absent"]]


async def test_a_query_has_a_bound_and_the_rest_follows() -> None:
    table = Table()
    loader = BatchLoader(table.look_up, most=2)
    tasks = await asking(table, loader, "a")
    tasks += await asking(table, loader, "b", "c", "d", "e", "f")
    table.answering.set()
    assert await asyncio.gather(*tasks) == [1, 2, 2, 3, 3, 4]


async def test_a_query_that_fails_fails_for_its_own_and_the_next_one_is_asked() -> None:
    table = Table()
    table.broken = {"a"}
    loader = BatchLoader(table.look_up, most=10)
    failing = await asking(table, loader, "a")
    others = await asking(table, loader, "b")
    table.answering.set()
    with pytest.raises(LookupError):
        await failing[0]
    assert await others[0] == 2


async def test_who_goes_away_takes_nobody_along() -> None:
    table = Table()
    loader = BatchLoader(table.look_up, most=10)
    [first, second] = await asking(table, loader, "a", "a")
    first.cancel()
    table.answering.set()
    assert await second == 1
    with pytest.raises(asyncio.CancelledError):
        await first


async def test_a_query_that_is_held_up_holds_up_one_of_those_who_share_it() -> None:
    table = Table()
    loader = BatchLoader(table.look_up, most=10, held_up=0.001)
    async with asyncio.timeout(20):
        tasks = await asking(table, loader, "a", "a", "b")
        waiting = await asking(table, loader, "c")
        while len(table.asked) < 4:
            await asyncio.sleep(0.001)
        assert sorted(table.asked) == [["a"], ["a", "b"], ["b"], ["c"]]
        coming = await asking(table, loader, "d")
        assert table.asked[4:] == [["d"]]
        table.answering.set()
        assert (await tasks[0], await coming[0]) == (1, 5)
        assert None not in await asyncio.gather(*tasks, *waiting)
        after = await asyncio.gather(loader.find("e"), loader.find("f"))
    assert list(after) == [6, 6]
    assert table.asked[5:] == [["e", "f"]]


async def test_who_was_held_up_and_went_leaves_his_place_to_another() -> None:
    table = Table()
    loader = BatchLoader(table.look_up, most=10, held_up=0.05)
    async with asyncio.timeout(20):
        [gone, staying] = await asking(table, loader, "a", "b")
        gone.cancel()
        [waiting] = await asking(table, loader, "c")
        while len(table.asked) < 2:
            await asyncio.sleep(0.001)
        assert table.asked == [["a", "b"], ["c"]]
        table.answering.set()
        assert list(await asyncio.gather(staying, waiting)) == [1, 2]
