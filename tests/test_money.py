"""Amounts are written as their currency is."""

import pytest

from payloops.events.money import money_text, parse_money


@pytest.mark.parametrize(
    ("amount", "currency", "text"),
    [
        (4999, "USD", "49.99 USD"),
        (5, "USD", "0.05 USD"),
        (0, "EUR", "0.00 EUR"),
        (-1500, "INR", "-15.00 INR"),
        (99_999_999_999, "USD", "999999999.99 USD"),
        (500, "JPY", "500 JPY"),
        (1_234, "KWD", "1.234 KWD"),
        (500, "ISK", "5.00 ISK"),  # Stripe charges 5 ISK
        (500, "UGX", "5.00 UGX"),
        (500, "MGA", "500 MGA"),
        (7, "XAU", "7 XAU"),
        (4999, "ZZZ", "4999 ZZZ (minor units)"),
    ],
)
def test_money_has_the_decimals_of_its_currency(amount: int, currency: str, text: str) -> None:
    assert money_text(amount, currency) == text


@pytest.mark.parametrize(
    ("text", "money"),
    [
        ("49.99 USD", (4999, "USD")),
        ("49.9usd", (4990, "USD")),
        ("49 EUR", (4900, "EUR")),
        ("500 JPY", (500, "JPY")),
        ("1.234 KWD", (1_234, "KWD")),
        ("5 ISK", (500, "ISK")),
    ],
)
def test_money_is_read_as_it_is_written(text: str, money: tuple[int, str]) -> None:
    assert parse_money(text) == money
    assert parse_money(money_text(*money)) == money


@pytest.mark.parametrize(
    "text", ["", "49.99", "USD", "4.999 USD", "5.5 JPY", "1 ZZZ", "-1 USD", "1e3 USD", "٣ USD"]
)
def test_what_is_no_money_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"is no|decimals"):
        parse_money(text)
