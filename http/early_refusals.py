"""Refusing a request for which there is no capacity, from its raw bytes.

An overloaded process gets more requests than it can answer. If each were parsed, routed and given a task, refusing
them would take the time that the others need. So the head is inspected as bytes: if it is in the plainest form, that
is enough to refuse it; anything else goes through the usual path, and is refused there.
"""

import re
import time
from typing import NamedTuple

from multidict import CIMultiDict, CIMultiDictProxy
from uuid_utils import uuid4

from payloops.http.admission import Shed
from payloops.http.answers import CORRELATION_HEADER, SECURITY_HEADERS, head_bytes, http_date
from payloops.http.middleware import fitting_correlation_id
from payloops.http.problems import CONTENT_TYPE

# One way to read each line, whoever reads it: no folded lines, no space before a colon, no tab, no line feed alone.
_REQUEST = re.compile(rb"(GET|POST|PUT|PATCH|DELETE|HEAD|OPTIONS) (/[!-~]*) HTTP/1\.1")
_LINES = re.compile(rb"\r\n(?:[A-Za-z0-9_-]+:[\x20-\x7e]*\r\n)*\r\n")
_NAME = re.compile(rb"\n([^:\r]+)")
_LENGTH = re.compile(rb"\ncontent-length: *([0-9]{1,9})\r")
_KEPT = re.compile(rb"\nconnection: ?keep-alive\r")
_FRAMED_OTHERWISE = frozenset({b"transfer-encoding", b"upgrade", b"expect", b"sec-websocket-key1"})
_ANSWERED_OTHERWISE = frozenset({b"origin", b"prefer", b"proxy-connection"})
"""Browsers of other origins, who have to be told that they may read the answer; who is ready to wait, and is counted
apart; and who may want no further answer."""
_MOST_LINES = 100
"""aiohttp refuses more than 128."""
_NEVER_REFUSED = frozenset({b"HEAD", b"OPTIONS"})
_REFUSED_PATHS = (b"/v1/", b"/api/", b"/webhooks/")
"""Programs ask there, nobody looks at the answer, and none of the routes is answered always."""
_CORRELATION_NAME = CORRELATION_HEADER.lower().encode()
_CORRELATION = re.compile(rb"\nx-correlation-id: *([!-~]*) *\r", re.IGNORECASE)


class Lines:
    """The headers of a request, as they came.

    Attributes:
        raw: from the end of the request line to the empty line at their own.
        body_length: bytes that follow.
        plain: whether nothing in them asks for more than an answer.
        correlation: whether the client sent an id to correlate by.
    """

    __slots__ = ("_headers", "body_length", "correlation", "plain", "raw")

    def __init__(self, raw: bytes, *, body_length: int, plain: bool, correlation: bool) -> None:
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
    """A request line and the headers.

    Attributes:
        path: with the query.
        raw: both as they came, with the empty line at their end.
        plain: whether the request may be refused for these alone, and answered by what stands here.
    """

    method: str
    path: str
    raw: bytes
    plain: bool
    lines: Lines


def read_head(data: bytes, before: Head | None = None) -> Head | None:
    """The head that the bytes begin with, None where it is not all there, or could be read in two ways.

    Args:
        before: of the request before over the same connection. Most clients send the same lines again and again.
    """
    if before is not None and data.startswith(before.raw):
        return before
    request = _REQUEST.match(data)
    if request is None:
        return None
    end = request.end()
    same = before is not None and data.startswith(before.lines.raw, end)
    lines = before.lines if before is not None and same else _read_lines(data, end)
    if lines is None:
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
    found = _LINES.match(data, start)
    if found is None:
        return None
    raw = found.group()
    lowered = raw.lower()
    names = _NAME.findall(lowered)
    told = frozenset(names)
    # What is there twice is one value to some, the first or the last to others.
    if len(told) < len(names) or len(names) > _MOST_LINES or b"host" not in told:
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
    return Lines(
        raw,
        body_length=body_length,
        plain=stays and told.isdisjoint(_ANSWERED_OTHERWISE),
        correlation=_CORRELATION_NAME in told,
    )


def refusal(head: Head) -> bytes:
    """503 as every route answers it, head and body; the connection stays."""
    correlation = _correlation_of(head) if head.lines.correlation else str(uuid4()).encode()
    date = http_date(int(time.time()))
    return _ANSWER % (_BODY_LENGTH + len(correlation), date, correlation, correlation)


def _correlation_of(head: Head) -> bytes:
    given = _CORRELATION.search(head.lines.raw)
    return fitting_correlation_id(given[1].decode() if given else "").encode()


def _answer() -> tuple[bytes, int]:
    """What is the same in all of them, and the length of its body without an id to correlate by."""
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
