"""Bodies and queries: what is ambiguous is refused, by the name of its field and without its value."""

import json
from typing import Any
from uuid import UUID

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from multidict import MultiDict
from pydantic import BaseModel

from payloops.http.bodies import (
    MAX_DEPTH,
    MAX_ERRORS,
    check_each_value,
    fingerprint,
    is_plain_object,
    parse_body,
    parse_form,
    parse_query,
)
from payloops.http.fields import Amount
from payloops.http.orders import NewOrder, OrderQuery
from payloops.http.payments import Payment
from payloops.http.problems import FieldError, Problem
from payloops.http.support_session import SignIn


def refused(raw: bytes, model: Any = NewOrder) -> set[str]:
    """The fields by which a body is refused."""
    with pytest.raises(Problem) as refusal:
        parse_body(model, raw)
    problem = refusal.value
    assert (problem.status, problem.code) == (400, "validation_error")
    assert problem.errors
    return {error.field for error in problem.errors}


@pytest.mark.parametrize(
    "amount",
    [
        *("true", "1.0", "1e2", '"100"', "0", "-1", "null", "100000000000", "NaN", "Infinity", "[1]"),
        "9" * 5_000,
        "9" * 30,
        "1e999",
        "-0",
    ],
)
def test_an_amount_is_a_whole_number_within_its_limits_and_nothing_like_it(amount: str) -> None:
    assert refused(b'{"amount": %s}' % amount.encode()) == {"amount"}


class Tip(BaseModel):
    tip: Amount
    people: int


@pytest.mark.parametrize("amount", ["49.99", '"4999"', "1e2", "true", "null"])
def test_an_amount_of_another_form_is_answered_with_how_to_write_it(amount: str) -> None:
    """Whatever its field is called; and that of another number only that it must be whole."""
    with pytest.raises(Problem) as refusal:
        parse_body(Tip, b'{"tip": %s, "people": "2"}' % amount.encode())
    assert refusal.value.errors == (
        FieldError("tip", "Must be a whole number, in the currency's minor unit: 4999 for 49.99 USD"),
        FieldError("people", "Must be a whole number"),
    )


@pytest.mark.parametrize("amount", [1, 99_999_999_999])
def test_an_amount_may_reach_its_limits(amount: int) -> None:
    assert parse_body(NewOrder, b'{"amount": %d}' % amount).amount == amount


CARD = "4242424242424242"
WRITTEN_CARDS = (
    CARD,
    "".join(f"%{ord(digit):x}" for digit in CARD),
    "".join(f"\\u{ord(digit):04x}" for digit in CARD),
    "".join(chr(ord(digit) + 0xFEE0) for digit in CARD),
    "4242%2D4242%2D4242%2D4242",
)
UNASKABLE = (b"\\n", b"\\u007f", b"\\u0085", b"\\ufffd", "\x9b".encode())
"""What no query can ask for."""


