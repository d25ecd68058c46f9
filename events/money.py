"""Amounts as people read them."""

from decimal import Decimal

from iso4217 import Currency


def money_text(amount: int, currency: str) -> str:
    """`49.99 USD` of 4999, `500 JPY` of 500: with the decimals that ISO 4217 gives the currency.

    A code that the library's list does not have, because it was withdrawn since, has no decimals that we know:
    `4999 XYZ (minor units)`.

    Args:
        amount: in the currency's minor unit.
        currency: its ISO 4217 code.
    """
    try:
        decimals = Currency(currency).exponent or 0
    except ValueError:
        return f"{amount} {currency} (minor units)"
    return f"{Decimal(amount).scaleb(-decimals):f} {currency}"
