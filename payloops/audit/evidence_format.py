"""The form of an evidence file: what of it is hashed, and what is signed."""

from typing import Any

import orjson

FORMAT = "payloops evidence 1"


def canonical(value: Any) -> bytes:
    """The form of a value that is hashed: JSON without whitespace, members sorted by name."""
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)


def file_bytes(bundle: dict[str, Any]) -> bytes:
    """The content of an evidence file; the same bundle always has the same bytes."""
    return orjson.dumps(bundle, option=orjson.OPT_SORT_KEYS | orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


def signed_text(digest: str) -> bytes:
    """The text that is signed: it contains the statement's digest."""
    return f"{FORMAT}\nsha256: {digest}\n".encode()
