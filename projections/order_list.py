"""Listing a merchant's orders, newest first, page by page from an order.

Lists wait, for a bounded time, until they contain the merchant's own last write.
"""

from collections.abc import Collection
from datetime import datetime
from functools import cache, partial
from typing import Any, LiteralString
from uuid import UUID

from psycopg import sql

from payloops.events.event_store import EventStore
from payloops.projections.orders import CHECKPOINT, OrderRow, get_order
from payloops.projections.own_writes import WRITTEN_AND_REACHED, read_own_writes
from payloops.projections.patches import columns_of

MOST_LISTED = 100
"""Orders on a page."""
# For a limit that is a parameter, PostgreSQL expects a tenth of all rows: it would find its generic plan too expensive
# and plan each call anew, which takes several times as long as reading the page. So the inner query has a constant
# limit.
PAGE: LiteralString = """(
        SELECT * FROM (
            SELECT * FROM orders WHERE {conditions} ORDER BY {direction} LIMIT {most}
        ) few LIMIT %(limit)s
    ) o"""
LIST: LiteralString = """
    SELECT {written_and_reached}, cursor.at, {columns}
    FROM ({cursor}) AS cursor (at)
    LEFT JOIN LATERAL {page} ON true
    ORDER BY o.created_at DESC, o.id DESC
"""
NO_CURSOR = sql.SQL("VALUES (NULL::timestamptz)")
# `cursor_time` is given if the order is not in the table yet.
CURSOR = sql.SQL("""
    SELECT coalesce(
        (SELECT created_at FROM orders WHERE id = %(cursor)s AND merchant_id = %(merchant_id)s), %(cursor_time)s
    )
""")
# Joined from fixed pieces, and not "(%(status)s IS NULL OR …)", so that PostgreSQL plans each combination for
# the index it has.
CONDITIONS = {
    "merchant_id": sql.SQL("merchant_id = %(merchant_id)s"),
    "status": sql.SQL("status = %(status)s"),
    "currency": sql.SQL("currency = %(currency)s"),
    "external_id": sql.SQL("external_id = %(external_id)s"),
    "created_from": sql.SQL("created_at >= %(created_from)s"),
    "created_to": sql.SQL("created_at < %(created_to)s"),
    "starting_after": sql.SQL("(created_at, id) < (cursor.at, %(cursor)s)"),
    "ending_before": sql.SQL("(created_at, id) > (cursor.at, %(cursor)s)"),
}
NEWEST_FIRST = sql.SQL("created_at DESC, id DESC")
OLDEST_FIRST = sql.SQL("created_at, id")
INDEXED_TOGETHER = frozenset({"merchant_id", "created_from", "created_to", "starting_after", "ending_before"})
"""Conditions that every index of the table covers, beside one of the others."""


class UnknownCursor(Exception):
    """The order to page from does not exist, or is another merchant's."""

    def __init__(self, cursor: UUID) -> None:
        super().__init__(f"no order {cursor} to page from")
        self.cursor = cursor


def planned_once(chosen: Collection[str]) -> bool:
    """Whether one index covers all of these conditions, so that one plan is best for all values.

    Otherwise it depends on the values which index is best.
    """
    return len(set(chosen) - INDEXED_TOGETHER) <= 1


@cache
def _list(chosen: tuple[str, ...]) -> bytes:
    """The statement with these `CONDITIONS`."""
    query = sql.SQL(LIST.replace("{page}", PAGE)).format(
        written_and_reached=WRITTEN_AND_REACHED,
        cursor=NO_CURSOR if {"starting_after", "ending_before"}.isdisjoint(chosen) else CURSOR,
        columns=columns_of(OrderRow, "o"),
        conditions=sql.SQL(" AND ").join(CONDITIONS[name] for name in chosen),
        direction=OLDEST_FIRST if "ending_before" in chosen else NEWEST_FIRST,
        most=sql.Literal(MOST_LISTED + 1),
    )
    return query.as_bytes(None)


async def list_orders(
    store: EventStore,
    *,
    merchant_id: UUID,
    limit: int,
    starting_after: UUID | None = None,
    ending_before: UUID | None = None,
    status: str | None = None,
    currency: str | None = None,
    external_id: str | None = None,
    created_from: datetime | None = None,
    created_to: datetime | None = None,
) -> tuple[list[OrderRow], bool]:
    """A page of a merchant's orders, newest first, and whether there are more in the direction of paging.

    Waits up to a second for the projection to include everything the merchant wrote before, then answers what there is.

    Args:
        limit: at most `MOST_LISTED`.
        starting_after: the page begins with the next older order.
        ending_before: the page ends with the next newer order. Not together with `starting_after`.
        created_from: inclusive.
        created_to: exclusive.

    Raises:
        UnknownCursor: the merchant has no order with the id to page from.
    """
    cursor = starting_after or ending_before
    arguments: dict[str, Any] = {
        "merchant_id": merchant_id,
        "status": status,
        "currency": currency,
        "external_id": external_id,
        "created_from": created_from,
        "created_to": created_to,
        "starting_after": starting_after,
        "ending_before": ending_before,
    }
    chosen = tuple(name for name in CONDITIONS if arguments[name] is not None)
    arguments |= {"cursor": cursor, "cursor_time": None, "limit": limit + 1}
    read = partial(read_own_writes, store, _list(chosen), projection=CHECKPOINT, prepare=planned_once(chosen))
    found = await read(arguments)
    if cursor is not None and found[0][0] is None:
        order = await get_order(store, order_id=cursor, merchant_id=merchant_id)
        if order is None:
            raise UnknownCursor(cursor)
        found = await read({**arguments, "cursor_time": order.created_at})
    rows = [OrderRow(*values) for _, *values in found if values[0] is not None]
    has_more = len(rows) > limit
    if has_more:
        rows = rows[1:] if ending_before is not None else rows[:limit]
    return rows, has_more
