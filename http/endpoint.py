"""Makes request handlers of declared routes: admit, authenticate, validate, execute or replay, answer."""

import asyncio
import hmac
import re
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any
from uuid import UUID

import psycopg
import structlog
from aiohttp import HttpVersion11, web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.web_exceptions import HTTPRequestEntityTooLarge
from psycopg_pool import AsyncConnectionPool
from pydantic import BaseModel

from payloops.commands.cards import holds_card_number
from payloops.commands.idempotency import Replay, Reserved, reserve
from payloops.commands.staff_sessions import StaffSession
from payloops.commands.staff_views import record_staff_view
from payloops.events.crash_points import crash_point
from payloops.events.deadlines import Deadlines
from payloops.events.errors import OutcomeUnknown
from payloops.http.admission import Admission, Kind
from payloops.http.answers import Answer
from payloops.http.authentication import Caller, authenticate
from payloops.http.bodies import (
    LARGE_BODY,
    empty_query,
    fingerprint,
    is_blank,
    is_form,
    is_json,
    parse_body,
    parse_form,
    parse_query,
    read_aside,
)
from payloops.http.html import PAGE_HEADERS, refuse_foreign_forms
from payloops.http.problems import (
    CONTENT_TYPE,
    OUTCOME_UNKNOWN,
    FieldError,
    Problem,
    problem_of,
    validation_error,
)
from payloops.http.rate_limits import client_address
from payloops.http.request_context import CONTEXT, RequestContext
from payloops.http.routing import FORM, HTML, JSON, UUID_FORM, Call, Nothing, Route, SessionForm
from payloops.http.services import Services

BODY_DEADLINE = 10.0
"""Seconds in which a body has to arrive."""
LARGEST_FORM = 64 * 1024
"""More than all fields of any form can hold: whoever sends a form may not be authenticated yet."""
MAX_WAIT = 30
"""Seconds, of `Prefer: wait`."""

log = structlog.get_logger()

_KEY_FORM = re.compile(r"[\x20-\x7e]{1,255}")
_WAIT_FORM = re.compile(r"wait\s*=\s*\"?([0-9]+)\"?", re.IGNORECASE)


def endpoint(route: Route, services: Services) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    """The handler that aiohttp calls for the route."""
    longest = services.request_timeout + route.streams
    deadlines = [Deadlines(longest + wait) for wait in range(MAX_WAIT + 1 if route.waits else 1)]
    place = _place(route, services, "work")
    # The return type is loose because aiohttp needs no more of a response than an `Answer` has.
    reads = route.method == "GET" and not route.streams
    answer: Callable[..., Awaitable[Any]] = _answer_read if reads else _answer

    async def handle(request: web.Request) -> web.StreamResponse:
        context = request[CONTEXT]
        context.route, context.page = route.path, route.page
        wait = _wait(request) if route.waits else 0
        try:
            with deadlines[wait]:
                answered: web.StreamResponse = await answer(route, request, services, context, place, wait)
                return answered
        except TimeoutError:
            raise _too_late(route, request) from None

    return handle


def _too_late(route: Route, request: web.Request) -> Problem:
    if route.method == "GET" or (route.idempotent and "Idempotency-Key" in request.headers):
        # Nothing was done: releasing the key drops an append that is under way, and if that is not certain,
        # `_answer_once` raises OutcomeUnknown.
        return Problem(503, "unavailable", "The request took too long; try again")
    return Problem(504, "outcome_unknown", OUTCOME_UNKNOWN)


async def _answer_read(
    route: Route,
    request: web.Request,
    services: Services,
    context: RequestContext,
    place: AbstractContextManager[None],
    _: int,
) -> web.StreamResponse | Answer:
    """Answer a GET. It has no body to wait for, so it holds one place from authentication to the answer."""
    with place:
        caller = await authenticate(request, auth=route.auth, services=services, context=context)
        call = _call(route, request, services, context, caller)
        if not route.long:
            return _to_response(call, await _run_handler(call))
        async with services.long_reads.hold(caller.actor):
            return _to_response(call, await _run_handler(call))


