"""Client connections: deadlines for slow clients, plain requests without aiohttp, and errors before any handler runs.

aiohttp waits for a request's head, and for a client to read its answer, for as long as the connection lives; here
both have a deadline. Requests in the plainest form are refused or answered from their raw bytes. What aiohttp answers
by itself, to what is not valid HTTP, becomes problem+json like every other error.
"""

import asyncio
import re
import socket
import time
from functools import partial
from typing import Any

import structlog
from aiohttp import HttpVersion10, HttpVersion11, hdrs, web
from aiohttp.http_exceptions import (
    BadHttpMessage,
    BadStatusLine,
    InvalidURLError,
    LineTooLong,
    TransferEncodingError,
)
from aiohttp.http_parser import RawRequestMessage
from aiohttp.streams import StreamReader
from aiohttp.web_protocol import ERROR, RequestHandler, _ErrInfo
from multidict import CIMultiDict, CIMultiDictProxy
from prometheus_client import Counter

from payloops.http.admission import Admission
from payloops.http.answers import CORRELATION_HEADER, SECURITY_HEADERS
from payloops.http.early_refusals import HOST, Head, read_head, refusal
from payloops.http.middleware import correlation_id
from payloops.http.plain_requests import Handler, PlainRequest, PlainRoutes, answer_bytes
from payloops.http.problems import FieldError, Problem, internal_error, validation_error
from payloops.http.request_metrics import NO_ROUTE, count_answer

HEAD_DEADLINE = 10.0
"""Seconds in which the request line and all headers have to arrive."""
WRITE_DEADLINE = 20.0
"""Seconds in which a client has to read its answer, once the connection's write buffer is full."""
KEEPALIVE = 75.0
"""Seconds that a connection may be idle between requests."""

MOST_AHEAD = 64 * 1024
"""Bytes of further requests that are read while one is answered."""

CONTINUE = "100-continue"
"""The only expectation there is (RFC 9110, 10.1.1)."""

VERSIONS = (HttpVersion10, HttpVersion11)
_HOST = re.compile(HOST, re.IGNORECASE | re.ASCII)


class InvalidHost(BadHttpMessage):
    """The `Host` header names no host (RFC 9112, 3.2)."""


FAULTS: dict[type, str] = {
    BadStatusLine: "Has a request line that does not end in HTTP/1.0 or HTTP/1.1",
    InvalidHost: "Has a Host header that names no host",
    InvalidURLError: "Has a target that is no path, nor a URL with a host",
    LineTooLong: "Has a line of more than 8,190 bytes",
    TransferEncodingError: "Has a Transfer-Encoding other than chunked",
}
"""What is wrong with a request, by the error, where more is to be said than that it is not valid HTTP."""

DRAIN_PAUSE = 0.02
"""Seconds between two checks whether the requests in flight have finished."""

ARRIVAL_SECONDS = 2.0
"""How long requests that have not arrived yet are waited for when the process ends: those on connections that were
accepted just before the listener closed, mostly. Some clients connect ahead, and send nothing for long."""

MALFORMED = Counter("payloops_http_requests_malformed", "Requests that are not valid HTTP")

log = structlog.get_logger()


