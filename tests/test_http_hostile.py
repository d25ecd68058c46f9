"""Hostile input, by way of the network, at every route: a 4xx, never a failure of ours, and no trace of a card."""

import asyncio
import gzip
import itertools
import json
import logging
import re
from collections.abc import AsyncIterator, Iterator
from typing import Any
from urllib.parse import quote

import pytest
import structlog
from calling import Api, Caller, Merchant, running_api
from masking import CARD, WRITINGS, shows_card
from psycopg_pool import AsyncConnectionPool
from searching import tables_that_hold
from uuid_utils.compat import uuid7

from payloops.http.app import MAX_BODY, ROUTES
from payloops.http.openapi import openapi_document
from payloops.http.request_context import merge_request
from payloops.http.routing import Route
from payloops.settings import Settings

DOCUMENT = openapi_document(ROUTES, version="test")
WITH_BODY = [each for each in ROUTES if each.body is not None or each.signed_by]
WITH_MODEL = [each for each in ROUTES if each.body is not None]
AMOUNTS = ["/v1/orders", "/v1/orders/{id}/capture", "/v1/orders/{id}/refund"]


@pytest.fixture
async def api(settings: Settings) -> AsyncIterator[Api]:
    async with running_api(settings.model_copy(update={"rate_limits": False})) as api:
        yield api


def name_of(each: Route) -> str:
    return f"{each.method} {each.path}"


def caller_of(merchant: Merchant, each: Route) -> Caller:
    return merchant.dashboard if each.auth == "bearer" else merchant.shop


async def path_of(merchant: Merchant, each: Route) -> str:
    """With an order of the merchant, or whatever else fits the path."""
    path = each.path
    for name, values in each.named.items():
        path = path.replace("{" + name + "}", values[0])
    if "/orders/{id}" in path:
        path = path.replace("{id}", await merchant.order())
    return path.replace("{id}", str(uuid7())).replace("{merchantId}", str(merchant.id))


BODIES: dict[str, bytes] = {
    "no JSON": b"{",
    "two values": b"{} {}",
    "an array": b"[]",
    "text": b'"x"',
    "a number": b"1",
    "null": b"null",
    "compressed, and not said to be": gzip.compress(b"{}"),
    "deep": b"[" * 100_000 + b"]" * 100_000,
    "deep and open": b'{"a":' * 100_000,
    "deep below": b'{"metadata": ' + b'{"a":' * 40 + b"1" + b"}" * 41,
    "a huge integer": b'{"amount": %s}' % (b"9" * 100_000),
    "a huge integer in a field that is not there": b'{"nowhere": %s}' % (b"9" * 5_000),
    "NaN": b'{"amount": NaN}',
    "Infinity": b'{"amount": Infinity}',
    "-Infinity": b'{"metadata": {"a": -Infinity}}',
    "infinite by its exponent": b'{"metadata": {"a": 1e999}}',
    "a key twice": b'{"amount": 1, "amount": 1}',
    "a key twice, differently written": b'{"amount": 1, "\\u0061mount": 1}',
    "NUL": b'{"name": "a\\u0000b"}',
    "NUL as it is": b'{"name": "a\0b"}',
    "a line end as it is": b'{"name": "a\nb"}',
    "NUL in a name": b'{"a\\u0000b": 1}',
    "a lone surrogate": b'{"name": "\\ud800"}',
    "a lone surrogate in a name": b'{"\\udfff": 1}',
    "a surrogate in UTF-8": b'{"name": "\xed\xa0\x80"}',
    "no UTF-8": b'{"name": "\xff"}',
    "UTF-8 longer than it needs": b'{"name": "\xc0\x80"}',
    "UTF-16": '{"name": "x"}'.encode("utf-16"),
    "a byte order mark": b'\xef\xbb\xbf{"amount": 1}',
    "many fields": json.dumps({str(number): number for number in range(50_000)}).encode(),
    "many keys twice": b"{" + b",".join(b'"a": 1' for _ in range(50_000)) + b"}",
}