async def _answer(
    route: Route,
    request: web.Request,
    services: Services,
    context: RequestContext,
    place: AbstractContextManager[None],
    wait: int,
) -> web.StreamResponse | Answer:
    """Answer any other request. It holds a place while it is authenticated, none while its body arrives, and again one
    while it is worked on.
    """
    if route.page and route.method != "GET":
        refuse_foreign_forms(request)
    with place:
        caller = await authenticate(request, auth=route.auth, services=services, context=context)
        if route.limits:
            await _limit_address(route, request, services)
    raw = (
        await _read(request, route, services.admission) if route.model is not None or route.signed_by else b""
    )
    if wait and not services.admission.may_wait(caller.merchant_id):
        wait = 0  # a preference may be ignored (RFC 7240): better a payment without its outcome than none
    if wait:
        place = services.admission.admit_waiting(caller.merchant_id)
    elif route.streams:
        place = _place(route, services, "stream")
    with place:
        body, digest = await read_aside(raw, partial(_parsed, route, request, raw))
        if caller.session is not None:
            _check_form(caller.session, body)
        if route.limits:
            await _limit_account(route, body, caller, services=services)
        call = _call(route, request, services, context, caller, body=body, raw=raw, wait=wait)
        if digest is None:
            return _to_response(call, await _run_handler(call))
        return await _answer_with_key(call, _idempotency_key(request), digest=digest)


def _place(route: Route, services: Services, kind: Kind) -> AbstractContextManager[None]:
    return services.admission.admit(kind) if route.sheds else nullcontext()


def _check_form(session: StaffSession, body: BaseModel | None) -> None:
    """Accept a form only from a page of the caller's session.

    Raises:
        Problem: 403 forbidden.
    """
    if isinstance(body, SessionForm):
        genuine = hmac.compare_digest(body.form_token.encode(), session.form_token.encode())
        if not genuine:
            raise Problem(403, "forbidden", "The form is of another session: open the page again")


def _call(
    route: Route,
    request: web.Request,
    services: Services,
    context: RequestContext,
    caller: Caller,
    *,
    body: BaseModel | None = None,
    raw: bytes = b"",
    wait: int = 0,
) -> Call[Any, Any]:
    return Call(
        services=services,
        route=route,
        request=request,
        body=body,
        query=_query(route, request),
        actor=caller.actor,
        correlation_id=context.correlation_id,
        owner=caller.merchant_id,
        staff_id=caller.staff_id,
        session=caller.session,
        raw=raw,
        wait=wait,
    )


def _query(route: Route, request: web.Request) -> BaseModel | None:
    if route.query is None:
        return None
    # Most requests have no query, and its model is then always the same.
    if not request.query_string:
        return empty_query(route.query)
    return parse_query(route.query, request.query)


def _run_handler(call: Call[Any, Any]) -> Awaitable[Any]:
    return call.route.handler(call) if call.staff_id is None else _show_to_staff(call)


def _to_response(call: Call[Any, Any], answer: Any) -> web.StreamResponse | Answer:
    # The type is compared first because isinstance is slow with an abstract class.
    if type(answer) is not dict and isinstance(answer, web.StreamResponse):
        return answer
    return _response(call, call.route.render(answer))


async def _answer_with_key(call: Call[Any, Any], key: str, *, digest: bytes) -> web.StreamResponse | Answer:
    pool, merchant_id = call.services.store.pool, call.merchant_id
    reservation = await reserve(pool, merchant_id=merchant_id, key=key, fingerprint=digest)
    if isinstance(reservation, Replay):
        return await _replay(call, reservation)
    return await _answer_once(call, reservation)


