"""The context of the current request: for the middleware, and for every line logged while it is handled."""

from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any, Literal, Protocol

import structlog
from aiohttp import web
from structlog.typing import EventDict

REQUEST_EVENT = "http.request"

log = structlog.get_logger()


class RequestContext:
    """
    Attributes:
        bound: fields of every line logged for the request: its correlation id, and its actor once that is known.
        route: the template of its path; None if there is no such route.
        page: whether the response is a page for people.
        shed: whether it was refused because of overload.
    """

    __slots__ = ("bound", "correlation_id", "page", "route", "shed")

    def __init__(self, correlation_id: str) -> None:
        self.correlation_id = correlation_id
        self.bound: dict[str, object] = {"correlation_id": correlation_id}
        self.route: str | None = None
        self.page = False
        self.shed = False


CONTEXT = web.RequestKey("context", RequestContext)

# In the task that handles a request, and in those that it starts.
_bound: ContextVar[Mapping[str, object]] = ContextVar("bound", default={})  # noqa: B039  # never changed


def begin_request(correlation_id: str) -> RequestContext:
    """Begin a request: from here on, lines that this task logs have its fields."""
    context = RequestContext(correlation_id)
    _bound.set(context.bound)
    return context


def merge_request(_: Any, __: str, line: EventDict) -> EventDict:
    """A structlog processor that adds the request's fields to a line, unless the line has them already."""
    for name, value in _bound.get().items():
        line.setdefault(name, str(value))
    return line


Level = Literal["info", "warning", "error"]


class LineWriter(Protocol):
    """Writes a request's line in the log, as structlog would."""

    def __call__(self, level: Level, bound: Mapping[str, object], fields: dict[str, Any]) -> None: ...


class RequestLines:
    """Where the lines of requests are written. `writer`: if None, structlog."""

    writer: LineWriter | None = None


def log_request(context: RequestContext, level: Level, fields: dict[str, Any]) -> None:
    """Log that a request was answered."""
    if RequestLines.writer is not None:
        RequestLines.writer(level, context.bound, fields)
    else:
        log.log(_LEVELS[level], REQUEST_EVENT, **fields)


_LEVELS: dict[Level, int] = {"info": 20, "warning": 30, "error": 40}
