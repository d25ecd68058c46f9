"""Authenticating a merchant's program by its API key.

bcrypt is slow on purpose, so each key is hashed only once: a verified key is remembered by a digest under a random
key of this process, never in the clear. Whatever can change about a key later (revoked, expired) is read again from
its row when the remembered state is older than half a second, once for all requests that wait for it.

Wrong keys must be cheap and must not delay others. The rows of all keys that are waiting are fetched by one query on
one connection, so a flood of made-up keys takes only one connection from the pool. At bcrypt merchants take turns, so
that guesses at the keys of one delay no other, and a key that verified before is answered ahead of guesses at it.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

import psycopg
import structlog
from psycopg.rows import class_row
from psycopg_pool import AsyncConnectionPool

from payloops.commands.api_keys import KEY_FORM, KeyMode
from payloops.commands.hashing import Hasher
from payloops.commands.note_key_use import KeyUses
from payloops.commands.verified_secrets import SecretDigest, remember
from payloops.events.batch_loader import LOOKUPS, BatchLoader
from payloops.events.timestamps import utc_now

VERIFIED_FOR = 600.0
"""Seconds after which a remembered key is verified by bcrypt again, in the background."""
TRUSTED_FOR = 2 * VERIFIED_FOR
"""Seconds after which requests wait for that verification."""
FRESH_FOR = 0.5
"""Seconds for which a key's row need not be read again."""
REFUSED_FOR = 60.0
"""Seconds for which a wrong key is remembered, and refused at once."""
ROW_DEADLINE = 1.0
"""Seconds to wait for a key's row. If it cannot be read, the request is refused: an old row is not used."""
RENEWAL = "api_keys.renewal"
"""The name of the task that verifies a remembered key again."""
WRONG_AT_A_TIME = 8
"""Different keys with the same prefix that may wait at a time: a flood of guesses only delays its target."""

log = structlog.get_logger()


class InvalidApiKey(Exception):
    """The key is malformed, unknown, revoked or expired; the error does not say which."""

    def __init__(self) -> None:
        super().__init__("The API key is not valid")


class TooManyGuesses(Exception):
    """Too many different keys with the same prefix are waiting: somebody is guessing."""

    def __init__(self) -> None:
        super().__init__("Too many attempts with wrong API keys")


class KeyCheckUnavailable(Exception):
    """The key's row could not be read in time."""

    def __init__(self) -> None:
        super().__init__("API keys cannot be checked right now")


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyOwner:
    """The owner of a key.

    Attributes:
        actor: as events name it.
    """

    api_key_id: UUID
    merchant_id: UUID
    actor: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    prefix: str
    id: UUID
    merchant_id: UUID
    key_hash: str
    expires_at: datetime | None
    revoked_at: datetime | None


@dataclass(slots=True, kw_only=True)
class _Verified:
    prefix: str
    owner: KeyOwner
    expires_at: datetime | None
    verified_at: float
    read_at: float