class Connection(RequestHandler):
    """One client's connection."""

    __slots__ = (
        *(
            "_admission",
            "_announced",
            "_answered",
            "_answering",
            "_head",
            "_head_timer",
            "_ahead",
            "_body",
            "_factory",
            "_fault",
            "_remaining",
            "_plain",
            "_remote",
        ),
        "_write_timer",
    )

    def __init__(
        self,
        server: web.Server,
        *,
        loop: asyncio.AbstractEventLoop,
        admission: Admission | None,
        plain: PlainRoutes | None,
    ) -> None:
        super().__init__(
            server,
            loop=loop,
            access_log=None,  # type: ignore[arg-type]  # as web.run_app passes it; the frame logs
            keepalive_timeout=KEEPALIVE,
            lingering_time=2.0,
            auto_decompress=False,  # compressed bodies are refused, not unpacked
        )
        self._factory, self._request_factory = self._request_factory, self._make_request
        self._body: StreamReader | None = None  # of the current request, on aiohttp's path
        self._fault: BadHttpMessage | None = None  # of the current request, if aiohttp cannot represent it
        self._admission = admission
        self._plain = plain
        self._answering: asyncio.Task[None] | None = None  # of a plain request
        self._ahead = bytearray()  # received while it is answered
        self._announced = False
        self._head: Head | None = None  # of the previous request
        self._answered = 0  # by aiohttp: requests that are finished and left the connection open
        self._remaining: int | None = 0  # bytes of this request still to come; None: unknown
        self._head_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None

    @property
    def busy(self) -> bool:
        """Whether a request is being read or answered."""
        return self._request_in_progress or bool(self._messages)

    @property
    def awaited(self) -> bool:
        """Whether the first request, or the rest of a head, is still to arrive."""
        return self._head_timer is not None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._remote = _remote_of(self.peername)
        self._start_timer()
        sock = transport.get_extra_info("socket")
        if hasattr(socket, "TCP_USER_TIMEOUT") and sock.family != socket.AF_UNIX:
            # For answers smaller than the write buffer, and after closing, the kernel enforces the deadline.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(WRITE_DEADLINE * 2_000))

    def data_received(self, data: bytes) -> None:
        if self._answering is not None:
            self._ahead += data
            if self.transport is not None and len(self._ahead) > MOST_AHEAD:
                self.transport.pause_reading()
            return
        # aiohttp also calls this itself, without data.
        if data and self._admission is not None and self._remaining is not None:
            head = self._head_of(data, remaining=self._remaining)
            if head is not None and head.plain and self._remaining == 0:
                if self._admission.full:
                    if self._ready:
                        self._refuse(head, self._admission)
                        return
                else:
                    self._announce(self._admission)
                    if self._plain is not None and self._ready and self._begin_plain(head, self._plain, data):
                        return
        super().data_received(data)
        self._break_off_body()
        # If no request is being read or answered, these are the first bytes of a head.
        if self.busy or self._payload_parser is not None:
            self._stop_timer()
        elif self._head_timer is None and self._waiter is not None:
            self._start_timer()

    def _head_of(self, data: bytes, *, remaining: int) -> Head | None:
        """The head that these bytes begin with, if any. Keeps track of where the next request begins."""
        head = read_head(data, self._head) if remaining == 0 else None
        if head is not None:
            self._head = head
            remaining = len(head.raw) + head.lines.body_length
        left = remaining - len(data)
        # Pipelined requests, and heads that cannot be read here, are left to aiohttp, whose position is unknown.
        self._remaining = left if left >= 0 else None
        return head

    @property
    def _ready(self) -> bool:
        """Whether the next request can be answered now: none is before it, and the client reads its answers.

        aiohttp returns to wait for a request one turn of the loop after the last answer. A fast client has sent it by
        then, so requests are counted instead.
        """
        ends = self._close or self._force_close
        return self._answered == self._request_count and not self._paused and not ends

    def _refuse(self, head: Head, admission: Admission) -> None:
        assert self.transport is not None
        self.transport.write(refusal(head))
        self._stop_timer()
        self._keep_open()
        admission.count_refused()
        count_answer(head.method, NO_ROUTE, 503)

    def _begin_plain(self, head: Head, routes: PlainRoutes, data: bytes) -> bool:
        """Begin to answer a request that has arrived as a whole; False if it has to take the usual path."""
        found = routes.find(head)
        if found is None:
            return False
        handler, id = found
        request: Any = PlainRequest(head, id=id, body=data[len(head.raw) :], remote=self._remote)
        if self._head_timer is not None:
            self._stop_timer()
        self._keepalive = False
        self._request_in_progress = True
        self._answering = self._loop.create_task(self._answer_plain(request, handler))
        return True

    async def _answer_plain(self, request: web.Request, handler: Handler) -> None:
        stays = False
        try:
            self._withdraw()  # it is about to be counted as work
            try:
                answer = await handler(request)
            except Exception as error:  # noqa: BLE001  # answered as on the usual path
                answer = self._answer_unhandled(request, error)
            sent, stays = answer_bytes(answer)
            if self.transport is not None:
                self.transport.write(sent)
                if self._paused:
                    await self._drain_helper()
        except ConnectionError:
            stays = False  # the client has left
        finally:
            self._end_plain(stays=stays)

    def _end_plain(self, *, stays: bool) -> None:
        self._answering = None
        self._request_in_progress = False
        if self._handler_waiter is not None:
            self._handler_waiter.set_result(None)
        if not stays:
            self.force_close()
        elif self.transport is not None:
            self._keep_open()
            if self._ahead:
                ahead = bytes(self._ahead)
                self._ahead.clear()
                self.transport.resume_reading()
                self.data_received(ahead)

    async def shutdown(self, timeout: float | None = 15.0) -> None:  # noqa: ASYNC109  # aiohttp's
        await super().shutdown(timeout)
        if self._answering is not None:
            self._answering.cancel()

    def _keep_open(self) -> None:
        """Keep the connection open for the next request, as long as aiohttp does, which may not have seen any yet."""
        self._keepalive = True
        self._next_keepalive_close_time = self._loop.time() + KEEPALIVE
        if self._keepalive_handle is None:
            self._keepalive_handle = self._loop.call_at(
                self._next_keepalive_close_time, self._process_keepalive
            )

    def _announce(self, admission: Admission) -> None:
        """Announce a request until it counts as work, which takes aiohttp some turns of the loop."""
        if not self._announced:
            self._announced = True
            admission.announced += 1

    def _withdraw(self) -> None:
        if self._announced and self._admission is not None:
            self._announced = False
            self._admission.announced -= 1

    def _break_off_body(self) -> None:
        """End a body that turned out to be framed wrongly while it arrived: aiohttp would wait for the rest."""
        if not self._messages or not isinstance(self._messages[-1][0], _ErrInfo):
            return
        body = self._messages[-2][1] if len(self._messages) > 1 else self._body
        if body is not None and not body.is_eof():
            body.set_exception(web.RequestPayloadError("framed wrongly"))
            self._lingering_time = 0.0  # nothing is left to be read

    def _make_request(self, message: RawRequestMessage, body: StreamReader, *others: Any) -> web.BaseRequest:
        assert self._factory is not None
        self._body = body
        if message.chunked or message.upgrade or message.method == hdrs.METH_CONNECT:
            # Nothing may follow on the connection: aiohttp takes the last line of a trailer for a header of the next
            # request, which may be somebody else's behind a proxy, and the body of a CONNECT for a request. Of what is
            # sent together with a request for an upgrade, it answers nothing: the next answer would be another's.
            message = message._replace(should_close=True)
        self._fault = None
        try:
            return self._factory(message, body, *others)
        except ValueError:
            # A host in the target that is no IDNA. Nobody would answer, nor ever close the connection.
            self._fault = InvalidURLError("not a host")
            return self._factory(ERROR, body, *others)

    async def _handle_request(
        self, request: web.BaseRequest, start_time: float | None, request_handler: Any
    ) -> tuple[web.StreamResponse, bool]:
        self._withdraw()  # it is about to be counted as work
        _ignore_expectation(request)
        fault = self._fault or _fault_of(request)
        if fault is not None:
            request_handler = partial(self._refuse_request, fault=fault)
        response, lost = await super()._handle_request(request, start_time, request_handler)
        self._body = None
        if response.keep_alive and not lost:
            self._answered += 1
        return response, lost

    async def _refuse_request(self, request: web.BaseRequest, *, fault: BadHttpMessage) -> web.StreamResponse:
        return self.handle_error(request, 400, fault)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._withdraw()
        self._stop_timer()
        self._stop_write_timer()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        if self.transport is not None:
            self._write_timer = self._loop.call_later(WRITE_DEADLINE, self._write_timed_out, self.transport)

    def resume_writing(self) -> None:
        self._stop_write_timer()
        super().resume_writing()

    def _write_timed_out(self, transport: asyncio.Transport) -> None:
        self._write_timer = None
        log.info("http.not_taken", bytes=transport.get_write_buffer_size())
        transport.abort()

    def _stop_write_timer(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def _start_timer(self) -> None:
        self._head_timer = self._loop.call_later(HEAD_DEADLINE, self._too_slow)

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _too_slow(self) -> None:
        self._head_timer = None
        if not self.busy:
            self.force_close()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,  # noqa: ARG002  # may contain what the client sent
    ) -> web.StreamResponse:
        """The answer to what is not valid HTTP, or to an exception that no handler caught. It closes the connection.

        Raises:
            ConnectionError: a part of another answer was sent, or the client has left.
        """
        if status >= 500:  # noqa: PLR2004  # HTTP
            response = self._answer_unhandled(request, exc)
        else:
            MALFORMED.inc()
            log.info("http.malformed", status=status, error=type(exc).__name__, remote=request.remote)
            problem = validation_error(FieldError("request", FAULTS.get(type(exc), "Is not valid HTTP")))
            response = _final(problem, correlation=correlation_id(request))
            request._version = HttpVersion11  # noqa: SLF001  # the answer's, whatever the request's
        if request.writer.output_size > 0:
            raise ConnectionError("a part of another answer is sent already")
        return response

    def _answer_unhandled(self, request: web.BaseRequest, error: BaseException | None) -> web.Response:
        """The answer to an exception that no handler caught.

        Raises:
            ConnectionError: the client has left.
        """
        if isinstance(error, ConnectionError) and self.transport is None:
            log.info("http.client_left", remote=request.remote)  # in the middle of a body, mostly
            raise error
        correlation = correlation_id(request)
        log.error("http.escaped", exc_info=error, correlation_id=correlation)
        return _final(internal_error(), correlation=correlation)


