"""Looking up together what many ask for at the same time: a query for many costs little more than one for one."""

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

HELD_UP = 0.02
"""Seconds after which those who share a query ask again, each by one of its own: a lock in the database holds up those
who have a connection, and the pool turns the others away."""
LOOKUPS = 500
"""Keys of one query, where a row is short and found by an index."""
LOOKS = 4
"""So often a query is looked at before it counts as held up: a process that is slow itself takes none for that."""


class _HeldUp(Exception):
    """The query that was to answer does not come back."""


class Gathering(Generic[K, V]):
    """One query at a time for all who wait. Who comes while it is under way waits for the next: it may be older.

    One that is held up in the database holds up one of those who share it. The others ask again, each by a query of
    its own, and so does whoever comes, until it is back.
    """

    def __init__(
        self,
        look_up: Callable[[Sequence[K]], Awaitable[Mapping[K, V]]],
        *,
        most: int,
        held_up: float | None = None,
    ) -> None:
        """
        Args:
            look_up: the query. It has to end by itself; what it raises is raised for each of its keys.
            most: keys of one query.
            held_up: seconds after which a query that is not back counts as held up; None: never.
        """
        self._look_up = look_up
        self._most = most
        self._held_up = held_up
        self._waiting: dict[K, list[asyncio.Future[V | None]]] = {}
        self._under_way: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._apart = False
        self._loop: asyncio.AbstractEventLoop | None = None

    async def find(self, key: K) -> V | None:
        """What there is under the key as of now, or later; None where there is nothing."""
        if self._apart:
            return await self._find_alone(key)
        if self._loop is None:
            self._loop = asyncio.get_running_loop()  # each look for it is a system call
        found: asyncio.Future[V | None] = self._loop.create_future()
        self._waiting.setdefault(key, []).append(found)
        if self._under_way is None:
            self._begin()
        try:
            return await found
        except _HeldUp:
            return await self._find_alone(key)

    async def _find_alone(self, key: K) -> V | None:
        return (await self._look_up([key])).get(key)

    def _begin(self) -> None:
        task = asyncio.create_task(self._answer(), name="gathered look-up") if self._waiting else None
        self._under_way = task

    async def _answer(self) -> None:
        # Taken only now: whoever came in the same turn of the event loop is among them.
        batch = dict(itertools.islice(self._waiting.items(), self._most))
        for key in batch:
            del self._waiting[key]
        self._look_later(batch, looks=LOOKS)
        try:
            values = await self._look_up(list(batch))
        except Exception as error:  # noqa: BLE001  # whatever it is, it is for those who asked
            for found in _asked(batch):
                if not found.done():  # who asked may have gone
                    found.set_exception(error)
        else:
            for key, asked in batch.items():
                for found in asked:
                    if not found.done():
                        found.set_result(values.get(key))
        finally:
            if self._timer is not None:
                self._timer.cancel()
            self._apart = False
            self._begin()

    def _look_later(self, batch: Mapping[K, Sequence[asyncio.Future[V | None]]], *, looks: int) -> None:
        if self._held_up is not None:
            later = asyncio.get_running_loop().call_later
            self._timer = later(self._held_up / LOOKS, self._look, batch, looks - 1)

    def _look(self, batch: Mapping[K, Sequence[asyncio.Future[V | None]]], looks: int) -> None:
        if looks:
            self._look_later(batch, looks=looks)
            return
        self._apart = True
        sharing = [found for found in _asked(batch) if not found.done()]
        waiting = [found for found in _asked(self._waiting) if not found.done()]
        self._waiting.clear()
        for found in sharing[1:] + waiting:
            found.set_exception(_HeldUp())


def _asked(batch: Mapping[K, Sequence[asyncio.Future[V | None]]]) -> list[asyncio.Future[V | None]]:
    return list(itertools.chain.from_iterable(batch.values()))
