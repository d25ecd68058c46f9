"""Building the parts of a process from its settings."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from payloops.commands.cipher import Cipher
from payloops.events.authenticity import derive_mac_key
from payloops.events.event_store import EventStore
from payloops.events.pools import connection_pool
from payloops.events.seals import AuditKeys
from payloops.settings import AuditSettings, KeySettings, StoreSettings


@asynccontextmanager
async def open_store(
    settings: StoreSettings, *, application_name: str, patience: float | None = None
) -> AsyncIterator[EventStore]:
    """Open the event store, with a pool of connections. If the database is down, it connects when it is up.

    Args:
        application_name: of the pool's connections, as shown in pg_stat_activity.
        patience: as for `connection_pool`.
    """
    database_url = settings.database_url.get_secret_value()
    pool = connection_pool(
        database_url,
        size=settings.database_pool_size,
        application_name=application_name,
        patience=patience,
    )
    await pool.open(wait=False)
    try:
        async with EventStore(
            database_url,
            pool,
            mac_key=derive_mac_key(settings.audit_key.get_secret_value()),
            queue_size=settings.append_queue_size,
            patience=settings.append_patience,
        ) as store:
            yield store
    finally:
        await pool.close()


def make_audit_keys(settings: AuditSettings) -> AuditKeys:
    """The keys that authenticate events and sign seals, and older ones for verification."""
    return AuditKeys.derive(
        settings.audit_key.get_secret_value(),
        older=[key.get_secret_value() for key in settings.audit_keys_older],
    )


def make_cipher(settings: KeySettings) -> Cipher:
    """The cipher for secrets in tables."""
    return Cipher(
        secret=settings.encryption_key.get_secret_value(),
        older=[key.get_secret_value() for key in settings.encryption_keys_older],
    )