async def test_hostile_bodies_are_refused_by_every_route(
    api: Api, merchant: Merchant, subtests: pytest.Subtests
) -> None:
    for each in WITH_BODY:
        with subtests.test(name_of(each)):
            path = await path_of(merchant, each)
            for what, body in BODIES.items():
                answer = await caller_of(merchant, each).call(each.method, path, data=body)
                assert answer.status == 400, (what, answer.raw)
                assert answer.code in ("validation_error", "missing_signature")
    assert (await api.anyone.get("/health")).status == 200


async def test_large_and_compressed_bodies_are_refused_by_every_route(
    merchant: Merchant, subtests: pytest.Subtests
) -> None:
    too_large = b'{"name": "%s"}' % (b"x" * MAX_BODY)
    bomb = gzip.compress(b" " * 50_000_000)
    assert len(bomb) < 100_000
    for each in WITH_BODY:
        with subtests.test(name_of(each)):
            caller, path = caller_of(merchant, each), await path_of(merchant, each)
            large = await caller.call(each.method, path, data=too_large)
            assert (large.status, large.code) == (413, "payload_too_large")
            for encoding in ("gzip", "deflate", "br", "zstd", "gzip, gzip", "x"):
                packed = await caller.call(
                    each.method, path, data=bomb, headers={"Content-Encoding": encoding}
                )
                assert packed.status in (400, 415), encoding


async def test_a_body_without_a_length_is_cut_off_at_its_limit(api: Api, merchant: Merchant) -> None:
    async def endless() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield b" " * 65_536

    headers = {**merchant.shop.headers, "Content-Type": "application/json"}
    async with api.anyone.session.post("/v1/orders", data=endless(), headers=headers) as answer:
        assert answer.status == 413
        assert (await answer.json())["title"] == "Content Too Large"  # whatever Python calls it


@pytest.mark.parametrize("path", AMOUNTS)
async def test_an_amount_is_nothing_but_a_whole_number(
    merchant: Merchant, path: str, subtests: pytest.Subtests
) -> None:
    path = path.replace("{id}", await merchant.order())
    for amount in (
        *("true", "false", "1.0", "1e2", "1E2", '"100"', "[100]", '{"amount": 100}', "0", "-1", "-0", "0.5"),
        *("100000000000", "9" * 19, "1e999", "NaN", "0100", "+100", "0x64", "1_000", "\uff11", ".5", "5."),
    ):
        with subtests.test(amount=amount):
            answer = await merchant.shop.call("POST", path, data=b'{"amount": %s}' % amount.encode())
            assert answer.status == 400
            assert answer.fields <= {"amount", "body"}


BAD_TEXTS = ["%00", "a%00b", "%ED%A0%80", "%FF", "%C0%80", "%0A", "%1B%5B2J", "%7F", "%EF%BF%BD", "%C2%9B"]
UUID = "019ab3c8-8f4c-7cc1-b7c1-1f0a5d9e2b64"
ABSURD_IDS = [
    *BAD_TEXTS,
    *(
        "0",
        "-1",
        "1e9",
        "null",
        "undefined",
        "NaN",
        "*",
        "'",
        "%27%20OR%201=1--",
        "%25",
        "%25s",
        "${7*7}",
        "{}",
    ),
    *(
        "00000000-0000-0000-0000-00000000000",
        "{019ab3c8-8f4c-7cc1-b7c1-1f0a5d9e2b64}",
        "019ab3c88f4c7cc1b7c11f0a5d9e2b64",
    ),
    *("urn:uuid:019ab3c8-8f4c-7cc1-b7c1-1f0a5d9e2b64", "019ab3c8-8f4c-7cc1-b7c1-1f0a5d9e2b64%20", "%C2%A0"),
    *(
        "019ab3c8-8f4c-7cc1-b7c1-1f0a5d9e2b6%EF%BC%94",
        "%F0%9F%92%A9",
        "..%2F..%2Fetc%2Fpasswd",
        "%2e%2e",
        "x" * 4_000,
    ),
    *("00000000-0000-0000-0000-000000000000", "ffffffff-ffff-ffff-ffff-ffffffffffff", CARD),
]


