"""The table `merchants`, and how its rows change together with the merchant's stream."""

from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from datetime import datetime
from typing import TypeVar
from uuid import UUID

from psycopg import AsyncConnection
from psycopg.rows import TupleRow, class_row
from psycopg_pool import AsyncConnectionPool

from payloops.events.conflicts import retry_on_conflict
from payloops.events.event_store import EventStore
from payloops.events.merchants import Merchant

W = TypeVar("W")


class MerchantNotFound(Exception):
    """There is no such merchant."""

    def __init__(self, *, merchant_id: UUID) -> None:
        super().__init__(f"no merchant {merchant_id}")
        self.merchant_id = merchant_id


@dataclass(frozen=True, slots=True, kw_only=True)
class MerchantRow:
    """A merchant as the dashboard sees it; `token_version` decides which tokens still count."""

    id: UUID
    name: str
    email: str
    webhook_url: str | None
    token_version: int
    created_at: datetime
    updated_at: datetime


async def find_merchant(pool: AsyncConnectionPool, *, merchant_id: UUID) -> MerchantRow | None:
    """The merchant's row; None if there is no such merchant."""
    async with (
        pool.connection() as connection,
        connection.cursor(row_factory=class_row(MerchantRow)) as cursor,
    ):
        await cursor.execute(
            "SELECT id, name, email, webhook_url, token_version, created_at, updated_at"
            " FROM merchants WHERE id = %s",
            (merchant_id,),
        )
        return await cursor.fetchone()


async def merchant_names(pool: AsyncConnectionPool, *, merchant_ids: Collection[UUID]) -> dict[UUID, str]:
    """The names of some merchants, by id."""
    async with pool.connection() as connection:
        cursor = await connection.execute(
            "SELECT id, name FROM merchants WHERE id = ANY (%s)", (list(merchant_ids),)
        )
        return dict(await cursor.fetchall())


async def change_account(
    store: EventStore,
    *,
    merchant_id: UUID,
    decide: Callable[[Merchant], None],
    write: Callable[[AsyncConnection[TupleRow]], Awaitable[W]],
) -> W | None:
    """Change a table and the merchant's stream in one transaction. Changes in one process take turns.

    Args:
        decide: records facts on the account, or raises a refusal. Runs again on fresh state when the account
            changed meanwhile.
        write: changes the table that holds what the stream does not.

    Returns:
        What was written, as `write` tells it; None where nothing was decided.

    Raises:
        MerchantNotFound: no such account.
        VersionConflict: the account kept changing meanwhile.
    """

    async def change() -> W | None:
        account = await store.load_on(Merchant, merchant_id)
        if account is None:
            raise MerchantNotFound(merchant_id=merchant_id)
        decide(account)
        events = account.collect_events()
        if not events:
            return None
        async with store.transaction() as connection:
            written = await write(connection)
            await store.append_in(connection, events)
        return written

    async with store.lock(merchant_id):
        return await retry_on_conflict(change)
