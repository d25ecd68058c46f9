"""Client connections: deadlines for slow clients, and answers to those that do not speak HTTP.

aiohttp waits for a request's head, and for a client to read its answer, for as long as the connection lives; here
both have a deadline. What aiohttp itself answers before any handler runs becomes problem+json like every other error.
"""

import asyncio
import socket
import time
from typing import Any

import structlog
from aiohttp import web
from aiohttp.http_exceptions import LineTooLong
from aiohttp.web_protocol import RequestHandler
from prometheus_client import Counter

from payloops.http.admission import Admission
from payloops.http.answers import CORRELATION_HEADER, SECURITY_HEADERS
from payloops.http.early_refusals import Head, read_head, refusal
from payloops.http.middleware import correlation_id
from payloops.http.plain_requests import Handler, PlainRequest, PlainRoutes, answer_bytes
from payloops.http.problems import FieldError, Problem, internal_error, validation_error
from payloops.http.request_metrics import NO_ROUTE, count_answer

HEAD_DEADLINE = 10.0
"""Seconds in which the request line and all headers have to arrive."""
TAKE_DEADLINE = 20.0
"""Seconds in which a client has to take what was sent, once more of it waits than a connection buffers."""
KEEPALIVE = 75.0
"""Seconds that a connection may be idle between requests."""

MOST_LATER = 64 * 1024
"""Bytes that are read ahead while a request is answered."""

DRAIN_PAUSE = 0.02
"""Seconds between two looks at whether requests in flight have finished."""

