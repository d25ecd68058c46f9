"""Card numbers are refused wherever they appear: this service holds tokens only (PCI DSS, requirement 3)."""

import re
import unicodedata

SHORTEST, LONGEST = 13, 19

# Identifiers that are digits by chance: a UUID, or a digest.
_IDENTIFIER = re.compile(
    r"(?<![0-9a-f])(?:[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}|(?=[0-9]*[a-f])[0-9a-f]{32,})(?![0-9a-f])",
    re.IGNORECASE,
)
_RUN = re.compile(r"[0-9](?:[\s.\-_]?[0-9]){12,}")
_SEPARATOR = re.compile(r"[^0-9]")

# First digits that card networks issue, by length (ISO/IEC 7812 ranges as the networks publish them). They
# keep timestamps and order numbers, a tenth of which pass the Luhn check, from being taken for cards.
_ISSUED = {
    13: re.compile("4"),
    14: re.compile("30[0-5]|3095|3[689]"),
    15: re.compile("3[47]"),
    16: re.compile("4|5|22[2-9]|2[3-6]|27[01]|2720|3[05689]|6|8[12]"),
    17: re.compile("5|6"),
    18: re.compile("5|6"),
    19: re.compile("4|5|6|8[12]"),
}


def holds_card_number(text: str, *, any_issuer: bool = False) -> bool:
    """Whether a text holds something that is a card number to all appearances.

    That is 13 to 19 digits, spaces, dots, dashes and underscores between them allowed, that pass the Luhn check
    (ISO/IEC 7812-1) and begin as issued cards do.

    Args:
        any_issuer: whatever the number begins with, where no honest value is such a number: a token.
    """
    if len(text) < SHORTEST:
        return False
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    for run in _RUN.finditer(_IDENTIFIER.sub(" x ", text)):
        groups = _SEPARATOR.split(run.group())
        for first in range(len(groups)):
            digits = ""
            for group in groups[first:]:
                digits += group
                if len(digits) > LONGEST:
                    break
                if len(digits) >= SHORTEST and _is_card(digits, any_issuer=any_issuer):
                    return True
    return False


def mask_card_numbers(text: str) -> str:
    """The text, with stars for the digits of whatever `holds_card_number` would take for a card number."""
    if not holds_card_number(text):
        return text
    parts = []
    end = 0
    for identifier in _IDENTIFIER.finditer(text):
        parts += [_masked_runs(text[end : identifier.start()]), identifier.group()]
        end = identifier.end()
    masked = "".join([*parts, _masked_runs(text[end:])])
    # What looks like one only in another writing of its digits, or over an identifier, goes as a whole.
    return masked if not holds_card_number(masked) else "*" * len(text)


def _masked_runs(text: str) -> str:
    return _RUN.sub(
        lambda run: re.sub("[0-9]", "*", run.group()) if holds_card_number(run.group()) else run.group(), text
    )


def _is_card(digits: str, *, any_issuer: bool) -> bool:
    issued = any_issuer or _ISSUED[len(digits)].match(digits) is not None
    return issued and _luhn(digits) and digits.strip("0") != ""


def _luhn(digits: str) -> bool:
    total = 0
    for place, digit in enumerate(reversed(digits)):
        value = int(digit) * (1 + place % 2)
        total += value - 9 if value > 9 else value  # noqa: PLR2004  # two digits
    return total % 10 == 0