@pytest.mark.parametrize(
    ("raw", "field"),
    [
        (b'{"amount": 1, "amount": 2}', "amount"),
        (b'{"amount": 1, "metadata": {"a": 1, "a": 1}}', "metadata.a"),
        (b'{"amount": 1, "metadata": {"a": [0, {"b": NaN}]}}', "metadata.a.1.b"),
        (b'{"amount": 1, "metadata": {"a": 1e999}}', "metadata.a"),
        (b'{"amount": 1, "metadata": {"a": -1e18}}', "metadata.a"),
        (b'{"amount": 1, "metadata": {"a": %s}}' % (b"9" * 5_000), "metadata.a"),
        (b'{"amount": 1, "metadata": %s1%s}' % (b'{"a":' * 40, b"}" * 40), "metadata"),
        (b'{"amount": 1, "metadata": {"a": %s1%s}}' % (b"[" * 40, b"]" * 40), "metadata"),
        (b'{"amount": 1, "metadata": {"a": %s%s}}' % (b"[" * 100_000, b"]" * 100_000), "metadata"),
        (b'{"amount": 1, "description": "a\\u0000b"}', "description"),
        (b'{"amount": 1, "metadata": {"a\\u0000": 1}}', "metadata.a?"),
        (b'{"amount": 1, "description": "\\ud800"}', "description"),
        (b'{"amount": 1, "metadata": {"\\udfff": 1}}', "metadata.?"),
        (b'{"amount": 1, "ammount": 2}', "ammount"),
        (b'{"amount": 1, "externalId": ""}', "externalId"),
        (b'{"amount": 1, "external_id": "a"}', "external_id"),
        (b'{"amount": 1, "externalId": 5}', "externalId"),
        *((b'{"amount": 1, "externalId": "a%sb"}' % text, "externalId") for text in UNASKABLE),
        *((b'{"amount": 1, "customerId": "%s"}' % text, "customerId") for text in UNASKABLE),
        (b'{"amount": 1, "currency": "XXX"}', "currency"),
        (b'{"amount": 1, "currency": "dollars"}', "currency"),
        ('{"amount": 1, "currency": "u\u017fd"}'.encode(), "currency"),  # a long s, upper case S
        (b'{"amount": 1, "customerEmail": "nobody"}', "customerEmail"),
        (b'{"amount": 1, "returnUrl": "javascript:alert(1)"}', "returnUrl"),
        (b'{"amount": 1, "returnUrl": "https:/support"}', "returnUrl"),
        (b'{"amount": 1, "returnUrl": "https:support"}', "returnUrl"),
        (b'{"amount": 1, "returnUrl": "https:///support"}', "returnUrl"),
        (b'{"amount": 1, "returnUrl": "https://shop.example\\\\@evil.example/"}', "returnUrl"),
        (b'{"amount": 1, "returnUrl": "https://user:pass@example.com"}', "returnUrl"),
        (b'{"amount": 1, "returnUrl": "https://:pass@example.com"}', "returnUrl"),
        (b'{"amount": 1, "cancelUrl": "/relative"}', "cancelUrl"),
        *((b'{"amount": 1, "description": "%s"}' % card.encode(), "description") for card in WRITTEN_CARDS),
        (b'{"amount": 1, "metadata": {"pan": [%s]}}' % CARD.encode(), "metadata.pan.0"),
        (b'{"amount": 1, "metadata": []}', "metadata"),
        (b'{"currency": "USD"}', "amount"),
        (b'{"amount": 1, "description": "%s"}' % (b"x" * 1_001), "description"),
        (b'{"amount": 1, "externalId": "%s"}' % (b"x" * 256), "externalId"),
        (b'{"amount": 1, "metadata": {"a": "%s"}}' % (b"x" * 16_384), "metadata"),
        (b'{"amount": 1, "metadata": %s}' % json.dumps({str(n): n for n in range(51)}).encode(), "metadata"),
        (b"[]", "body"),
        (b"null", "body"),
        (b"", "body"),
        (b"{", "body"),
        (b'{"amount": 1} {}', "body"),
        (b'\xef\xbb\xbf{"amount": 1}', "body"),
        (b'{"amount": 1, "description": "\xff"}', "body"),
        (b"[" * 100_000, "body"),
    ],
)
def test_what_does_not_fit_is_refused_by_the_name_of_its_field(raw: bytes, field: str) -> None:
    assert refused(raw) == {field}


def test_a_byte_order_mark_is_told() -> None:
    with pytest.raises(Problem) as refusal:
        parse_body(NewOrder, b'\xef\xbb\xbf{"amount": 1}')
    assert [error.message for error in refusal.value.errors or ()] == [
        "Must be JSON, without a byte order mark"
    ]


def test_limits_may_be_reached() -> None:
    metadata = {str(number): "x" for number in range(50)}
    body = {
        "amount": 1,
        "currency": "inr",
        "externalId": "x" * 255,
        "description": "x" * 1_000,
        "metadata": metadata,
        "returnUrl": "https://shop.example/return?order=1",
        "customerEmail": None,
    }
    order = parse_body(NewOrder, json.dumps(body).encode())
    assert (order.currency, order.metadata, order.return_url) == ("INR", metadata, body["returnUrl"])


def test_nesting_may_reach_its_limit() -> None:
    levels = MAX_DEPTH - 1
    parse_body(NewOrder, b'{"amount": 1, "metadata": %s1%s}' % (b'{"a":' * levels, b"}" * levels))
    parse_body(NewOrder, b'{"amount": 1, "metadata": {"a": [%s]}}' % b",".join([b"[]"] * 100))
    levels += 1
    assert refused(b'{"amount": 1, "metadata": %s1%s}' % (b'{"a":' * levels, b"}" * levels)) == {"metadata"}


