"""A card number that nothing may repeat, and how to tell whether something does."""

import re

CARD = "4242424242424242"
WRITINGS = (CARD, "4242 4242 4242 4242", "4242-4242-4242-4242")

_PART = re.compile(r"4242\W{0,3}4242")


def shows_card(text: str | bytes) -> bool:
    """Whether a part of the number stands in a text.

    Eight digits of it: four alone stand by chance in every thousandth random id, and answers and logs have many.
    """
    return _PART.search(text if isinstance(text, str) else text.decode(errors="replace")) is not None
