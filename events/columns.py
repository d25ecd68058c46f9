"""Statement parameters that are whole columns: PostgreSQL arrays in binary format, encoded in one step.

psycopg inspects every list to find its element type and encoding, which takes 0.1 ms for the twenty columns of an
append. Here the statement declares the types (`%b::uuid[]`), and so does the code that encodes them.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from struct import Struct
from typing import Any
from uuid import UUID

from psycopg import adapters
from psycopg.adapt import Dumper
from psycopg.pq import Format

BYTEA, BIGINT, INT, TEXT, UUID_ = 17, 20, 23, 25, 2950
"""Ids of types in pg_type, the same in every database."""

_HEAD = Struct("!iiiii")
"""Number of dimensions, whether any element is null, type of the elements, number of elements, index of the first."""
_NO_DIMENSIONS = Struct("!iii")
_length = Struct("!i").pack
_NULL = _length(-1)
_16 = _length(16)


class Column(bytes):
    """An array in the form that PostgreSQL's `array_recv` reads."""

    __slots__ = ()


class _ColumnDumper(Dumper):
    """Has no `oid`: the statement's cast says which array type it is."""

    format = Format.BINARY

    def dump(self, obj: Column) -> bytes:
        return obj


# For all connections that are opened from now on.
adapters.register_dumper(Column, _ColumnDumper)


class ColumnType:
    """Encodes lists of values of one type as columns."""

    def __init__(
        self, element: int, elements: Callable[[Sequence[Any]], bytes], *, nulls: bool = False
    ) -> None:
        """
        Args:
            element: id of the type.
            elements: encodes all values, each preceded by its length.
            nulls: whether values may be None.
        """
        self._element = element
        self._elements = elements
        self._nulls = nulls

    def __call__(self, values: Sequence[Any]) -> Column:
        return Column(self.written(values))

    def written(self, values: Sequence[Any]) -> bytes:
        """As `__call__`, but plain bytes, for libpq."""
        head = _head(self._element, len(values), self._nulls and None in values)
        return head + self._elements(values)


@lru_cache(maxsize=1_024)
def _head(element: int, count: int, nulls: bool) -> bytes:
    return _HEAD.pack(1, nulls, element, count, 1) if count else _NO_DIMENSIONS.pack(0, 0, element)


def _each(write: Callable[[Any], bytes]) -> Callable[[Sequence[Any]], bytes]:
    return lambda values: b"".join(map(write, values))


def _each_cached(write: Callable[[Any], bytes]) -> Callable[[Sequence[Any]], bytes]:
    """For values that recur often."""
    return _each(lru_cache(maxsize=1_024)(write))


def _uuids(values: Sequence[UUID]) -> bytes:
    return _16.join([b"", *[each.int.to_bytes(16, "big") for each in values]])


def _uuids_by_number(values: Sequence[int]) -> bytes:
    return _16.join([b"", *[each.to_bytes(16, "big") for each in values]])


def _byteas(values: Sequence[bytes | None]) -> bytes:
    lengths = {None if each is None else len(each) for each in values}
    if len(lengths) == 1 and None not in lengths:  # all of the same length, as digests are
        return _length(*lengths).join([b"", *values])  # type: ignore[list-item]  # none of them is None
    return b"".join([_NULL if each is None else _length(len(each)) + each for each in values])


def _text(text: str) -> bytes:
    encoded = text.encode()
    return _length(len(encoded)) + encoded


ints = ColumnType(INT, _each_cached(partial(Struct("!ii").pack, 4)))
bigints = ColumnType(BIGINT, _each_cached(partial(Struct("!iq").pack, 8)))
uuids = ColumnType(UUID_, _uuids)
uuids_by_number = ColumnType(UUID_, _uuids_by_number)
texts = ColumnType(TEXT, _each(_text))
"""A text that contains NUL is refused by the server, not here."""
names = ColumnType(TEXT, _each_cached(_text))
"""Texts with few different values, such as topics."""
byteas = ColumnType(BYTEA, _byteas, nulls=True)
