"""Amounts as customers read them: `$49.99`, `¥500`, `₹1,23,456.00`."""

import copy
import re
from decimal import Decimal

from babel import Locale
from babel.numbers import NumberPattern
from iso4217 import Currency

ENGLISH = Locale("en", "US")
OF_THE_COUNTRY = {"INR": Locale("en", "IN")}
"""Pages are in English; where that is spoken with a currency of its own way to group digits, it has that."""

# The currencySpacing of CLDR, which the library leaves out: `KWD 1.250` is not to break, and not to run together.
_LETTER_BEFORE_DIGIT = re.compile(r"(?<=[A-Za-z])(?=[0-9])")


def money(amount: int, currency: str) -> str:
    """An amount with its currency's sign, and the decimals that ISO 4217 gives it, which are those we charge in.

    Args:
        amount: in the currency's minor unit.
        currency: its ISO 4217 code.
    """
    decimals = Currency(currency).exponent or 0
    locale = OF_THE_COUNTRY.get(currency, ENGLISH)
    pattern: NumberPattern = copy.copy(locale.currency_formats["standard"])
    pattern.frac_prec = (decimals, decimals)
    value = Decimal(amount).scaleb(-decimals)
    text = str(pattern.apply(value, locale, currency=currency, currency_digits=False))
    return _LETTER_BEFORE_DIGIT.sub("\u00a0", text)
