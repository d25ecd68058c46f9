"""Around every request: correlation id, access log, security headers, CORS, and problems as answers."""

import re
import time
from functools import cache

import structlog
from aiohttp import hdrs, web
from aiohttp.typedefs import Handler, Middleware
from multidict import CIMultiDict
from prometheus_client import Counter, Histogram
from uuid_utils import uuid4

from payloops.http.admission import Shed
from payloops.http.cards import holds_card_number
from payloops.http.html import refusal_page
from payloops.http.problems import internal_error, problem_of
from payloops.http.services import SERVICES

CORRELATION_ID = web.RequestKey("correlation_id", str)
PAGE = web.RequestKey("page", bool)
"""Whether people look at the answer."""
SHED = web.RequestKey("shed", bool)
"""Whether the request was turned away because there is too much to do."""
CORRELATION_HEADER = "X-Correlation-ID"
_CORRELATION_FORM = re.compile("[A-Za-z0-9._-]{1,128}")

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
CORS_METHODS = "GET, POST, PUT, PATCH, DELETE"
CORS_REQUEST_HEADERS = "Authorization, Content-Type, Idempotency-Key, Prefer, X-API-Key, X-Correlation-ID"
CORS_ANSWER_HEADERS = "Idempotent-Replayed, Preference-Applied, Retry-After, X-Correlation-ID"
PREFLIGHT_SECONDS = "600"
NO_ROUTE = "none"
"""In place of a route, where there is none."""

REQUESTS = Counter("payloops_http_requests", "Requests answered", ["method", "route", "status"])
REQUEST_SECONDS = Histogram(
    "payloops_http_request_duration_seconds",
    "From a request's head to its answer, waiting that the client asked for included",
    ["method", "route"],
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
)

log = structlog.get_logger()


def correlation_id(request: web.BaseRequest) -> str:
    """The client's, where it sent one that fits, else a new one."""
    return fitting_correlation_id(request.headers.get(CORRELATION_HEADER, ""))


def fitting_correlation_id(given: str) -> str:
    """What the client sent, where it fits, else a new one."""
    # Correlation ids are logged and stored: one that could be a card number is neither.
    if _CORRELATION_FORM.fullmatch(given) and not holds_card_number(given):
        return given
    return str(uuid4())


def frame(*, cors_origins: tuple[str, ...]) -> Middleware:
    """The outermost middleware."""
    cors = Cors(cors_origins)

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        started = time.perf_counter()
        request[CORRELATION_ID] = correlation_id(request)
        structlog.contextvars.bind_contextvars(correlation_id=request[CORRELATION_ID])
        preflight = cors.preflight(request)
        response = preflight if preflight is not None else await _answer(request, handler)
        response.headers.extend(cors.headers(request))
        for name, value in SECURITY_HEADERS.items():
            response.headers.setdefault(name, value)
        response.headers[CORRELATION_HEADER] = request[CORRELATION_ID]
        if request.app[SERVICES].stopping.is_set():
            response.force_close()
        _note(request, response, seconds=time.perf_counter() - started)
        return response

    return middleware


async def _answer(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except ConnectionError:
        raise  # the client went away: nobody is left to answer
    except Exception as error:
        problem = problem_of(error)
        if problem is None:
            log.exception("http.internal_error")
            problem = internal_error()
        elif isinstance(problem, Shed):
            request[SHED] = True
        elif problem.status >= 500:  # noqa: PLR2004  # HTTP
            cause = error.__cause__ or error
            log.warning("http.unavailable", error=type(cause).__name__)
        if request.get(PAGE, False):
            return refusal_page(problem, request, correlation_id=request[CORRELATION_ID])
        return problem.response(correlation_id=request[CORRELATION_ID])


def _note(request: web.Request, response: web.StreamResponse, *, seconds: float) -> None:
    """Count the request, and log it, unless the process has too much to do for that."""
    # The route's template in place of the path: what clients put into paths is not for the log.
    resource = request.match_info.route.resource
    route = resource.canonical if resource is not None else None
    method = request.method if request.method in hdrs.METH_ALL else "?"
    count_answer(method, route or NO_ROUTE, response.status)
    if isinstance(response, web.Response):  # a stream takes as long as somebody follows it
        _duration(method, route or NO_ROUTE).observe(seconds)
    if request.get(SHED, False):
        return
    record = log.error if response.status >= 500 else log.info  # noqa: PLR2004  # HTTP
    record(
        "http.request",
        method=method,
        route=route,
        status=response.status,
        milliseconds=round(seconds * 1000, 1),
        remote=request.remote,
    )


def count_answer(method: str, route: str, status: int) -> None:
    """One more was answered."""
    _answered(method, route, status).inc()


# The library checks the labels, makes texts of them and takes a lock, each time.
@cache
def _answered(method: str, route: str, status: int) -> Counter:
    return REQUESTS.labels(method, route, status)


@cache
def _duration(method: str, route: str) -> Histogram:
    return REQUEST_SECONDS.labels(method, route)


class Cors:
    """Which origins browsers may call from (the Fetch standard's CORS protocol)."""

    def __init__(self, origins: tuple[str, ...]) -> None:
        self._any = "*" in origins
        self._origins = frozenset(origins) - {"*"}

    def headers(self, request: web.Request) -> CIMultiDict[str]:
        """Headers of an answer; none where the request is not from an allowed origin."""
        origin = request.headers.get(hdrs.ORIGIN)
        headers: CIMultiDict[str] = CIMultiDict()
        if self._origins:
            headers[hdrs.VARY] = hdrs.ORIGIN
        if origin is not None and origin in self._origins:
            headers[hdrs.ACCESS_CONTROL_ALLOW_ORIGIN] = origin
            headers[hdrs.ACCESS_CONTROL_ALLOW_CREDENTIALS] = "true"
        elif origin is not None and self._any:
            headers[hdrs.ACCESS_CONTROL_ALLOW_ORIGIN] = "*"
        else:
            return headers
        headers[hdrs.ACCESS_CONTROL_EXPOSE_HEADERS] = CORS_ANSWER_HEADERS
        headers["Cross-Origin-Resource-Policy"] = "cross-origin"
        return headers

    def preflight(self, request: web.Request) -> web.Response | None:
        """The answer to a browser that asks before it calls, None where the request is not that."""
        if request.method != hdrs.METH_OPTIONS or hdrs.ACCESS_CONTROL_REQUEST_METHOD not in request.headers:
            return None
        response = web.Response(status=204)
        if hdrs.ACCESS_CONTROL_ALLOW_ORIGIN in self.headers(request):
            response.headers[hdrs.ACCESS_CONTROL_ALLOW_METHODS] = CORS_METHODS
            response.headers[hdrs.ACCESS_CONTROL_ALLOW_HEADERS] = CORS_REQUEST_HEADERS
            response.headers[hdrs.ACCESS_CONTROL_MAX_AGE] = PREFLIGHT_SECONDS
        return response
