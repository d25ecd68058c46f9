"""Records that a webhook is about to be sent, before its first byte, so that no attempt is lost if its worker dies."""

from datetime import datetime

from psycopg_pool import AsyncConnectionPool

from payloops.commands.record_webhook_attempt import record_interrupted_attempt
from payloops.commands.webhooks import Webhook
from payloops.events.timestamps import timestamp_text

BEGIN = """
    INSERT INTO webhook_sendings (key, url, began_at) VALUES (%(key)s, %(url)s, %(at)s)
    ON CONFLICT (key) DO NOTHING
"""
UNENDED = "SELECT url, began_at FROM webhook_sendings WHERE key = %s"
BEGIN_ANEW = """
    INSERT INTO webhook_sendings (key, url, began_at) VALUES (%(key)s, %(url)s, %(at)s)
    ON CONFLICT (key) DO UPDATE SET url = excluded.url, began_at = excluded.began_at
"""


async def begin_webhook_attempt(
    pool: AsyncConnectionPool, *, webhook: Webhook, key: str, url: str, at: datetime
) -> int:
    """Record that an attempt begins, until `record_webhook_attempt` records its end under the same key.

    One that was begun under this key and never ended is kept as interrupted: it may have arrived.

    Returns:
        The attempt's number among those to deliver the webhook, from 1.
    """
    attempt = {"key": key, "url": url, "at": at}
    async with pool.connection() as connection:
        if (await connection.execute(BEGIN, attempt)).rowcount:
            return webhook.attempts + 1
        before = await (await connection.execute(UNENDED, (key,))).fetchone()
    kept = 0
    if before is not None:
        former_url, began_at = before
        kept = await record_interrupted_attempt(
            pool,
            webhook=webhook,
            key=f"{key}/{timestamp_text(began_at)}",
            url=former_url,
            began_at=began_at,
        )
    async with pool.connection() as connection:
        await connection.execute(BEGIN_ANEW, attempt)
    return webhook.attempts + kept + 1
