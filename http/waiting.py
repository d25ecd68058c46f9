"""`Prefer: wait=N` (RFC 7240): the response waits for the outcome of the request, for at most N seconds."""

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import psycopg
import structlog

from payloops.events.errors import StreamUnreadable
from payloops.events.orders import Order
from payloops.http.routing import Call

A = TypeVar("A")

log = structlog.get_logger()


async def answer_after(
    call: Call[Any, Any],
    order: Order,
    reached: Callable[[Order], bool],
    answer: Callable[[Order], Awaitable[A]],
) -> A:
    """The response to a command, at once, or if the client prefers to wait, when the outcome is known.

    A response after waiting replaces the one that is stored under the request's idempotency key.

    Args:
        order: as the command left it.
        reached: whether the outcome is known, success or failure.
        answer: makes the response from an order.
    """
    if not call.wait:
        return await answer(order)
    call.headers["Preference-Applied"] = f"wait={call.wait}"
    try:
        current = await call.services.watch.until(order, reached, seconds=call.wait)
        given = await answer(current)
        if call.reserved is not None and current.version > order.version:
            await call.reserved.amend(call.services.store.pool, body=call.route.render(given))
    except (psycopg.Error, StreamUnreadable) as error:
        # The command is recorded, so although the waiting failed, no response may say that nothing was done.
        log.warning("wait.failed", error=type(error).__name__)
        return await answer(order)
    return given
