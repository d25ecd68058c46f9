"""Tables of sums over the rows of a projected table, kept by what a batch changes of these.

Before a batch writes its rows, what they counted is taken away; afterwards, what they count now is added. Both in
the batch's transaction, so that the sums are always those of the rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, LiteralString

import psycopg
from psycopg import sql
from psycopg.rows import TupleRow

from payloops.projections.patches import Table


@dataclass(frozen=True, kw_only=True)
class Totals:
    """A table of sums.

    Attributes:
        name: of the table; `keys` are its primary key.
        of: whose rows are counted.
        sums: columns of integers; a row in which all are 0 is removed.
        contributions: selects keys and sums, in this order, that the rows `r` of a common table expression count
            for; one row may count in several places.
    """

    name: LiteralString
    of: Table
    keys: tuple[str, ...]
    sums: tuple[str, ...]
    contributions: LiteralString


ADD = """
    WITH r AS (SELECT * FROM {source} WHERE {some})
    INSERT INTO {table} ({columns})
    SELECT {keys}, {sums} FROM ({contributions}) AS c ({columns}) GROUP BY {keys}
"""
TO_THOSE_THERE = " ORDER BY {keys} ON CONFLICT ({keys}) DO UPDATE SET {added} RETURNING {empty}"
REMOVE_EMPTY = "DELETE FROM {table} WHERE {empty}"


@cache
def statement(totals: Totals, *, sign: LiteralString, all_rows: bool) -> bytes:
    comma = sql.SQL(", ")
    table = sql.Identifier(totals.name)
    keys = comma.join(map(sql.Identifier, totals.keys))
    query = sql.SQL(ADD if all_rows else ADD + TO_THOSE_THERE).format(
        source=sql.Identifier(totals.of.name),
        some=sql.SQL("true" if all_rows else "id = ANY(%s::uuid[])"),
        table=table,
        columns=comma.join(map(sql.Identifier, totals.keys + totals.sums)),
        empty=_empty(totals),
        keys=keys,
        sums=comma.join(sql.SQL(sign + "sum({})").format(sql.Identifier("c", each)) for each in totals.sums),
        contributions=sql.SQL(totals.contributions),
        added=comma.join(
            sql.SQL("{0} = {1} + {2}").format(
                sql.Identifier(each), sql.Identifier(totals.name, each), sql.Identifier("excluded", each)
            )
            for each in totals.sums
        ),
    )
    return query.as_bytes(None)


@cache
def removal(totals: Totals) -> bytes:
    table = sql.Identifier(totals.name)
    return sql.SQL(REMOVE_EMPTY).format(table=table, empty=_empty(totals)).as_bytes(None)


def _empty(totals: Totals) -> sql.Composed:
    return sql.SQL(" AND ").join(
        sql.SQL("{} = 0").format(sql.Identifier(totals.name, each)) for each in totals.sums
    )


async def take_away(
    connection: psycopg.AsyncConnection[TupleRow], *, totals: Totals, ids: Sequence[Any]
) -> bool:
    """Take away what the rows of these ids count; call before they change. Whether a sum came to nothing by that."""
    cursor = await connection.execute(statement(totals, sign="-", all_rows=False), (ids,))
    return any(empty for (empty,) in await cursor.fetchall())


async def add(
    connection: psycopg.AsyncConnection[TupleRow], *, totals: Totals, ids: Sequence[Any], emptied: bool
) -> None:
    """Add what the rows of these ids count; call after they have changed.

    Args:
        emptied: whether there may be sums that come to nothing, as `take_away` said.
    """
    await connection.execute(statement(totals, sign="", all_rows=False), (ids,))
    if emptied:
        await remove_empty(connection, totals=totals)


async def remove_empty(connection: psycopg.AsyncConnection[TupleRow], *, totals: Totals) -> None:
    """Remove sums that came to nothing."""
    await connection.execute(removal(totals))


async def count_all(connection: psycopg.AsyncConnection[TupleRow], *, totals: Totals) -> None:
    """Fill an empty table of sums from all rows that there are."""
    await connection.execute(statement(totals, sign="", all_rows=True))
