"""What is known of the current request, for its middleware and for every line logged meanwhile."""

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
        bound: what each line in the log has of the request: its correlation id, and who sent it once that is known.
        route: the template of its path; None: nothing is there.
        page: whether people look at the answer.
        shed: whether it was turned away because there is too much to do.
    """

    __slots__ = ("bound", "correlation_id", "page", "route", "shed")

    def __init__(self, correlation_id: str) -> None:
        self.correlation_id = correlation_id
        self.bound: dict[str, object] = {"correlation_id": correlation_id}
        self.route: str | None = None
        self.page = False
        self.shed = False


CONTEXT = web.RequestKey("context", RequestContext)

# Of the task that answers a request, and of those that it starts.
_bound: ContextVar[Mapping[str, object]] = ContextVar("bound", default={})  # noqa: B039  # nobody changes it


def begin_request(correlation_id: str) -> RequestContext:
    """From here on, all that this task logs is of a request."""
    context = RequestContext(correlation_id)
    _bound.set(context.bound)
    return context


def merge_request(_: Any, __: str, line: EventDict) -> EventDict:
    """A structlog processor: add what is known of the request to a line that does not say otherwise."""
    for name, value in _bound.get().items():
        line.setdefault(name, str(value))
    return line


Level = Literal["info", "error"]


class LineWriter(Protocol):
    """Writes a request's line: what structlog would write of it."""

    def __call__(self, level: Level, bound: Mapping[str, object], fields: dict[str, Any]) -> None: ...


class RequestLines:
    """Where the lines of requests go. `writer`: None: to structlog."""

    writer: LineWriter | None = None


def log_request(context: RequestContext, level: Level, fields: dict[str, Any]) -> None:
    """A request was answered."""
    if RequestLines.writer is not None:
        RequestLines.writer(level, context.bound, fields)
    else:
        log.log(_LEVELS[level], REQUEST_EVENT, **fields)


_LEVELS: dict[Level, int] = {"info": 20, "error": 40}
