"""Types of request fields."""

import pytest
from email_validator import EmailNotValidError, validate_email
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from payloops.http.fields import Email

email = TypeAdapter(Email)

LOCALS = (
    "ada",
    "ADA",
    "info",
    "INFO",
    "postmaster",
    "a.b",
    "a..b",
    ".a",
    "a.",
    "a" * 64,
    "a" * 65,
    "a+b",
    "a'b",
)
DOMAINS = (
    *("example.com", "Example.COM", "shop.test", "localhost", "a.invalid", "com", "a..b", "-a.com", "a-.com"),
    *("xn--bcher-kva.example", "münchen.example", "1.2.3.4", "[1.2.3.4]", "a_b.com", "a" * 63 + ".com"),
    *("a" * 64 + ".com", ".".join(["a" * 60] * 4) + ".com", "example.com.", "a.c0m"),
)
PARTS = st.text(alphabet="aA0.-_+'!\" ü\n", max_size=12)


def by_the_library(address: str) -> str | None:
    try:
        return validate_email(address, check_deliverability=False, test_environment=True).normalized
    except EmailNotValidError:
        return None


@given(
    local=st.sampled_from(LOCALS) | PARTS,
    domain=st.sampled_from(DOMAINS) | PARTS.map(lambda part: f"{part}.com"),
)
@example(local="a" * 64, domain=".".join(["a" * 60] * 4))
@example(local="ada", domain="example.com\n")
def test_an_address_is_taken_and_kept_as_the_library_has_it(local: str, domain: str) -> None:
    address = f"{local}@{domain}"
    expected = by_the_library(address) if len(address) <= 255 else None
    if expected is None:
        with pytest.raises(ValidationError):
            email.validate_python(address)
    else:
        assert email.validate_python(address) == expected
