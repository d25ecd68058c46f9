"""The table `staff_views`: what staff viewed, recorded before it is shown, never changed afterwards."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from psycopg.rows import class_row
from psycopg.types.json import Jsonb
from psycopg_pool import AsyncConnectionPool


@dataclass(frozen=True, slots=True, kw_only=True)
class StaffView:
    """A look.

    Attributes:
        route: as declared, `GET /api/staff/orders/{id}`.
        order_id: that was asked for, whether or not it exists.
        merchant_id: whose order it is; of a search: the merchant it was limited to.
        query: of a search: what was looked for; of what is no order: its id.
    """

    id: int
    staff_id: UUID
    staff_email: str
    route: str
    order_id: UUID | None
    merchant_id: UUID | None
    query: dict[str, Any] | None
    viewed_at: datetime
    correlation_id: str


async def record_staff_view(
    pool: AsyncConnectionPool,
    *,
    staff_id: UUID,
    route: str,
    order_id: UUID | None,
    merchant_id: UUID | None,
    query: Mapping[str, Any] | None,
    at: datetime,
    correlation_id: str,
) -> None:
    """Record a view durably. Only then may the answer be sent."""
    async with pool.connection() as connection:
        await connection.execute(
            "INSERT INTO staff_views (staff_id, route, order_id, merchant_id, query, viewed_at, correlation_id)"
            " VALUES (%s, %s, %s, %s, %s, %s, %s)",
            (
                staff_id,
                route,
                order_id,
                merchant_id,
                Jsonb(dict(query)) if query is not None else None,
                at,
                correlation_id,
            ),
        )


async def list_staff_views(
    pool: AsyncConnectionPool,
    *,
    limit: int,
    email: str | None = None,
    order_id: UUID | None = None,
    merchant_id: UUID | None = None,
) -> list[StaffView]:
    """What was looked at, newest first.

    Args:
        email: of the member; also of one who was removed.
    """
    async with pool.connection() as connection, connection.cursor(row_factory=class_row(StaffView)) as cursor:
        await cursor.execute(
            "SELECT v.id, v.staff_id, s.email AS staff_email, v.route, v.order_id, v.merchant_id, v.query,"
            " v.viewed_at, v.correlation_id"
            " FROM staff_views v JOIN staff s ON s.id = v.staff_id"
            " WHERE (%(email)s::text IS NULL OR lower(s.email) = lower(%(email)s))"
            " AND (%(order_id)s::uuid IS NULL OR v.order_id = %(order_id)s)"
            " AND (%(merchant_id)s::uuid IS NULL OR v.merchant_id = %(merchant_id)s)"
            " ORDER BY v.id DESC LIMIT %(limit)s",
            {"email": email, "order_id": order_id, "merchant_id": merchant_id, "limit": limit},
        )
        return await cursor.fetchall()
