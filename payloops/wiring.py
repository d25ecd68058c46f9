"""What a process is made of, from its settings."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from payloops.events.connections import connection_pool
from payloops.events.event_store import EventStore
from payloops.settings import Settings


@asynccontextmanager
async def open_store(settings: Settings, *, application_name: str) -> AsyncIterator[EventStore]:
    """The event store over a pool of connections. It opens also while the database is down, and finds it later.

    Args:
        application_name: what PostgreSQL shows in pg_stat_activity.
    """
    database_url = settings.database_url.get_secret_value()
    pool = connection_pool(database_url, size=settings.database_pool_size, application_name=application_name)
    await pool.open(wait=False)
    try:
        async with EventStore(database_url, pool, queue_size=settings.append_queue_size) as store:
            yield store
    finally:
        await pool.close()
