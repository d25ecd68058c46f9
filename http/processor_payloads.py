"""Reading what processors send: any field may be absent, or of another type than documented."""

from typing import Any

from payloops.commands.cards import mask_card_numbers

LONGEST_TEXT = 1_000
MOST = 10**15
"""Beyond any amount of money, in minor units."""
CLIENT_SECRET = "client_secret"  # noqa: S105  # its name
"""Lets whoever has it finish a payment: https://docs.stripe.com/api/payment_intents/object."""
MASK = "[redacted]"


def member(value: Any, *path: str) -> Any:
    """What stands at a path of nested objects, None where there is nothing."""
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    return value


def text(value: Any) -> str | None:
    """A text as it can be stored, without card numbers; None where it is none, or empty."""
    # Masked before it is cut: the digits that are left of a number are none to look for.
    return (
        mask_card_numbers(value.replace("\0", ""))[:LONGEST_TEXT] or None if isinstance(value, str) else None
    )


def reference(value: Any) -> str | None:
    """An id; where the processor expanded it to the whole object, its id."""
    return text(member(value, "id") if isinstance(value, dict) else value)


def amount(value: Any) -> int | None:
    """An amount in minor units; None where there is none, and more than any can be where it is unreadable."""
    if value is None:
        return None
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < MOST else MOST


def without_client_secrets(value: Any) -> Any:
    """A payload with a mask in place of what is secret in it."""
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
