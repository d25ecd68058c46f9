"""Streaming answers: server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html)."""

from collections.abc import AsyncIterator
from typing import Any

import structlog
from aiohttp import hdrs, web

from payloops.http.answers import CORRELATION_HEADER, SECURITY_HEADERS
from payloops.http.problems import problem_of
from payloops.http.routing import EVENT_STREAM, Call

LAST_EVENT_ID = "Last-Event-ID"
STILL_HERE = b": still here\n\n"
"""A comment, by which both sides notice that the other one is gone."""

log = structlog.get_logger()


async def stream_versions(call: Call[Any, Any], versions: AsyncIterator[str]) -> web.StreamResponse | bytes:
    """Tell a browser of each version that differs from the one it knows, until there are no more.

    It comes back by itself when the connection ends, and names the last one that it was told.

    Args:
        versions: one line each; one that was told already becomes a sign of life.
    """
    if call.request.method == hdrs.METH_HEAD:
        return b""
    told = call.request.headers.get(LAST_EVENT_ID)
    headers = {
        **SECURITY_HEADERS,
        CORRELATION_HEADER: call.by.correlation_id,
        "Content-Type": EVENT_STREAM,
        "X-Accel-Buffering": "no",  # a proxy (nginx) that gathers would keep the news to itself
    }
    response = web.StreamResponse(headers=headers)
    await response.prepare(call.request)
    try:
        async for version in versions:
            news = f"id: {version}\ndata: {version}\n\n".encode()
            await response.write(STILL_HERE if version == told else news)
            told = version
    except ConnectionError:
        pass  # the browser has left
    except Exception as error:
        # The head is sent: nothing else can be answered. The browser comes back, and is told then.
        if problem_of(error) is None:
            log.exception("stream.failed")
        else:
            log.warning("stream.ended", error=type(error).__name__)
    return response
