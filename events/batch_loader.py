"""Batches look-ups that are made at the same time: a query for many keys costs little more than a query for one."""

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

HELD_UP = 0.02
"""Seconds after which a batch's query counts as blocked, and its callers query individually: a lock in the database
then delays only callers that hold a connection, and the pool refuses the others."""
LOOKUPS = 500
"""Keys per query, if rows are short and found by an index."""
CHECKS = 4
"""Number of checks in that time. A process that is slow itself runs them late, and does not take the query for blocked.
"""

Done = Callable[[Mapping[K, V] | Exception | None], None]
"""Called with the values found, with the error, or with None if the query could not be sent or its answer was lost."""


class _Blocked(Exception):
    """The batch's query does not return: the caller has to query by itself."""


class BatchLoader(Generic[K, V]):
    """Runs one query at a time for all callers. A call during a query waits for the next one, because the rows that the
    current query returns may be older than the call.

    If a query is blocked in the database, one of its callers keeps waiting for it. The others query individually, and
    so do later callers, until it returns.
    """

    def __init__(
        self,
        look_up: Callable[[Sequence[K]], Awaitable[Mapping[K, V]]],
        *,
        most: int,
        held_up: float | None = None,
        send: Callable[[Sequence[K], Done[K, V]], bool] | None = None,
    ) -> None:
        """
        Args:
            look_up: runs the query. It must end by itself; what it raises is raised to the callers of all its keys.
            most: maximum number of keys per query.
            held_up: seconds (and up to a quarter more) after which a query counts as blocked; if None, it never does.
            send: a way to query without a task: returns False if unavailable, otherwise calls `Done` once, later.
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
        self._checks_left = 0
        self._blocked = False
        self._loop: asyncio.AbstractEventLoop | None = None

    async def find(self, key: K) -> V | None:
        """The value of a key, read from the database after this call; None if there is none."""
        if self._blocked:
            return await self._find_alone(key)
        if self._loop is None:
            self._loop = asyncio.get_running_loop()  # kept: each call of this is a system call
        found: asyncio.Future[V | None] = self._loop.create_future()
        self._waiting.setdefault(key, []).append(found)
        if not self._under_way:
            self._begin(self._loop)
        try:
            return await found
        except _Blocked:
            return await self._find_alone(key)

    async def _find_alone(self, key: K) -> V | None:
        return (await self._look_up([key])).get(key)

    def _begin(self, loop: asyncio.AbstractEventLoop) -> None:
        self._under_way = True
        # Deferred, so that all calls in this iteration of the event loop share the query.
        loop.call_soon(self._query, loop)

    def _query(self, loop: asyncio.AbstractEventLoop) -> None:
        if len(self._waiting) <= self._most:
            self._batch, self._waiting = self._waiting, {}
        else:
            self._batch = dict(itertools.islice(self._waiting.items(), self._most))
            for key in self._batch:
                del self._waiting[key]
        # One more, because the timer may be running already, so that the first check comes at any time.
        self._checks_left = CHECKS + 1
        if self._timer is None:
            self._schedule_check(loop)
        if self._send is None or not self._send(list(self._batch), self._sent_query_done):
            self._start_task()

    def _sent_query_done(self, answer: Mapping[K, V] | Exception | None) -> None:
        if answer is None:
            self._start_task()
        else:
            self._finish(answer)

    def _start_task(self) -> None:
        self._task = asyncio.create_task(self._run_query(), name="gathered look-up")

    async def _run_query(self) -> None:
        try:
            values = await self._look_up(list(self._batch))
        except Exception as error:  # noqa: BLE001  # raised to the callers
            self._finish(error)
        except BaseException:
            self._finish(_Blocked())
            raise
        else:
            self._finish(values)

    def _finish(self, answer: Mapping[K, V] | Exception) -> None:
        for key, futures in self._batch.items():
            for found in futures:
                if found.done():  # its caller was cancelled, or queries individually
                    continue
                if isinstance(answer, Exception):
                    found.set_exception(answer)
                else:
                    found.set_result(answer.get(key))
        self._batch = {}
        self._under_way = self._blocked = False
        if self._waiting:
            assert self._loop is not None
            self._begin(self._loop)

    def _schedule_check(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._held_up is not None:
            self._timer = loop.call_later(self._held_up / CHECKS, self._check, loop)

    def _check(self, loop: asyncio.AbstractEventLoop) -> None:
        """Release the other callers if the current query has taken too long."""
        self._timer = None
        if not self._batch:
            return  # the next query schedules checks again
        self._checks_left -= 1
        if self._checks_left:
            self._schedule_check(loop)
            return
        self._blocked = True
        sharing, waiting = _unfinished(self._batch), _unfinished(self._waiting)
        self._waiting.clear()
        for found in sharing[1:] + waiting:
            found.set_exception(_Blocked())


def _unfinished(batch: Mapping[K, Sequence[asyncio.Future[V | None]]]) -> list[asyncio.Future[V | None]]:
    return [found for found in itertools.chain.from_iterable(batch.values()) if not found.done()]
