"""Amounts as customers read them: `$49.99`, `¥500`, `₹1,23,456.00`."""

import copy
import re
from decimal import Decimal

from babel import Locale
from babel.numbers import NumberPattern

from payloops.events.money import decimals_of

ENGLISH = Locale("en", "US")
BY_CURRENCY = {"INR": Locale("en", "IN")}
"""Pages are in English. Rupees are written as in India, where digits are grouped differently."""

# CLDR's currencySpacing, which the library omits: a non-breaking space, as in `KWD 1.250`.
_LETTER_BEFORE_DIGIT = re.compile(r"(?<=[A-Za-z])(?=[0-9])")


def money(amount: int, currency: str) -> str:
    """An amount with its currency's symbol and the decimals that processors charge it in.

    Args:
        amount: in the currency's minor unit.
        currency: its ISO 4217 code.
    """
    decimals = decimals_of(currency)
    locale = BY_CURRENCY.get(currency, ENGLISH)
    pattern: NumberPattern = copy.copy(locale.currency_formats["standard"])
    pattern.frac_prec = (decimals, decimals)
    value = Decimal(amount).scaleb(-decimals)
    text = str(pattern.apply(value, locale, currency=currency, currency_digits=False))
    return _LETTER_BEFORE_DIGIT.sub("\u00a0", text)
