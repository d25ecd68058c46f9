"""Parameters that are columns: PostgreSQL arrays in their binary form, made at once.

psycopg finds out anew of each list what is in it, and how that is written: for the twenty columns of an append, a tenth
of a millisecond. Here the statement says what they are (`%b::uuid[]`), and so does whoever makes them.
"""

from collections.abc import Sequence
from struct import Struct
from uuid import UUID

from psycopg import adapters
from psycopg.adapt import Dumper
from psycopg.pq import Format

BYTEA, BIGINT, INT, TEXT, UUID_ = 17, 20, 23, 25, 2950
"""Types by their ids in pg_type, which are the same in every database."""

_HEAD = Struct("!iiiii")
"""Dimensions, whether any is null, the elements' type, how many there are, and the number of the first."""
_NO_DIMENSIONS = Struct("!iii")
_length = Struct("!i").pack
_NULL = _length(-1)
_INT = Struct("!ii")
_BIGINT = Struct("!iq")
_16 = _length(16)


class Column(bytes):
    """An array as PostgreSQL's `array_recv` reads it."""

    __slots__ = ()


class _ColumnDumper(Dumper):
    """Without a type of its own: the statement's cast says which array it is."""

    format = Format.BINARY

    def dump(self, obj: Column) -> bytes:
        return obj


# Once for all connections that are made from here on.
adapters.register_dumper(Column, _ColumnDumper)


def ints(values: Sequence[int]) -> Column:
    """`int[]`."""
    return _column(INT, [_INT.pack(4, each) for each in values])


def bigints(values: Sequence[int]) -> Column:
    """`bigint[]`."""
    return _column(BIGINT, [_BIGINT.pack(8, each) for each in values])


def uuids(values: Sequence[UUID]) -> Column:
    """`uuid[]`."""
    return uuids_by_number([each.int for each in values])


def uuids_by_number(values: Sequence[int]) -> Column:
    """`uuid[]`, of the numbers that they are."""
    return _column(UUID_, [_16 + each.to_bytes(16, "big") for each in values])


def texts(values: Sequence[str]) -> Column:
    """`text[]`; NUL is not refused here, but by the server."""
    encoded = [each.encode() for each in values]
    return _column(TEXT, [_length(len(each)) + each for each in encoded])


def byteas(values: Sequence[bytes | None]) -> Column:
    """`bytea[]`."""
    elements = [_NULL if each is None else _length(len(each)) + each for each in values]
    return _column(BYTEA, elements, nulls=None in values)


def _column(element: int, elements: list[bytes], *, nulls: bool = False) -> Column:
    if not elements:
        return Column(_NO_DIMENSIONS.pack(0, 0, element))
    return Column(_HEAD.pack(1, nulls, element, len(elements), 1) + b"".join(elements))