def test_brackets_inside_of_text_are_no_nesting() -> None:
    parse_body(NewOrder, json.dumps({"amount": 1, "description": '[{"\\' * 100}).encode())


def test_a_refusal_does_not_repeat_the_value() -> None:
    secret = "the-value-that-was-sent"
    body = dict.fromkeys(("amount", "currency", "customerEmail", "returnUrl", "metadata"), secret)
    with pytest.raises(Problem) as refusal:
        parse_body(NewOrder, json.dumps(body).encode())
    assert secret not in refusal.value.body(correlation_id="x").decode()


@pytest.mark.parametrize(
    "body",
    [
        {"paymentMethod": {"type": "card", "token": "4242424242424242"}},
        {"paymentMethod": {"type": "card", "token": "tok 4242-4242-4242-4242"}},
        {"paymentMethod": {"type": "card", "number": "4242 4242 4242 4242"}},
        {"paymentMethod": {"type": "card", "number": 4242424242424242}},
        {"paymentMethod": {"type": "card", "number": 4242424242424242.0}},
        {"paymentMethod": {"type": "card", "number": -4242424242424242.0}},
        {"paymentMethod": {"type": "card", "token": "1111111111111117"}},
    ],
)
def test_card_numbers_are_refused_and_not_repeated(body: dict[str, Any]) -> None:
    with pytest.raises(Problem) as refusal:
        parse_body(Payment, json.dumps(body).encode())
    answer = refusal.value.body(correlation_id="x").decode()
    assert "paymentMethod." in answer
    assert not any(digits in answer for digits in ("4242", "1111"))


def in_json(value: str) -> st.SearchStrategy[str]:
    return st.sampled_from(["", "", " ", "\n"]).map(lambda space: f"{space}{value}{space}")


written_numbers = st.one_of(
    st.integers().map(str),
    st.integers(10**12, 10**19).map(str),
    st.builds("{}.{}".format, st.integers(), st.integers(0)),
    st.builds(
        "{}{}{}".format, st.decimals(0, 99, places=1), st.sampled_from(["e", "E", "e+"]), st.integers(0, 20)
    ),
    st.sampled_from(
        [
            "4.1e15",
            "37828224631e4",
            "4242 4242 4242 4242",
            "4242424242424242",
            "01",
            "-",
            "1.",
            "NaN",
            "-0",
            "1e999",
        ]
    ),
)
written_texts = st.one_of(
    st.sampled_from(["a", "b", "c", "a:", "1e", ",1.5", "4242", "{", "[", "\\\\", '\\"', "\0", "\x7f"]),
    st.text(max_size=5),
).map('"{}"'.format)
written_json = st.recursive(
    (written_numbers | written_texts | st.sampled_from(["null", "true", "nul", ""])).flatmap(in_json),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4).map(lambda values: f"[{','.join(values)}]"),
        st.lists(st.tuples(written_texts.flatmap(in_json), inner), max_size=4).map(
            lambda pairs: f"{{{','.join(f'{name}:{value}' for name, value in pairs)}}}"
        ),
    ),
    max_leaves=12,
)


@settings(max_examples=1_000)
@given(written_json)
@example('{"a": 1, "a": 1}')
@example('{"a": [{"b": "c"}, {"c": 1, "c": 1}]}')
@example('{"a": 1e999}')
@example('{"a": [-6e18]}')
@example('{"a": "\\u0000"}')
@example(f'{{"a": {CARD}}}')
@example(f'{{"a": "{CARD[:8]} {CARD[8:]}"}}')
@example(f'{{"a": "{WRITTEN_CARDS[1]}"}}')
@example(f'{{"a": "{WRITTEN_CARDS[2]}"}}')
@example(f'{{"a": "{WRITTEN_CARDS[3]}"}}')
@example(f'{{"a": "{WRITTEN_CARDS[4]}"}}')
def test_what_is_let_through_at_a_glance_stands_a_closer_look(text: str) -> None:
    raw = text.encode(errors="surrogatepass")
    if is_plain_object(raw):
        check_each_value(raw)


@pytest.mark.parametrize(
    "body",
    [
        {
            "amount": 4_999,
            "metadata": {"cart": "7", "gifts": [{"for": None}, True, -3]},
            "description": "a: b, {c}",
        },
        {
            "externalId": "019ab3c8-8f4c-7cc1-b7c1-1f0a5d9e2b64",
            "description": "28/11/2026 20:45 and room 101",
        },
    ],
)
def test_most_bodies_need_no_closer_look(body: dict[str, Any]) -> None:
    assert is_plain_object(json.dumps(body).encode())
    assert is_plain_object(json.dumps(body, separators=(",", ":")).encode())


