"""A merchant requests that a webhook be sent again."""

from uuid import UUID

from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from payloops.commands.merchants import change_account
from payloops.commands.webhook_endpoints import find_webhook_endpoint
from payloops.commands.webhooks import find_webhook
from payloops.events.errors import VersionConflict
from payloops.events.event_store import EventStore
from payloops.events.merchants import Merchant, WebhookRetryRequested
from payloops.events.metadata import Metadata

BEGIN_ANEW = """
    UPDATE webhook_events SET status = 'pending', retries = %(number)s, delivered_at = NULL, error = NULL
    WHERE id = %(id)s AND retries = %(number)s - 1
"""


MAX_RETRIES = 100
"""Of one webhook: each schedule that begins anew adds attempts to what is stored and shown of it."""


class TooManyRetries(Exception):
    """The webhook's schedule began anew as often as it may."""

    def __init__(self, *, webhook_id: UUID) -> None:
        super().__init__(
            f"A webhook is sent again at most {MAX_RETRIES} times: read what it tells of with GET /v1/events"
        )
        self.webhook_id = webhook_id


class WebhooksOff(Exception):
    """The merchant has no endpoint, or it was switched off."""

    def __init__(self, *, merchant_id: UUID, reason: str | None) -> None:
        super().__init__(
            "There is no webhookUrl to send to: set one first"
            if reason is None
            else f"Webhooks are switched off ({reason}): set the webhookUrl to switch them on"
        )
        self.merchant_id = merchant_id


async def retry_webhook(store: EventStore, *, webhook_id: UUID, merchant_id: UUID, by: Metadata) -> None:
    """Restart the retry schedule, whatever the state of the webhook; a schedule under way is superseded.

    Raises:
        WebhookNotFound: unknown, or another merchant's.
        WebhooksOff: there is nowhere to send it.
        TooManyRetries: see there.
        VersionConflict: somebody else began it anew at the same time.
    """
    webhook = await find_webhook(store.pool, webhook_id=webhook_id, merchant_id=merchant_id)
    if webhook.retries >= MAX_RETRIES:
        raise TooManyRetries(webhook_id=webhook_id)
    endpoint = await find_webhook_endpoint(store.pool, merchant_id=merchant_id)
    if endpoint is None or endpoint.url_in_use is None:
        raise WebhooksOff(merchant_id=merchant_id, reason=endpoint.off_reason if endpoint else None)
    number = webhook.retries + 1

    def decide(account: Merchant) -> None:
        account.record(WebhookRetryRequested, by=by, webhook_event_id=str(webhook_id), number=number)

    async def write(connection: AsyncConnection[TupleRow]) -> None:
        changed = await connection.execute(BEGIN_ANEW, {"id": webhook_id, "number": number})
        if changed.rowcount == 0:
            raise VersionConflict(webhook_id)

    await change_account(store, merchant_id=merchant_id, decide=decide, write=write)