class ApiKeyGate:
    """Authenticates API keys, for one process."""

    def __init__(
        self,
        pool: AsyncConnectionPool,
        *,
        keys: Hasher,
        mode: KeyMode,
        uses: KeyUses | None = None,
        now: Callable[[], datetime] = utc_now,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Args:
            keys: checks hashes of keys; passwords have a hasher of their own.
            mode: keys of the other mode are refused: a test key is not valid in production.
            uses: records when keys were used.
        """
        self._rows = _Rows(pool)
        self._uses = uses
        self._keys = keys
        self._mode = mode
        self._now = now
        self._clock = clock
        self._digest_of = SecretDigest()
        self._verified: dict[bytes, _Verified] = {}
        self._refused: dict[bytes, float] = {}
        self._checks: dict[bytes, asyncio.Task[_Verified | None]] = {}
        self._checking: dict[str, int] = {}
        self._renewals: dict[bytes, asyncio.Task[_Verified | None]] = {}

    async def authenticate(self, key: str) -> KeyOwner:
        """The owner of a key.

        Raises:
            InvalidApiKey: it is not valid: from the moment it expires, and at most a second after it was revoked.
            TooManyGuesses, HashingOverloaded, KeyCheckUnavailable: it was not checked.
        """
        digest = self._digest_of(key)
        verified = self._verified.get(digest)
        if verified is None:
            verified = await self._check(digest, key)
        else:
            clock = self._clock()
            age = clock - verified.verified_at
            renewal = self._renew(digest, key, verified.prefix) if age >= VERIFIED_FOR else None
            if renewal is not None and age >= TRUSTED_FOR:
                verified = await asyncio.shield(renewal)
            elif clock - verified.read_at >= FRESH_FOR and not await self._read_again(verified):
                verified = None
            if verified is None:
                self._verified.pop(digest, None)
                raise InvalidApiKey
        now = self._now()
        if verified.expires_at is not None and now >= verified.expires_at:
            raise InvalidApiKey
        if self._uses is not None:
            self._uses.note(verified.owner.api_key_id, at=now)
        return verified.owner

    async def _check(self, digest: bytes, key: str) -> _Verified:
        form = KEY_FORM.fullmatch(key)
        if form is None or form["mode"] != self._mode:
            raise InvalidApiKey
        prefix = form["prefix"]
        refused_at = self._refused.get(digest)
        if refused_at is not None and self._clock() - refused_at < REFUSED_FOR:
            raise InvalidApiKey
        check = self._checks.get(digest)
        if check is None:
            if self._checking.get(prefix, 0) >= WRONG_AT_A_TIME:
                raise TooManyGuesses
            check = asyncio.create_task(self._verify(digest, key, prefix, renews=False))
            self._checks[digest] = check
            self._checking[prefix] = self._checking.get(prefix, 0) + 1
            check.add_done_callback(lambda _: self._checked(digest, prefix))
        verified = await asyncio.shield(check)
        if verified is None:
            raise InvalidApiKey
        return verified

    def _renew(self, digest: bytes, key: str, prefix: str) -> asyncio.Task[_Verified | None]:
        """Verify a remembered key again. It does not queue with guesses at the key."""
        renewal = self._renewals.get(digest)
        if renewal is None:
            check = self._verify(digest, key, prefix, renews=True)
            renewal = asyncio.create_task(check, name=RENEWAL)
            self._renewals[digest] = renewal
            renewal.add_done_callback(lambda _: self._renewed(digest))
        return renewal

    def _renewed(self, digest: bytes) -> None:
        renewal = self._renewals.pop(digest)
        if not renewal.cancelled() and isinstance(error := renewal.exception(), Exception):
            log.info("api_keys.not_renewed", error=type(error).__name__)  # tried again with its next use

    def _checked(self, digest: bytes, prefix: str) -> None:
        del self._checks[digest]
        self._checking[prefix] -= 1
        if not self._checking[prefix]:
            del self._checking[prefix]

    async def _verify(self, digest: bytes, key: str, prefix: str, *, renews: bool) -> _Verified | None:
        read_at = self._clock()
        row = await self._rows.find(prefix)
        if (
            row is not None
            and row.revoked_at is None
            and await self._keys.matches(key, row.key_hash, account=(row.merchant_id, renews))
        ):
            verified = _Verified(
                prefix=prefix,
                owner=KeyOwner(api_key_id=row.id, merchant_id=row.merchant_id, actor=f"api_key:{row.id}"),
                expires_at=row.expires_at,
                verified_at=self._clock(),
                read_at=read_at,
            )
            # bcrypt took its time: the row may have changed since it was read.
            if await self._read_again(verified):
                remember(self._verified, digest, verified)
                return verified
        remember(self._refused, digest, self._clock())
        return None

    async def _read_again(self, verified: _Verified) -> bool:
        """Read the key's row again; return whether the key is still valid."""
        read_at = self._clock()
        row = await self._rows.find(verified.prefix)
        verified.read_at = read_at
        return row is not None and row.id == verified.owner.api_key_id and row.revoked_at is None


class _Rows:
    """Reads rows of `api_keys`: one query at a time, for all waiting requests."""

    def __init__(self, pool: AsyncConnectionPool) -> None:
        self._pool = pool
        self._loader = BatchLoader(self._read, most=LOOKUPS)

    async def find(self, prefix: str) -> _Row | None:
        """The row with a prefix, read after this call; None if there is none.

        Raises:
            KeyCheckUnavailable: it could not be read in time.
        """
        try:
            async with asyncio.timeout(ROW_DEADLINE):
                return await self._loader.find(prefix)
        except TimeoutError:
            raise KeyCheckUnavailable from None

    async def _read(self, prefixes: Sequence[str]) -> dict[str, _Row]:
        try:
            async with asyncio.timeout(ROW_DEADLINE), self._pool.connection() as connection:
                cursor = connection.cursor(row_factory=class_row(_Row))
                await cursor.execute(
                    "SELECT prefix, id, merchant_id, key_hash, expires_at, revoked_at FROM api_keys"
                    " WHERE prefix = ANY(%s)",
                    (prefixes,),
                )
                return {row.prefix: row for row in await cursor.fetchall()}
        except (psycopg.Error, TimeoutError) as error:
            log.warning("api_keys.unreadable", error=type(error).__name__, keys=len(prefixes))
            raise KeyCheckUnavailable from None