async def test_absurd_ids_are_not_found(merchant: Merchant, subtests: pytest.Subtests) -> None:
    for each in ROUTES:
        if "{id}" in each.path and each.auth in ("api_key", "bearer"):
            with subtests.test(name_of(each)):
                for id in ABSURD_IDS:
                    answer = await raw(merchant, each, each.path.replace("{id}", id))
                    assert answer == 404, id


async def test_absurd_queries_are_refused(merchant: Merchant, subtests: pytest.Subtests) -> None:
    """Whatever the parameter takes: it takes no text that is none, is there once, and has a name."""
    for each in ROUTES:
        if each.query is None or each.auth not in ("api_key", "bearer"):
            continue
        operation = DOCUMENT["paths"][each.path][each.method.lower()]
        names = [given["name"] for given in operation["parameters"] if given.get("in") == "query"]
        path = await path_of(merchant, each)
        with subtests.test(name_of(each)):
            queries = [
                f"{name}={text}" for name in (*names, "nowhere") for text in (*BAD_TEXTS, "", "x" * 4_000)
            ]
            queries += [f"{name}=1&{name}=1" for name in names] + [f"{text}=1" for text in BAD_TEXTS]
            queries += [f"{name}[]=1" for name in names] + ["=", "a", "%00", f"q={quote(CARD)}"]
            for query in queries:
                assert await raw(merchant, each, f"{path}?{query}") == 400, query


async def test_absurd_cursors_are_refused(merchant: Merchant, subtests: pytest.Subtests) -> None:
    [lists] = [each for each in ROUTES if name_of(each) == "GET /v1/orders"]
    for cursor, text in itertools.product(("starting_after", "ending_before"), ABSURD_IDS):
        with subtests.test(cursor=cursor, text=text[:100]):
            assert await raw(merchant, lists, f"/v1/orders?{cursor}={text}") in (400, 404)


async def raw(merchant: Merchant, each: Route, target: str) -> int:
    """The status of the answer to a target that is sent as it is written, without a client's help."""
    headers = "".join(f"{name}: {value}\r\n" for name, value in caller_of(merchant, each).headers.items())
    host = merchant.shop.session._base_url
    assert host is not None
    head = f"{each.method} {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 0\r\n{headers}\r\n"
    answer = await exchange(int(host.port or 0), head.encode())
    return int(answer.split(b" ", 2)[1])


async def exchange(port: int, sent: bytes, *, first: bytes = b"") -> bytes:
    """What comes back until the connection ends.

    Args:
        first: sent before, on the same connection, and answered in between.
    """
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        async with asyncio.timeout(60):
            head = b""
            if first:
                writer.write(first)
                head = await reader.readuntil(b"\r\n\r\n")
            writer.write(sent)
            return head + await reader.read()
    finally:
        writer.close()


CONTROLS = [bytes([code]) for code in (*range(9), *range(11, 13), *range(14, 32), 127)]
HEADERS = [
    "X-API-Key",
    "Authorization",
    "Idempotency-Key",
    "Prefer",
    "X-Correlation-ID",
    "Content-Type",
    "X-Other",
]


