"""Amounts are written as their currency is."""

import pytest

from payloops.events.money import money_text


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
        (7, "XAU", "7 XAU"),
        (4999, "ZZZ", "4999 ZZZ (minor units)"),
    ],
)
def test_money_has_the_decimals_of_its_currency(amount: int, currency: str, text: str) -> None:
    assert money_text(amount, currency) == text
