"""The usual response: a body of one content type with the headers that every response has, written in one piece."""

import time
from collections.abc import Mapping
from email.utils import formatdate
from functools import cache, lru_cache
from http import HTTPStatus

from aiohttp import HttpVersion11, hdrs, web
from multidict import CIMultiDict

CORRELATION_HEADER = "X-Correlation-ID"
METRICS_TYPE = "text/plain; version=0.0.4"
"""Prometheus' text format: https://prometheus.io/docs/instrumenting/exposition_formats/."""
SECURITY_HEADERS = {
    "Server": "payloops",
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "Strict-Transport-Security": "max-age=31536000; includeSubDomains",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


class Answer:
    """A response without headers of its own, for aiohttp, which only needs `prepare`, `write_eof` and `keep_alive`.

    aiohttp's own responses have a dictionary of headers, each of which is inspected several times. This one, whose
    headers are known, takes a fifth of the time.
    """

    __slots__ = ("_body", "_correlation_id", "_media", "_request", "status")

    keep_alive = True

    def __init__(self, *, status: int, body: bytes, media: str) -> None:
        self.status = status
        self._body = body
        self._media = media

    def response(self) -> web.Response:
        """The same as an aiohttp response, to which headers may be added, and which may close the connection."""
        return web.Response(status=self.status, body=self._body, content_type=self._media)

    def can_answer(self, request: web.Request) -> bool:
        """Whether this kind of response is right for a request: HTTP/1.1, keep-alive, not HEAD."""
        return request.keep_alive and request.version == HttpVersion11 and request.method != hdrs.METH_HEAD

    def set_correlation_id(self, correlation_id: str) -> None:
        """To be called before it is sent."""
        self._correlation_id = correlation_id

    async def prepare(self, request: web.Request) -> None:
        self._request = request

    async def write_eof(self) -> None:
        transport = self._request.transport
        if transport is None or transport.is_closing():
            raise ConnectionResetError("the client has disconnected")
        transport.write(self.encoded())
        await self._request.writer.drain()

    def encoded(self) -> bytes:
        """Head and body."""
        body, now = self._body, http_date(int(time.time()))
        return _head(self.status, self._media) % (len(body), now, self._correlation_id.encode()) + body


@cache
def _head(status: int, media: str) -> bytes:
    headers = {
        hdrs.CONTENT_TYPE: media,
        hdrs.CONTENT_LENGTH: "%d",
        hdrs.DATE: "%s",
        **SECURITY_HEADERS,
        CORRELATION_HEADER: "%s",
    }
    return head_bytes(status, headers)


def dated_head(response: web.StreamResponse, *, body: bytes, closing: bool) -> bytes:
    """The head of a response with any headers, with `Date` and `Content-Length` added."""
    headers = CIMultiDict(response.headers)
    if response.status != HTTPStatus.NO_CONTENT:
        headers[hdrs.CONTENT_LENGTH] = str(len(body))
    headers[hdrs.DATE] = http_date(int(time.time())).decode()
    if closing:
        headers[hdrs.CONNECTION] = "close"
    return head_bytes(response.status, headers)


def head_bytes(status: int, headers: Mapping[str, str]) -> bytes:
    """Status line, headers, and the empty line after them."""
    assert not any("\r" in value or "\n" in value for value in headers.values()), "a header has one line"
    lines = (f"{name}: {value}" for name, value in headers.items())
    return "\r\n".join([f"HTTP/1.1 {status} {HTTPStatus(status).phrase}", *lines, "", ""]).encode()


@lru_cache(maxsize=1)
def http_date(second: int) -> bytes:
    """The value of `Date`.

    Args:
        second: since 1970.
    """
    return formatdate(second, usegmt=True).encode()