async def test_control_characters_in_headers_are_refused_or_without_effect(
    api: Api, merchant: Merchant, subtests: pytest.Subtests
) -> None:
    """Never taken, never echoed, never a failure."""
    for header, code in itertools.product(HEADERS, CONTROLS):
        with subtests.test(header=header, code=code):
            answer = await exchange(
                api.port,
                b"POST /v1/orders HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 13\r\n"
                b"%s: a%sb\r\n"
                % (header.encode(), code)
                + b"".join(
                    b"%s: %s\r\n" % (name, value)
                    for name, value in (
                        (b"X-API-Key", merchant.shop.headers["X-API-Key"].encode()),
                        (b"Content-Type", b"application/json"),
                    )
                    if name != header.encode()
                )
                + b'\r\n{"amount": 1}',
            )
            status = int(answer.split(b" ", 2)[1])
            allowed = (
                (400, 201)
                if header in ("Prefer", "X-Correlation-ID", "Authorization", "X-Other")
                else (400, 401, 415)
            )
            assert status in allowed
            assert b"a%sb" % code not in answer


async def test_other_bytes_in_headers_do_no_harm(
    api: Api, merchant: Merchant, subtests: pytest.Subtests
) -> None:
    key = merchant.shop.headers["X-API-Key"].encode()
    for line in (
        b"X-API-Key: \xff\xfe",
        b"X-API-Key: " + "sk_test_ü".encode(),
        b"X-API-Key: " + b"x" * 7_000,
        b"X-API-Key: " + key + b"\r\nX-API-Key: " + key,
        b"X-API-Key: " + key + b"\r\nIdempotency-Key: \xff",
        b"X-API-Key: " + key + b"\r\nIdempotency-Key: " + b"k" * 256,
        b"X-API-Key: " + key + b"\r\nIdempotency-Key: ",
        b"X-API-Key: " + key + b"\r\nIdempotency-Key: a\r\nIdempotency-Key: b",
        b"X-API-Key: " + key + b"\r\nContent-Type: \xff",
        b"X-API-Key: " + key + b"\r\nContent-Type: application/json; charset=\xff",
        b"X-API-Key: " + key + b"\r\nContent-Encoding: \xff",
        b"X-API-Key: " + key + b"\r\nTransfer-Encoding: \xff",
        b"X-API-Key: " + key + b"\r\n folded: 1",
        b"X-API-Key: " + key + b"\r\nX-Bad Name: 1",
        b"X-API-Key: " + key + b"\r\nContent-Length: 13",
        b"X-API-Key: " + key + b"\r\nContent-Length: -1",
        b"X-API-Key : " + key,
        b"\x00: 1",
        b": 1",
    ):
        with subtests.test(line=line[:100]):
            answer = await exchange(
                api.port,
                b"POST /v1/orders HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 14\r\n"
                + line
                + b'\r\n\r\n{"amount": 1 }',
            )
            assert 400 <= int(answer.split(b" ", 2)[1]) < 500
            assert b"application/problem+json" in answer
    assert (await api.anyone.get("/health")).status == 200


