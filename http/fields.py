"""Types of fields in requests and responses, with the limits of the HTTP contract."""

import re
from datetime import UTC, date, datetime
from functools import lru_cache
from typing import Annotated, Any, TypeVar

import orjson
from email_validator import EmailNotValidError, validate_email
from iso4217 import Currency as Iso4217
from pydantic import (
    AfterValidator,
    AwareDatetime,
    BeforeValidator,
    Field,
    GetCoreSchemaHandler,
    HttpUrl,
    JsonValue,
    PlainSerializer,
    StringConstraints,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    WithJsonSchema,
)
from pydantic_core import core_schema
from typing_extensions import TypeAliasType

from payloops.commands.cards import holds_card_number
from payloops.commands.hashing import BCRYPT_MAX_BYTES
from payloops.events.money import MONEY, parse_money
from payloops.events.timestamps import timestamp_text

D = TypeVar("D", date, datetime)

MAX_METADATA_KEYS = 50
MAX_METADATA_BYTES = 16 * 1024
MAX_URL = 2_048
MAX_EMAIL = 254  # by RFC 5321
MIN_PASSWORD = 8
MAX_NUMBER_DIGITS = 9
MAX_AMOUNT_DIGITS = 11
TOO_LARGE = "The number is too large"
WHOLE_AMOUNT = "Must be a whole number, in the currency's minor unit: 4999 for 49.99 USD"
A_TIME = "a time as ISO 8601 has it, with a time zone: 2027-01-31T15:40:02Z"

_ISO_8601 = re.compile(
    r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}(:\d{2}(\.\d{1,9})?)?(Z|[+-]\d{2}:\d{2})", re.ASCII | re.IGNORECASE
)
# Most addresses: their local part needs no further validation or normalization (RFC 5321).
_PLAIN_ADDRESS = re.compile(
    r"(?=[^@]{1,64}@)(?!.*--)(?P<local>[a-z0-9_+-]+(?:\.[a-z0-9_+-]+)*)@(?P<domain>[A-Za-z0-9.-]+)", re.ASCII
)
_DAY = re.compile("[0-9]{4}-[0-9]{2}-[0-9]{2}")
_MONEY = re.compile(f" *{MONEY.pattern} *")
_DIGITS = re.compile("[0-9]+")
NOT_IN_QUERIES = r"\u0000-\u001f\u007f-\u009f\ufffd"
"""Character ranges: control characters, and the replacement for bytes that are not UTF-8."""
NO_QUERY_TEXT = re.compile(f"[{NOT_IN_QUERIES}\\ud800-\\udfff]")
NOT_TEXT = "Must be text in UTF-8, without control characters"
# A time in a query whose "+" was not percent-encoded, and became a space.
_PLUS_LOST = re.compile(r"[0-9-]+T[0-9:.]+ [0-9]{2}:[0-9]{2}")
_url = TypeAdapter(HttpUrl)
# Browsers take a URL with fewer slashes for a path of the page's own host; parsers disagree on backslashes.
_ONE_HOST = re.compile("https?://[^/?#]", re.IGNORECASE)
# Without precious metals, bonds and test codes, which have no minor unit: nothing can be paid in them.
CURRENCIES = frozenset(currency.value for currency in Iso4217 if currency.exponent is not None)


def _currency(code: str) -> str:
    upper = code.upper()
    if not code.isascii() or upper not in CURRENCIES:
        raise ValueError("Must be an ISO 4217 currency code")
    return upper


def _email(address: str) -> str:
    plain = _PLAIN_ADDRESS.fullmatch(address)
    try:
        if plain is None or len(address) > MAX_EMAIL:
            return _checked_address(address)
        return f"{plain['local']}@{_checked_domain(plain['domain'])}"
    except EmailNotValidError:
        raise ValueError("Must be an email address") from None


def _checked_address(address: str) -> str:
    return validate_email(address, check_deliverability=False, test_environment=True).normalized


@lru_cache(maxsize=4_096)
def _checked_domain(domain: str) -> str:
    """Validate and normalize a domain. Cached, because most addresses share theirs with others."""
    return _checked_address(f"a@{domain}").removeprefix("a@")


