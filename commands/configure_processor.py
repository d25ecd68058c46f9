"""A merchant configures a processor, or adjusts one that is configured."""

from uuid import UUID

from psycopg import AsyncConnection
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool
from uuid_utils.compat import uuid7

from payloops.commands.cipher import Cipher
from payloops.commands.credentials import keep_webhook_secret, seal_credentials
from payloops.commands.merchants import change_account
from payloops.commands.processors import (
    PROCESSORS,
    ProcessorConfig,
    ProcessorNotConfigured,
    ProcessorUnknown,
    find_processor,
)
from payloops.events.event_store import EventStore
from payloops.events.merchants import Merchant, ProcessorAdjusted, ProcessorConfigured
from payloops.events.metadata import Metadata


async def configure_processor(
    store: EventStore,
    *,
    merchant_id: UUID,
    processor: str,
    credentials: dict[str, str],
    enabled: bool,
    priority: int,
    test_mode: bool,
    cipher: Cipher,
    by: Metadata,
) -> ProcessorConfig:
    """Configure a processor; a former configuration of it is replaced whole.

    A webhook secret that is replaced by another is still accepted for 24 hours.

    Args:
        credentials: by the names of the HTTP contract: `secretKey`, …; kept encrypted.
        priority: 1 to 100, the lowest is tried first.

    Raises:
        ProcessorUnknown: not one of `PROCESSORS`.
    """
    if processor not in PROCESSORS:
        raise ProcessorUnknown
    sealed = seal_credentials(credentials, merchant_id=merchant_id, processor=processor, cipher=cipher)

    def decide(account: Merchant) -> None:
        account.record(
            ProcessorConfigured,
            by=by,
            processor=processor,
            enabled=enabled,
            priority=priority,
            test_mode=test_mode,
        )

    async def write(connection: AsyncConnection[TupleRow]) -> None:
        await keep_webhook_secret(
            connection,
            merchant_id=merchant_id,
            processor=processor,
            credentials=credentials,
            cipher=cipher,
            at=by.at,
        )
        await connection.execute(
            "INSERT INTO processor_configs"
            " (id, merchant_id, processor, enabled, priority, test_mode, credentials, created_at, updated_at)"
            " VALUES (%(id)s, %(merchant)s, %(processor)s, %(enabled)s, %(priority)s, %(test_mode)s,"
            "         %(credentials)s, %(at)s, %(at)s)"
            " ON CONFLICT (merchant_id, processor) DO UPDATE SET enabled = excluded.enabled,"
            "  priority = excluded.priority, test_mode = excluded.test_mode,"
            "  credentials = excluded.credentials, updated_at = excluded.updated_at",
            {
                "id": uuid7(),
                "merchant": merchant_id,
                "processor": processor,
                "enabled": enabled,
                "priority": priority,
                "test_mode": test_mode,
                "credentials": sealed,
                "at": by.at,
            },
        )

    await change_account(store, merchant_id=merchant_id, decide=decide, write=write)
    return await _configured(store.pool, merchant_id=merchant_id, processor=processor)


async def adjust_processor(
    store: EventStore,
    *,
    merchant_id: UUID,
    processor: str,
    enabled: bool | None = None,
    priority: int | None = None,
    test_mode: bool | None = None,
    by: Metadata,
) -> ProcessorConfig:
    """Change what is given, keep the rest and the credentials.

    Raises:
        ProcessorNotConfigured: there is nothing to adjust.
    """
    current = await _configured(store.pool, merchant_id=merchant_id, processor=processor)
    wanted = {
        "enabled": current.enabled if enabled is None else enabled,
        "priority": current.priority if priority is None else priority,
        "test_mode": current.test_mode if test_mode is None else test_mode,
    }

    def decide(account: Merchant) -> None:
        if processor not in account.processors:
            raise ProcessorNotConfigured(merchant_id=merchant_id, processor=processor)
        account.record(ProcessorAdjusted, by=by, processor=processor, **wanted)

    async def write(connection: AsyncConnection[TupleRow]) -> None:
        await connection.execute(
            "UPDATE processor_configs SET enabled = %(enabled)s, priority = %(priority)s,"
            " test_mode = %(test_mode)s, updated_at = %(at)s"
            " WHERE merchant_id = %(merchant)s AND processor = %(processor)s",
            {**wanted, "at": by.at, "merchant": merchant_id, "processor": processor},
        )

    await change_account(store, merchant_id=merchant_id, decide=decide, write=write)
    return await _configured(store.pool, merchant_id=merchant_id, processor=processor)


async def _configured(pool: AsyncConnectionPool, *, merchant_id: UUID, processor: str) -> ProcessorConfig:
    config = await find_processor(pool, merchant_id=merchant_id, processor=processor)
    if config is None:
        raise ProcessorNotConfigured(merchant_id=merchant_id, processor=processor)
    return config