async def _limit_address(route: Route, request: web.Request, services: Services) -> None:
    for name in route.limits:
        address = client_address(request, trusted_proxies=services.trusted_proxies)
        await services.limits.try_from_address(name, address)


async def _limit_account(route: Route, body: BaseModel | None, caller: Caller, *, services: Services) -> None:
    """Count the request against the account that the caller is logged in to, else the one that the body names."""
    named: str = getattr(body, "email", "")
    for name in route.limits:
        await services.limits.try_account(name, str(caller.merchant_id or named))


async def _show_to_staff(call: Call[Any, Any]) -> Any:
    """The handler's answer, once the view is recorded; a view of something that does not exist is recorded, too."""
    try:
        answer = await call.route.handler(call)
    except Problem:
        await _record_view(call)
        raise
    await _record_view(call)
    return answer


async def _record_view(call: Call[Any, Any]) -> None:
    assert call.staff_id is not None
    asked = call.query if call.query is not None else Nothing()
    query = asked.model_dump(mode="json", by_alias=True, exclude_none=True)
    asked_for = call.request.match_info.get("id", "")
    if UUID_FORM.fullmatch(asked_for) and UUID(asked_for) != call.viewed_order:
        query["id"] = asked_for
    await record_staff_view(
        call.services.store.pool,
        staff_id=call.staff_id,
        route=f"{call.route.method} {call.route.path}",
        order_id=call.viewed_order,
        merchant_id=call.viewed_merchant,
        query=query or None,
        at=call.by.at,
        correlation_id=call.correlation_id,
    )


async def _answer_once(call: Call[Any, Any], reserved: Reserved) -> web.StreamResponse | Answer:
    """Run the handler under its idempotency key. A success is stored with its events, a refusal here."""
    pool = call.services.store.pool
    call.reserved = reserved
    try:
        answer = await call.route.handler(call)
    except BaseException as error:
        problem = problem_of(error)
        if problem is None or not problem.definite:
            released = await asyncio.shield(_release(reserved, pool))
            if not released and isinstance(error, asyncio.CancelledError | psycopg.Error):
                raise OutcomeUnknown from error
            raise
        body = problem.body(correlation_id=call.correlation_id)
        await call.services.store.answer(reserved.receipt(status=problem.status, body=body))
        raise
    crash_point("command.answered")
    return _response(call, call.route.render(answer))


async def _release(reserved: Reserved, pool: AsyncConnectionPool) -> bool:
    """Release the key, so that an append that is still under way is dropped.

    Returns:
        Whether it is certain that nothing was done.
    """
    try:
        return await reserved.release(pool)
    except psycopg.Error as error:
        log.warning("idempotency.not_released", error=type(error).__name__)
        return False


def _response(call: Call[Any, Any], body: bytes) -> web.Response | Answer:
    media = (call.media or call.route.media[0]) if body else None
    if media is not None and not call.headers and not call.route.page:
        return Answer(status=call.status or call.route.status, body=body, media=media)
    return web.Response(
        status=call.status or call.route.status,
        body=body or None,
        content_type=media,
        charset="utf-8" if call.route.page and media == HTML else None,
        headers={**PAGE_HEADERS, **call.headers} if call.route.page else call.headers,
    )


async def _replay(call: Call[Any, Any], replay: Replay) -> web.Response:
    failed = replay.status >= 400  # noqa: PLR2004  # HTTP
    body = replay.body
    if call.route.replays is not None and not failed:
        body = call.route.render(await call.route.replays(call, body))
    return web.Response(
        status=replay.status,
        body=body or None,
        content_type=CONTENT_TYPE if failed else JSON,
        headers={"Idempotent-Replayed": "true"},
    )


async def expect(request: web.Request) -> None:
    """Answer `Expect: 100-continue`, unless the body will be refused. Connections remove any other expectation."""
    if request.version >= HttpVersion11 and not _announces_too_much(request):
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0  # these bytes are not part of the answer


