"""Finding a merchant's orders: filtered, searched and counted, for the dashboard's pages."""

import re
from collections.abc import Collection
from datetime import datetime
from functools import cache
from typing import Any, LiteralString
from uuid import UUID

from psycopg import sql

from payloops.events.event_store import EventStore
from payloops.projections.order_list import MOST_LISTED, NEWEST_FIRST, PAGE, planned_once
from payloops.projections.orders import CHECKPOINT, COUNTS_SINCE, ORDER_COUNTS, OrderRow
from payloops.projections.own_writes import WRITTEN_AND_REACHED, read_own_writes
from payloops.projections.patches import columns_of
from payloops.projections.rare_parts import common_trigrams, rare_parts

ID_DIGITS = 32
HEXADECIMAL = re.compile("[0-9a-fA-F]{1,32}")
ONE_BY_ONE: LiteralString = "SELECT count(*) FROM orders WHERE {conditions}"
# NULL while the tables are kept up by a projector of a version without sums.
SUMMED: LiteralString = """
    SELECT CASE
        WHEN (SELECT version FROM checkpoints WHERE name = %(projection)s) >= %(counts_since)s
        THEN (SELECT coalesce(sum(orders), 0)::bigint FROM order_counts WHERE {conditions})
    END
"""
# One statement, so that page and total are consistent.
SEARCH: LiteralString = """
    SELECT {written_and_reached}, matching.total, {columns}
    FROM ({total}) AS matching (total)
    LEFT JOIN {page} ON true
    ORDER BY o.created_at DESC, o.id DESC
"""
# The ids of a page are found in indexes alone, so a deep page reads no more rows than the first.
DEEP_PAGE: LiteralString = """(
        (SELECT id FROM {found} ORDER BY {direction} LIMIT %(limit)s OFFSET %(skip)s) page
        JOIN orders o ON o.id = page.id
    )"""
# Matches of a text are found once, for both the count and the page, since finding them is what takes long.
FOUND: LiteralString = "WITH found AS MATERIALIZED (SELECT id, created_at FROM orders WHERE {conditions})"
# The expressions are those of the indexes orders_by_text (trigrams, which find any part) and orders_by_end_of_id.
WRITTEN: LiteralString = "lower(external_id || chr(10) || coalesce(customer_email, ''))"
HAS_TEXT: LiteralString = f"{WRITTEN} LIKE '%%' || lower(%(literally)s) || '%%'"
# The index is searched for the rare parts only; strpos, which it does not support, checks for the whole text.
HAS_PARTS: LiteralString = f"{WRITTEN} LIKE lower(%(parts)s) AND strpos({WRITTEN}, lower(%(text)s)) > 0"
IS_ID: LiteralString = (
    "id BETWEEN %(first_id)s AND %(last_id)s OR reverse(id::text) LIKE reverse(lower(%(literally)s)) || '%%'"
)
# Combined from fixed pieces, so that PostgreSQL plans each combination for the index that suits it.
CONDITIONS = {
    "merchant_id": sql.SQL("merchant_id = %(merchant_id)s"),
    "status": sql.SQL("status = %(status)s"),
    "processor": sql.SQL("processor = %(processor)s"),
    "currency": sql.SQL("currency = %(currency)s"),
    "text": sql.SQL(HAS_TEXT),
    "text_or_id": sql.SQL(f"({HAS_TEXT} OR {IS_ID})"),
    "parts": sql.SQL(HAS_PARTS),
    "parts_or_id": sql.SQL(f"({HAS_PARTS} OR {IS_ID})"),
    "created_from": sql.SQL("created_at >= %(created_from)s"),
    "created_to": sql.SQL("created_at < %(created_to)s"),
}


TEXTS = frozenset({"text", "text_or_id", "parts", "parts_or_id"})
"""The conditions that search for a text."""


