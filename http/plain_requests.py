"""Answering plain requests from their raw bytes, without aiohttp's parser, routing and response.

Most requests of programs are plain: a head that every parser reads the same way, for a route that its path identifies,
followed by the whole body. For such a request aiohttp's parser, URL, routing, two tasks and response take more time
than the service itself. So the connection passes it to the same handlers directly; anything else takes the usual path.
`PlainRequest` has exactly what handlers use of a request.
"""

import re
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, cast

from aiohttp import HttpVersion11, web
from aiohttp.streams import EMPTY_PAYLOAD

from payloops.http.answers import Answer, dated_head
from payloops.http.early_refusals import Head
from payloops.http.routing import Route

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_AN_ID = " "
"""Replaces the id in a path; no path contains it otherwise."""
_ID = re.compile("(?<=/)[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}(?=/|$)")


class PlainRequest:
    """What handlers and middleware use of `web.Request`."""

    keep_alive = True
    version = HttpVersion11
    query_string = ""
    content = EMPTY_PAYLOAD  # the body has been read

    def __init__(self, head: Head, *, id: str, body: bytes, remote: str | None) -> None:
        self.method = head.method
        self.path_qs = head.path
        self.remote = remote
        self.match_info = {"id": id}
        self.headers = head.lines.headers
        self._body = body
        self._state: dict[Any, Any] = {}

    async def read(self) -> bytes:
        return self._body

    def __getitem__(self, key: Any) -> Any:
        return self._state[key]

    def __setitem__(self, key: Any, value: Any) -> None:
        self._state[key] = value


class PlainRoutes:
    """The routes that take plain requests: with API key or token, and with no parameter in the path but an id."""

    def __init__(self, handlers: Iterable[tuple[Route, Handler]]) -> None:
        paths = ((route, route.path.replace("{id}", _AN_ID), handler) for route, handler in handlers)
        self._handlers: dict[tuple[str, str], Handler] = {
            (route.method, path): handler
            for route, path, handler in paths
            if route.auth in ("api_key", "bearer") and not route.streams and "{" not in path
        }

    def find(self, head: Head) -> tuple[Handler, str] | None:
        """The handler, and the id in the path; None if the request has to take the usual path."""
        path, id = head.path, ""
        found = _ID.search(path)
        if found is not None:
            id = found.group()
            path = path[: found.start()] + _AN_ID + path[found.end() :]
        handler = self._handlers.get((head.method, path))
        return None if handler is None else (handler, id)


PLAIN_ROUTES = web.AppKey("plain routes", PlainRoutes)


def answer_bytes(answer: web.StreamResponse) -> tuple[bytes, bool]:
    """The bytes to send, and whether the connection stays open."""
    if isinstance(answer, Answer):
        return answer.encoded(), True
    response = cast("web.Response", answer)
    body = response.body or b""
    assert isinstance(body, bytes), "handlers of plain requests answer with bytes"
    stays = response.keep_alive is not False
    return dated_head(response, body=body, closing=not stays) + body, stays