MALFORMED = Counter("payloops_http_requests_malformed", "What came in and was no HTTP request")

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
            "_later",
            "_owed",
            "_plain",
            "_remote",
        ),
        "_take_timer",
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
        self._admission = admission
        self._plain = plain
        self._answering: asyncio.Task[None] | None = None  # of a plain request
        self._later = bytearray()  # what arrived while it was answered
        self._announced = False
        self._head: Head | None = None  # of the request before
        self._answered = 0  # requests of which all is done, and after which the connection stays
        self._owed: int | None = 0  # bytes of the request that has begun to arrive; None: not known any more
        self._head_timer: asyncio.TimerHandle | None = None
        self._take_timer: asyncio.TimerHandle | None = None

    @property
    def busy(self) -> bool:
        """Whether a request is being read or answered."""
        return self._request_in_progress or bool(self._messages)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._remote = _remote_of(self.peername)
        self._start_timer()
        sock = transport.get_extra_info("socket")
        if hasattr(socket, "TCP_USER_TIMEOUT") and sock.family != socket.AF_UNIX:
            # What is less than the connection buffers, the kernel waits for: also after the end, and no longer.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(TAKE_DEADLINE * 2_000))

    def data_received(self, data: bytes) -> None:
        if self._answering is not None:
            self._later += data
            if self.transport is not None and len(self._later) > MOST_LATER:
                self.transport.pause_reading()
            return
        if data and self._admission is not None and self._owed is not None:  # aiohttp also calls with none
            head = self._head_of(data, owed=self._owed)
            if head is not None and head.plain and self._owed == 0:
                if self._admission.full:
                    if self._waits:
                        self._turn_away(head, self._admission)
                        return
                else:
                    self._announce(self._admission)
                    if self._plain is not None and self._waits and self._begin_plain(head, self._plain, data):
                        return
        super().data_received(data)
        # Nobody is answering and nothing is there to be answered: these were the first bytes of a head.
        if self.busy or self._payload_parser is not None:
            self._stop_timer()
        elif self._head_timer is None and self._waiter is not None:
            self._start_timer()

    def _head_of(self, data: bytes, *, owed: int) -> Head | None:
        """The head that these bytes begin with, where they begin with one; keeps count of what belongs to it."""
        head = read_head(data, self._head) if owed == 0 else None
        if head is not None:
            self._head = head
            owed = len(head.raw) + head.lines.body_length
        left = owed - len(data)
        # What is sent ahead, or cannot be read here, is aiohttp's parser's, which does not tell how far it is.
        self._owed = left if left >= 0 else None
        return head

    @property
    def _waits(self) -> bool:
        """Whether the next request would be answered now: none is before it, and the client takes its answers.

        aiohttp comes back to wait for it a turn of the loop after the answer before, when who is fast has sent it.
        """
        ends = self._close or self._force_close
        return self._answered == self._request_count and not self._paused and not ends

    def _turn_away(self, head: Head, admission: Admission) -> None:
        assert self.transport is not None
        self.transport.write(refusal(head))
        self._stop_timer()
        self._stay()
        admission.count_turned_away()
        count_answer(head.method, NO_ROUTE, 503)

    def _begin_plain(self, head: Head, routes: PlainRoutes, data: bytes) -> bool:
        """Answer a request that is here as a whole; whether it is one that can be."""
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
            self._take_back()  # it is going to ask
            try:
                answer = await handler(request)
            except Exception as error:  # noqa: BLE001  # as aiohttp does
                answer = self._escaped(request, error)
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
            self._stay()
            if self._later:
                later = bytes(self._later)
                self._later.clear()
                self.transport.resume_reading()
                self.data_received(later)

    async def shutdown(self, timeout: float | None = 15.0) -> None:  # noqa: ASYNC109  # aiohttp's
        await super().shutdown(timeout)
        if self._answering is not None:
            self._answering.cancel()

    def _stay(self) -> None:
        """Wait for another request as long as after an answer of aiohttp's, which has seen none yet, perhaps."""
        self._keepalive = True
        self._next_keepalive_close_time = self._loop.time() + KEEPALIVE
        if self._keepalive_handle is None:
            self._keepalive_handle = self._loop.call_at(
                self._next_keepalive_close_time, self._process_keepalive
            )

    def _announce(self, admission: Admission) -> None:
        """Keep a place until the request asks for it, which takes aiohttp some turns of the loop."""
        if not self._announced:
            self._announced = True
            admission.announced += 1

    def _take_back(self) -> None:
        if self._announced and self._admission is not None:
            self._announced = False
            self._admission.announced -= 1

    async def _handle_request(self, *arguments: Any) -> tuple[web.StreamResponse, bool]:
        self._take_back()  # it is going to ask
        response, lost = await super()._handle_request(*arguments)
        if response.keep_alive and not lost:
            self._answered += 1
        return response, lost

    def connection_lost(self, exc: BaseException | None) -> None:
        self._take_back()
        self._stop_timer()
        self._stop_take_timer()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        if self.transport is not None:
            self._take_timer = self._loop.call_later(TAKE_DEADLINE, self._not_taken, self.transport)

    def resume_writing(self) -> None:
        self._stop_take_timer()
        super().resume_writing()

    def _not_taken(self, transport: asyncio.Transport) -> None:
        self._take_timer = None
        log.info("http.not_taken", bytes=transport.get_write_buffer_size())
        transport.abort()

    def _stop_take_timer(self) -> None:
        if self._take_timer is not None:
            self._take_timer.cancel()
            self._take_timer = None

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
        message: str | None = None,  # noqa: ARG002  # may repeat what the client sent
    ) -> web.StreamResponse:
        """The answer to what is no HTTP request, or to what escaped every handler; the connection ends with it.

        Raises:
            ConnectionError: nobody is there to be answered any more.
        """
        if status >= 500:  # noqa: PLR2004  # HTTP
            response = self._escaped(request, exc)
        else:
            MALFORMED.inc()
            log.info("http.malformed", status=status, error=type(exc).__name__, remote=request.remote)
            too_long = isinstance(exc, LineTooLong)
            fault = "Has a line of more than 8,190 bytes" if too_long else "Is not valid HTTP"
            problem = validation_error(FieldError("request", fault))
            response = _last(problem, correlation=correlation_id(request))
        if request.writer.output_size > 0:
            raise ConnectionError("a part of another answer is sent already")
        return response

    def _escaped(self, request: web.BaseRequest, error: BaseException | None) -> web.Response:
        """The answer to what escaped every handler.

        Raises:
            ConnectionError: nobody is there to be answered any more.
        """
        if isinstance(error, ConnectionError) and self.transport is None:
            log.info("http.client_left", remote=request.remote)  # in the middle of a body, mostly
            raise error
        correlation = correlation_id(request)
        log.error("http.escaped", exc_info=error, correlation_id=correlation)
        return _last(internal_error(), correlation=correlation)


def _remote_of(peer: Any) -> str | None:
    """As `web.Request` has it."""
    return str(peer[0]) if isinstance(peer, tuple) else None if peer is None else str(peer)


def _last(problem: Problem, *, correlation: str) -> web.Response:
    """A problem, after which the connection ends."""
    response = problem.response(correlation_id=correlation)
    response.headers.extend({**SECURITY_HEADERS, CORRELATION_HEADER: correlation})
    response.force_close()
    return response


def connection_factory(
    server: web.Server, *, admission: Admission | None = None, plain: PlainRoutes | None = None
) -> Any:
    """What the event loop calls for every connection that it accepts.

    Args:
        admission: tells when requests are to be turned away as soon as they arrive.
        plain: who answers plain requests; besides, they go the usual way.
    """
    loop = asyncio.get_running_loop()
    return lambda: Connection(server, loop=loop, admission=admission, plain=plain)


async def finish_requests(server: web.Server, *, seconds: float) -> None:
    """Wait until no connection is busy any more.

    To be called before aiohttp's own shutdown, which stops reading bodies that are still arriving.
    """
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and any(  # noqa: ASYNC110  # aiohttp tells nobody when it has finished
        isinstance(each, Connection) and each.busy for each in server.connections
    ):
        await asyncio.sleep(DRAIN_PAUSE)