async def search_orders(
    store: EventStore,
    *,
    merchant_id: UUID,
    page: int,
    limit: int,
    status: str | None = None,
    processor: str | None = None,
    currency: str | None = None,
    text: str | None = None,
    created_from: datetime | None = None,
    created_to: datetime | None = None,
) -> tuple[list[OrderRow], int]:
    """A page of the merchant's matching orders, newest first, and the number of all matches.

    If neither time nor text is searched for, the number comes from sums, so it takes the same time however many there
    are.

    Waits up to a second for the projection to include everything the merchant wrote before, then answers what there is.

    Args:
        page: 1 is the first; pages after the last are empty.
        limit: orders on a page, at most `MOST_LISTED`.
        processor: of the latest payment, or of the one that captured.
        text: a part of the external id or the customer's email, or the beginning or end of the id; case is ignored.
        created_from: inclusive.
        created_to: exclusive.
    """
    arguments: dict[str, Any] = {
        "merchant_id": merchant_id,
        "status": status,
        "processor": processor,
        "currency": currency,
        "created_from": created_from,
        "created_to": created_to,
        "counts_since": COUNTS_SINCE,
    }
    chosen = [name for name in CONDITIONS if arguments.get(name) is not None]
    once = page == 1 and text is None and planned_once(chosen)
    if text is not None:
        name, looked_for = await _looked_for(store, text)
        arguments |= looked_for
        chosen.append(name)
    arguments |= {"limit": limit, "skip": (page - 1) * limit}
    query = _search(tuple(chosen), first_page=once)
    found = await read_own_writes(store, query, arguments, projection=CHECKPOINT, prepare=once)
    if found[0][0] is None:
        query = _search(tuple(chosen), first_page=once, summed=False)
        found = await read_own_writes(store, query, arguments, projection=CHECKPOINT, prepare=False)
    return [OrderRow(*values) for _, *values in found if values[0] is not None], found[0][0]


async def _looked_for(store: EventStore, text: str) -> tuple[str, dict[str, Any]]:
    """The name of the condition that searches for a text, and its arguments."""
    ids = _ids_that_begin(text)
    parts = rare_parts(text, common=await common_trigrams(store))
    return ("parts" if parts else "text") + ("_or_id" if ids else ""), {
        "text": text,
        "literally": _literally(text),
        "parts": f"%{'%'.join(parts)}%",
        **ids,
    }


@cache
def _search(chosen: tuple[str, ...], *, first_page: bool, summed: bool = True) -> bytes:
    """The statement with these `CONDITIONS`."""
    columns = columns_of(OrderRow, "o")
    return search_query(columns, chosen, first_page=first_page, summed=summed).as_bytes(None)


def search_query(
    columns: sql.Composable, chosen: Collection[str], *, first_page: bool, summed: bool
) -> sql.Composed:
    """The statement with these `CONDITIONS`.

    Args:
        first_page: whether it is the first page, and `planned_once` is true.
        summed: whether to count by sums if the conditions allow it; the total is then NULL if there are no sums yet.
    """
    conditions = sql.SQL(" AND ").join(CONDITIONS[name] for name in chosen)
    query, found, total = SEARCH, "orders WHERE {conditions}", ONE_BY_ONE
    if not TEXTS.isdisjoint(chosen):
        query, found, total = FOUND + SEARCH, "found", "SELECT count(*) FROM found"
    elif summed and set(chosen) <= set(ORDER_COUNTS.keys):
        total = SUMMED
    page = PAGE if first_page else DEEP_PAGE.replace("{found}", found)
    return sql.SQL(query.replace("{total}", total).replace("{page}", page)).format(
        written_and_reached=WRITTEN_AND_REACHED,
        columns=columns,
        conditions=conditions,
        direction=NEWEST_FIRST,
        most=sql.Literal(MOST_LISTED),
    )


def _ids_that_begin(text: str) -> dict[str, UUID]:
    """The first and the last id that begin with a text, ignoring hyphens; none if it cannot be part of an id."""
    digits = text.replace("-", "")
    if not HEXADECIMAL.fullmatch(digits):
        return {}
    return {"first_id": UUID(digits.ljust(ID_DIGITS, "0")), "last_id": UUID(digits.ljust(ID_DIGITS, "f"))}


def _literally(text: str) -> str:
    """The text with LIKE's wildcards escaped."""
    return text.replace("\\", r"\\").replace("%", r"\%").replace("_", r"\_")
