"""What is taken for a card number, and what is not."""

import time
import timeit
from datetime import UTC, datetime, timedelta

import pytest
from uuid_utils.compat import uuid7

from payloops.commands.cards import holds_card_number, mask_card_numbers

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

ISSUED = {
    "4": (13, 16, 19),
    "300": (14,),
    "3095": (14,),
    "36": (14, 16),
    "34": (15,),
    "37": (15,),
    "5": (16, 17, 18, 19),
    "2221": (16,),
    "2720": (16,),
    "35": (16,),
    "6": (16, 17, 18, 19),
    "81": (16, 19),
}
"""Beginnings of numbers, and how long those are."""


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
        *(
            separator.join(["4242"] * 4)
            for separator in (
                "\u2013",
                "\u2014",
                "/",
                ",",
                ", ",
                "  ",
                " - ",
                "\u200b",
                ")(",
                " | ",
                "+",
                "\u2009",
            )
        ),
        "3782/822463/10005",
        "3056,930902,5904",
        "4222/2222/2222/2",
        "6205,5000,0000,0000,004",
        "(4242) (4242) (4242) (4242) 12/27",
        "424242/4242424242",
        "4242 / 4242-4242 (4242)",
        "4/2/4/2/4/2/4/2/4/2/4/2/4/2/4/2",
        "\u200b".join("4242424242424242"),
        "\u0664\u0662" * 8,
        "\u096a\u0968" * 8,
        "\u24f8\u24f6" * 8,
        "https://shop.example/back?n=4242%204242%204242%204242&m=1",
        "https://shop.example/%34242424242424242",
        "%4242424242424242",
    ],
)
def test_a_card_number_is_found_and_masked_however_it_is_written(text: str) -> None:
    assert holds_card_number(text)
    for around in ("{}", "\u0661 caf\u00e9 {} 12:30", '{{"id": 17, "text": "{}"}}'):
        masked = mask_card_numbers(around.format(text))
        assert not holds_card_number(masked)
        assert "*" in masked


@pytest.mark.parametrize("beginning", ISSUED)
def test_a_card_number_of_any_issuer_and_length_is_found_in_a_long_row_of_digits(beginning: str) -> None:
    for length in ISSUED[beginning]:
        card = next(
            number
            for number in (f"{beginning:0<{length - 2}}{end:02}" for end in range(100))
            if holds_card_number(number)
        )
        assert holds_card_number(" ".join("7" * 500 + card + "7" * 500))
        assert holds_card_number(f"{'7' * 500} {card[:4]}-{card[4:]} {'7' * 500}")


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
        "30.11.2026 16:44:08",
        "30/11/2026, 16:44:08",
        "2026-11-30 16:44:05.123459",
        "51234567, 51234563",
        "+49 30 1234567890, +49 30 1234567895",
        "52.100.200.100:54327",
        "[12, 15, 30, 11, 22, 33, 44, 5, 6, 47, 8, 9, 55, 61, 72, 34, 81, 90, 13, 62, 4, 42, 52, 63, 45, 40]",
        "https://shop.example/a%2Fb?at=2026-11-23T16%3A44%3A05.123456Z",
        "52.52000659999999, 13.404953999999975",
        "48.787859,7.087734",
        "+49 (0)30 / 93512638",
    ],
)
def test_other_digits_are_left_alone(text: str) -> None:
    assert not holds_card_number(text)


def test_ids_are_never_taken_for_cards() -> None:
    assert not any(holds_card_number(str(uuid7())) for _ in range(100_000))


def test_times_in_milliseconds_are_never_taken_for_cards() -> None:
    assert not any(holds_card_number(str(1_795_450_392_000 + number)) for number in range(1_000))


def test_dates_and_times_are_never_taken_for_cards() -> None:
    start = datetime(2026, 11, 1, tzinfo=UTC)
    for step in range(20_000):
        moment = start + timedelta(seconds=step * 3_701, microseconds=step * 7_919)
        for text in (moment.isoformat(), f"{moment:%Y-%m-%d %H:%M:%S.%f}", f"{moment:%d/%m/%Y %H:%M:%S}"):
            assert not holds_card_number(text), text


def test_addresses_of_the_internet_are_never_taken_for_cards() -> None:
    for number in range(20_000):
        octets = (40 + number % 30, number % 251, number % 241, 100 + number % 156)
        text = f"connect to {'.'.join(map(str, octets))}:{20_000 + number % 40_000} failed"
        assert not holds_card_number(text), text


def test_places_and_telephone_numbers_are_never_taken_for_cards() -> None:
    for number in range(20_000):
        for text in (
            f"{40 + number / 997:.6f},{5 + number / 991:.6f}",
            f"+49 (0)30 / {1_000_000 + number * 4_001}",
        ):
            assert not holds_card_number(text), text


@pytest.mark.parametrize(
    "piece",
    [
        "1",
        "1 ",
        "4 ",
        "123456789012   ",
        "4242 - ",
        "1:",
        "\u0664",
        "%34",
        "1.",
        "f1",
        "\u0327\u0301",
        "\ufdfa",
    ],
)
def test_looking_takes_time_by_the_length_of_the_text_alone(piece: str) -> None:
    def seconds(length: int) -> float:
        text = (piece * length)[:length] + "x"
        # Of this thread alone: on a busy machine a long look is interrupted more often than a short one.
        looks = timeit.repeat(lambda: holds_card_number(text), timer=time.thread_time, number=1, repeat=5)
        return min(looks)

    assert seconds(200_000) < 40 * max(seconds(20_000), 0.002)  # 100 times, were it by the square
