"""Card numbers are refused wherever they appear: this service holds tokens only (PCI DSS, requirement 3)."""

import re
import unicodedata
from functools import lru_cache
from itertools import accumulate
from urllib.parse import unquote

SHORTEST, LONGEST = 13, 19

# What is digits by chance: a UUID, a digest, a time of day, or an address of the Internet.
_IDENTIFIER = re.compile(
    r"(?<![0-9a-f])(?:[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}|(?=[0-9]*[a-f])[0-9a-f]{32,})(?![0-9a-f])"
    r"|(?<![0-9:])(?:[01]?[0-9]|2[0-3]):[0-5][0-9](?::[0-5][0-9](?:[.,][0-9]{1,9})?)?(?![0-9:])"
    r"|(?<![0-9.])(?:(?:25[0-5]|2[0-4][0-9]|1?[0-9]{1,2})\.){3}(?:25[0-5]|2[0-4][0-9]|1?[0-9]{1,2})"
    r"(?::[0-9]{1,5})?(?!\.?[0-9])",
    re.IGNORECASE,
)
_RUN = re.compile(r"(?<![0-9])[0-9](?:[\W_]{0,3}[0-9]){12,}")
# More digits than may be shown of a card number, the first six (PCI DSS, requirement 3.4.1), up to the end.
_CUT_RUN = re.compile(r"(?<!\d)\d(?:[\W_]{0,3}\d){6,}[\W_]{0,3}\Z")
# Of a group that is too long for a card number, as much as shows it.
_GROUP = re.compile(rf"([0-9]{{1,{LONGEST + 1}}})[0-9]*")
_SEPARATOR = re.compile(r"[^0-9]+")
_PLAIN_SEPARATOR = re.compile(r"[\s.\-_]")
_ESCAPED_RUN = re.compile(r"(?:%[0-9a-fA-F]{2}|[0-9\W_])+")
# How cards have their digits printed: fours with a rest, or as American Express and Diners do.
_PRINTED = {
    *((4, 4, 4, rest) for rest in (1, 2, 3, 4)),
    *((4, 4, 4, 4, rest) for rest in (1, 2, 3)),
    *((4, 6, 5), (4, 6, 4)),
}
_VALUES = bytes.maketrans(b"0123456789", bytes(range(10)))
_DOUBLED = bytes.maketrans(b"0123456789", bytes((0, 2, 4, 6, 8, 1, 3, 5, 7, 9)))
"""Each digit twice, with its own digits added."""
LONG_GROUP = 6
"""Digits; where all groups are longer, they are numbers side by side."""

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
_ANY_LENGTH = range(SHORTEST, LONGEST + 1)
_ISSUED_LENGTHS = {
    digit: [length for length, issued in _ISSUED.items() if f"|{digit}" in f"|{issued.pattern}"]
    for digit in "0123456789"
}
"""By the first digit: most places in a long row of digits are not looked at any further."""


def holds_card_number(text: str, *, any_issuer: bool = False) -> bool:
    """Whether a text holds something that is a card number to all appearances.

    That is 13 to 19 digits of any script that pass the Luhn check (ISO/IEC 7812-1) and begin as issued cards do.
    Between them may be a space, dot, dash or underscore anywhere; up to three of whatever is no letter where they
    are grouped as on a card, or where it is always the same and there are no other digits around. The same
    counts as it is written in URLs.

    Args:
        any_issuer: whatever the number begins with, where no honest value is such a number: a token.
    """
    if len(text) < SHORTEST:
        return False
    if not text.isascii():
        text = text.translate(_AS_ASCII)
    if _holds(text, any_issuer=any_issuer):
        return True
    return "%" in text and _holds(unquote(text), any_issuer=any_issuer)


def may_hold_card_number(text: str) -> bool:
    """Whether there are as many digits together as a card number has, in an ASCII text that holds no escapes."""
    return _RUN.search(text) is not None


LONGEST_LETTER = 3
"""Characters that one is taken apart into: some make eighteen, so that a text would grow by as much."""


# One by one: of a text, what it takes to put accents in order grows with the square of how many there are together.
@lru_cache(maxsize=4_096)
def _in_ascii(code: int) -> str:
    """A character with its digits as ASCII has them (NFKD), where it has any, and without what nobody sees."""
    parts = "".join(map(_part_in_ascii, unicodedata.normalize("NFKD", chr(code))))
    return parts if len(parts) <= LONGEST_LETTER or any(map(str.isdigit, parts)) else "x"


