"""Refusing a request from its raw bytes, when the process has no capacity for it.

An overloaded process receives more requests than it can answer. If each were parsed, routed and given a task, refusing
would take the time that admitted requests need. So the head is inspected as bytes. If it is in the plainest form, the
request is refused at once; anything else takes the usual path and is refused there.
"""

import re
import time
from typing import NamedTuple

from multidict import CIMultiDict, CIMultiDictProxy

from payloops.http.admission import Shed
from payloops.http.answers import CORRELATION_HEADER, SECURITY_HEADERS, head_bytes, http_date
from payloops.http.middleware import fitting_correlation_id
from payloops.http.problems import CONTENT_TYPE

# Only lines that every parser reads the same way: no folding, no space before the colon, no tab, no bare line feed.
_REQUEST = re.compile(rb"(GET|POST|PUT|PATCH|DELETE|HEAD|OPTIONS) (/[!-~]*) HTTP/1\.1")
_LINES = re.compile(rb"\r\n(?:[A-Za-z0-9_-]+:[\x20-\x7e]*\r\n)*\r\n")
_NAME = re.compile(rb"\n([^:\r]+)")
_LENGTH = re.compile(rb"\ncontent-length: *([0-9]{1,9})\r")
HOST = r"(?:[a-z0-9._~-]+|\[[0-9a-f:.]+\])(?::[0-9]{0,5})?"
"""A host, and perhaps a port, as the header `Host` has them, in lower case."""
_NAMED = re.compile(rb"\nhost: *%b *\r" % HOST.encode())
_KEPT = re.compile(rb"\nconnection: ?keep-alive\r")
_FRAMED_OTHERWISE = frozenset({b"transfer-encoding", b"upgrade", b"expect", b"sec-websocket-key1"})
_ANSWERED_OTHERWISE = frozenset({b"origin", b"prefer", b"proxy-connection"})
"""Headers whose requests take the usual path: a browser on another origin needs CORS headers in the answer, requests
that prefer to wait have a limit of their own, and an old proxy may want its connection closed."""
LONGEST_HEAD = 4_096
"""Bytes. Longer ones take the usual path: each connection remembers the last head that was read here."""
_MOST_LINES = 100
"""aiohttp refuses more than 128."""
_NEVER_REFUSED = frozenset({b"HEAD", b"OPTIONS"})
_REFUSED_PATHS = (b"/v1/", b"/api/", b"/webhooks/")
"""Routes for programs, none of which is exempt from admission. People get a page for an answer."""
_CORRELATION_NAME = CORRELATION_HEADER.lower().encode()
_CORRELATION = re.compile(rb"\nx-correlation-id: *([!-~]+) *\r", re.IGNORECASE)


class Lines:
    """The headers of a request, as received.

    Attributes:
        raw: from the end of the request line to the empty line after the headers, both included.
        body_length: bytes of the body that follows.
        plain: whether the request can be answered without anything that only the usual path does.
        correlation: the value of `X-Correlation-ID`; empty if there is none.
    """

    __slots__ = ("_headers", "body_length", "correlation", "plain", "raw")

    def __init__(self, raw: bytes, *, body_length: int, plain: bool, correlation: str) -> None:
        self.raw = raw
        self.body_length = body_length
        self.plain = plain
        self.correlation = correlation
        self._headers: CIMultiDictProxy[str] | None = None

    @property
    def headers(self) -> CIMultiDictProxy[str]:
        if self._headers is None:
            headers: CIMultiDict[str] = CIMultiDict()
            for line in self.raw.decode("ascii").split("\r\n")[1:-2]:
                name, _, value = line.partition(":")
                headers.add(name, value.strip(" "))
            self._headers = CIMultiDictProxy(headers)
        return self._headers


class Head(NamedTuple):
    """The request line and the headers.

    Attributes:
        path: with the query.
        raw: both as received, with the empty line at the end.
        plain: whether the request may be refused, or answered, from what is here.
    """

    method: str
    path: str
    raw: bytes
    plain: bool
    lines: Lines


def read_head(data: bytes, before: Head | None = None) -> Head | None:
    """The head that the bytes begin with; None if it is incomplete or long, or parsers could read it differently.

    Args:
        before: head of the previous request on the connection. Most clients send the same headers each time, which
            are then not read again.
    """
    if before is not None and data.startswith(before.raw):
        return before
    request = _REQUEST.match(data, 0, LONGEST_HEAD)
    if request is None:
        return None
    end = request.end()
    same = before is not None and data.startswith(before.lines.raw, end)
    lines = before.lines if before is not None and same else _read_lines(data, end)
    if lines is None or end + len(lines.raw) > LONGEST_HEAD:
        return None
    method, path = request.groups()
    return Head(
        method.decode(),
        path.decode(),
        data[: end + len(lines.raw)],
        lines.plain and method not in _NEVER_REFUSED and path.startswith(_REFUSED_PATHS),
        lines,
    )


def _read_lines(data: bytes, start: int) -> Lines | None:
    found = _LINES.match(data, start, LONGEST_HEAD)
    if found is None:
        return None
    raw = found.group()
    lowered = raw.lower()
    names = _NAME.findall(lowered)
    told = frozenset(names)
    # Of a header that is there twice, some parsers take the first value, some the last, some both.
    if len(told) < len(names) or len(names) > _MOST_LINES or _NAMED.search(lowered) is None:
        return None
    if not told.isdisjoint(_FRAMED_OTHERWISE):
        return None
    body_length = 0
    if b"content-length" in told:
        length = _LENGTH.search(lowered)
        if length is None:
            return None
        body_length = int(length[1])
    stays = b"connection" not in told or _KEPT.search(lowered) is not None
    correlation = _CORRELATION.search(raw) if _CORRELATION_NAME in told else None
    return Lines(
        raw,
        body_length=body_length,
        plain=stays and told.isdisjoint(_ANSWERED_OTHERWISE),
        correlation=correlation[1].decode() if correlation else "",
    )


def refusal(head: Head) -> bytes:
    """The same 503 as every route answers, head and body. It keeps the connection open."""
    correlation = fitting_correlation_id(head.lines.correlation).encode()
    date = http_date(int(time.time()))
    return _ANSWER % (_BODY_LENGTH + len(correlation), date, correlation, correlation)


def _answer() -> tuple[bytes, int]:
    """The answer as a template, and the length of its body without the correlation id."""
    shed = Shed()
    headers = {
        **shed.headers,
        "Content-Type": CONTENT_TYPE,
        "Content-Length": "%d",
        "Date": "%s",
        **SECURITY_HEADERS,
        CORRELATION_HEADER: "%s",
    }
    body = shed.body(correlation_id="%s")
    return head_bytes(503, headers) + body, len(body) - len("%s")


_ANSWER, _BODY_LENGTH = _answer()