def _ignore_expectation(request: web.BaseRequest) -> None:
    """Remove an `Expect` with an unknown value, which is to be ignored: aiohttp refuses it where there is no route."""
    # Not by `request.headers`, which remembers its value, nor by `clone`, which encodes all headers again.
    headers = request._headers  # noqa: SLF001
    if headers.get(hdrs.EXPECT, CONTINUE).lower() != CONTINUE:
        left = CIMultiDict(headers)
        left.popall(hdrs.EXPECT)
        request._headers = CIMultiDictProxy(left)  # noqa: SLF001


def _fault_of(request: web.BaseRequest) -> BadHttpMessage | None:
    """What is wrong with a request that aiohttp accepts."""
    # Not by `request.headers` and `request.version`, which remember their values.
    headers, version = request._headers, request._version  # noqa: SLF001
    if version not in VERSIONS:
        return BadStatusLine("another version")
    host = headers.get(hdrs.HOST)
    if host is not None and _HOST.fullmatch(host) is None:
        return InvalidHost("no host")
    # aiohttp would pass on a body with another transfer coding than `chunked` as it is, still coded.
    codings = headers.get(hdrs.TRANSFER_ENCODING, "chunked").split(",")
    if [each.strip(" \t").lower() for each in codings if each.strip()] != ["chunked"]:
        return TransferEncodingError("other codings than chunked")
    return None


