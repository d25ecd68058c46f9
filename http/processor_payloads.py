"""Reads payloads of processors, in which any field may be absent, or of another type than documented."""

from typing import Any

from payloops.commands.cards import mask_card_numbers
from payloops.commands.processors import recorded_reference

MAX_TEXT = 1_000
UNREADABLE_AMOUNT = 10**15
"""More than any real amount, so that an unreadable one contradicts what is on record."""
CLIENT_SECRET = "client_secret"  # noqa: S105  # its name
"""Whoever has it can complete the payment: https://docs.stripe.com/api/payment_intents/object."""
MASK = "[redacted]"


def member(value: Any, *path: str) -> Any:
    """The value at a path of nested objects; None if there is none."""
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    return value


def text(value: Any) -> str | None:
    """A text that may be stored: without NUL and card numbers, truncated; None if it is empty, or not a text."""
    # Masked before it is truncated: a part of a card number would not be recognized.
    whole = _storable(value)
    return whole and whole[:MAX_TEXT]


def _storable(value: Any) -> str | None:
    return mask_card_numbers(value.replace("\0", "")) or None if isinstance(value, str) else None


def reference(value: Any) -> str | None:
    """An id; if the processor expanded it to the whole object, that object's id."""
    id = _storable(member(value, "id") if isinstance(value, dict) else value)
    return id and recorded_reference(id)


def amount(value: Any) -> int | None:
    """An amount in minor units; None if there is none; `UNREADABLE_AMOUNT` if it is not a plausible number."""
    if value is None:
        return None
    readable = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < UNREADABLE_AMOUNT
    return value if readable else UNREADABLE_AMOUNT


def without_client_secrets(value: Any) -> Any:
    """A payload with its client secrets masked."""
    match value:
        case dict():
            return {
                name: MASK if name == CLIENT_SECRET and each else without_client_secrets(each)
                for name, each in value.items()
            }
        case list():
            return [without_client_secrets(each) for each in value]
        case _:
            return value
