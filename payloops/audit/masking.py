"""Masks secrets and personal data in events received from processors, for evidence files."""

import re
from typing import Any

import orjson

from payloops.commands.cards import mask_card_numbers

MASKED = "[masked]"
SECRET = re.compile(r"secret|token|password|signature|authorization|credential|api[_-]?key", re.IGNORECASE)
PERSONAL = re.compile(
    r"^(?:.*_)?(?:email|phone|contact|name|address|line[12]|postal_code|city|ip|vpa|dob|tax_ids?|fingerprint)$",
    re.IGNORECASE,
)


MOST_NESTED = 64
"""Levels of a body that are shown: no processor sends half as many, and JSON is written up to 254 only."""


def masked_body(body: str) -> Any:
    """A body with secrets, personal data, card numbers and what is nested too deep masked: as JSON if it is JSON,
    otherwise as text.
    """
    try:
        return _masked(orjson.loads(body), MOST_NESTED)
    except orjson.JSONDecodeError:
        return mask_card_numbers(body)


def _masked(value: Any, levels: int) -> Any:
    match value:
        case dict() | list() if not levels:
            return MASKED
        case dict():
            return {name: _masked_member(name, each, levels - 1) for name, each in value.items()}
        case list():
            return [_masked(each, levels - 1) for each in value]
        case str():
            return mask_card_numbers(value)
        case _:
            return value


def _masked_member(name: str, value: Any, levels: int) -> Any:
    hidden = SECRET.search(name) or PERSONAL.match(name)
    return MASKED if hidden and value not in (None, "", [], {}) else _masked(value, levels)
