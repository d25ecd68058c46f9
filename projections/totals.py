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
TO_THOSE_THERE = " ORDER BY {keys} ON CONFLICT ({keys}) DO UPDATE SET {added}"
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
def remove_empty(totals: Totals) -> bytes:
    empty = sql.SQL(" AND ").join(sql.SQL("{} = 0").format(sql.Identifier(each)) for each in totals.sums)
    return sql.SQL(REMOVE_EMPTY).format(table=sql.Identifier(totals.name), empty=empty).as_bytes(None)


async def take_away(
    connection: psycopg.AsyncConnection[TupleRow], *, totals: Totals, ids: Sequence[Any]
) -> None:
    """Take away what the rows of these ids count; call before they change."""
    await connection.execute(statement(totals, sign="-", all_rows=False), (ids,))


async def add(connection: psycopg.AsyncConnection[TupleRow], *, totals: Totals, ids: Sequence[Any]) -> None:
    """Add what the rows of these ids count; call after they have changed."""
    await connection.execute(statement(totals, sign="", all_rows=False), (ids,))
    await connection.execute(remove_empty(totals))


async def count_all(connection: psycopg.AsyncConnection[TupleRow], *, totals: Totals) -> None:
    """Fill an empty table of sums from all rows that there are."""
    await connection.execute(statement(totals, sign="", all_rows=True))
