"""Times in UTC, and their text in events, answers and logs: ISO 8601 with `Z` and microseconds."""

from datetime import UTC, date, datetime, time


def timestamp_text(moment: datetime) -> str:
    """An aware datetime as `2026-11-23T15:40:00.123456Z`."""
    return moment.astimezone(UTC).isoformat(timespec="microseconds").removesuffix("+00:00") + "Z"


def plain_timestamp(moment: datetime) -> datetime | str:
    """A value that orjson with `OPT_UTC_Z` serializes to `timestamp_text`, usually faster.

    That is the datetime itself, unless its microseconds are zero, which orjson would leave out.

    Args:
        moment: in UTC.
    """
    return moment if moment.microsecond else timestamp_text(moment)


def parse_timestamp(text: str) -> datetime:
    """Parse a text as `timestamp_text` makes it."""
    return datetime.fromisoformat(text)


def utc_now() -> datetime:
    """The current time. Read at the edge, and passed on in `Metadata`."""
    return datetime.now(UTC)


def midnight(day: date) -> datetime:
    """The moment at which a day begins in UTC."""
    return datetime.combine(day, time(), UTC)
