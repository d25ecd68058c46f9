"""Gathering look-ups made at the same time into one query: a query for many costs little more than a query for one."""

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

Tell = Callable[[Mapping[K, V] | Exception | None], None]
"""To be called with what there is, with what went wrong, or with None: it could not be found out this way."""


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
        send: Callable[[Sequence[K], Tell[K, V]], bool] | None = None,
    ) -> None:
        """
        Args:
            look_up: the query. It has to end by itself; what it raises is raised for each of its keys.
            most: keys of one query.
            held_up: seconds after which a query that is not back counts as held up, and a quarter more at the most;
                None: never.
            send: a way to ask that takes no task; tells once, later. Returns whether it is to be had at present.
        """
        self._look_up = look_up
        self._most = most
        self._held_up = held_up
        self._send = send
        self._waiting: dict[K, list[asyncio.Future[V | None]]] = {}
        self._batch: dict[K, list[asyncio.Future[V | None]]] = {}
        self._under_way = False
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._looks = 0
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
        if not self._under_way:
            self._begin(self._loop)
        try:
            return await found
        except _HeldUp:
            return await self._find_alone(key)

    async def _find_alone(self, key: K) -> V | None:
        return (await self._look_up([key])).get(key)

    def _begin(self, loop: asyncio.AbstractEventLoop) -> None:
        self._under_way = True
        # Only then: whoever comes in the same turn of the event loop is among them.
        loop.call_soon(self._ask, loop)

    def _ask(self, loop: asyncio.AbstractEventLoop) -> None:
        if len(self._waiting) <= self._most:
            self._batch, self._waiting = self._waiting, {}
        else:
            self._batch = dict(itertools.islice(self._waiting.items(), self._most))
            for key in self._batch:
                del self._waiting[key]
        self._looks = LOOKS + 1  # the first comes at any time
        if self._timer is None:
            self._look_later(loop)
        if self._send is None or not self._send(list(self._batch), self._told):
            self._told(None)

    def _told(self, answer: Mapping[K, V] | Exception | None) -> None:
        if answer is None:
            self._task = asyncio.create_task(self._answer(), name="gathered look-up")
        else:
            self._end(answer)

    async def _answer(self) -> None:
        try:
            values = await self._look_up(list(self._batch))
        except Exception as error:  # noqa: BLE001  # whatever it is, it is for those who asked
            self._end(error)
        except BaseException:
            self._end(_HeldUp())
            raise
        else:
            self._end(values)

    def _end(self, answer: Mapping[K, V] | Exception) -> None:
        for key, asked in self._batch.items():
            for found in asked:
                if found.done():  # who asked may have gone
                    continue
                if isinstance(answer, Exception):
                    found.set_exception(answer)
                else:
                    found.set_result(answer.get(key))
        self._batch = {}
        self._under_way = self._apart = False
        if self._waiting:
            assert self._loop is not None
            self._begin(self._loop)

    def _look_later(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._held_up is not None:
            self._timer = loop.call_later(self._held_up / LOOKS, self._look, loop)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        if not self._batch:
            return  # the next one looks again
        self._looks -= 1
        if self._looks:
            self._look_later(loop)
            return
        self._apart = True
        sharing = [found for found in _asked(self._batch) if not found.done()]
        waiting = [found for found in _asked(self._waiting) if not found.done()]
        self._waiting.clear()
        for found in sharing[1:] + waiting:
            found.set_exception(_HeldUp())


def _asked(batch: Mapping[K, Sequence[asyncio.Future[V | None]]]) -> list[asyncio.Future[V | None]]:
    return list(itertools.chain.from_iterable(batch.values()))