@pytest.mark.parametrize("number", ["1e-9999999999999999999", "0e9999999999999999999", "0e-999999999"])
def test_a_number_too_small_to_be_told_from_zero_is_taken(number: str) -> None:
    check_each_value(b'{"a": %s}' % number.encode())


@pytest.mark.parametrize(
    "number",
    [
        *("4.242424242424242e15", "4242424242424242.00", "42424242424242420e-1", "-4242424242424242.0"),
        *("4222222222222.0", "620550000000000009.0", "6205500000000000004.0"),
    ],
)
def test_a_card_number_is_refused_however_json_writes_a_number(number: str) -> None:
    assert refused(b'{"amount": 1, "metadata": {"pan": %s}}' % number.encode()) == {"metadata.pan"}


def test_numbers_that_are_no_cards_are_left_alone() -> None:
    numbers = b"[52.52000659999999, 13.404953999999975, 4.5e-300, 9e17, 4242424242424242.5]"
    assert parse_body(NewOrder, b'{"amount": 1, "metadata": {"at": %s}}' % numbers).metadata is not None


def test_a_whole_number_has_at_most_eighteen_digits() -> None:
    check_each_value(b'{"a": %d, "b": -%d}' % (10**18 - 1, 10**18 - 1))
    for number in (10**18, -(10**18)):
        with pytest.raises(Problem):
            check_each_value(b'{"a": %d}' % number)


def test_a_card_number_as_a_name_is_hidden() -> None:
    assert refused(b'{"amount": 1, "metadata": {"4242424242424242": 1}}') == {"metadata.(hidden)"}
    assert refused(b'{"amount": 1, "4242424242424242": 1}') == {"(hidden)"}


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None)),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(codec=None)), inner),
    max_leaves=20,
)


@given(json_values | st.fixed_dictionaries({"amount": st.just(1), "metadata": json_values}))
def test_whatever_json_is_sent_fits_or_is_refused(value: Any) -> None:
    try:
        parse_body(NewOrder, json.dumps(value).encode())
    except Problem as problem:
        problem.body(correlation_id="x")


@given(st.binary())
def test_whatever_bytes_are_sent_fit_or_are_refused(raw: bytes) -> None:
    try:
        parse_body(NewOrder, raw)
    except Problem as problem:
        problem.body(correlation_id="x")


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ([("limit", "0")], "limit"),
        ([("limit", "101")], "limit"),
        ([("limit", "1.0")], "limit"),
        ([("limit", "+5")], "limit"),
        ([("limit", "1_0")], "limit"),
        ([("limit", " 5")], "limit"),
        ([("limit", "")], "limit"),
        ([("limit", "9" * 5_000)], "limit"),
        ([("limit", "1"), ("limit", "1")], "limit"),
        ([("page", "1")], "page"),
        ([("status", "paid")], "status"),
        ([("currency", "nope")], "currency"),
        ([("starting_after", "no-uuid")], "starting_after"),
        ([("starting_after", str(UUID(int=1))), ("ending_before", str(UUID(int=2)))], "ending_before"),
        ([("createdFrom", "2026-01-01T00:00:00")], "createdFrom"),
        ([("createdFrom", "0001-01-01T00:00:00+14:00")], "createdFrom"),
        ([("createdFrom", "1700000000")], "createdFrom"),
        ([("externalId", "\0")], "externalId"),
        ([("externalId", "\ufffd")], "externalId"),
        ([("externalId", "a\nb")], "externalId"),
        ([("externalId", "\x9b")], "externalId"),
        ([("a\0", "b")], "a?"),
        ([("externalId", "4242424242424242")], "externalId"),
        ([("4242424242424242", "a")], "(hidden)"),
    ],
)
def test_a_query_that_does_not_fit_is_refused_by_the_name_of_its_parameter(
    query: list[tuple[str, str]], field: str
) -> None:
    with pytest.raises(Problem) as refusal:
        parse_query(OrderQuery, MultiDict(query))
    assert {error.field for error in refusal.value.errors or ()} == {field}


