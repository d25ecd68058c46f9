"""Rows as lines of CSV, and their COPY into a table."""

import re
from functools import cache
from typing import Any

import orjson
import psycopg
from psycopg import sql
from psycopg.rows import TupleRow

from payloops.projections.patches import Table, Values, column_names, json_columns

COPY = r"COPY {} ({}) FROM STDIN (FORMAT csv, NULL 'null', ESCAPE '\')"
CONTROL_CHARACTER = re.compile(rb'\\[^"\\]')
"""As orjson writes it."""
END_OF_ROW: Values = {"": 0}
END_OF_LINE = b',{"":0}'
"""As orjson writes `END_OF_ROW`. It cannot occur in a text, whose quotes are escaped."""


@cache
def empty_row(row: type) -> Values:
    """A row with all columns, in their order, and no values."""
    return dict.fromkeys(column_names(row))


class Csv:
    """Rows as CSV. A JSON array is nearly that, so one call of orjson writes the ids, times and texts of all rows."""

    def __init__(self, table: Table) -> None:
        self._values: list[Any] = []
        columns = column_names(table.row)
        self._width = len(columns) + 1
        self._json = [columns.index(each) for each in json_columns(table.row)]

    def __bool__(self) -> bool:
        return bool(self._values)

    def add(self, row: Values) -> None:
        """Add a row with all columns, in their order."""
        self._values += row.values()
        self._values.append(END_OF_ROW)

    def text(self) -> bytes:
        """
        Raises:
            TypeError: a value cannot be written as JSON.
        """
        values = self._values
        for column in self._json:
            for place in range(column, len(values), self._width):
                values[place] = orjson.dumps(values[place]).decode()
        text = orjson.dumps(values)[1 : -len(END_OF_LINE) - 1]
        if CONTROL_CHARACTER.search(text) is None:
            return text.replace(END_OF_LINE + b",", b"\n")
        lines = text.split(END_OF_LINE + b",")
        return b"\n".join(_unescaped(line) if CONTROL_CHARACTER.search(line) else line for line in lines)


def _unescaped(line: bytes) -> bytes:
    """The line with control characters unescaped: CSV has no escapes for them."""
    values = orjson.loads(b"[%s]" % line)
    texts = (_quoted(each) if isinstance(each, str) else orjson.dumps(each) for each in values)
    return b",".join(texts)


def _quoted(text: str) -> bytes:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'.encode()


def copy_rows(connection: psycopg.Connection[TupleRow], table: Table, csv: Csv) -> None:
    """Write the rows into the table of this name that is first in the connection's search path."""
    if not csv:
        return
    with connection.cursor() as cursor, cursor.copy(_copy_statement(table)) as copy:
        copy.write(csv.text())


@cache
def _copy_statement(table: Table) -> bytes:
    columns = sql.SQL(", ").join(map(sql.Identifier, column_names(table.row)))
    return sql.SQL(COPY).format(sql.Identifier(table.name), columns).as_bytes(None)