async def _read(request: web.Request, route: Route, admission: Admission) -> bytes:
    encoding = request.headers.get("Content-Encoding")
    if encoding is not None and encoding.strip().lower() != "identity":
        raise _unsupported_media_type(route)
    is_here = request.content.is_eof()  # the whole body arrived with the head
    if not is_here and _announces_too_much(request):
        raise HTTPRequestEntityTooLarge(request.client_max_size)
    try:
        if is_here:
            raw = await request.read()
        else:
            async with asyncio.timeout(BODY_DEADLINE):
                raw = await _arrived(request, admission)
    except TimeoutError:
        raise Problem(
            408, "request_timeout", "The body did not arrive in time", headers={"Connection": "close"}
        ) from None
    except HTTPRequestEntityTooLarge:
        raise
    except (HttpProcessingError, web.RequestPayloadError):
        problem = validation_error(FieldError("body", "The body is not framed as its headers say"))
        problem.headers["Connection"] = "close"
        raise problem from None
    if route.form is not None and len(raw) > LARGEST_FORM:
        raise HTTPRequestEntityTooLarge(LARGEST_FORM)
    fits = is_form if route.form is not None else is_json
    if not is_blank(raw) and not route.signed_by and not fits(request):
        raise _unsupported_media_type(route)
    return raw


async def _arrived(request: web.Request, admission: Admission) -> bytes:
    """A body that arrives in parts.

    Raises:
        HTTPRequestEntityTooLarge: see there.
        Shed: it is large, and too much of all large bodies is here, and none complete.
    """
    body, held = bytearray(), 0
    try:
        async for part in request.content.iter_any():
            body += part
            if len(body) > request.client_max_size:
                raise HTTPRequestEntityTooLarge(request.client_max_size)
            if len(body) >= LARGE_BODY:
                news, held = len(body) - held, len(body)
                admission.hold(news)
        return bytes(body)
    finally:
        admission.release(held)


def _announces_too_much(request: web.Request) -> bool:
    """Whether the headers announce a body that is too large: it is not waited for."""
    return (request.content_length or 0) > request.client_max_size


def _unsupported_media_type(route: Route) -> Problem:
    media = FORM if route.form is not None else JSON
    return Problem(415, "unsupported_media_type", f"Send {media}, in UTF-8 and without Content-Encoding")


def _parsed(route: Route, request: web.Request, raw: bytes) -> tuple[BaseModel | None, bytes | None]:
    """The body as its model, and the request's fingerprint if it has an idempotency key."""
    if route.form is not None:
        return parse_form(route.form, raw), None
    body = None
    if route.body is not None:
        blank = is_blank(raw)
        if blank and route.body_required:
            raise validation_error(FieldError("body", "Required"))
        body = parse_body(route.body, b"{}" if blank else raw)
    keyed = route.idempotent and "Idempotency-Key" in request.headers
    return body, fingerprint(request.method, request.path_qs, raw) if keyed else None


def _idempotency_key(request: web.Request) -> str:
    keys = request.headers.getall("Idempotency-Key")
    if len(keys) > 1 or _KEY_FORM.fullmatch(keys[0]) is None:
        raise validation_error(
            FieldError("Idempotency-Key", "Must be 1 to 255 printable ASCII characters, once")
        )
    if holds_card_number(keys[0]):
        raise validation_error(FieldError("Idempotency-Key", "Looks like a card number"))
    return keys[0]


def _wait(request: web.Request) -> int:
    """Seconds of `Prefer: wait=N` (RFC 7240), at most 30; other preferences are ignored."""
    for header in request.headers.getall("Prefer", []):
        for preference in header.split(","):
            form = _WAIT_FORM.fullmatch(preference.split(";")[0].strip())
            if form is not None:
                seconds = form[1].lstrip("0")
                return MAX_WAIT if len(seconds) > len(str(MAX_WAIT)) else min(int(seconds or 0), MAX_WAIT)
    return 0
