"""What is taken for a card number, and what is not."""

import pytest
from uuid_utils.compat import uuid7

from payloops.http.cards import holds_card_number

CARDS = [
    "4242424242424242",
    "4222222222222",
    "378282246310005",
    "30569309025904",
    "5555555555554444",
    "2223003122003222",
    "6011111111111117",
    "3566002020360505",
    "6205500000000000004",
]


@pytest.mark.parametrize("card", CARDS)
@pytest.mark.parametrize(
    "text", ["{}", "card {} please", "tok_{}", "x{}y", "({})", "{} 12/27 123", "{} 123", "12 {}"]
)
def test_a_card_number_is_found_wherever_it_stands(card: str, text: str) -> None:
    assert holds_card_number(text.format(card))


@pytest.mark.parametrize(
    "text",
    [
        "4242 4242 4242 4242",
        "4242-4242-4242-4242",
        "4242.4242.4242.4242",
        "4 2 4 2 4 2 4 2 4 2 4 2 4 2 4 2",
        "\uff14\uff12\uff14\uff12 4242 4242 4242",
        "4242\u00a04242\u00a04242\u00a04242",
    ],
)
def test_a_card_number_is_found_however_it_is_written(text: str) -> None:
    assert holds_card_number(text)


@pytest.mark.parametrize(
    "text",
    [
        "4242424242424243",  # fails the check digit
        "424242424242",
        "42424242424242424242",
        "1795450392000",  # milliseconds
        "20261123154500",
        "order 12345",
        "0000000000000000",
        "tok_visa",
        "+49 30 1234567890",
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    ],
)
def test_other_digits_are_left_alone(text: str) -> None:
    assert not holds_card_number(text)


def test_ids_are_never_taken_for_cards() -> None:
    assert not any(holds_card_number(str(uuid7())) for _ in range(100_000))


def test_times_in_milliseconds_are_never_taken_for_cards() -> None:
    assert not any(holds_card_number(str(1_795_450_392_000 + number)) for number in range(1_000))