def _part_in_ascii(symbol: str) -> str:
    digit = unicodedata.digit(symbol, None)
    if digit is not None:
        return str(digit)
    match unicodedata.category(symbol):
        case "Cf" | "Mn":  # nobody sees them
            return ""
        case "Pd":
            return "-"
        case _:
            return symbol


class _AsAscii:
    """Of `str.translate`: see `_in_ascii`."""

    def __getitem__(self, code: int) -> str:
        return _in_ascii(code)


class _DigitsAsAscii:
    """Of `str.translate`: the same for what has digits, and all else as it is."""

    def __getitem__(self, code: int) -> str | int:
        text = _in_ascii(code)
        return text if any(map(str.isdigit, text)) else code


_AS_ASCII, _DIGITS_AS_ASCII = _AsAscii(), _DigitsAsAscii()


def _holds(text: str, *, any_issuer: bool) -> bool:
    if _RUN.search(text) is None:
        return False
    return any(
        _run_holds(run.group(), any_issuer=any_issuer) for run in _RUN.finditer(_IDENTIFIER.sub(" x ", text))
    )


def _run_holds(run: str, *, any_issuer: bool) -> bool:
    groups, separators = _GROUP.findall(run), _SEPARATOR.findall(run)
    lengths, digits = tuple(map(len, groups)), "".join(groups)
    edges = list(accumulate(lengths, initial=0))
    ends = dict(zip(edges, range(len(edges)), strict=True))
    breaks = {each: _PLAIN_SEPARATOR.fullmatch(each) is None for each in set(separators)}
    broken = list(accumulate(map(breaks.__getitem__, separators), initial=0))
    alone = len(breaks) == 1 and min(lengths) <= LONG_GROUP
    sums = _luhn_sums(digits)
    for first, start in enumerate(edges[:-1]):
        for length in _ANY_LENGTH if any_issuer else _ISSUED_LENGTHS[digits[start]]:
            stop = start + length
            last = ends.get(stop)
            passes = sums[stop % 2]
            if last is None or (passes[stop] - passes[start]) % 10:
                continue
            together = broken[last - 1] == broken[first]
            printed = lengths[first:last] in _PRINTED
            whole = alone and last - first == len(groups)
            if (together or printed or whole) and _is_issued(digits[start:stop], any_issuer=any_issuer):
                return True
    return False


def mask_card_numbers(text: str) -> str:
    """The text, with stars for the digits of whatever `holds_card_number` would take for a card number."""
    if not holds_card_number(text):
        return text
    if not text.isascii():
        text = text.translate(_DIGITS_AS_ASCII)
    parts = []
    end = 0
    for identifier in _IDENTIFIER.finditer(text):
        parts += [_masked_runs(text[end : identifier.start()]), identifier.group()]
        end = identifier.end()
    masked = "".join([*parts, _masked_runs(text[end:])])
    if not holds_card_number(masked):
        return masked
    # As it is written in URLs, or with much among it that nobody sees.
    masked = _masked_runs(masked, runs=_ESCAPED_RUN)
    return _stars(masked) if holds_card_number(masked) else masked


def mask_cut_digits(text: str) -> str:
    """The beginning of a text, with stars for the digits at its end, which may be those of a number that was cut."""
    return _CUT_RUN.sub(lambda run: re.sub(r"\d", "*", run.group()), text)


def _masked_runs(text: str, *, runs: re.Pattern[str] = _RUN) -> str:
    return runs.sub(lambda run: _stars(run.group()) if holds_card_number(run.group()) else run.group(), text)


def _stars(text: str) -> str:
    return re.sub("[0-9]", "*", text)


def _is_issued(digits: str, *, any_issuer: bool) -> bool:
    issued = any_issuer or _ISSUED[len(digits)].match(digits) is not None
    return issued and digits.strip("0") != ""


def _luhn_sums(digits: str) -> tuple[list[int], list[int]]:
    """Of the digits before each place, those at even places doubled, and those at odd ones (ISO/IEC 7812-1).

    What stands between two places passes the check where the difference of its sums ends in 0: of the two, those in
    which the digit before the last is doubled.
    """
    written = digits.encode()
    values, doubled = written.translate(_VALUES), written.translate(_DOUBLED)
    even, odd = bytearray(values), bytearray(values)
    even[::2], odd[1::2] = doubled[::2], doubled[1::2]
    return list(accumulate(even, initial=0)), list(accumulate(odd, initial=0))
