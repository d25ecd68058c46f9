"""Records that the retry schedule of a webhook ended without a successful delivery."""

from uuid import UUID

from psycopg_pool import AsyncConnectionPool

FAIL = """
    UPDATE webhook_events SET status = 'failed', error = %(error)s
    WHERE id = %(id)s AND status = 'pending' AND retries = %(retries)s
"""


async def fail_webhook(pool: AsyncConnectionPool, *, webhook_id: UUID, retries: int, error: str) -> None:
    """Record that the webhook is not sent any more, and why, unless it was delivered.

    Args:
        retries: which schedule has ended: one that the merchant had begin anew since goes on.
    """
    async with pool.connection() as connection:
        await connection.execute(FAIL, {"id": webhook_id, "retries": retries, "error": error})
