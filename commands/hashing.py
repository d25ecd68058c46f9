"""bcrypt, off the event loop, in a thread with a bounded queue."""

import asyncio
import contextlib
import os
import sys
import threading
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from typing import Self, TypeVar

import bcrypt

from payloops.events.fair_semaphore import FairSemaphore, TooManyWaiting

T = TypeVar("T")

BCRYPT_MAX_BYTES = 72
"""bcrypt reads no further: version 5 raises an error, older ones ignore the rest silently."""


NICENESS = 10
"""Of the threads that hash, so that a flood of guesses does not slow down other requests."""


class HashingOverloaded(Exception):
    """Too many passwords or keys are waiting to be hashed in this process; nothing was checked."""


def _step_back() -> None:
    # Linux has a niceness for each thread; elsewhere it would be the process's, or is not to be had.
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)


class Hasher:
    """Hashes and checks secrets of at most 72 bytes. Accounts take turns.

    Passwords and API keys each have a hasher of their own, so that a flood of logins cannot delay API keys. Use as an
    async context manager, and leave it when nobody waits any more.
    """

    def __init__(self, *, rounds: int, max_waiting: int = 32) -> None:
        """
        Args:
            rounds: bcrypt's cost: each step doubles the time, 12 takes about a quarter of a second.
            max_waiting: how many may wait for the thread before `HashingOverloaded` is raised.
        """
        self._rounds = rounds
        self._turns = FairSemaphore(permits=1, max_waiting=max_waiting)
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="bcrypt", initializer=_step_back)
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
        """Whether this is the secret's hash. Without a hash it takes the same time, and the result is False.

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

    async def _run(self, work: Callable[[], T], account: Hashable) -> T:
        try:
            await self._turns.acquire(account)
        except TooManyWaiting:
            raise HashingOverloaded("too many secrets wait to be checked") from None
        loop = asyncio.get_running_loop()
        future = self._executor.submit(work)
        # The permit is held until the thread has finished, even if the caller stops waiting.
        future.add_done_callback(lambda _: self._finished(loop))
        return await asyncio.wrap_future(future)

    def _finished(self, loop: asyncio.AbstractEventLoop) -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(self._turns.release)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._executor.shutdown(wait=False)