JSON = b'{"amount": 1}'
CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"
FRAMINGS: list[bytes] = [
    *(
        b"Content-Length: %b\r\n\r\n" % length + JSON
        for length in (b"+13", b"-13", b"13,13", b"13, 13", b"1_3")
    ),
    *(b"Content-Length: %b\r\n\r\n" % length + JSON for length in (b"", b"0xd", b"13.0", b"1 3", b"\x0b13")),
    *(
        b"Content-Length: %b\r\n\r\n" % length + JSON
        for length in ("\u0661\u0663".encode(), b"9" * 30, b"13;")
    ),
    b"Content-Length: 13\r\nContent-Length: 13\r\n\r\n" + JSON,
    b"Content-Length: 0\r\nContent-Length: 13\r\n\r\n" + JSON,
    b"Content-Length : 13\r\n\r\n" + JSON,
    b"Content-Length\t: 13\r\n\r\n" + JSON,
    b"Content-Length:\r\n 13\r\n\r\n" + JSON,
    b"X-A: b\r\n c\r\nContent-Length: 13\r\n\r\n" + JSON,
    b"X-A: b\nContent-Length: 13\r\n\r\n" + JSON,
    b"X-A: b\rContent-Length: 13\r\n\r\n" + JSON,
    b"X-A\r\nContent-Length: 13\r\n\r\n" + JSON,
    b"Content-Length: 13\r\n\n" + JSON,
    b"Content-Length: 13\n\n" + JSON,
    b"Content-Length: 13\r\nTransfer-Encoding: chunked\r\n\r\nd\r\n" + JSON + b"\r\n0\r\n\r\n",
    b"Transfer-Encoding: chunked\r\nContent-Length: 13\r\n\r\nd\r\n" + JSON + b"\r\n0\r\n\r\n",
    *(
        b"Transfer-Encoding: %b\r\n\r\nd\r\n" % coding + JSON + b"\r\n0\r\n\r\n"
        for coding in (
            b"",
            b"xchunked",
            b"chunked, chunked",
            b"chunked, identity",
            b"identity",
            b"gzip",
            b"chunked;",
        )
    ),
    b"Transfer-Encoding: chunked\r\n" + CHUNKED + b"d\r\n" + JSON + b"\r\n0\r\n\r\n",
    b"Transfer-Encoding: identity\r\n" + CHUNKED + b"d\r\n" + JSON + b"\r\n0\r\n\r\n",
    *(
        CHUNKED + size + b"\r\n" + JSON + b"\r\n0\r\n\r\n"
        for size in (b"", b" d", b"d ", b"0xd", b"+d", b"-d", b"f" * 17, b";", b"d;a\rb", b"d;a\nb")
    ),
    CHUNKED + b"d\n" + JSON + b"\r\n0\r\n\r\n",
    CHUNKED + b"d\r\n" + JSON + b"\n0\r\n\r\n",
    CHUNKED + b"d\r\n" + JSON + b"0\r\n\r\n",
    CHUNKED + b"d\r\n" + JSON + b"\r\n0\r\n\n",
    CHUNKED + b"d\r\n" + JSON + b"\r\n0\r\nContent-Length: 5\r\n\r\n",
    CHUNKED + b"d\r\n" + JSON + b"\r\n0\r\nTransfer-Encoding: chunked\r\n\r\n",
    CHUNKED + b"d\r\n" + JSON + b"\r\n0\r\nno trailer\r\n\r\n",
]
"""A body whose end a proxy may see somewhere else."""


