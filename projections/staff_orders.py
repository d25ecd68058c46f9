"""Finding orders of all merchants, for support staff."""

from dataclasses import asdict, dataclass
from datetime import datetime
from functools import cache
from typing import LiteralString
from uuid import UUID

from psycopg import sql

from payloops.events.event_store import EventReader
from payloops.projections.order_list import MOST_LISTED
from payloops.projections.orders import OrderRow
from payloops.projections.patches import columns_of

OWNER = """
    SELECT merchant_id FROM stored_events
    WHERE originator_id = %s AND originator_version = 1 AND topic = 'order.created'
"""
# Ids are UUIDs of version 7, so their order is that of creation.
SEARCH: LiteralString = """
    SELECT {columns} FROM {orders} o WHERE {conditions}
    ORDER BY o.id DESC LIMIT %(limit)s OFFSET %(skip)s
"""
# With a constant inner limit for the planner, as `PAGE` in orders.py.
FIRST_PAGE: LiteralString = """
    SELECT {columns} FROM (
        SELECT * FROM {orders} o WHERE {conditions} ORDER BY o.id DESC LIMIT {most}
    ) o
    ORDER BY o.id DESC LIMIT %(limit)s
"""
EVERYTHING = sql.SQL("true")
ALL_ORDERS = sql.SQL("orders")
# OFFSET 0 keeps the planner, if it expects many orders of a customer, from scanning all orders, newest first.
OF_CUSTOMER = sql.SQL("(SELECT * FROM orders o WHERE {email} OFFSET 0)")
# Each part uses an index of its own. The ids are collected in an array, since with a join or an OR, a planner that
# expects many matches would scan all orders, newest first, until the page is full, which it never is.
AMONG = "o.id = ANY(ARRAY({ids}))"
AT_PROCESSOR = """
    SELECT order_id FROM transactions WHERE processor_transaction_id = {value}
    UNION ALL SELECT order_id FROM payments WHERE processor_order_id = {value}
    UNION ALL SELECT order_id FROM payments WHERE processor_transaction_id = {value}
    UNION ALL SELECT order_id FROM processor_events WHERE event_id = {value}
"""
BY_REQUEST = """
    SELECT id FROM orders WHERE correlation_id = {value}
    UNION ALL SELECT id FROM orders WHERE cancel_correlation_id = {value}
    UNION ALL SELECT order_id FROM transactions WHERE correlation_id = {value}
    UNION ALL SELECT order_id FROM payments WHERE correlation_id = {value}
"""
BY_EMAIL = "SELECT id FROM orders WHERE lower(customer_email) = lower({value})"
NAMED = " UNION ALL ".join(
    (
        "SELECT id FROM orders WHERE external_id = %(text)s",
        BY_EMAIL.format(value="%(text)s"),
        AT_PROCESSOR.format(value="%(text)s"),
        BY_REQUEST.format(value="%(text)s"),
    )
)
CONDITIONS = {
    "merchant_id": sql.SQL("o.merchant_id = %(merchant_id)s"),
    "external_id": sql.SQL("o.external_id = %(external_id)s"),
    # In a subquery, so that PostgreSQL's generic plan is not more expensive than one for a certain customer.
    "email": sql.SQL("lower(o.customer_email) = (SELECT lower(%(email)s))"),
    "reference": sql.SQL(AMONG.format(ids=AT_PROCESSOR.format(value="%(reference)s"))),
    "correlation_id": sql.SQL(AMONG.format(ids=BY_REQUEST.format(value="%(correlation_id)s"))),
    "amount": sql.SQL("o.amount = %(amount)s"),
    "currency": sql.SQL("o.currency = %(currency)s"),
    "created_from": sql.SQL("o.created_at >= %(created_from)s"),
    "created_to": sql.SQL("o.created_at < %(created_to)s"),
    "text": sql.SQL(AMONG.format(ids=NAMED)),
    "order_id": sql.SQL(AMONG.format(ids=f"{NAMED} UNION ALL SELECT %(order_id)s")),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class StaffSearch:
    """Search criteria: an order must match all that are given.

    Attributes:
        text: the complete id, external id, customer's email (case is ignored), reference at a processor, or correlation
            id.
        reference: of a payment, a transaction, a refund or an event at its processor.
        correlation_id: of a request that changed the order.
        amount: of the order, in minor units.
        created_from: inclusive. created_to: exclusive.
    """

    text: str | None = None
    merchant_id: UUID | None = None
    external_id: str | None = None
    email: str | None = None
    reference: str | None = None
    correlation_id: str | None = None
    amount: int | None = None
    currency: str | None = None
    created_from: datetime | None = None
    created_to: datetime | None = None


async def owner_of_order(store: EventReader, *, order_id: UUID) -> UUID | None:
    """The merchant whose order it is; None if there is no such order."""
    async with store.pool.connection() as connection:
        row = await (await connection.execute(OWNER, (order_id,))).fetchone()
    return row[0] if row is not None else None


async def search_all_orders(
    store: EventReader, search: StaffSearch, *, page: int, limit: int
) -> tuple[list[OrderRow], bool]:
    """A page of orders of every merchant, newest first, and whether there are more.

    They are read from the tables, which may be a moment behind, and not counted.

    Args:
        page: 1 is the first.
    """
    wanted = {name: value for name, value in asdict(search).items() if value is not None}
    order_id = _as_id(search.text)
    if order_id is not None:
        wanted["order_id"] = order_id
    arguments = {**wanted, "limit": limit + 1, "skip": (page - 1) * limit}
    # With other conditions, the best index depends on the values, so the statement is planned each time.
    once = wanted.keys() == {"email"} and page == 1 and limit <= MOST_LISTED
    query = _search(frozenset(wanted), first_page=once)
    async with store.pool.connection() as connection:
        cursor = await connection.execute(query, arguments, prepare=once)
        found = await cursor.fetchall()
    return [OrderRow(*values) for values in found[:limit]], len(found) > limit


@cache
def _search(wanted: frozenset[str], *, first_page: bool) -> bytes:
    """The statement with these `CONDITIONS`."""
    covered = {"email"} | ({"text"} if "order_id" in wanted else set())
    conditions = [EVERYTHING, *(CONDITIONS[name] for name in CONDITIONS if name in wanted - covered)]
    query = sql.SQL(FIRST_PAGE if first_page else SEARCH).format(
        columns=columns_of(OrderRow, "o"),
        orders=OF_CUSTOMER.format(email=CONDITIONS["email"]) if "email" in wanted else ALL_ORDERS,
        conditions=sql.SQL(" AND ").join(conditions),
        most=sql.Literal(MOST_LISTED + 1),
    )
    return query.as_bytes(None)


def _as_id(text: str | None) -> UUID | None:
    try:
        return UUID(text)
    except (TypeError, ValueError):
        return None
