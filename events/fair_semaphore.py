"""A semaphore that is fair between accounts: one that asks for much does not delay the others."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager


class TooManyWaiting(Exception):
    """The queue is full, or the wait took too long: nothing was done."""


class FairSemaphore:
    """A semaphore with a bounded queue for each account. Permits go to the accounts in turn (round robin).

    So a single request of an account waits for at most one request of each other account in the queue. If the queue is
    full, the account with the most waiting requests loses its last one to an account with fewer.
    """

    def __init__(self, *, permits: int, max_waiting: int, seconds: float | None = None) -> None:
        """
        Args:
            permits: how many may be held at a time.
            max_waiting: how many requests may wait, of all accounts together.
            seconds: how long each may wait; None if there is no limit.
        """
        self._free = permits
        self._max_waiting = max_waiting
        self._seconds = seconds
        self._waiting = 0
        self._queues: dict[Hashable, deque[asyncio.Future[None]]] = {}  # in the order of their turns

    @asynccontextmanager
    async def hold(self, account: Hashable) -> AsyncIterator[None]:
        """Hold a permit while the context lasts. See `acquire`."""
        await self.acquire(account)
        try:
            yield
        finally:
            self.release()

    async def acquire(self, account: Hashable) -> None:
        """Acquire a permit, to be released later.

        Args:
            account: on whose behalf.

        Raises:
            TooManyWaiting: see there.
        """
        if self._free:
            self._free -= 1
            return
        if self._waiting >= self._max_waiting:
            self._make_room(account)
        granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queues.setdefault(account, deque()).append(granted)
        self._waiting += 1
        try:
            async with asyncio.timeout(self._seconds):
                await granted
        except BaseException as error:
            if granted.cancelled():
                self._leave(account, granted)
            elif granted.exception() is None:
                self.release()  # it was granted at the moment at which the wait ended
            if isinstance(error, TimeoutError):
                raise TooManyWaiting from None
            raise

    def release(self) -> None:
        """Pass the permit on to the next waiting request, if there is one."""
        while self._queues:
            account = next(iter(self._queues))
            queue = self._queues.pop(account)
            granted = queue.popleft()
            self._waiting -= 1
            if queue:
                self._queues[account] = queue  # behind all other accounts
            if not granted.done():
                granted.set_result(None)
                return
        self._free += 1

    def _make_room(self, account: Hashable) -> None:
        """Refuse the last request of the account with the most waiting requests.

        Raises:
            TooManyWaiting: it is this account, or would have no more than this one.
        """
        longest = max(self._queues.values(), key=len)
        if len(longest) <= len(self._queues.get(account, ())) + 1:
            raise TooManyWaiting
        refused = longest.pop()
        self._waiting -= 1
        if not refused.done():
            refused.set_exception(TooManyWaiting())

    def _leave(self, account: Hashable, granted: asyncio.Future[None]) -> None:
        queue = self._queues.get(account, deque())
        if granted in queue:
            queue.remove(granted)
            self._waiting -= 1
            if not queue:
                del self._queues[account]
