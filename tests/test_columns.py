"""Columns of an append are what psycopg would have made of the same lists."""

from collections.abc import Callable, Sequence
from typing import Any
from uuid import UUID

import psycopg
import pytest

from payloops.events.columns import Column, bigints, byteas, ints, names, texts, uuids

ID = UUID("01900000-0000-7000-8000-000000000001")


@pytest.mark.parametrize(
    ("column", "type_", "values"),
    [
        (ints, "int[]", [0, -1, 2**31 - 1, -(2**31)]),
        (bigints, "bigint[]", [0, -1, 2**63 - 1, -(2**63)]),
        (uuids, "uuid[]", [ID, UUID(int=0), UUID(int=2**128 - 1)]),
        (texts, "text[]", ["", "NULL", '{"a,b"}', "naïve 💶", "x" * 100_000]),
        (names, "text[]", ["order.created", "", "naïve 💶", "order.created"]),
        (byteas, "bytea[]", [b"", None, b"\0\xff", b"x" * 100_000]),
        (byteas, "bytea[]", [None]),
    ],
)
def test_a_column_holds_its_values_in_their_order(
    database_url: str, column: Callable[[Sequence[Any]], Column], type_: str, values: list[Any]
) -> None:
    with psycopg.connect(database_url) as connection:
        for each in (values, []):
            row = connection.execute(
                f"SELECT %b::{type_}, %b::{type_} = %s::{type_}",
                (column(each), column(each), each),
            ).fetchone()
            assert row == (each, True)


def test_text_that_postgres_does_not_store_is_refused_by_it(database_url: str) -> None:
    with psycopg.connect(database_url) as connection, pytest.raises(psycopg.errors.DataError):
        connection.execute("SELECT %b::text[]", (texts(["a\0b"]),))