@pytest.mark.parametrize(
    ("raw", "field"),
    [
        (b"email=a&password=b&password=b", "password"),
        (b"email=a&password=%00", "password"),
        (b"email=a&password=4242424242424242", "password"),
        (b"email=a&password=b&next=", "next"),
        (b"email=a&password", "body"),
        (b"email=a&password=\xff", "body"),
        (b"&".join(b"a%d=b" % number for number in range(101)), "body"),
    ],
)
def test_a_form_that_does_not_fit_is_refused_by_the_name_of_its_field(raw: bytes, field: str) -> None:
    with pytest.raises(Problem) as refusal:
        parse_form(SignIn, raw)
    assert {error.field for error in refusal.value.errors or ()} == {field}


def test_of_many_fields_that_do_not_fit_only_so_many_are_named() -> None:
    many = {f"field{number}": "\0" for number in range(100)}
    with pytest.raises(Problem) as refusal:
        parse_body(NewOrder, json.dumps(many).encode())
    assert len(refusal.value.errors or ()) == MAX_ERRORS
    with pytest.raises(Problem) as refusal:
        parse_query(OrderQuery, MultiDict(many))
    assert len(refusal.value.errors or ()) == MAX_ERRORS
    with pytest.raises(Problem) as refusal:
        parse_body(NewOrder, json.dumps(dict.fromkeys(many, 1)).encode())
    assert len(refusal.value.errors or ()) == MAX_ERRORS


def test_of_a_long_name_only_the_beginning_is_told() -> None:
    assert refused(b'{"amount": 1, "%s": 1}' % (b"x" * 1_000)) == {"x" * 64}
    levels = 10
    deep = b'{"amount": 1, "metadata": %s"\\u0000"%s}' % (b'{"%s":' % (b"x" * 64) * levels, b"}" * levels)
    [name] = refused(deep)
    assert len(name) == 200


def test_an_id_in_a_query_that_is_none_is_refused_without_repeating_any_of_it() -> None:
    with pytest.raises(Problem) as refusal:
        parse_query(OrderQuery, MultiDict(starting_after="§"))
    assert [error.message for error in refusal.value.errors or ()] == ["Must be a UUID"]


@pytest.mark.parametrize(
    ("limit", "message"), [("x", "Must be a whole number"), ("1" * 12, "The number is too large")]
)
def test_a_number_in_a_query_that_is_too_large_is_not_called_no_number(limit: str, message: str) -> None:
    with pytest.raises(Problem) as refusal:
        parse_query(OrderQuery, MultiDict(limit=limit))
    assert [error.message for error in refusal.value.errors or ()] == [message]


@pytest.mark.parametrize("time", ["2026-11-29", "2026-11-29T10:00:00", "yesterday", "1795988725"])
def test_a_time_of_another_form_is_answered_with_how_to_write_it(time: str) -> None:
    with pytest.raises(Problem) as refusal:
        parse_query(OrderQuery, MultiDict(createdFrom=time))
    (error,) = refusal.value.errors or ()
    assert "with a time zone: 2027-01-31T15:40:02Z" in error.message


def test_a_plus_that_a_query_turned_into_a_blank_is_told() -> None:
    with pytest.raises(Problem) as refusal:
        parse_query(OrderQuery, MultiDict(createdFrom="2026-11-29T00:00:00 05:30"))
    (error,) = refusal.value.errors or ()
    assert (error.field, "%2B" in error.message) == ("createdFrom", True)


@pytest.mark.parametrize("text", ["\u200d", "a\u00a0b", "\U000f0000", "\u0378", "ü"])
def test_what_an_order_may_be_called_can_be_asked_for(text: str) -> None:
    assert parse_body(NewOrder, json.dumps({"amount": 1, "externalId": text}).encode()).external_id == text
    assert parse_query(OrderQuery, MultiDict(externalId=text)).external_id == text


def test_spacing_and_order_of_keys_make_no_other_request() -> None:
    one = fingerprint("POST", "/v1/orders", b'{"amount": 1, "currency": "USD"}')
    assert fingerprint("POST", "/v1/orders", b'{"currency":"USD","amount":1}') == one
    assert fingerprint("POST", "/v1/orders", b'{"currency":"USD","amount":2}') != one
    assert fingerprint("POST", "/v1/orders/x", b'{"currency":"USD","amount":1}') != one
    for nothing in (b"", b" \r\n"):
        assert fingerprint("POST", "/v1/x", nothing) == fingerprint("POST", "/v1/x", b"{}")
