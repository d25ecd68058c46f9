"""Which parts of a search text are worth looking up in a trigram index.

PostgreSQL goes through the orders that have one trigram of the text, and looks each up among those that have the
others. Trigrams that many orders share (the common beginning of external ids, a mail provider) exclude few orders and
take longest, the more so the more orders there are.
"""

import time
from collections import Counter
from collections.abc import Iterable, Iterator
from weakref import WeakKeyDictionary

from payloops.events.event_store import EventReader

LENGTH = 3
COMMON = 0.2
"""Share of all orders that have a common trigram, or more."""
REFRESH_SECONDS = 600
# What PostgreSQL keeps of what it found at its last look at the table: some hundred orders' texts, at even distances.
SAMPLE = """
    SELECT histogram_bounds::text::text[] FROM pg_stats
    WHERE schemaname = current_schema() AND tablename = 'orders_by_text'
"""

_common: WeakKeyDictionary[EventReader, tuple[float, frozenset[str]]] = WeakKeyDictionary()
"""Common trigrams, and when they were looked up."""


async def common_trigrams(store: EventReader) -> frozenset[str]:
    """Those of the texts of all orders, as of a few minutes ago; none where nothing is known yet."""
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
    """What is left of a text without its common trigrams, in its order; nothing where it has none, or no other.

    Each part has a trigram: three letters or digits. Of a text with letters beyond ASCII, whose lower case may depend
    on what is beside them, there are no parts.
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
