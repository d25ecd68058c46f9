"""A merchant's webhook endpoint: its URL and whether it is switched off, in columns of the table `merchants`."""

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from psycopg.rows import class_row
from psycopg_pool import AsyncConnectionPool


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookEndpoint:
    """
    Attributes:
        url: None if the merchant wants no webhooks.
        failing_since: time of the first failed attempt since the last successful one.
        off_at: when it was switched off: nothing is sent until the URL is set again. off_reason: why.
    """

    url: str | None
    failing_since: datetime | None
    off_at: datetime | None
    off_reason: str | None

    @property
    def url_in_use(self) -> str | None:
        """The URL that webhooks are sent to; None if none are sent."""
        return self.url if self.off_at is None else None


FIND = """
    SELECT webhook_url AS url, webhook_failing_since AS failing_since, webhook_off_at AS off_at,
           webhook_off_reason AS off_reason
    FROM merchants WHERE id = %s
"""
COUNT_OFF = "SELECT count(*) FROM merchants WHERE webhook_off_at IS NOT NULL"


@dataclass(frozen=True, slots=True, kw_only=True)
class FailingEndpoint:
    """A merchant whose webhooks fail; see `WebhookEndpoint`."""

    merchant_id: UUID
    name: str
    url: str | None
    failing_since: datetime
    off_at: datetime | None
    off_reason: str | None


# An endpoint that is switched off has failed before, so one index finds both.
FAILING = """
    SELECT id AS merchant_id, name, webhook_url AS url, webhook_failing_since AS failing_since,
           webhook_off_at AS off_at, webhook_off_reason AS off_reason
    FROM merchants WHERE webhook_failing_since IS NOT NULL
    ORDER BY webhook_off_at IS NULL, webhook_failing_since LIMIT %s
"""


async def list_failing_endpoints(pool: AsyncConnectionPool, *, limit: int) -> list[FailingEndpoint]:
    """Failing endpoints: those that were switched off first, then by how long they have been failing."""
    async with (
        pool.connection() as connection,
        connection.cursor(row_factory=class_row(FailingEndpoint)) as cursor,
    ):
        return await (await cursor.execute(FAILING, (limit,))).fetchall()


async def find_webhook_endpoint(pool: AsyncConnectionPool, *, merchant_id: UUID) -> WebhookEndpoint | None:
    """The merchant's endpoint; None if there is no such merchant."""
    async with (
        pool.connection() as connection,
        connection.cursor(row_factory=class_row(WebhookEndpoint)) as cursor,
    ):
        return await (await cursor.execute(FIND, (merchant_id,))).fetchone()


async def count_switched_off(pool: AsyncConnectionPool) -> int:
    """How many merchants' endpoints are switched off."""
    async with pool.connection() as connection:
        row = await (await connection.execute(COUNT_OFF)).fetchone()
    assert row is not None
    return int(row[0])
