"""A merchant changes the password."""

from dataclasses import dataclass
from uuid import UUID

from psycopg import AsyncConnection
from psycopg.rows import TupleRow, class_row
from psycopg_pool import AsyncConnectionPool

from payloops.commands.hashing import Hasher
from payloops.commands.merchants import MerchantNotFound, MerchantRow, change_account
from payloops.events.event_store import EventStore
from payloops.events.merchants import Merchant, PasswordChanged
from payloops.events.metadata import Metadata


class WrongPassword(Exception):
    """The given current password is wrong."""

    def __init__(self) -> None:
        super().__init__("The current password is wrong")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Password:
    password_hash: str
    token_version: int


async def change_password(
    store: EventStore,
    *,
    merchant_id: UUID,
    current_password: str,
    new_password: str,
    passwords: Hasher,
    by: Metadata,
) -> MerchantRow:
    """Replace the password. Every dashboard token that was issued before stops counting with the commit.

    Args:
        new_password: at most 72 bytes of UTF-8; kept as a bcrypt hash only.

    Raises:
        WrongPassword: see there; also where another request changed the password meanwhile.
        HashingOverloaded: too many passwords wait to be checked.
    """
    current = await _password(store.pool, merchant_id=merchant_id)
    if not await passwords.matches(current_password, current.password_hash):
        raise WrongPassword
    password_hash = await passwords.hash(new_password)
    token_version = current.token_version + 1

    def decide(account: Merchant) -> None:
        account.record(PasswordChanged, by=by, token_version=token_version)

    async def write(connection: AsyncConnection[TupleRow]) -> MerchantRow:
        async with connection.cursor(row_factory=class_row(MerchantRow)) as cursor:
            await cursor.execute(
                "UPDATE merchants SET password_hash = %s, token_version = %s, updated_at = %s"
                " WHERE id = %s AND token_version = %s"
                " RETURNING id, name, email, webhook_url, token_version, created_at, updated_at",
                (password_hash, token_version, by.at, merchant_id, current.token_version),
            )
            row = await cursor.fetchone()
        if row is None:
            raise WrongPassword
        return row

    changed = await change_account(store, merchant_id=merchant_id, decide=decide, write=write)
    assert changed is not None
    return changed


async def _password(pool: AsyncConnectionPool, *, merchant_id: UUID) -> _Password:
    async with pool.connection() as connection, connection.cursor(row_factory=class_row(_Password)) as cursor:
        await cursor.execute(
            "SELECT password_hash, token_version FROM merchants WHERE id = %s", (merchant_id,)
        )
        row = await cursor.fetchone()
    if row is None:
        raise MerchantNotFound(merchant_id=merchant_id)
    return row
