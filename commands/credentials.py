"""Processor credentials: sealed in their row of `processor_configs`, opened for a processor's worker."""

from dataclasses import dataclass
from uuid import UUID

import orjson
from psycopg.rows import class_row
from psycopg_pool import AsyncConnectionPool

from payloops.commands.cipher import Cipher


def credentials_identity(*, merchant_id: UUID, processor: str) -> str:
    """The row that credentials are sealed for."""
    return f"processor_configs:{merchant_id}:{processor}"


def seal_credentials(
    credentials: dict[str, str], *, merchant_id: UUID, processor: str, cipher: Cipher
) -> bytes:
    """Credentials as their row keeps them."""
    identity = credentials_identity(merchant_id=merchant_id, processor=processor)
    return cipher.seal(orjson.dumps(credentials), identity=identity)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessorCredentials:
    """What a processor's worker needs in order to speak for the merchant. Not for logs."""

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
    """The merchant's credentials at a processor, None where none are configured.

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
