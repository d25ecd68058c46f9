"""Parses request bodies, forms and queries, refuses ambiguous ones, and validates them into their models.

JSON parsers differ on some input (RFC 8259): duplicate keys, NaN, long numbers, lone surrogates. If another parser
could read a body differently, the request is refused, and the field is named. Refused content is never repeated in the
response.
"""

import asyncio
import hashlib
import json
import re
from collections.abc import Callable, Iterator
from decimal import Decimal
from functools import cache
from typing import Any, TypeVar
from urllib.parse import parse_qsl

import orjson
from aiohttp import hdrs, web
from multidict import MultiDict, MultiMapping
from pydantic import BaseModel, ValidationError

from payloops.commands.cards import SHORTEST, holds_card_number, may_hold_card_number
from payloops.http.fields import NO_QUERY_TEXT, NOT_TEXT, TOO_LARGE
from payloops.http.problems import FieldError, validation_error
from payloops.http.routing import FORM, JSON

M = TypeVar("M", bound=BaseModel)
T = TypeVar("T")

LARGE_BODY = 8 * 1024
"""From this size on, a body is read in a thread: one made to take long would block all other requests."""
MAX_DEPTH = 32
MAX_ERRORS = 20
MAX_FIELDS = 100
"""In a form."""
MAX_INTEGER_DIGITS = 18
WHOLE = "body"
"""Name of the field in errors about the body as a whole."""

