"""From a declared route to a request handler: who, what, has it been answered before, do it, answer."""

import asyncio
import re
from collections.abc import Awaitable, Callable
from typing import Any

import structlog
from aiohttp import HttpVersion11, web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.web_exceptions import HTTPRequestEntityTooLarge
from pydantic import BaseModel

from payloops.commands.idempotency import Replay, Reserved, reserve
from payloops.events.metadata import Metadata
from payloops.http.authentication import authenticate
from payloops.http.bodies import fingerprint, is_json, parse_body, parse_query
from payloops.http.cards import holds_card_number
from payloops.http.middleware import CORRELATION_ID
from payloops.http.problems import (
    CONTENT_TYPE,
    OUTCOME_UNKNOWN,
    FieldError,
    Problem,
    problem_of,
    validation_error,
)
from payloops.http.routing import Call, Route
from payloops.http.services import SERVICES

BODY_DEADLINE = 10.0
"""Seconds in which a body has to arrive."""
LARGE_BODY = 64 * 1024
"""From this size on, a body is parsed in a thread: a megabyte of JSON would hold up everybody else."""
MAX_WAIT = 30
"""Seconds."""

_KEY_FORM = re.compile(r"[\x20-\x7e]{1,255}")
_WAIT_FORM = re.compile(r"wait\s*=\s*\"?([0-9]{1,9})\"?", re.IGNORECASE)


def endpoint(route: Route) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    """What aiohttp calls for the route."""

    async def handle(request: web.Request) -> web.StreamResponse:
        services = request.app[SERVICES]
        wait = _wait(request) if route.waits else 0
        try:
            async with asyncio.timeout(services.request_timeout + wait):
                return await _answer(route, request, wait=wait)
        except TimeoutError:
            raise _too_late(request) from None

    return handle


def _too_late(request: web.Request) -> Problem:
    if request.method in ("GET", "HEAD") or "Idempotency-Key" in request.headers:
        # Under a key, what was still under way has lost its reservation: it is not appended any more.
        return Problem(503, "unavailable", "The request took too long; try again")
    return Problem(504, "outcome_unknown", OUTCOME_UNKNOWN)


async def _answer(route: Route, request: web.Request, *, wait: int) -> web.StreamResponse:
    services = request.app[SERVICES]
    actor, owner = "system", None
    if route.auth is not None:
        caller = await authenticate(request, auth=route.auth, services=services)
        actor, owner = caller.actor, caller.merchant_id
        structlog.contextvars.bind_contextvars(merchant_id=str(owner), actor=actor)
    raw = await _read(request) if route.body is not None else b""
    body = await _body(route, raw)
    call: Call[Any, Any] = Call(
        services=services,
        route=route,
        request=request,
        body=body,
        query=parse_query(route.query, request.query) if route.query is not None else None,
        by=Metadata(at=services.now(), actor=actor, correlation_id=request[CORRELATION_ID]),
        owner=owner,
        wait=wait,
    )
    key = _idempotency_key(request) if route.idempotent else None
    if key is None:
        return _response(call, route.render(await route.handler(call)))
    reservation = await reserve(
        services.store.pool,
        merchant_id=call.merchant_id,
        key=key,
        fingerprint=fingerprint(request.method, request.path_qs, raw),
    )
    if isinstance(reservation, Replay):
        return _replay(reservation)
    return await _answer_once(call, reservation)


async def _answer_once(call: Call[Any, Any], reserved: Reserved) -> web.StreamResponse:
    """Run the handler under its idempotency key: its success is stored with its events, a refusal here."""
    pool = call.services.store.pool
    call.reserved = reserved
    try:
        answer = await call.route.handler(call)
    except BaseException as error:
        problem = problem_of(error)
        if problem is None or not problem.definite:
            # Whoever has an append under way loses it with the key: it is then not appended.
            await asyncio.shield(reserved.release(pool))
            raise
        body = problem.body(correlation_id=call.by.correlation_id)
        await call.services.store.answer(reserved.receipt(status=problem.status, body=body))
        raise
    return _response(call, call.route.render(answer))


def _response(call: Call[Any, Any], body: bytes) -> web.Response:
    return web.Response(
        status=call.status or call.route.status,
        body=body or None,
        content_type="application/json" if body else None,
        headers=call.headers,
    )


def _replay(replay: Replay) -> web.Response:
    failed = replay.status >= 400  # noqa: PLR2004  # HTTP
    return web.Response(
        status=replay.status,
        body=replay.body or None,
        content_type=CONTENT_TYPE if failed else "application/json",
        headers={"Idempotent-Replayed": "true"},
    )


async def expect(request: web.Request) -> None:
    """Tell a client that asks before it sends its body to send it; other expectations are not ours (RFC 9110)."""
    if request.headers.get("Expect", "").lower() == "100-continue" and request.version >= HttpVersion11:
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0  # no part of the answer


async def _read(request: web.Request) -> bytes:
    if request.headers.get("Content-Encoding", "identity").strip().lower() != "identity":
        raise _not_json()
    try:
        async with asyncio.timeout(BODY_DEADLINE):
            raw = await request.read()
    except TimeoutError:
        raise Problem(
            408, "request_timeout", "The body did not arrive in time", headers={"Connection": "close"}
        ) from None
    except HTTPRequestEntityTooLarge:
        raise
    except (HttpProcessingError, web.RequestPayloadError):
        raise validation_error(FieldError("body", "The body is not framed as its headers say")) from None
    if raw.strip() and not is_json(request):
        raise _not_json()
    return raw


def _not_json() -> Problem:
    return Problem(
        415, "unsupported_media_type", "Send application/json, in UTF-8 and without Content-Encoding"
    )


async def _body(route: Route, raw: bytes) -> BaseModel | None:
    if route.body is None:
        return None
    if not raw.strip():
        if route.body_required:
            raise validation_error(FieldError("body", "Required"))
        raw = b"{}"
    if len(raw) < LARGE_BODY:
        return parse_body(route.body, raw)
    return await asyncio.to_thread(parse_body, route.body, raw)


def _idempotency_key(request: web.Request) -> str | None:
    keys = request.headers.getall("Idempotency-Key", [])
    if not keys:
        return None
    if len(keys) > 1 or _KEY_FORM.fullmatch(keys[0]) is None:
        raise validation_error(
            FieldError("Idempotency-Key", "Must be 1 to 255 printable ASCII characters, once")
        )
    if holds_card_number(keys[0]):
        raise validation_error(FieldError("Idempotency-Key", "Looks like a card number"))
    return keys[0]


def _wait(request: web.Request) -> int:
    """Seconds of `Prefer: wait=N` (RFC 7240), at most 30; a preference that is not understood is ignored."""
    for header in request.headers.getall("Prefer", []):
        for preference in header.split(","):
            form = _WAIT_FORM.fullmatch(preference.split(";")[0].strip())
            if form is not None:
                return min(int(form[1]), MAX_WAIT)
    return 0
