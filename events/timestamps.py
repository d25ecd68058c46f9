"""Times as text: ISO 8601 in UTC with `Z`, microseconds, as events, answers and logs have them."""

from datetime import UTC, datetime


def timestamp_text(moment: datetime) -> str:
    """`2026-11-23T15:40:00.123456Z` of an aware datetime."""
    return moment.astimezone(UTC).isoformat(timespec="microseconds").removesuffix("+00:00") + "Z"


def parse_timestamp(text: str) -> datetime:
    """The aware datetime of such a text."""
    return datetime.fromisoformat(text)


def utc_now() -> datetime:
    """The clock. Read at the edge, passed on in `Metadata`."""
    return datetime.now(UTC)
