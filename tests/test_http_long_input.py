"""What anybody may send keeps the process busy no longer than it is long."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from payloops.http.authentication import _cookie, _token, is_https
from payloops.http.bodies import check_json, is_form, is_json
from payloops.http.connections import _fault_of
from payloops.http.early_refusals import read_head
from payloops.http.endpoint import _idempotency_key, _wait
from payloops.http.html import refuse_foreign_forms
from payloops.http.middleware import correlation_id
from payloops.http.problems import Problem
from payloops.http.rate_limits import client_address

LONG = 600_000
"""Bytes: for what takes its square of steps, hours."""
VALUES = [
    *(
        " ",
        "a",
        "0",
        ";",
        ",",
        "=",
        '"',
        '"\\',
        "\\",
        "a=b;",
        'a="',
        'a="b\\',
        "a=b,",
        "; a",
        "(a)",
        "a;b=",
        "~ ",
    ),
    *(
        "wait=0",
        "wait",
        "wait=",
        "wait =",
        ", wait",
        "a=b; $Path=/;",
        "a=b; expires=Mon, 01 ",
        "[",
        ":",
        "1.",
        "-",
    ),
]
READERS: dict[str, Callable[[web.Request], object]] = {
    "Content-Type": lambda request: (is_json(request), is_form(request)),
    "Cookie": lambda request: _cookie(request, "payloops-staff"),
    "Prefer": _wait,
    "Authorization": _token,
    "Host": _fault_of,
    "Transfer-Encoding": _fault_of,
    "X-Correlation-ID": correlation_id,
    "Idempotency-Key": _idempotency_key,
    "X-Forwarded-For": lambda request: client_address(request, trusted_proxies=1),
    "X-Forwarded-Proto": is_https,
    "Origin": refuse_foreign_forms,
}


@contextmanager
def ending() -> Iterator[None]:
    """Ends what would take hours."""

    def end(_: int, __: FrameType | None) -> None:
        raise TimeoutError("it does not end")

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(30)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def long_values() -> Iterator[str]:
    for value in VALUES:
        for start, end in (("", ""), ("", "a a"), ("wait=", "x"), ("a", " a"), ("application/json;", "")):
            yield f"{start}{value * (LONG // len(value))}{end}"


@pytest.mark.parametrize("header", READERS)
def test_a_long_header_is_soon_read(header: str) -> None:
    for value in long_values():
        request = make_mocked_request("POST", "/", headers={header: value})
        with ending(), suppress(Problem):
            READERS[header](request)


@pytest.mark.parametrize("header", ["Host", "X-Correlation-ID", "Content-Length", "Connection", "X-Other"])
def test_a_long_head_is_soon_read(header: str) -> None:
    for value in long_values():
        host = b"" if header == "Host" else b"Host: x\r\n"
        with ending():
            read_head(b"GET /v1/ HTTP/1.1\r\n%b%b:%b\r\n\r\n" % (host, header.encode(), value.encode()))
            read_head(b"GET /v1/" + value.encode())
            read_head(b"GET /v1/ HTTP/1.1\r\n" + b"\r\n".join([value.encode()] * 2))


BODIES = ["", '{"a":', '{"a":"', '{"a":[' + "[]," * 40, '{"a":[' + "[]," * 40 + '"']
"""How bodies begin; many lists have how deep they are looked at."""
PIECES = [
    *(
        '"',
        '\\"',
        "\\",
        "a",
        "[",
        "]",
        "{",
        "[]",
        '{"a":',
        "1",
        "-",
        "0e",
        "1.5,",
        ".",
        "%34",
        "%",
        " ",
        ",",
        '"a":',
    ),
    *("é", "\\u0030", "4 ", "4242424242424242 ", "12:", "1.1.", "\u0301", '"a",', '\\"a'),
]


@pytest.mark.parametrize("begun", BODIES)
def test_a_long_body_is_soon_read(begun: str) -> None:
    for piece in PIECES:
        with ending(), suppress(Problem):
            check_json((begun + piece * (200_000 // len(piece))).encode())


@pytest.mark.parametrize(
    ("declared", "is_accepted"),
    [
        *(
            ("application/json", True),
            ('APPLICATION/JSON ; Charset="UTF-8"', True),
            ("application/json;a=b", True),
        ),
        *(
            ("application/json; charset=utf8", True),
            ("application/json; charset=latin-1", False),
            ("", False),
        ),
        *(("application/json; charset=utf-8; charset=utf-16", False), ("text/json", False), ("json", False)),
        *(
            ("application/jsonx", False),
            ("text/plain; application/json", False),
            ("application/json,", False),
        ),
    ],
)
def test_json_is_what_is_declared_as_json_in_utf_8(declared: str, is_accepted: bool) -> None:
    assert is_json(make_mocked_request("POST", "/", headers={"Content-Type": declared})) is is_accepted


@pytest.mark.parametrize(
    ("cookies", "found"),
    [
        *((["s=a"], "a"), (["x=1; s=a.b-c_d; y=2"], "a.b-c_d"), (["x=1", "s=a"], "a"), (["s=a=="], "a==")),
        *((["xs=a"], None), (["sx=a"], None), (["s"], ""), ([], None), (["x=s=a"], None), ([";;=;s=a"], "a")),
    ],
)
def test_a_cookie_is_found_among_others(cookies: list[str], found: str | None) -> None:
    request = make_mocked_request("GET", "/", headers=[("Cookie", each) for each in cookies])
    assert _cookie(request, "s") == found
