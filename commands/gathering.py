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
    ) -> None:
        """
        Args:
            look_up: the query. It has to end by itself; what it raises is raised for each of its keys.
            most: keys of one query.
        """
        self._look_up = look_up
        self._most = most
        self._waiting: dict[K, list[asyncio.Future[V | None]]] = {}
        self._under_way: asyncio.Task[None] | None = None

    async def find(self, key: K) -> V | None:
        """What there is under the key as of now, or later; None where there is nothing."""
        found: asyncio.Future[V | None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(key, []).append(found)
        if self._under_way is None:
            self._begin()
        return await found

    def _begin(self) -> None:
        task = asyncio.create_task(self._answer(), name="gathered look-up") if self._waiting else None
        self._under_way = task

    async def _answer(self) -> None:
        # Taken only now: whoever came in the same turn of the event loop is among them.
        batch = dict(itertools.islice(self._waiting.items(), self._most))
        for key in batch:
            del self._waiting[key]
        try:
            values = await self._look_up(list(batch))
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
            self._begin()
