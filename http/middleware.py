"""The middleware around every request: correlation id, access log, security headers, CORS, errors as problems."""

import re
import time
from typing import cast

import structlog
from aiohttp import hdrs, web
from aiohttp.typedefs import Handler, Middleware
from multidict import CIMultiDict
from uuid_utils import uuid4

from payloops.commands.cards import holds_card_number
from payloops.commands.cipher import REMEDY, SealBroken
from payloops.events.connections import SCHEMA_ERRORS, one_line
from payloops.http.admission import Shed
from payloops.http.answers import CORRELATION_HEADER, SECURITY_HEADERS, Answer
from payloops.http.html import refusal_page
from payloops.http.problems import internal_error, problem_of
from payloops.http.request_context import CONTEXT, Level, RequestContext, begin_request, log_request
from payloops.http.request_metrics import NO_ROUTE, count_answer
from payloops.http.services import Services

_FOR_PEOPLE = re.compile("/(?:support|checkout)(?:/|$)")
"""Paths that only browsers ask for: where there is no such route, the answer is a page, too."""
_CORRELATION_FORM = re.compile("[A-Za-z0-9._-]{1,128}")

CORS_METHODS = "GET, POST, PUT, PATCH, DELETE"
CORS_REQUEST_HEADERS = "Authorization, Content-Type, Idempotency-Key, Prefer, X-API-Key, X-Correlation-ID"
CORS_ANSWER_HEADERS = "Idempotent-Replayed, Preference-Applied, Retry-After, X-Correlation-ID"
PREFLIGHT_SECONDS = "600"
log = structlog.get_logger()


def correlation_id(request: web.BaseRequest) -> str:
    """The client's correlation id, if it sent a valid one, else a new one."""
    given = request.headers.get(CORRELATION_HEADER)
    return fitting_correlation_id(given) if given is not None else str(uuid4())


def fitting_correlation_id(given: str) -> str:
    """The id that the client sent, if it is valid, else a new one."""
    # Correlation ids are logged and stored, so one that could be a card number is replaced.
    if _CORRELATION_FORM.fullmatch(given) and not holds_card_number(given):
        return given
    return str(uuid4())


def frame(services: Services) -> Middleware:
    """The outermost middleware."""
    cors = Cors(services.cors_origins)
    stopping = services.stopping

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        started = time.perf_counter()
        request[CONTEXT] = context = begin_request(correlation_id(request))
        try:
            preflight = cors.preflight(request) if request.method == hdrs.METH_OPTIONS else None
            response: web.StreamResponse | Answer = (
                preflight if preflight is not None else await handler(request)
            )
        except ConnectionError:
            raise  # the client has disconnected: there is nobody to answer
        except Exception as error:  # noqa: BLE001  # every other exception is answered
            response = _refusal(error, request, context)
        if isinstance(response, Answer):
            if response.can_answer(request) and not cors.applies_to(request) and not stopping.is_set():
                response.set_correlation_id(context.correlation_id)
                _record(request, context, response, seconds=time.perf_counter() - started)
                return cast("web.Response", response)
            response = response.response()
        # Pages may be opened by a cookie, so no other origin may read them, not even one of `cors_origins`.
        if not context.page:
            response.headers.extend(cors.headers(request))
        for name, value in SECURITY_HEADERS.items():
            response.headers.setdefault(name, value)
        response.headers[CORRELATION_HEADER] = context.correlation_id
        if stopping.is_set():
            response.force_close()
        _record(request, context, response, seconds=time.perf_counter() - started)
        return response

    return middleware


def _refusal(error: Exception, request: web.Request, context: RequestContext) -> web.Response:
    problem = problem_of(error)
    if problem is None:
        log.error("http.internal_error", exc_info=error)
        problem = internal_error()
    elif isinstance(error, SealBroken):
        log.error("http.secret_unreadable", identity=error.identity, remedy=REMEDY)
    elif isinstance(error, SCHEMA_ERRORS):
        log.error("http.schema_differs", error=one_line(error), exc_info=error)
    elif isinstance(problem, Shed):
        context.shed = True
    elif problem.status >= 500:  # noqa: PLR2004  # HTTP
        cause = error.__cause__ or error
        log.warning("http.unavailable", error=type(cause).__name__)
    if context.page or (context.route is None and _FOR_PEOPLE.match(request.path)):
        return refusal_page(problem, request, correlation_id=context.correlation_id)
    return problem.response(correlation_id=context.correlation_id)


def _record(
    request: web.Request, context: RequestContext, response: web.StreamResponse | Answer, *, seconds: float
) -> None:
    """Count the request, and log it, unless it was refused because of overload."""
    # The route's template instead of the path, because clients may put anything into a path.
    method, status, route = request.method, response.status, context.route
    if method not in hdrs.METH_ALL:
        method = "?"
    stream = type(response) is web.StreamResponse  # lasts as long as the client stays
    count_answer(method, route or NO_ROUTE, status, seconds=None if stream else seconds)
    if not context.shed:
        fields = {
            "method": method,
            "route": route,
            "status": status,
            "milliseconds": round(seconds * 1000, 1),
            "remote": request.remote,
        }
        log_request(context, _level(status), fields)


def _level(status: int) -> Level:
    """A defect is an error. What is unavailable or late for a while, as `/ready` before each restart, is none."""
    if status in {503, 504}:
        return "warning"
    return "error" if status >= 500 else "info"  # noqa: PLR2004  # HTTP


class Cors:
    """Which origins browsers may call from (the Fetch standard's CORS protocol)."""

    def __init__(self, origins: tuple[str, ...]) -> None:
        self._any = "*" in origins
        self._origins = frozenset(origins) - {"*"}

    def applies_to(self, request: web.Request) -> bool:
        """Whether the answer to this request needs any of `headers`."""
        return bool(self._origins) or hdrs.ORIGIN in request.headers

    def headers(self, request: web.Request) -> CIMultiDict[str]:
        """CORS headers of an answer; at most `Vary` if the request is not from an allowed origin."""
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
        """The answer to a preflight request; None if this OPTIONS request is none."""
        if hdrs.ACCESS_CONTROL_REQUEST_METHOD not in request.headers:
            return None
        response = web.Response(status=204)
        if hdrs.ACCESS_CONTROL_ALLOW_ORIGIN in self.headers(request):
            response.headers[hdrs.ACCESS_CONTROL_ALLOW_METHODS] = CORS_METHODS
            response.headers[hdrs.ACCESS_CONTROL_ALLOW_HEADERS] = CORS_REQUEST_HEADERS
            response.headers[hdrs.ACCESS_CONTROL_MAX_AGE] = PREFLIGHT_SECONDS
        return response
