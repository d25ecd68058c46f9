"""A merchant changes the account's profile."""

from enum import Enum
from uuid import UUID

from psycopg import AsyncConnection
from psycopg.rows import TupleRow, class_row

from payloops.commands.merchants import MerchantNotFound, MerchantRow, change_account, find_merchant
from payloops.events.event_store import EventStore
from payloops.events.merchants import Merchant, ProfileChanged, WebhooksSwitchedOn
from payloops.events.metadata import Metadata

FORGET_FAILURES = """
    UPDATE merchants SET webhook_failing_since = NULL, webhook_off_at = NULL, webhook_off_reason = NULL
    WHERE id = %s
"""


class Unchanged(Enum):
    """Means that a value is not to be changed, where None is a value."""

    UNCHANGED = "unchanged"


UNCHANGED = Unchanged.UNCHANGED


async def change_profile(
    store: EventStore,
    *,
    merchant_id: UUID,
    name: str | Unchanged = UNCHANGED,
    webhook_url: str | Unchanged | None = UNCHANGED,
    by: Metadata,
) -> MerchantRow:
    """Change what is given, keep the rest; what is the same already is no change, and leaves no fact.

    Args:
        webhook_url: where webhooks go from now on; None: nowhere. Setting it, also to what it is, switches an
            endpoint on that was switched off. Whether what a name stands for may be called is looked at when it is
            called, as it may change.

    Raises:
        MerchantNotFound: no such account.
    """
    wanted: tuple[str, str | None] = ("", None)

    def decide(account: Merchant) -> None:
        nonlocal wanted
        wanted = (
            account.name if isinstance(name, Unchanged) else name,
            account.webhook_url if isinstance(webhook_url, Unchanged) else webhook_url,
        )
        if wanted != (account.name, account.webhook_url):
            account.record(ProfileChanged, by=by, name=wanted[0], webhook_url=wanted[1])
        if account.webhooks_off and not isinstance(webhook_url, Unchanged):
            account.record(WebhooksSwitchedOn, by=by, url=webhook_url)

    async def write(connection: AsyncConnection[TupleRow]) -> MerchantRow | None:
        async with connection.cursor(row_factory=class_row(MerchantRow)) as cursor:
            await cursor.execute(
                "UPDATE merchants SET name = %s, webhook_url = %s, updated_at = %s WHERE id = %s"
                " RETURNING id, name, email, webhook_url, token_version, created_at, updated_at",
                (*wanted, by.at, merchant_id),
            )
            merchant = await cursor.fetchone()
        if not isinstance(webhook_url, Unchanged):
            await connection.execute(FORGET_FAILURES, (merchant_id,))
        return merchant

    merchant = await change_account(store, merchant_id=merchant_id, decide=decide, write=write)
    if merchant is None:  # there was nothing to change
        merchant = await find_merchant(store.pool, merchant_id=merchant_id)
    if merchant is None:
        raise MerchantNotFound(merchant_id=merchant_id)
    return merchant
