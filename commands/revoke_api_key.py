"""A merchant revokes an API key."""

from uuid import UUID

from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from payloops.commands.api_keys import ApiKeyNotFound
from payloops.commands.merchants import change_account
from payloops.events.event_store import EventStore
from payloops.events.merchants import ApiKeyRevoked, Merchant
from payloops.events.metadata import Metadata


async def revoke_api_key(store: EventStore, *, merchant_id: UUID, api_key_id: UUID, by: Metadata) -> None:
    """Revoke a key: within a second every process refuses it. Its row is kept, for the audit.

    Raises:
        ApiKeyNotFound: not one of the merchant's, or revoked already.
    """

    def decide(account: Merchant) -> None:
        if str(api_key_id) not in account.api_keys:
            raise ApiKeyNotFound(api_key_id=api_key_id)
        account.record(ApiKeyRevoked, by=by, api_key_id=str(api_key_id))

    async def write(connection: AsyncConnection[TupleRow]) -> None:
        await connection.execute(
            "UPDATE api_keys SET revoked_at = %s WHERE id = %s AND merchant_id = %s",
            (by.at, api_key_id, merchant_id),
        )

    await change_account(store, merchant_id=merchant_id, decide=decide, write=write)
