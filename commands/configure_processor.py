"""A merchant configures a processor, or adjusts one that is configured."""

from dataclasses import asdict
from typing import Any, LiteralString
from uuid import UUID

from psycopg import AsyncConnection
from psycopg.rows import TupleRow, class_row
from uuid_utils.compat import uuid7

from payloops.commands.cipher import Cipher
from payloops.commands.credentials import keep_webhook_secret, seal_credentials
from payloops.commands.merchants import change_account
from payloops.commands.processors import (
    PROCESSORS,
    ProcessorConfig,
    ProcessorNotConfigured,
    ProcessorUnknown,
    list_processors,
)
from payloops.events.errors import VersionConflict
from payloops.events.event_store import EventStore
from payloops.events.merchants import Merchant, ProcessorAdjusted, ProcessorChoice, ProcessorConfigured
from payloops.events.metadata import Metadata

CONFIGURE = """
    INSERT INTO processor_configs
        (id, merchant_id, processor, enabled, priority, test_mode, credentials, created_at, updated_at)
    VALUES (%(id)s, %(merchant)s, %(processor)s, %(enabled)s, %(priority)s, %(test_mode)s, %(credentials)s,
            %(at)s, %(at)s)
    ON CONFLICT (merchant_id, processor) DO UPDATE SET
        enabled = excluded.enabled, priority = excluded.priority, test_mode = excluded.test_mode,
        credentials = excluded.credentials, updated_at = excluded.updated_at
    RETURNING id, processor, enabled, priority, test_mode, created_at, updated_at
"""
ADJUST = """
    UPDATE processor_configs SET
        enabled = coalesce(%(enabled)s, enabled), priority = coalesce(%(priority)s, priority),
        test_mode = coalesce(%(test_mode)s, test_mode), updated_at = %(at)s
    WHERE merchant_id = %(merchant)s AND processor = %(processor)s
    RETURNING id, processor, enabled, priority, test_mode, created_at, updated_at
"""


async def configure_processor(
    store: EventStore,
    *,
    merchant_id: UUID,
    processor: str,
    credentials: dict[str, str],
    choice: ProcessorChoice,
    cipher: Cipher,
    by: Metadata,
) -> ProcessorConfig:
    """Configure a processor; a former configuration of it is replaced whole.

    A webhook secret that is replaced by another is still accepted for 24 hours.

    Args:
        credentials: by the names of the HTTP contract: `secretKey`, …; kept encrypted.
        choice: `priority` is 1 to 100, the lowest is tried first.

    Raises:
        ProcessorUnknown: not one of `PROCESSORS`.
    """
    if processor not in PROCESSORS:
        raise ProcessorUnknown
    sealed = seal_credentials(credentials, merchant_id=merchant_id, processor=processor, cipher=cipher)

    def decide(account: Merchant) -> None:
        account.record(ProcessorConfigured, by=by, processor=processor, **asdict(choice))

    async def write(connection: AsyncConnection[TupleRow]) -> ProcessorConfig:
        await keep_webhook_secret(
            connection,
            merchant_id=merchant_id,
            processor=processor,
            credentials=credentials,
            cipher=cipher,
            at=by.at,
        )
        return await _written(
            connection,
            CONFIGURE,
            {
                "id": uuid7(),
                "merchant": merchant_id,
                "processor": processor,
                **asdict(choice),
                "credentials": sealed,
                "at": by.at,
            },
        )

    config = await change_account(store, merchant_id=merchant_id, decide=decide, write=write)
    assert config is not None
    return config


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
    """Change what is given, keep the rest and the credentials; what is the same already leaves no fact.

    Raises:
        ProcessorNotConfigured: there is nothing to adjust.
    """

    def decide(account: Merchant) -> None:
        current = account.processors.get(processor)
        if current is None:
            raise ProcessorNotConfigured(merchant_id=merchant_id, processor=processor)
        wanted = ProcessorChoice(
            enabled=current.enabled if enabled is None else enabled,
            priority=current.priority if priority is None else priority,
            test_mode=current.test_mode if test_mode is None else test_mode,
        )
        if wanted != current:
            account.record(ProcessorAdjusted, by=by, processor=processor, **asdict(wanted))

    async def write(connection: AsyncConnection[TupleRow]) -> ProcessorConfig:
        return await _written(
            connection,
            ADJUST,
            {
                "enabled": enabled,
                "priority": priority,
                "test_mode": test_mode,
                "at": by.at,
                "merchant": merchant_id,
                "processor": processor,
            },
        )

    config = await change_account(store, merchant_id=merchant_id, decide=decide, write=write)
    if config is None:  # there was nothing to change
        configured = await list_processors(store.pool, merchant_id=merchant_id)
        config = next((each for each in configured if each.processor == processor), None)
    if config is None:  # it was removed just now
        raise ProcessorNotConfigured(merchant_id=merchant_id, processor=processor)
    return config


async def _written(
    connection: AsyncConnection[TupleRow], statement: LiteralString, parameters: dict[str, Any]
) -> ProcessorConfig:
    """The row as a statement has written it.

    Raises:
        VersionConflict: there is none: it was removed after the decision, so that the decision is due again.
    """
    async with connection.cursor(row_factory=class_row(ProcessorConfig)) as cursor:
        await cursor.execute(statement, parameters)
        config = await cursor.fetchone()
    if config is None:
        raise VersionConflict(parameters["merchant"])
    return config
