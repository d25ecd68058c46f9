"""A merchant's program shows its API key.

bcrypt is meant to be slow, and so happens once: a key that was verified is remembered, by a digest under a
key of this process, never in the clear. What may change about a key afterwards (revoked, expired) is read
again from its row when the memory of it is older than half a second, once for all requests that wait for it.
"""

import asyncio
import hashlib
import hmac
import secrets
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from psycopg.rows import class_row
from psycopg_pool import AsyncConnectionPool

from payloops.commands.api_keys import KEY_FORM, KeyMode
from payloops.commands.hashing import Hasher
from payloops.events.timestamps import utc_now

VERIFIED_FOR = 600.0
"""Seconds that a verified key is remembered before bcrypt is asked again."""
FRESH_FOR = 0.5
"""Seconds that a key's row counts as read just now."""
REFUSED_FOR = 60.0
"""Seconds that a wrong key is remembered as wrong."""
ROW_DEADLINE = 1.0
"""Seconds to wait for a key's row: nobody is let in on an old one."""
REMEMBERED = 10_000
"""Verified keys, and as many wrong ones, that a process remembers."""
WRONG_AT_A_TIME = 8
"""Different keys of one prefix that may wait at a time: a flood of guesses holds up nobody but its target."""


class InvalidApiKey(Exception):
    """Not a key, no such key, or one that was revoked or has expired; which of them is not said."""

    def __init__(self) -> None:
        super().__init__("The API key is not valid")


class TooManyGuesses(Exception):
    """More different keys of one prefix are presented at a time than anyone who has the right one needs."""

    def __init__(self) -> None:
        super().__init__("Too many attempts with wrong API keys")


class KeyCheckUnavailable(Exception):
    """The key's row could not be read in time."""

    def __init__(self) -> None:
        super().__init__("API keys cannot be checked right now")


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyOwner:
    """Whom a key stands for."""

    api_key_id: UUID
    merchant_id: UUID


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    id: UUID
    merchant_id: UUID
    key_hash: str
    expires_at: datetime | None
    revoked_at: datetime | None


@dataclass(slots=True, kw_only=True)
class _Verified:
    owner: KeyOwner
    expires_at: datetime | None
    verified_at: float
    read_at: float
    reading: asyncio.Task[bool] | None = None


class ApiKeyGate:
    """Tells whom a key stands for, for one process."""

    def __init__(
        self,
        pool: AsyncConnectionPool,
        *,
        keys: Hasher,
        mode: KeyMode,
        now: Callable[[], datetime] = utc_now,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Args:
            keys: checks hashes; not the one that checks passwords.
            mode: keys of the other mode are refused: a test key opens nothing in production.
        """
        self._pool = pool
        self._keys = keys
        self._mode = mode
        self._now = now
        self._clock = clock
        self._digest_key = secrets.token_bytes(32)
        self._verified: dict[bytes, _Verified] = {}
        self._refused: dict[bytes, float] = {}
        self._checks: dict[bytes, asyncio.Task[_Verified | None]] = {}
        self._checking: dict[str, int] = {}
        self._turns: dict[str, asyncio.Lock] = {}

    async def authenticate(self, key: str) -> KeyOwner:
        """Whom the key stands for.

        Raises:
            InvalidApiKey: see there. Within a second after a key is revoked, and from the moment it expires.
            TooManyGuesses, HashingOverloaded, KeyCheckUnavailable: it was not checked.
        """
        form = KEY_FORM.fullmatch(key)
        if form is None or form["mode"] != self._mode:
            raise InvalidApiKey
        digest = hmac.digest(self._digest_key, key.encode(), hashlib.sha256)
        verified = self._verified.get(digest)
        if verified is None or self._clock() - verified.verified_at >= VERIFIED_FOR:
            verified = await self._check(digest, key, form["prefix"])
        elif self._clock() - verified.read_at >= FRESH_FOR and not await self._read_again(verified):
            self._verified.pop(digest, None)
            raise InvalidApiKey
        if verified.expires_at is not None and self._now() >= verified.expires_at:
            raise InvalidApiKey
        return verified.owner

    async def _check(self, digest: bytes, key: str, prefix: str) -> _Verified:
        refused_at = self._refused.get(digest)
        if refused_at is not None and self._clock() - refused_at < REFUSED_FOR:
            raise InvalidApiKey
        check = self._checks.get(digest)
        if check is None:
            if self._checking.get(prefix, 0) >= WRONG_AT_A_TIME:
                raise TooManyGuesses
            check = asyncio.create_task(self._verify(digest, key, prefix))
            self._checks[digest] = check
            self._checking[prefix] = self._checking.get(prefix, 0) + 1
            check.add_done_callback(lambda _: self._checked(digest, prefix))
        verified = await asyncio.shield(check)
        if verified is None:
            raise InvalidApiKey
        return verified

    def _checked(self, digest: bytes, prefix: str) -> None:
        del self._checks[digest]
        self._checking[prefix] -= 1
        if not self._checking[prefix]:
            del self._checking[prefix]
            self._turns.pop(prefix, None)

    async def _verify(self, digest: bytes, key: str, prefix: str) -> _Verified | None:
        read_at = self._clock()
        row = await self._find(prefix)
        if row is not None and row.revoked_at is None:
            # One at a time of each prefix: guesses at one key do not keep others from the hasher.
            async with self._turns.setdefault(prefix, asyncio.Lock()):
                right = await self._keys.matches(key, row.key_hash)
            if right:
                verified = _Verified(
                    owner=KeyOwner(api_key_id=row.id, merchant_id=row.merchant_id),
                    expires_at=row.expires_at,
                    verified_at=self._clock(),
                    read_at=read_at,
                )
                # bcrypt took its time: the row may have changed since it was read.
                if await self._read(verified):
                    _remember(self._verified, digest, verified)
                    return verified
        _remember(self._refused, digest, self._clock())
        return None

    async def _read_again(self, verified: _Verified) -> bool:
        if verified.reading is None:
            verified.reading = asyncio.create_task(self._read(verified))

            def done(_: object) -> None:
                verified.reading = None

            verified.reading.add_done_callback(done)
        return await asyncio.shield(verified.reading)

    async def _find(self, prefix: str) -> _Row | None:
        async with (
            _deadline(),
            self._pool.connection() as connection,
            connection.cursor(row_factory=class_row(_Row)) as cursor,
        ):
            await cursor.execute(
                "SELECT id, merchant_id, key_hash, expires_at, revoked_at FROM api_keys WHERE prefix = %s",
                (prefix,),
            )
            return await cursor.fetchone()

    async def _read(self, verified: _Verified) -> bool:
        """Whether the key is still good, as of now; notes its use, once a minute."""
        read_at = self._clock()
        async with _deadline(), self._pool.connection() as connection:
            cursor = await connection.execute(
                "SELECT last_used_at IS NULL OR last_used_at < now() - interval '1 minute' FROM api_keys"
                " WHERE id = %s AND revoked_at IS NULL",
                (verified.owner.api_key_id,),
            )
            row = await cursor.fetchone()
            if row is not None and row[0]:
                await connection.execute(
                    "UPDATE api_keys SET last_used_at = now() WHERE id = %s", (verified.owner.api_key_id,)
                )
        verified.read_at = read_at
        return row is not None


@asynccontextmanager
async def _deadline() -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(ROW_DEADLINE):
            yield
    except TimeoutError:
        raise KeyCheckUnavailable from None


def _remember(memory: dict[bytes, Any], digest: bytes, value: Any) -> None:
    memory.pop(digest, None)
    memory[digest] = value
    if len(memory) > REMEMBERED:
        del memory[next(iter(memory))]
