"""Amounts as people read and write them."""

import re
from decimal import Decimal

from iso4217 import Currency

AT_PROCESSORS = {"ISK": 2, "UGX": 2, "MGA": 0}
"""Decimals of currencies that Stripe counts in another unit than ISO 4217: https://docs.stripe.com/currencies. Amounts
go to processors and come from them as they are, so these are the decimals of what is charged."""

MONEY = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,4})?) ?([A-Za-z]{3})")
"""An amount with its currency, as people write it."""


def decimals_of(currency: str) -> int:
    """How many decimals the minor unit is of the currency: by ISO 4217, but for those in `AT_PROCESSORS`.

    Raises:
        ValueError: it is not in the library's list.
    """
    return AT_PROCESSORS.get(currency, Currency(currency).exponent or 0)


def money_text(amount: int, currency: str) -> str:
    """4999 as `49.99 USD`, 500 as `500 JPY`: with the decimals that the currency is charged in.

    For a code that is not in the library's list, because it was withdrawn, the number of decimals is not known:
    `4999 XYZ (minor units)`.

    Args:
        amount: in the currency's minor unit.
        currency: its ISO 4217 code.
    """
    try:
        decimals = decimals_of(currency)
    except ValueError:
        return f"{amount} {currency} (minor units)"
    return f"{Decimal(amount).scaleb(-decimals):f} {currency}"


def parse_money(text: str) -> tuple[int, str]:
    """The amount, in minor units, and the currency of `49.99 USD`.

    Raises:
        ValueError: it is not written so, or has more decimals than the currency.
    """
    form = MONEY.fullmatch(text.strip())
    if form is None:
        raise ValueError(f"{text!r} is no amount: write 49.99 USD")
    code = form[2].upper()
    try:
        decimals = decimals_of(code)
    except ValueError:
        raise ValueError(f"{code} is no currency of ISO 4217") from None
    minor = Decimal(form[1]).scaleb(decimals)
    if minor != int(minor):
        raise ValueError(f"{code} has {decimals} decimals, not more: {text!r}")
    return int(minor), code
