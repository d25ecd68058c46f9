"""A merchant makes an API key."""

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from psycopg import AsyncConnection
from psycopg.rows import TupleRow
from uuid_utils.compat import uuid7

from payloops.commands.api_keys import ApiKeyRow, KeyMode, make_key
from payloops.commands.hashing import Hasher
from payloops.commands.merchants import change_account
from payloops.events.event_store import EventStore
from payloops.events.merchants import ApiKeyIssued, Merchant
from payloops.events.metadata import Metadata
from payloops.events.timestamps import timestamp_text

MAX_KEYS = 100
"""Of one merchant at a time; each is a row that a flood of requests could otherwise multiply."""


class TooManyApiKeys(Exception):
    """The merchant has the maximum number of keys; one has to be revoked first."""

    def __init__(self, *, merchant_id: UUID) -> None:
        super().__init__(f"An account may have {MAX_KEYS} API keys: revoke one first")
        self.merchant_id = merchant_id


@dataclass(frozen=True, slots=True, kw_only=True)
class IssuedApiKey:
    """A new key and its secret, which is never seen again."""

    row: ApiKeyRow
    secret: str

    def __repr__(self) -> str:
        return f"IssuedApiKey({self.row})"


async def issue_api_key(
    store: EventStore,
    *,
    merchant_id: UUID,
    name: str,
    expires_at: datetime | None,
    mode: KeyMode,
    keys: Hasher,
    by: Metadata,
) -> IssuedApiKey:
    """Make a key.

    Args:
        expires_at: from this moment on the key is refused; None: never.
        mode: `test` or `live`, by the environment.

    Raises:
        TooManyApiKeys: see there.
        HashingOverloaded: too many keys wait to be hashed.
    """
    secret, prefix = make_key(mode)
    key_hash = await keys.hash(secret, account=merchant_id)
    row = ApiKeyRow(
        id=uuid7(),
        name=name,
        prefix=prefix,
        last_used_at=None,
        expires_at=expires_at,
        created_at=by.at,
    )

    def decide(account: Merchant) -> None:
        if len(account.api_keys) >= MAX_KEYS:
            raise TooManyApiKeys(merchant_id=merchant_id)
        account.record(
            ApiKeyIssued,
            by=by,
            api_key_id=str(row.id),
            name=name,
            prefix=prefix,
            expires_at=timestamp_text(expires_at) if expires_at else None,
        )

    async def write(connection: AsyncConnection[TupleRow]) -> None:
        await connection.execute(
            "INSERT INTO api_keys (id, merchant_id, name, prefix, key_hash, expires_at, created_at)"
            " VALUES (%s, %s, %s, %s, %s, %s, %s)",
            (row.id, merchant_id, name, prefix, key_hash, expires_at, by.at),
        )

    await change_account(store, merchant_id=merchant_id, decide=decide, write=write)
    return IssuedApiKey(row=row, secret=secret)
