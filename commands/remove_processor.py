"""A merchant removes a processor and its credentials."""

from uuid import UUID

from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from payloops.commands.merchants import change_account
from payloops.commands.processors import ProcessorNotConfigured
from payloops.events.event_store import EventStore
from payloops.events.merchants import Merchant, ProcessorRemoved
from payloops.events.metadata import Metadata


async def remove_processor(store: EventStore, *, merchant_id: UUID, processor: str, by: Metadata) -> None:
    """Remove a processor; its credentials are gone with its row.

    Raises:
        ProcessorNotConfigured: there is nothing to remove.
    """

    def decide(account: Merchant) -> None:
        if processor not in account.processors:
            raise ProcessorNotConfigured(merchant_id=merchant_id, processor=processor)
        account.record(ProcessorRemoved, by=by, processor=processor)

    async def write(connection: AsyncConnection[TupleRow]) -> None:
        await connection.execute(
            "DELETE FROM processor_configs WHERE merchant_id = %s AND processor = %s",
            (merchant_id, processor),
        )

    await change_account(store, merchant_id=merchant_id, decide=decide, write=write)
