"""Taking turns at something that only few can have at a time, so that nobody who asks for much keeps it from others."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager


class TooManyWaiting(Exception):
    """Nobody can wait for a place any more, or nobody waited long enough: nothing was done."""


class Turns:
    """A few places. Accounts take turns, however often each asks, and who has the most waiting makes room for others.

    So whoever asks for one thing waits for as many others as there are accounts that ask, and for no more.
    """

    def __init__(self, *, places: int, max_waiting: int, seconds: float | None = None) -> None:
        """
        Args:
            max_waiting: how many may wait. seconds: for how long each may; None: for as long as it takes.
        """
        self._free = places
        self._max_waiting = max_waiting
        self._seconds = seconds
        self._waiting = 0
        self._queues: dict[Hashable, deque[asyncio.Future[None]]] = {}  # whose turn it is comes first

    @asynccontextmanager
    async def turn(self, account: Hashable) -> AsyncIterator[None]:
        """Have a place, in this context. Arguments and errors: see `take`."""
        await self.take(account)
        try:
            yield
        finally:
            self.give_back()

    async def take(self, account: Hashable) -> None:
        """Take a place, which is to be given back.

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
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queues.setdefault(account, deque()).append(turn)
        self._waiting += 1
        try:
            async with asyncio.timeout(self._seconds):
                await turn
        except BaseException as error:
            if turn.cancelled():
                self._leave(account, turn)
            elif turn.exception() is None:
                self.give_back()  # it came in the moment in which nobody waited any more
            if isinstance(error, TimeoutError):
                raise TooManyWaiting from None
            raise

    def give_back(self) -> None:
        """Let the next one have the place."""
        while self._queues:
            account = next(iter(self._queues))
            queue = self._queues.pop(account)
            turn = queue.popleft()
            self._waiting -= 1
            if queue:
                self._queues[account] = queue  # all others have their turn before
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1

    def _make_room(self, account: Hashable) -> None:
        """Turn away the last of whoever has the most waiting.

        Raises:
            TooManyWaiting: that is this account, or as good as.
        """
        longest = max(self._queues.values(), key=len)
        if len(longest) <= len(self._queues.get(account, ())) + 1:
            raise TooManyWaiting
        turned_away = longest.pop()
        self._waiting -= 1
        if not turned_away.done():
            turned_away.set_exception(TooManyWaiting())

    def _leave(self, account: Hashable, turn: asyncio.Future[None]) -> None:
        queue = self._queues.get(account, deque())
        if turn in queue:
            queue.remove(turn)
            self._waiting -= 1
            if not queue:
                del self._queues[account]
