"""Which parts of a search text are worth looking up in a trigram index.

PostgreSQL goes through the list of orders with one trigram of the text, and looks each up in the lists of the others.
Trigrams that many orders have in common (the beginning of external ids, a mail provider) exclude few orders, but have
the longest lists, which grow with the number of orders.
"""

import time
from collections import Counter
from collections.abc import Iterable, Iterator
from weakref import WeakKeyDictionary

from payloops.events.event_store import EventReader

LENGTH = 3
COMMON = 0.2
"""A trigram is common if at least this share of all orders has it."""
REFRESH_SECONDS = 600
# From PostgreSQL's statistics of the table, as of its last ANALYZE: the texts of some hundred orders, evenly spread.
SAMPLE = """
    SELECT histogram_bounds::text::text[] FROM pg_stats
    WHERE schemaname = current_schema() AND tablename = 'orders_by_text'
"""

_common: WeakKeyDictionary[EventReader, tuple[float, frozenset[str]]] = WeakKeyDictionary()
"""Common trigrams, and when they were looked up."""


async def common_trigrams(store: EventReader) -> frozenset[str]:
    """The common trigrams of all orders' texts, as of a few minutes ago; none if there are no statistics yet."""
    looked_up, common = _common.get(store, (float("-inf"), frozenset()))
    if time.monotonic() - looked_up > REFRESH_SECONDS:
        async with store.pool.connection() as connection:
            row = await (await connection.execute(SAMPLE)).fetchone()
        common = _common_of(row[0] if row is not None and row[0] is not None else ())
        _common[store] = (time.monotonic(), common)
    return common


def _common_of(texts: Iterable[str]) -> frozenset[str]:
    distinct = [set(_trigrams(text.lower())) for text in texts]
    counted = Counter(trigram for each in distinct for trigram in each)
    return frozenset(trigram for trigram, count in counted.items() if count >= COMMON * len(distinct))


def rare_parts(text: str, *, common: frozenset[str]) -> list[str]:
    """The parts of a text that are left without its common trigrams, in order; none if it has no common ones, or only
    such.

    Each part has at least one trigram of three letters or digits. Texts that are not ASCII are not split, since the
    lower case of a letter may depend on its neighbours.
    """
    if not text.isascii() or common.isdisjoint(_trigrams(text.lower())):
        return []
    parts: list[str] = []
    end = 0
    for begin, trigram in enumerate(_trigrams(text)):
        if trigram.lower() in common or not trigram.isalnum():
            continue
        if begin < end:
            parts[-1] += text[end : begin + LENGTH]
        else:
            parts.append(trigram)
        end = begin + LENGTH
    return parts


def _trigrams(text: str) -> Iterator[str]:
    return (text[begin : begin + LENGTH] for begin in range(len(text) - LENGTH + 1))
