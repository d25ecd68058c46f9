"""A merchant opens an account."""

from dataclasses import replace

from psycopg.errors import UniqueViolation
from psycopg_pool import AsyncConnectionPool
from uuid_utils.compat import uuid7

from payloops.commands.hashing import Hasher
from payloops.commands.merchants import MerchantRow
from payloops.events.event_store import EventStore
from payloops.events.merchants import Merchant, MerchantRegistered
from payloops.events.metadata import Metadata


class EmailTaken(Exception):
    """Another account has this email address; case is ignored."""

    def __init__(self) -> None:
        super().__init__("An account with this email address already exists")


async def register_merchant(
    store: EventStore,
    *,
    name: str,
    email: str,
    password: str,
    passwords: Hasher,
    by: Metadata,
) -> MerchantRow:
    """Open an account; it is itself the actor of its first event (`merchant:<id>`).

    Args:
        email: unique without regard to case.
        password: at most 72 bytes of UTF-8; kept as a bcrypt hash only.

    Raises:
        EmailTaken: the address has an account.
        HashingOverloaded: too many passwords wait to be hashed.
    """
    if await _has_account(store.pool, email=email):  # spares the hash; the unique index decides below
        raise EmailTaken
    password_hash = await passwords.hash(password)
    merchant_id = uuid7()
    by = replace(by, actor=f"merchant:{merchant_id}")
    account = Merchant.begin(
        MerchantRegistered, id=merchant_id, merchant_id=str(merchant_id), by=by, name=name, email=email
    )
    try:
        async with store.transaction() as connection:
            await connection.execute(
                "INSERT INTO merchants (id, name, email, password_hash, created_at, updated_at)"
                " VALUES (%s, %s, %s, %s, %s, %s)",
                (merchant_id, name, email, password_hash, by.at, by.at),
            )
            await store.append_in(connection, account.collect_events())
    except UniqueViolation:
        raise EmailTaken from None
    return MerchantRow(
        id=merchant_id,
        name=name,
        email=email,
        webhook_url=None,
        token_version=1,
        created_at=by.at,
        updated_at=by.at,
    )


async def _has_account(pool: AsyncConnectionPool, *, email: str) -> bool:
    async with pool.connection() as connection:
        cursor = await connection.execute("SELECT 1 FROM merchants WHERE lower(email) = lower(%s)", (email,))
        return await cursor.fetchone() is not None