def _remote_of(peer: Any) -> str | None:
    """As `web.Request` has it."""
    return str(peer[0]) if isinstance(peer, tuple) else None if peer is None else str(peer)


def _final(problem: Problem, *, correlation: str) -> web.Response:
    """A problem as the last answer on a connection."""
    response = problem.response(correlation_id=correlation)
    response.headers.extend({**SECURITY_HEADERS, CORRELATION_HEADER: correlation})
    response.force_close()
    return response


def connection_factory(
    server: web.Server, *, admission: Admission | None = None, plain: PlainRoutes | None = None
) -> Any:
    """What the event loop calls for every connection that it accepts.

    Args:
        admission: with it, requests are refused from their raw bytes while it is full.
        plain: routes whose plain requests are answered without aiohttp; without it, none are.
    """
    loop = asyncio.get_running_loop()
    return lambda: Connection(server, loop=loop, admission=admission, plain=plain)


async def finish_requests(server: web.Server, *, seconds: float) -> None:
    """Wait until no connection is busy any more, nor new.

    To be called before aiohttp's own shutdown, which stops reading bodies that are still arriving.
    """
    began = time.monotonic()
    while (waited := time.monotonic() - began) < seconds:
        arriving = waited < ARRIVAL_SECONDS
        connections = (each for each in server.connections if isinstance(each, Connection))
        if not any(each.busy or (arriving and each.awaited) for each in connections):
            return
        await asyncio.sleep(DRAIN_PAUSE)
