"""Requests in the plainest form, from the bytes that arrived to the bytes that are sent.

Most requests of programs are a head that can be read in one way only, for a route that is known by its path, with the
whole body behind it. aiohttp takes more time for parser, URL, routing, two tasks and a response than such a request
takes to be answered. So a connection that waits for one hands it to the same handlers by itself; anything else goes the
usual way. What handlers ask of a request is all that there is here.
"""

import re
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, cast

from aiohttp import HttpVersion11, web
from aiohttp.helpers import HeadersMixin
from aiohttp.streams import EMPTY_PAYLOAD

from payloops.http.answers import Answer, dated_head
from payloops.http.early_refusals import Head
from payloops.http.routing import Route

LONGEST_HEAD = 4_096
"""Bytes. Longer ones are aiohttp's to refuse, or not."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_AN_ID = " "
"""In the place of one in a path, where no path has it."""
_ID = re.compile("(?<=/)[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}(?=/|$)")


class PlainRequest(HeadersMixin):
    """What handlers and frame ask of `web.Request`."""

    keep_alive = True
    version = HttpVersion11
    query_string = ""
    content = EMPTY_PAYLOAD  # it is over: the body is there

    def __init__(self, head: Head, *, id: str, body: bytes, remote: str | None) -> None:
        self.method = head.method
        self.path_qs = head.path
        self.remote = remote
        self.match_info = {"id": id}
        self.headers = self._headers = head.lines.headers
        self._body = body
        self._state: dict[Any, Any] = {}

    async def read(self) -> bytes:
        return self._body

    def __getitem__(self, key: Any) -> Any:
        return self._state[key]

    def __setitem__(self, key: Any, value: Any) -> None:
        self._state[key] = value


class PlainRoutes:
    """Which routes take plain requests: those for programs, by API key or token, that name nothing but an id."""

    def __init__(self, handlers: Iterable[tuple[Route, Handler]]) -> None:
        paths = ((route, route.path.replace("{id}", _AN_ID), handler) for route, handler in handlers)
        self._handlers = {
            (route.method, path): handler
            for route, path, handler in paths
            if route.auth in ("api_key", "bearer") and not route.streams and "{" not in path
        }

    def find(self, head: Head) -> tuple[Handler, str] | None:
        """Who answers, and the id in the path."""
        if len(head.raw) > LONGEST_HEAD:
            return None
        path, id = head.path, ""
        found = _ID.search(path)
        if found is not None:
            id = found.group()
            path = path[: found.start()] + _AN_ID + path[found.end() :]
        handler = self._handlers.get((head.method, path))
        return None if handler is None else (handler, id)


PLAIN_ROUTES = web.AppKey("plain routes", PlainRoutes)


def answer_bytes(answer: web.StreamResponse) -> tuple[bytes, bool]:
    """What is sent, and whether the connection stays."""
    if isinstance(answer, Answer):
        return answer.encoded(), True
    response = cast("web.Response", answer)
    body = response.body or b""
    assert isinstance(body, bytes), "handlers of plain requests answer with bytes"
    stays = response.keep_alive is not False
    return dated_head(response, body=body, closing=not stays) + body, stays
