"""bcrypt, off the event loop, in a bounded number of threads with a bounded queue."""

import asyncio
import contextlib
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Hashable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Self, TypeVar

import bcrypt

T = TypeVar("T")

BCRYPT_MAX_BYTES = 72
"""bcrypt reads no further; bcrypt 5 raises where older ones cut silently."""


NICENESS = 10
"""Of the threads that hash: who guesses keys or passwords pays with his own time, and not with that of others."""


OVERLOADED = "too many secrets wait to be checked"


class HashingOverloaded(Exception):
    """More passwords or keys wait to be hashed than this process takes on; nothing was checked."""


def _step_back() -> None:
    # Linux has a niceness for each thread; elsewhere it would be the process's, or is not to be had.
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)


@dataclass(slots=True, eq=False)
class _Work:
    """What a thread is to do, and who waits for it."""

    do: Callable[[], Any]
    done: asyncio.Future[Any]


class Hasher:
    """Hashes and checks secrets of at most 72 bytes.

    Passwords and API keys each have one of their own, so that a flood of logins cannot hold up API keys. Accounts take
    turns, however much each of them asks for, and the one that has the most waiting makes room for others.
    """

    def __init__(self, *, rounds: int, threads: int = 1, max_waiting: int = 32) -> None:
        """
        Args:
            rounds: bcrypt's cost: each step doubles the time, 12 takes about a quarter of a second.
            threads: how many hashes are computed at a time.
            max_waiting: how many may wait for a thread before `HashingOverloaded` is raised.
        """
        self._rounds = rounds
        self._free = threads
        self._max_waiting = max_waiting
        self._waiting = 0
        self._queues: dict[Hashable, deque[_Work]] = {}  # of each account; whose turn it is comes first
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="bcrypt", initializer=_step_back)
        self._decoy = bcrypt.hashpw(b"no secret has this hash", bcrypt.gensalt(rounds)).decode()

    async def hash(self, secret: str, *, account: Hashable = None) -> str:
        """The bcrypt hash of a secret, with a salt of its own.

        Args:
            account: on whose behalf.

        Raises:
            ValueError: longer than 72 bytes.
            HashingOverloaded: too many wait already.
        """
        plain = secret.encode()
        if len(plain) > BCRYPT_MAX_BYTES:
            raise ValueError(f"bcrypt reads at most {BCRYPT_MAX_BYTES} bytes")
        return (await self._run(lambda: bcrypt.hashpw(plain, bcrypt.gensalt(self._rounds)), account)).decode()

    async def matches(self, secret: str, hashed: str | None, *, account: Hashable = None) -> bool:
        """Whether the hash is this secret's. Without a hash it takes as long, and the answer is no.

        Args:
            account: whose hash it is.

        Raises:
            HashingOverloaded: too many wait already.
        """
        plain = secret.encode()
        fits = len(plain) <= BCRYPT_MAX_BYTES
        against = (hashed or self._decoy).encode()
        same = await self._run(lambda: bcrypt.checkpw(plain if fits else b"", against), account)
        return same and fits and hashed is not None

    async def _run(self, do: Callable[[], T], account: Hashable) -> T:
        if self._waiting >= self._max_waiting:
            self._make_room(account)
        loop = asyncio.get_running_loop()
        done: asyncio.Future[T] = loop.create_future()
        self._queues.setdefault(account, deque()).append(_Work(do, done))
        self._waiting += 1
        self._begin(loop)
        return await done

    def _make_room(self, account: Hashable) -> None:
        """Turn away the last of whoever has the most waiting.

        Raises:
            HashingOverloaded: that is this account, or as good as.
        """
        longest = max(self._queues.values(), key=len)
        if len(longest) <= len(self._queues.get(account, ())) + 1:
            raise HashingOverloaded(OVERLOADED)
        turned_away = longest.pop()
        self._waiting -= 1
        if not turned_away.done.done():
            turned_away.done.set_exception(HashingOverloaded(OVERLOADED))

    def _begin(self, loop: asyncio.AbstractEventLoop) -> None:
        """Give the threads that are free what is next."""
        while self._free and self._queues:
            account = next(iter(self._queues))
            queue = self._queues.pop(account)
            work = queue.popleft()
            self._waiting -= 1
            if queue:
                self._queues[account] = queue  # all others have their turn before
            if not work.done.done():  # who waited may have left
                self._free -= 1
                # Its thread is not free before it is done, whoever stops waiting.
                self._executor.submit(work.do).add_done_callback(partial(self._ended, loop, work))

    def _ended(self, loop: asyncio.AbstractEventLoop, work: _Work, made: Future[Any]) -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(self._tell, loop, work, made)

    def _tell(self, loop: asyncio.AbstractEventLoop, work: _Work, made: Future[Any]) -> None:
        self._free += 1
        if made.cancelled():
            work.done.cancel()
        elif not work.done.done():
            error = made.exception()
            if error is None:
                work.done.set_result(made.result())
            else:
                work.done.set_exception(error)
        self._begin(loop)

    def close(self) -> None:
        for queue in self._queues.values():
            for work in queue:
                work.done.cancel()
        self._queues.clear()
        self._executor.shutdown(wait=False, cancel_futures=True)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()