async def test_what_a_proxy_may_frame_otherwise_is_refused_with_all_that_follows(
    api: Api, merchant: Merchant, subtests: pytest.Subtests
) -> None:
    """One answer, and the connection ends; also after a plain request, which is read in another way."""
    key = b"X-API-Key: " + merchant.shop.headers["X-API-Key"].encode() + b"\r\n"
    plain = b"GET /v1/orders HTTP/1.1\r\nHost: x\r\n" + key + b"\r\n"
    head = b"POST /v1/orders HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n" + key
    for framing in FRAMINGS:
        with subtests.test(framing=framing):
            sent = head + framing
            for behind in (b"", b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"):
                assert statuses(await exchange(api.port, sent + behind)) == [400]
                assert statuses(await exchange(api.port, sent + behind, first=plain)) == [200, 400]
    listed = await merchant.shop.get("/v1/orders")
    assert listed.json["data"] == [], "none of them had an effect"


@pytest.mark.parametrize("protocol", [b"websocket", b"h2c", b"anything"])
async def test_nothing_follows_a_request_for_an_upgrade(api: Api, protocol: bytes) -> None:
    """It is answered as if it had not asked (RFC 9110, 7.8)."""
    asking = b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: " + protocol + b"\r\n\r\n"
    following = b"GET /health HTTP/1.1\r\nHost: x\r\nX-Correlation-ID: following\r\n\r\n"
    for sent in (asking, asking + following, asking + following * 2):
        answers = await exchange(api.port, sent)
        assert statuses(answers) == [200]
        assert b"following" not in answers
        assert b"Connection: close\r\n" in answers


def statuses(answers: bytes) -> list[int]:
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", answers)]


def fields_of(each: Route) -> Iterator[tuple[str, ...]]:
    """Every field of the body that may hold text, by its path."""
    operation = DOCUMENT["paths"][each.path][each.method.lower()]
    yield from texts_in(operation["requestBody"]["content"]["application/json"]["schema"], ())


def texts_in(schema: Any, at: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    if "$ref" in schema:
        schema = DOCUMENT["components"]["schemas"][schema["$ref"].split("/")[-1]]
        if "properties" not in schema and len(at) > 1:
            return
    if schema.get("type") in ("string", ["string", "null"]):
        yield at
    for option in schema.get("anyOf", ()):
        yield from texts_in(option, at)
    for name, inner in schema.get("properties", {}).items():
        yield from texts_in(inner, (*at, name))
    if "additionalProperties" in schema and schema["additionalProperties"] is not False:
        yield (*at, "note")
        yield (*at, "deep", "down", "note")


def with_value(example: Any, at: tuple[str, ...], value: object) -> Any:
    """The example, with this value at its place."""
    if not at:
        return value
    inner = example.get(at[0]) if isinstance(example, dict) else None
    return {**(example if isinstance(example, dict) else {}), at[0]: with_value(inner, at[1:], value)}


async def test_card_data_is_refused_everywhere_and_leaves_no_trace(
    api: Api,
    merchant: Merchant,
    pool: AsyncConnectionPool,
    subtests: pytest.Subtests,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    sent = 0
    with structlog.testing.capture_logs(processors=[merge_request]) as lines:
        for each in WITH_MODEL:
            caller, path = caller_of(merchant, each), await path_of(merchant, each)
            operation = DOCUMENT["paths"][each.path][each.method.lower()]
            example = operation["requestBody"]["content"]["application/json"]["example"]
            bodies = [with_value(example, at, text) for at in fields_of(each) for text in WRITINGS]
            card = {"number": CARD, "exp_month": 12, "exp_year": 2030, "cvc": "123"}
            bodies += [
                {**example, "card": card},
                {**example, "paymentMethod": {"type": "card", "card": card}},
            ]
            bodies += [
                {**example, CARD: 1},
                {**example, "metadata": {CARD: 1}},
                {**example, "pan": int(CARD)},
            ]
            for body in bodies:
                with subtests.test(name_of(each), body=json.dumps(body)[:200]):
                    answer = await caller.call(each.method, path, body)
                    sent += 1
                    assert (answer.status, answer.code) == (400, "validation_error")
                    assert not shows_card(answer.raw)
        for header in ("X-Correlation-ID", "Idempotency-Key", "Prefer", "User-Agent", "Referer", "Origin"):
            with subtests.test(header=header):
                answer = await merchant.shop.post("/v1/orders", {"amount": 1}, **{header: CARD})
                assert answer.status in (201, 400)
                assert not shows_card(answer.raw.decode() + str(answer.headers))
        for path in (
            f"/v1/orders/{CARD}",
            f"/v1/orders?externalId={CARD}",
            f"/{CARD}",
            f"/v1/orders?{CARD}=1",
        ):
            with subtests.test(path=path):
                answer = await merchant.shop.get(path)
                assert answer.status in (400, 404)
                assert not shows_card(answer.raw)
    assert sent > 100
    assert not shows_card(repr(lines) + caplog.text)
    assert await tables_that_hold(pool, *WRITINGS, "4242424242424242"[:12]) == []


async def test_what_is_stored_is_found_where_it_is_looked_for(
    merchant: Merchant, pool: AsyncConnectionPool
) -> None:
    """The search of the test above sees what it should: an order's text is in its event and its row."""
    await merchant.order(description="a needle in the stack", externalId="needle-in-the-stack")
    assert "stored_events" in await tables_that_hold(pool, "needle-in-the-stack")