def _presented_email(address: str) -> str:
    try:
        return _email(address)
    except ValueError:
        return address  # no account has it


def _http_url(url: str) -> str:
    try:
        parsed = _url.validate_python(url)
    except ValidationError:
        raise ValueError("Must be an http or https URL") from None
    if parsed.username is not None or parsed.password is not None:
        raise ValueError("Must not hold a user name or password")
    if not url.isprintable() or " " in url or _ONE_HOST.match(url) is None or "\\" in url:
        raise ValueError("Must be an http or https URL")
    return url


def _identifier(text: str) -> str:
    if NO_QUERY_TEXT.search(text):
        raise ValueError(NOT_TEXT)
    return text


def _metadata(metadata: dict[str, Any]) -> dict[str, Any]:
    if len(metadata) > MAX_METADATA_KEYS:
        raise ValueError(f"Must have at most {MAX_METADATA_KEYS} keys")
    if len(orjson.dumps(metadata)) > MAX_METADATA_BYTES:
        raise ValueError(f"Must be at most {MAX_METADATA_BYTES // 1024} KiB of JSON")
    return metadata


def _password(password: str) -> str:
    if len(password) < MIN_PASSWORD:
        raise ValueError(f"Must have at least {MIN_PASSWORD} characters")
    if len(password.encode()) > BCRYPT_MAX_BYTES:
        raise ValueError(f"Must be at most {BCRYPT_MAX_BYTES} bytes")
    return password


def _token(token: str) -> str:
    if holds_card_number(token, any_issuer=True):
        raise ValueError("Looks like a card number: only tokens are accepted")
    return token


def _iso_8601(text: Any) -> Any:
    # Parsed here: pydantic would also accept a number of seconds, and in strict mode no text after a validator.
    try:
        if isinstance(text, str) and _ISO_8601.fullmatch(text):
            return datetime.fromisoformat(text.upper())
    except ValueError:
        pass
    if isinstance(text, str) and _PLUS_LOST.fullmatch(text):
        raise ValueError('Must be a time with a time zone: write its "+" as "%2B" in a query')
    raise ValueError(f"Must be {A_TIME}")


def _day(text: Any) -> Any:
    try:
        if isinstance(text, str) and _DAY.fullmatch(text):
            return date.fromisoformat(text)
    except ValueError:
        pass
    raise ValueError("Must be a day: 2027-01-31")


def _written_amount(text: str) -> str:
    try:
        if _MONEY.fullmatch(text):
            parse_money(text)
            return text
    except ValueError:
        pass
    raise ValueError("Must be an amount with its currency: 49.99 USD")


def _whole_amount(value: Any) -> Any:
    if type(value) is not int:
        raise ValueError(WHOLE_AMOUNT)
    return value


def _plain_number(text: Any) -> Any:
    return _digits(text, most=MAX_NUMBER_DIGITS, else_="Must be a whole number")


def _plain_amount(text: Any) -> Any:
    return _digits(text, most=MAX_AMOUNT_DIGITS, else_=WHOLE_AMOUNT)


def _digits(text: Any, *, most: int, else_: str) -> Any:
    # Python would also accept "1_0", "+1" and " 1 ".
    if isinstance(text, str):
        if _DIGITS.fullmatch(text) is None:
            raise ValueError(else_)
        if len(text) > most:
            raise ValueError(TOO_LARGE)
    return text


def _in_utc(moment: datetime) -> datetime:
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        raise ValueError("Must be a time between the years 1 and 9999") from None


_STARTS = {"created_from": "createdFrom", "from_": "from"}
"""Fields with the start of a period, and their names in requests."""


def _not_before(end: D, info: ValidationInfo) -> D:
    for field, name in _STARTS.items():
        start = info.data.get(field)
        if start is not None and end < start:
            raise ValueError(f"Must not be before {name}")
    return end


class AbsentOnly:
    """Makes an optional field refuse null: it may be absent, which changes nothing, but not null."""

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        nullable = handler(source)
        assert nullable["type"] == "nullable"
        inner: core_schema.CoreSchema = nullable["schema"]
        return inner


