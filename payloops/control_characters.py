"""Characters that control a terminal or change the direction of text; clients may have written some."""

import re

CONTROL = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
"""All but the line break."""


def replaced(text: str) -> str:
    """The text with a replacement character for each of these."""
    return CONTROL.sub("\ufffd", text)


def escaped(text: str) -> str:
    """The text with these characters as JSON escapes them."""
    return CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
