"""Processor credentials: sealed in their row of `processor_configs`, opened for a processor's worker."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

import orjson
import structlog
from psycopg import AsyncConnection
from psycopg.rows import TupleRow, class_row
from psycopg_pool import AsyncConnectionPool

from payloops.commands.cipher import Cipher, SealBroken

WEBHOOK_SECRET = "webhookSecret"  # noqa: S105  # the name of a credential
TEST_KEYS = ("sk_test_", "rk_test_", "rzp_test_")
"""What the keys of Stripe's and Razorpay's test modes begin with."""
PREVIOUS_SECRET_LIFE = timedelta(hours=24)
"""How long a replaced webhook secret is still accepted."""

log = structlog.get_logger()


def credentials_identity(*, merchant_id: UUID, processor: str) -> str:
    """The row that credentials are sealed for."""
    return f"processor_configs:{merchant_id}:{processor}"


def seal_credentials(
    credentials: dict[str, str], *, merchant_id: UUID, processor: str, cipher: Cipher
) -> bytes:
    """Credentials as stored in their row, encrypted."""
    identity = credentials_identity(merchant_id=merchant_id, processor=processor)
    return cipher.seal(orjson.dumps(credentials), identity=identity)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessorCredentials:
    """What a processor's worker needs to act for the merchant. Must not be logged."""

    merchant_id: UUID
    processor: str
    test_mode: bool
    credentials: dict[str, str]

    def __repr__(self) -> str:
        return f"ProcessorCredentials(merchant_id={self.merchant_id}, processor={self.processor!r})"


@dataclass(frozen=True, slots=True)
class _Sealed:
    test_mode: bool
    credentials: bytes


async def get_processor_credentials(
    pool: AsyncConnectionPool, *, merchant_id: UUID, processor: str, cipher: Cipher
) -> ProcessorCredentials | None:
    """The merchant's credentials at a processor; None if none are configured.

    Also where the processor is disabled: that keeps new payments away, but those under way have to end, and
    captured ones can still be refunded.

    Raises:
        SealBroken: see there.
    """
    async with pool.connection() as connection, connection.cursor(row_factory=class_row(_Sealed)) as cursor:
        await cursor.execute(
            "SELECT test_mode, credentials FROM processor_configs WHERE merchant_id = %s AND processor = %s",
            (merchant_id, processor),
        )
        row = await cursor.fetchone()
    if row is None:
        return None
    identity = credentials_identity(merchant_id=merchant_id, processor=processor)
    return ProcessorCredentials(
        merchant_id=merchant_id,
        processor=processor,
        test_mode=row.test_mode,
        credentials=orjson.loads(cipher.open(bytes(row.credentials), identity=identity)),
    )


def previous_webhook_secret_identity(*, merchant_id: UUID, processor: str) -> str:
    """The column that a replaced webhook secret is sealed for."""
    return f"processor_configs.previous_webhook_secret:{merchant_id}:{processor}"


async def keep_webhook_secret(
    connection: AsyncConnection[TupleRow],
    *,
    merchant_id: UUID,
    processor: str,
    credentials: dict[str, str],
    cipher: Cipher,
    at: datetime,
) -> None:
    """Before credentials are replaced: keep their webhook secret for a while, where the new ones have another.

    Where the new ones have none, no event is to be accepted, and none is kept. Nor is one where nobody can read what
    is replaced: whoever has lost a key replaces it for that very reason. Nor that of a test mode if the new keys are
    live: whoever pays in test mode, with money that does not exist, must not pay for what is sold from then on.
    """
    cursor = await connection.execute(
        "SELECT credentials FROM processor_configs WHERE merchant_id = %s AND processor = %s FOR UPDATE",
        (merchant_id, processor),
    )
    row = await cursor.fetchone()
    if row is None:
        return
    identity = credentials_identity(merchant_id=merchant_id, processor=processor)
    secret = credentials.get(WEBHOOK_SECRET)
    try:
        former = orjson.loads(cipher.open(bytes(row[0]), identity=identity))
        replaced = former.get(WEBHOOK_SECRET)
        if _is_of_test_mode(former) and not _is_of_test_mode(credentials):
            secret = None
    except SealBroken:
        log.warning("processor.former_credentials_unreadable", processor=processor)
        replaced = secret = None
    if secret is not None and (replaced is None or replaced == secret):
        return
    sealed = expires_at = None
    if secret is not None:
        identity = previous_webhook_secret_identity(merchant_id=merchant_id, processor=processor)
        sealed, expires_at = cipher.seal(replaced.encode(), identity=identity), at + PREVIOUS_SECRET_LIFE
    await connection.execute(
        "UPDATE processor_configs SET previous_webhook_secret = %s, previous_webhook_expires_at = %s"
        " WHERE merchant_id = %s AND processor = %s",
        (sealed, expires_at, merchant_id, processor),
    )


def _is_of_test_mode(credentials: dict[str, str]) -> bool:
    return any(credentials.get(name, "").startswith(TEST_KEYS) for name in ("secretKey", "keyId"))


async def get_webhook_secrets(
    pool: AsyncConnectionPool, *, merchant_id: UUID, processor: str, cipher: Cipher, at: datetime
) -> list[str]:
    """The secrets that a processor may sign its events to the merchant with at a time, the present one first.

    Also where the processor is disabled: payments under way have to end. Empty where none is configured.

    Raises:
        SealBroken: see there.
    """
    async with pool.connection() as connection:
        cursor = await connection.execute(
            "SELECT credentials,"
            " CASE WHEN previous_webhook_expires_at > %s THEN previous_webhook_secret END"
            " FROM processor_configs WHERE merchant_id = %s AND processor = %s",
            (at, merchant_id, processor),
        )
        row = await cursor.fetchone()
    if row is None:
        return []
    identity = credentials_identity(merchant_id=merchant_id, processor=processor)
    secret = orjson.loads(cipher.open(bytes(row[0]), identity=identity)).get(WEBHOOK_SECRET)
    if secret is None:
        return []
    if row[1] is None:
        return [secret]
    identity = previous_webhook_secret_identity(merchant_id=merchant_id, processor=processor)
    return [secret, cipher.open(bytes(row[1]), identity=identity).decode()]
