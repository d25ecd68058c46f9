"""Tables of sums over the rows of a projected table, updated by each batch.

The statement that writes rows subtracts their former contributions and adds the new ones, so the sums always match the
rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, LiteralString

import psycopg
from psycopg import sql
from psycopg.rows import TupleRow

from payloops.projections.patches import RowPatch, Table, patches_parameters, upsert_statement


@dataclass(frozen=True, kw_only=True)
class Totals:
    """A table of sums.

    Attributes:
        name: of the table; `keys` are its primary key.
        of: the table whose rows are summed up.
        sums: columns of integers; a row in which all are 0 is deleted.
        contributions: a query that selects keys and sums, in this order, for the rows `r` of a common table expression;
            one row may contribute to several sums.
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
    """The statement that adds the contributions of rows to their sums.

    Args:
        sign: `-` subtracts them instead.
        all_rows: of all rows, to an empty table of sums; otherwise of those whose ids are its parameter.
    """
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
        added=_added(totals),
    )
    return query.as_bytes(None)


def _added(totals: Totals) -> sql.Composed:
    return sql.SQL(", ").join(
        sql.SQL("{0} = {1} + {2}").format(
            sql.Identifier(each), sql.Identifier(totals.name, each), sql.Identifier("excluded", each)
        )
        for each in totals.sums
    )


# All parts of the statement see the tables as they were before it, hence `before`. LIMIT 1 makes PostgreSQL look rows
# up by their key, even if it believes that the table is small.
WRITE = """
    WITH after AS ({upsert} RETURNING *),
    before AS (
        SELECT t.* FROM after CROSS JOIN LATERAL (SELECT * FROM {table} WHERE id = after.id LIMIT 1) t
    ){counted}
    SELECT
"""
COUNT = """,
    {change} ({columns}) AS (
        SELECT {keys}, {all_sums} FROM (
            SELECT {keys}, {sums} FROM (WITH r AS (SELECT * FROM after) {contributions}) AS c ({columns})
            UNION ALL
            SELECT {keys}, {less} FROM (WITH r AS (SELECT * FROM before) {contributions}) AS c ({columns})
        ) AS c GROUP BY {keys} HAVING NOT ({nothing})
    ),
    {gone} AS (
        DELETE FROM {table} t USING (
            SELECT t.at FROM {change} c CROSS JOIN LATERAL (
                SELECT ctid AS at, * FROM {table} t WHERE ({t_keys}) = ({c_keys}) LIMIT 1
            ) t WHERE {nothing_left}
        ) AS of_nothing WHERE t.ctid = of_nothing.at RETURNING {t_keys}
    ),
    {counted} AS (
        INSERT INTO {table} ({columns}) SELECT * FROM {change} WHERE ({keys}) NOT IN (SELECT * FROM {gone})
        ORDER BY {keys} ON CONFLICT ({keys}) DO UPDATE SET {added}
    )"""


async def write(
    connection: psycopg.AsyncConnection[TupleRow],
    *,
    table: Table,
    totals: tuple[Totals, ...],
    rows: Sequence[RowPatch],
) -> None:
    """Write rows, and update the sums over them. Rows that include these versions already are left unchanged."""
    if rows:
        await connection.execute(write_statement(table, totals), patches_parameters(rows))


@cache
def write_statement(table: Table, totals: tuple[Totals, ...]) -> bytes:
    """`upsert_statement` with the sums over the rows; it takes the same parameters."""
    if not totals:
        return upsert_statement(table)
    query = sql.SQL(WRITE).format(
        upsert=_plain(upsert_statement(table)),
        table=sql.Identifier(table.name),
        counted=sql.SQL("").join(_count(each) for each in totals),
    )
    return query.as_bytes(None)


def _count(totals: Totals) -> sql.Composed:
    comma, both = sql.SQL(", "), sql.SQL(" AND ")

    def of_sums(form: LiteralString) -> list[sql.Composed]:
        return [sql.SQL(form).format(sql.Identifier(each)) for each in totals.sums]

    return sql.SQL(COUNT).format(
        change=sql.Identifier(f"change of {totals.name}"),
        gone=sql.Identifier(f"gone of {totals.name}"),
        counted=sql.Identifier(f"rest of {totals.name}"),
        table=sql.Identifier(totals.name),
        columns=comma.join(map(sql.Identifier, totals.keys + totals.sums)),
        keys=comma.join(map(sql.Identifier, totals.keys)),
        t_keys=comma.join(sql.Identifier("t", each) for each in totals.keys),
        c_keys=comma.join(sql.Identifier("c", each) for each in totals.keys),
        sums=comma.join(map(sql.Identifier, totals.sums)),
        less=comma.join(of_sums("-{}")),
        all_sums=comma.join(of_sums("sum({})")),
        nothing=both.join(of_sums("sum({}) = 0")),
        nothing_left=both.join(of_sums("t.{0} + c.{0} = 0")),
        added=_added(totals),
        contributions=sql.SQL(totals.contributions),
    )


def _plain(statement: bytes) -> sql.SQL:
    return sql.SQL(statement.decode())


async def take_away(
    connection: psycopg.AsyncConnection[TupleRow], *, totals: Totals, ids: Sequence[Any]
) -> None:
    """Subtract the contributions of these rows. Call it before they are deleted, and `remove_empty` afterwards."""
    await connection.execute(statement(totals, sign="-", all_rows=False), (ids,))


async def remove_empty(connection: psycopg.AsyncConnection[TupleRow], *, totals: Totals) -> None:
    """Delete rows in which all sums are 0."""
    table = sql.Identifier(totals.name)
    empty = sql.SQL(" AND ").join(sql.SQL("{} = 0").format(sql.Identifier(each)) for each in totals.sums)
    await connection.execute(sql.SQL(REMOVE_EMPTY).format(table=table, empty=empty))


async def count_all(connection: psycopg.AsyncConnection[TupleRow], *, totals: Totals) -> None:
    """Fill an empty table of sums from all rows."""
    await connection.execute(statement(totals, sign="", all_rows=True))
