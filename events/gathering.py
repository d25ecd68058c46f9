"""Looking up together what many ask for at the same time: a query for many costs little more than one for one."""

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Gathering(Generic[K, V]):
    """One query at a time for all who wait. Who comes while it is under way waits for the next: it may be older."""

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
            held_up: seconds after which those who wait are looked up beside a query that has not come back, so that
                it holds up its own alone; None: never.
        """
        self._look_up = look_up
        self._most = most
        self._held_up = held_up
        self._waiting: dict[K, list[asyncio.Future[V | None]]] = {}
        self._under_way: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None

    async def find(self, key: K) -> V | None:
        """What there is under the key as of now, or later; None where there is nothing."""
        found: asyncio.Future[V | None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(key, []).append(found)
        if not self._under_way:
            self._begin()
        else:
            self._begin_later()
        return await found

    def _begin(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._waiting:
            return
        self._under_way.add(asyncio.create_task(self._answer(), name="gathered look-up"))

    def _begin_later(self) -> None:
        if self._timer is None and self._held_up is not None:
            self._timer = asyncio.get_running_loop().call_later(self._held_up, self._begin)

    async def _answer(self) -> None:
        # Taken only now: whoever came in the same turn of the event loop is among them.
        batch = dict(itertools.islice(self._waiting.items(), self._most))
        for key in batch:
            del self._waiting[key]
        if self._waiting:
            self._begin_later()
        try:
            values = await self._look_up(list(batch)) if batch else {}
        except Exception as error:  # noqa: BLE001  # whatever it is, it is for those who asked
            for found in itertools.chain.from_iterable(batch.values()):
                if not found.done():  # who asked may have gone
                    found.set_exception(error)
        else:
            for key, asked in batch.items():
                for found in asked:
                    if not found.done():
                        found.set_result(values.get(key))
        finally:
            task = asyncio.current_task()
            assert task is not None
            self._under_way.discard(task)
            self._begin()
