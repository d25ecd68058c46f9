"""Streaming answers: server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html)."""

from collections.abc import AsyncIterator
from typing import Any

import structlog
from aiohttp import hdrs, web

from payloops.http.answers import CORRELATION_HEADER, SECURITY_HEADERS
from payloops.http.problems import problem_of
from payloops.http.routing import EVENT_STREAM, Call

LAST_EVENT_ID = "Last-Event-ID"
HEARTBEAT = b": still here\n\n"
"""A comment, which lets both sides notice a lost connection."""

log = structlog.get_logger()


async def stream_versions(call: Call[Any, Any], versions: AsyncIterator[str]) -> web.StreamResponse | bytes:
    """Send each version that differs from the one before as a server-sent event, until there are no more.

    The browser reconnects by itself when the connection ends, and names the last version that it has received.

    Args:
        versions: one line each; if one is repeated, a heartbeat is sent instead.
    """
    if call.request.method == hdrs.METH_HEAD:
        return b""
    sent = call.request.headers.get(LAST_EVENT_ID)
    headers = {
        **SECURITY_HEADERS,
        CORRELATION_HEADER: call.by.correlation_id,
        "Content-Type": EVENT_STREAM,
        "X-Accel-Buffering": "no",  # nginx would otherwise buffer the events
    }
    response = web.StreamResponse(headers=headers)
    await response.prepare(call.request)
    try:
        async for version in versions:
            event = f"id: {version}\ndata: {version}\n\n".encode()
            await response.write(HEARTBEAT if version == sent else event)
            sent = version
    except ConnectionError:
        pass  # the browser has disconnected
    except Exception as error:
        # The response has begun, so no error can be sent. The browser gets it when it reconnects.
        if problem_of(error) is None:
            log.exception("stream.failed")
        else:
            log.warning("stream.ended", error=type(error).__name__)
    return response
