"""Times as text: ISO 8601 in UTC with `Z` and microseconds, as in events, answers and logs."""

from datetime import UTC, datetime


def timestamp_text(moment: datetime) -> str:
    """`2026-11-23T15:40:00.123456Z` of an aware datetime."""
    return moment.astimezone(UTC).isoformat(timespec="microseconds").removesuffix("+00:00") + "Z"


def plain_timestamp(moment: datetime) -> datetime | str:
    """What orjson, with `OPT_UTC_Z`, writes as `timestamp_text` does: sooner, but for microseconds that are zero.

    Args:
        moment: in UTC.
    """
    return moment if moment.microsecond else timestamp_text(moment)


def parse_timestamp(text: str) -> datetime:
    """The aware datetime of such a text."""
    return datetime.fromisoformat(text)


def utc_now() -> datetime:
    """The clock. Read at the edge, passed on in `Metadata`."""
    return datetime.now(UTC)