# A text without an end goes to the end of the body: to look for other texts in it would take the square of its length.
_SYMBOL = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*(?:"|\\?\Z)|[{}\[\]]', re.DOTALL)
_SURROGATE = re.compile("[\ud800-\udfff]")
# Maps all digits to 0, and ".", "e" and "E" to "e", so that a search for "0e" finds whether there may be a fraction.
_AS_ZERO = bytes.maketrans(b"123456789.E", b"000000000ee")
# Deleting these leaves little of most bodies, so that the searches in the rest are fast.
_UNREMARKABLE = bytes(set(range(128)) - set(b"0123456789{[\\%"))
# Finds every number with a fraction or exponent, and some texts that contain one.
_FRACTION = re.compile(rb"[:,\[\s]-?[0-9]+[.eE]")


class _Refused:
    """Takes the place of an unacceptable value in a parsed body."""

    def __init__(self, message: str) -> None:
        self.message = message


class _Parsing:
    """The hooks that create the values of one body. `refused`: whether any value is unacceptable."""

    def __init__(self) -> None:
        self.refused = False

    def refuse(self, message: str) -> _Refused:
        self.refused = True
        return _Refused(message)

    def object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        members = dict(pairs)
        if len(members) < len(pairs):
            seen: set[str] = set()
            for key, _ in pairs:
                if key in seen:
                    members[key] = self.refuse("Must be given once")
                seen.add(key)
        return members

    def integer(self, digits: str) -> Any:
        if len(digits.lstrip("-")) > MAX_INTEGER_DIGITS:
            return self.refuse(TOO_LARGE)
        return int(digits)

    def float(self, text: str) -> Any:
        number = float(text)
        if abs(number) >= 10**MAX_INTEGER_DIGITS:
            return self.refuse(TOO_LARGE)
        as_long = abs(number) >= 10 ** (SHORTEST - 1)
        # From the text, because a float has only about sixteen exact digits.
        if as_long and number.is_integer() and holds_card_number(str(int(Decimal(text)))):
            return self.refuse(CARD)
        return number

    def constant(self, _: str) -> Any:
        return self.refuse("Must be a finite number")


async def read_aside(raw: bytes, read: Callable[[], T]) -> T:
    """What a function makes of a body; called in a thread if the body is large."""
    return read() if len(raw) < LARGE_BODY else await asyncio.to_thread(read)


def parse_body(model: type[M], raw: bytes) -> M:
    """Parse a JSON body into its model.

    Raises:
        Problem: 400 validation_error, naming each field.
    """
    check_json(raw)
    try:
        valid: M = model.__pydantic_validator__.validate_json(raw, strict=True)
    except ValidationError as error:
        raise validation_error(*field_errors(error)) from None
    return valid


def check_json(raw: bytes) -> None:
    """Refuse JSON that parsers read differently or PostgreSQL cannot store, and card numbers.

    Raises:
        Problem: 400 validation_error, naming each field.
    """
    if not is_plain_object(raw):
        check_each_value(raw)


def check_each_value(raw: bytes) -> None:
    """As `check_json`, without its fast path: looks at each value."""
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        raise validation_error(FieldError(WHOLE, "Must be UTF-8")) from None
    if raw.count(b"{") + raw.count(b"[") > MAX_DEPTH:
        _check_depth(text)
    parsing = _Parsing()
    try:
        parsed = json.loads(
            text,
            object_pairs_hook=parsing.object,
            parse_int=parsing.integer,
            parse_float=parsing.float,
            parse_constant=parsing.constant,
        )
    except ValueError:
        marked = text.startswith("\ufeff")
        raise validation_error(
            FieldError(WHOLE, "Must be JSON, without a byte order mark" if marked else "Must be JSON")
        ) from None
    if not parsing.refused and _is_plain(text):
        return
    errors = [error for _, error in zip(range(MAX_ERRORS), _faults(parsed), strict=False)]
    if errors:
        raise validation_error(*errors)


def parse_query(model: type[M], query: MultiMapping[str]) -> M:
    """Parse a query's parameters into their model; one given twice is refused.

    Raises:
        Problem: 400 validation_error, naming each parameter.
    """
    values = dict(query)
    errors = [FieldError(_name((key,)), "Must be given once") for key in values if len(query.getall(key)) > 1]
    for key, value in values.items():
        if NO_QUERY_TEXT.search(value):
            errors.append(FieldError(_name((key,)), NOT_TEXT))
        elif holds_card_number(value):
            errors.append(FieldError(_name((key,)), CARD))
    if errors:
        raise validation_error(*errors[:MAX_ERRORS])
    try:
        return model.model_validate_strings(values)
    except ValidationError as error:
        raise validation_error(*field_errors(error)) from None


@cache
def empty_query(model: type[BaseModel]) -> BaseModel:
    """As `parse_query`, for a query without parameters."""
    return parse_query(model, MultiDict())


def parse_form(model: type[M], raw: bytes) -> M:
    """Parse a form's fields into their model; one given twice is refused.

    Raises:
        Problem: 400 validation_error, naming each field.
    """
    try:
        fields = parse_qsl(
            raw.decode(), keep_blank_values=True, strict_parsing=bool(raw), max_num_fields=MAX_FIELDS
        )
    except ValueError:
        raise validation_error(FieldError(WHOLE, "Must be a form")) from None
    return parse_query(model, MultiDict(fields))


def is_blank(raw: bytes) -> bool:
    """Whether a body has nothing but JSON's white space, so that it counts as none."""
    return not raw.strip(b" \t\r\n")


def fingerprint(method: str, path: str, raw: bytes) -> bytes:
    """A hash that is equal for the same request: of method, path and body, regardless of spacing and order of keys."""
    canonical = b"{}" if is_blank(raw) else orjson.dumps(orjson.loads(raw), option=orjson.OPT_SORT_KEYS)
    return hashlib.sha256(b"\n".join((method.encode(), path.encode(), canonical))).digest()


def is_json(request: web.Request) -> bool:
    """Whether the request declares its body as JSON in UTF-8."""
    # The most usual form is compared first.
    return request.headers.get(hdrs.CONTENT_TYPE) == JSON or _declares(request, JSON)


def is_form(request: web.Request) -> bool:
    """Whether the request declares its body as a form in UTF-8."""
    return _declares(request, FORM)


def _declares(request: web.Request, media: str) -> bool:
    """Whether the request declares this type in UTF-8. aiohttp may take seconds to parse the header."""
    declared, *parameters = request.headers.get(hdrs.CONTENT_TYPE, "").lower().split(";")
    pairs = (each.partition("=") for each in parameters)
    charsets = {value.strip(' \t"') for name, _, value in pairs if name.strip() == "charset"}
    return declared.strip() == media and charsets <= {"utf-8", "utf8"}


def is_plain_object(raw: bytes) -> bool:
    """Whether a body is certainly an acceptable object, found without looking at each value. Most are.

    False for all unacceptable bodies, and for some acceptable ones: `check_each_value` then looks closer.
    """
    left = raw.translate(None, _UNREMARKABLE)
    if (
        not left.isascii()
        or b"\\" in left
        or b"%" in left
        or left.count(b"{") + left.count(b"[") > MAX_DEPTH
        or (b"0e" in raw.translate(_AS_ZERO) and _FRACTION.search(raw))
        or (len(left) >= SHORTEST and may_hold_card_number(raw.decode()))
    ):
        return False
    try:
        parsed = orjson.loads(raw)
    except orjson.JSONDecodeError:
        return False
    # Without escapes, each text has two quotes. If a key was given twice, the parsed object has fewer.
    return type(parsed) is dict and orjson.dumps(parsed).count(b'"') == raw.count(b'"')


def _is_plain(text: str) -> bool:
    """Whether certainly no text or number in a body is unacceptable, found by searching the body as a whole.

    Without escapes, its texts appear in it literally, so if it contains no card number, none of them does.
    """
    return text.isascii() and "\\" not in text and "%" not in text and not may_hold_card_number(text)


def _check_depth(text: str) -> None:
    depth = 0
    field = WHOLE
    for symbol in _SYMBOL.finditer(text):
        match symbol.group():
            case "{" | "[":
                depth += 1
                if depth > MAX_DEPTH:
                    raise validation_error(FieldError(field, "Nested too deep"))
            case "}" | "]":
                depth -= 1
            case quoted if depth == 1:
                field = _name((quoted[1:-1],))


def _faults(parsed: Any) -> Iterator[FieldError]:
    """The unacceptable values of a body, whatever its model."""
    pending: list[tuple[tuple[str | int, ...], Any]] = [((), parsed)]
    while pending:
        path, value = pending.pop()
        match value:
            case _Refused():
                yield FieldError(_name(path), value.message)
            case dict():
                for key, member in value.items():
                    fault = _text_fault(key)
                    if fault:
                        yield FieldError(_name((*path, key)), f"The name of the field: {fault}")
                    pending.append(((*path, key), member))
            case list():
                pending.extend(((*path, index), member) for index, member in enumerate(value))
            case str():
                fault = _text_fault(value)
                if fault:
                    yield FieldError(_name(path), fault)
            case int() if not isinstance(value, bool) and holds_card_number(str(value)):
                yield FieldError(_name(path), CARD)


CARD = "Looks like a card number: send a token in its place"


def _text_fault(text: str) -> str | None:
    if "\0" in text:
        return "Must not hold NUL"
    if not text.isascii() and _SURROGATE.search(text):
        return "Must be valid Unicode"
    if holds_card_number(text):
        return CARD
    return None


def field_errors(error: ValidationError, *, inside: tuple[str, ...] = ()) -> list[FieldError]:
    """Convert a model's errors. `inside`: the path to the model, if it is only a part of the request."""
    return [
        FieldError(_name((*inside, *item["loc"])), _message(item["type"], item["msg"]))
        for item in error.errors(include_url=False, include_context=False, include_input=False)[:MAX_ERRORS]
    ]


def _message(kind: str, message: str) -> str:
    match kind:
        case "int_type" | "int_from_float" | "int_parsing":
            return "Must be a whole number"
        case "missing":
            return "Required"
        case "extra_forbidden":
            return "Unknown field"
        case "value_error":
            return message.removeprefix("Value error, ")
        case "json_invalid":
            return "Must be JSON"
        case "uuid_parsing":
            return "Must be a UUID"
        case "too_long":
            return message.partition(" after validation")[0]
        case _:
            return message


def _name(path: tuple[str | int, ...]) -> str:
    """A field's name: `lineItems.0.amount`. It comes from the client: it is truncated, and made printable."""
    parts = [
        str(part) if isinstance(part, int) else "(hidden)" if holds_card_number(part) else part[:64]
        for part in path
    ]
    name = ".".join(parts)[:200]
    return "".join(c if c.isprintable() else "?" for c in name) or WHOLE