# For rules that are functions, `json_schema_extra` puts into the contract as much as JSON Schema can express.
_Minor = Annotated[
    int, Field(ge=1, le=99_999_999_999, description="In the currency's minor unit", examples=[4_999])
]
Amount = Annotated[_Minor, BeforeValidator(_whole_amount)]
QueryAmount = Annotated[_Minor, BeforeValidator(_plain_amount)]
# A type alias, so that the contract lists the codes only once.
Currency = TypeAliasType(
    "Currency",
    Annotated[
        str,
        AfterValidator(_currency),
        Field(
            description="ISO 4217; lower case is accepted, too",
            examples=["USD"],
            json_schema_extra={"enum": sorted(CURRENCIES)},
        ),
    ],
)
Email = Annotated[
    str,
    StringConstraints(max_length=255),
    AfterValidator(_email),
    Field(examples=["ada@example.com"], json_schema_extra={"format": "email", "maxLength": MAX_EMAIL}),
]
PresentedEmail = Annotated[str, StringConstraints(max_length=255), AfterValidator(_presented_email)]
"""An email address to log in with, normalized like `Email`. An invalid one is no error here: it matches no account."""
Url = Annotated[
    str,
    StringConstraints(max_length=MAX_URL),
    AfterValidator(_http_url),
    Field(
        description="http or https, without user name and password",
        examples=["https://shop.example/return"],
        json_schema_extra={"format": "uri", "pattern": "^[Hh][Tt][Tt][Pp][Ss]?://"},
    ),
]
Identifier = Annotated[
    str,
    StringConstraints(min_length=1, max_length=255),
    AfterValidator(_identifier),
    Field(json_schema_extra={"pattern": f"^[^{NOT_IN_QUERIES}]*$"}),
]
"""A text to search for: it contains nothing that a query could not contain."""
Text = Annotated[str, StringConstraints(max_length=1_000)]
Metadata = Annotated[
    dict[str, JsonValue],
    AfterValidator(_metadata),
    Field(
        description="At most 50 keys and 16 KiB",
        examples=[{"cart": "7", "gift": True}],
        json_schema_extra={"maxProperties": MAX_METADATA_KEYS},
    ),
]
Password = Annotated[
    str,
    AfterValidator(_password),
    Field(
        description=f"At most {BCRYPT_MAX_BYTES} bytes of UTF-8",
        examples=["correct horse battery"],
        json_schema_extra={"format": "password", "minLength": MIN_PASSWORD, "maxLength": BCRYPT_MAX_BYTES},
    ),
]
PaymentToken = Annotated[
    str,
    StringConstraints(min_length=1, max_length=255),
    AfterValidator(_token),
    Field(description="A processor's token; card numbers are refused", examples=["tok_visa"]),
]
Moment = Annotated[
    AwareDatetime,
    BeforeValidator(_iso_8601),
    AfterValidator(_in_utc),
    Field(description="ISO 8601 with a time zone", examples=["2027-01-31T00:00:00Z"]),
]
End = Annotated[Moment, AfterValidator(_not_before)]
"""The end of a period; declare it after the field of the start."""
Day = Annotated[date, BeforeValidator(_day), Field(description="A day in UTC", examples=["2027-01-31"])]
LastDay = Annotated[Day, AfterValidator(_not_before)]
"""The end of a period, which is part of it; declare it after the field of the start."""
WrittenAmount = Annotated[
    str,
    AfterValidator(_written_amount),
    Field(
        description="As people write it",
        examples=["49.99 USD"],
        json_schema_extra={"pattern": f"^{_MONEY.pattern}$"},
    ),
]
QueryNumber = Annotated[int, BeforeValidator(_plain_number)]
Timestamp = Annotated[
    datetime,
    PlainSerializer(timestamp_text, return_type=str),
    WithJsonSchema(
        {"type": "string", "format": "date-time", "examples": ["2026-11-23T16:44:05.123456Z"]},
        mode="serialization",
    ),
]
