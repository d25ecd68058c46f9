"""Orders of every merchant, as support staff find them."""

from uuid import UUID

from psycopg import sql

from payloops.events.event_store import EventReader
from payloops.projections.orders import OrderRow
from payloops.projections.patches import columns_of

OWNER = """
    SELECT merchant_id FROM stored_events
    WHERE originator_id = %s AND originator_version = 1 AND topic = 'order.created'
"""
# Ids are of version 7: their order is that of creation, and their index is the primary key.
SEARCH = sql.SQL("""
    SELECT {columns} FROM orders o WHERE {conditions}
    ORDER BY o.id DESC LIMIT %(limit)s OFFSET %(skip)s
""")
EVERYTHING = sql.SQL("true")
OF_MERCHANT = sql.SQL("o.merchant_id = %(merchant_id)s")
FOUND = sql.SQL("(o.external_id = %(text)s OR lower(o.customer_email) = lower(%(text)s))")
FOUND_BY_ID = sql.SQL(
    "(o.id = %(order_id)s OR o.external_id = %(text)s OR lower(o.customer_email) = lower(%(text)s))"
)


async def owner_of_order(store: EventReader, *, order_id: UUID) -> UUID | None:
    """The merchant whose order it is, None where there is no such order."""
    async with store.pool.connection() as connection:
        row = await (await connection.execute(OWNER, (order_id,))).fetchone()
    return row[0] if row is not None else None


async def search_orders(
    store: EventReader, *, text: str | None, merchant_id: UUID | None, page: int, limit: int
) -> tuple[list[OrderRow], bool]:
    """A page of orders, newest first, and whether there are more. How many there are is not counted.

    Args:
        text: an order's id, its external id or the customer's email (in whatever case), whole.
        merchant_id: of whom; None: of everybody.
        page: 1 is the first.
    """
    conditions = [EVERYTHING if merchant_id is None else OF_MERCHANT]
    order_id = _as_id(text)
    if text is not None:
        conditions.append(FOUND if order_id is None else FOUND_BY_ID)
    query = SEARCH.format(columns=columns_of(OrderRow, "o"), conditions=sql.SQL(" AND ").join(conditions))
    arguments = {
        "merchant_id": merchant_id,
        "text": text,
        "order_id": order_id,
        "limit": limit + 1,
        "skip": (page - 1) * limit,
    }
    async with store.pool.connection() as connection:
        found = await (await connection.execute(query, arguments)).fetchall()
    return [OrderRow(*values) for values in found[:limit]], len(found) > limit


def _as_id(text: str | None) -> UUID | None:
    try:
        return UUID(text)
    except (TypeError, ValueError):
        return None
