"""A merchant gets a new webhook secret; the previous one keeps signing for another day."""

from datetime import timedelta
from uuid import UUID

import structlog
from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from payloops.commands.cipher import Cipher, SealBroken
from payloops.commands.merchants import change_account
from payloops.commands.webhook_secrets import (
    WebhookSecret,
    get_webhook_secret,
    make_secret,
    open_webhook_secret,
    webhook_secret_identity,
)
from payloops.events.event_store import EventStore
from payloops.events.merchants import Merchant, WebhookSecretRotated
from payloops.events.metadata import Metadata
from payloops.events.timestamps import timestamp_text

OVERLAP = timedelta(hours=24)
"""How long the former secret signs beside the new one."""

log = structlog.get_logger()

ROTATE = """
    UPDATE webhook_secrets
    SET previous_secret = secret, previous_expires_at = %s, secret = %s, made_at = %s WHERE merchant_id = %s
    RETURNING secret, previous_secret, previous_expires_at
"""


async def rotate_webhook_secret(
    store: EventStore, *, merchant_id: UUID, cipher: Cipher, by: Metadata
) -> WebhookSecret:
    """Sign with a new secret from now on; the former one signs, too, for another 24 hours.

    A secret that was on its way out already ends at once: there are never more than two. So does the former one where
    nobody can read it any more, because a key was lost.
    """
    expires_at = by.at + OVERLAP
    try:
        await get_webhook_secret(store.pool, merchant_id=merchant_id, cipher=cipher, now=by.at)
    except SealBroken:
        log.warning("webhook_secret.former_unreadable", merchant_id=str(merchant_id))
        expires_at = by.at
    sealed = cipher.seal(make_secret().encode(), identity=webhook_secret_identity(merchant_id=merchant_id))

    def decide(account: Merchant) -> None:
        account.record(WebhookSecretRotated, by=by, previous_expires_at=timestamp_text(expires_at))

    async def write(connection: AsyncConnection[TupleRow]) -> TupleRow | None:
        return await (await connection.execute(ROTATE, (expires_at, sealed, by.at, merchant_id))).fetchone()

    rotated = await change_account(store, merchant_id=merchant_id, decide=decide, write=write)
    # Not read again: who is told that nothing was done would rotate once more, and end the former secret.
    assert rotated is not None
    return open_webhook_secret(*rotated, merchant_id=merchant_id, cipher=cipher, now=by.at)
