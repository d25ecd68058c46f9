"""Servers in place of the processors', which answer as their documentation says."""

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from aiohttp import web
from aiohttp.test_utils import TestServer


@contextlib.asynccontextmanager
async def answering(
    *routes: tuple[str, Callable[[web.Request], Awaitable[web.StreamResponse]]],
) -> AsyncIterator[str]:
    """The address of a server that has these paths, each with what answers a GET of it."""
    app = web.Application()
    for path, handler in routes:
        app.router.add_get(path, handler)
    async with TestServer(app) as server:
        yield str(server.make_url("")).rstrip("/")


def intent(**fields: Any) -> dict[str, Any]:
    """A payment intent as Stripe has it."""
    return {
        "id": "pi_1",
        "object": "payment_intent",
        "amount": 1_000,
        "amount_received": 1_000,
        "currency": "usd",
        "status": "succeeded",
        "created": 1,
        "metadata": {},
        "last_payment_error": None,
        "latest_charge": {"id": "ch_1", "object": "charge", "amount_refunded": 300},
        **fields,
    }
