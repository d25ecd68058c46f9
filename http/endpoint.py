"""From a declared route to a request handler: authenticate, validate, replay or execute, answer."""

import asyncio
import hmac
import re
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager, nullcontext
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
from payloops.http.admission import Kind
from payloops.http.answers import Answer
from payloops.http.authentication import Caller, authenticate, known_caller
from payloops.http.bodies import (
    empty_query,
    fingerprint,
    is_form,
    is_json,
    parse_body,
    parse_form,
    parse_query,
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
LARGE_BODY = 8 * 1024
"""From this size on, a body is parsed in a thread: one that is made to take long would hold up everybody else."""
LARGEST_FORM = 64 * 1024
"""More than all that the fields of any form may hold: whoever fills one in has shown nothing yet."""
MAX_WAIT = 30
"""Seconds."""

log = structlog.get_logger()

_KEY_FORM = re.compile(r"[\x20-\x7e]{1,255}")
_WAIT_FORM = re.compile(r"wait\s*=\s*\"?0*([0-9]{1,9})[0-9]*\"?", re.IGNORECASE)


def endpoint(route: Route, services: Services) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    """What aiohttp calls for the route."""
    longest = services.request_timeout + route.streams
    deadlines = [Deadlines(longest + wait) for wait in range(MAX_WAIT + 1 if route.waits else 1)]
    place = _place(route, services, "work")
    # Where there is no body to wait for, a request goes on in the place that it had while it was asked who sends it.
    # aiohttp asks no more of what they return than an `Answer` can.
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
        # Under a key this is known, or `_answer_once` says that it is not: what was under way is not appended.
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
    with place:
        caller = known_caller(
            request, auth=route.auth, services=services, context=context
        ) or await authenticate(request, auth=route.auth, services=services, context=context)
        call = _call(route, request, services, context, caller)
        return _answered(call, await _handled(call))


async def _answer(
    route: Route,
    request: web.Request,
    services: Services,
    context: RequestContext,
    place: AbstractContextManager[None],
    wait: int,
) -> web.StreamResponse | Answer:
    if route.page and route.method != "GET":
        refuse_foreign_forms(request)
    with place:
        caller = known_caller(
            request, auth=route.auth, services=services, context=context
        ) or await authenticate(request, auth=route.auth, services=services, context=context)
        if route.limits:
            await _try_from_address(route, request, services)
    raw = await _read(request, route) if route.model is not None or route.signed_by else b""
    stays = route.streams or wait
    with _place(route, services, "stream" if route.streams else "wait") if stays else place:
        if len(raw) < LARGE_BODY:
            body, digest = _parsed(route, request, raw)
        else:
            body, digest = await asyncio.to_thread(_parsed, route, request, raw)
        if caller.session is not None:
            _check_form(caller.session, body)
        if route.limits:
            await _try_account(route, body, caller, services=services)
        call = _call(route, request, services, context, caller, body=body, raw=raw, wait=wait)
        if digest is None:
            return _answered(call, await _handled(call))
        return await _answer_keyed(call, _idempotency_key(request), digest=digest)


def _place(route: Route, services: Services, kind: Kind) -> AbstractContextManager[None]:
    return services.admission.admit(kind) if route.sheds else nullcontext()


def _check_form(session: StaffSession, body: BaseModel | None) -> None:
    """Take a form from the pages of the caller's session only.

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
    # Of most requests there is none, and what its model makes of that is always the same.
    if not request.query_string:
        return empty_query(route.query)
    return parse_query(route.query, request.query)


def _handled(call: Call[Any, Any]) -> Awaitable[Any]:
    return call.route.handler(call) if call.staff_id is None else _shown_to_staff(call)


def _answered(call: Call[Any, Any], answer: Any) -> web.StreamResponse | Answer:
    # In this order: whether something is a response is asked of an abstract class, which takes long.
    if type(answer) is not dict and isinstance(answer, web.StreamResponse):
        return answer
    return _response(call, call.route.render(answer))


async def _answer_keyed(call: Call[Any, Any], key: str, *, digest: bytes) -> web.StreamResponse | Answer:
    pool, merchant_id = call.services.store.pool, call.merchant_id
    reservation = await reserve(pool, merchant_id=merchant_id, key=key, fingerprint=digest)
    if isinstance(reservation, Replay):
        return await _replay(call, reservation)
    return await _answer_once(call, reservation)


async def _try_from_address(route: Route, request: web.Request, services: Services) -> None:
    for name in route.limits:
        address = client_address(request, trusted_proxies=services.trusted_proxies)
        await services.limits.try_from_address(name, address)


async def _try_account(route: Route, body: BaseModel | None, caller: Caller, *, services: Services) -> None:
    """The account is the one that the caller is logged in to, else the one that the body names."""
    named: str = getattr(body, "email", "")
    for name in route.limits:
        await services.limits.try_account(name, str(caller.merchant_id or named))


async def _shown_to_staff(call: Call[Any, Any]) -> Any:
    """The handler's answer, once it is on record that it is shown; a search without result, too."""
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
    """Run the handler under its idempotency key: its success is stored with its events, a refusal here."""
    pool = call.services.store.pool
    call.reserved = reserved
    try:
        answer = await call.route.handler(call)
    except BaseException as error:
        problem = problem_of(error)
        if problem is None or not problem.definite:
            released = await asyncio.shield(_released(reserved, pool))
            if not released and isinstance(error, asyncio.CancelledError | psycopg.Error):
                raise OutcomeUnknown from error
            raise
        body = problem.body(correlation_id=call.correlation_id)
        await call.services.store.answer(reserved.receipt(status=problem.status, body=body))
        raise
    crash_point("command.answered")
    return _response(call, call.route.render(answer))


async def _released(reserved: Reserved, pool: AsyncConnectionPool) -> bool:
    """Let the key go. Whoever has an append under way loses it with the key: it is then not appended.

    Returns:
        Whether that is certain: nothing was done.
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
    """Tell a client that asks before it sends its body to send it; other expectations are not ours (RFC 9110)."""
    asks = request.headers.get("Expect", "").lower() == "100-continue" and request.version >= HttpVersion11
    if asks and not _is_to_be_too_large(request):
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0  # no part of the answer


async def _read(request: web.Request, route: Route) -> bytes:
    encoding = request.headers.get("Content-Encoding")
    if encoding is not None and encoding.strip().lower() != "identity":
        raise _wrong_media(route)
    is_here = request.content.is_eof()  # all of it came with the head
    if not is_here and _is_to_be_too_large(request):
        raise HTTPRequestEntityTooLarge(request.client_max_size)
    try:
        if is_here:
            raw = await request.read()
        else:
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
    if route.form is not None and len(raw) > LARGEST_FORM:
        raise HTTPRequestEntityTooLarge(LARGEST_FORM)
    fits = is_form if route.form is not None else is_json
    if raw.strip() and not route.signed_by and not fits(request):
        raise _wrong_media(route)
    return raw


def _is_to_be_too_large(request: web.Request) -> bool:
    """Whether its own headers say so: nobody waits for a body that will be refused."""
    return (request.content_length or 0) > request.client_max_size


def _wrong_media(route: Route) -> Problem:
    media = FORM if route.form is not None else JSON
    return Problem(415, "unsupported_media_type", f"Send {media}, in UTF-8 and without Content-Encoding")


def _parsed(route: Route, request: web.Request, raw: bytes) -> tuple[BaseModel | None, bytes | None]:
    """The body as its model, and the request's fingerprint where it has an idempotency key."""
    if route.form is not None:
        return parse_form(route.form, raw), None
    body = None
    if route.body is not None:
        if not raw.strip() and route.body_required:
            raise validation_error(FieldError("body", "Required"))
        body = parse_body(route.body, raw if raw.strip() else b"{}")
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
    """Seconds of `Prefer: wait=N` (RFC 7240), at most 30; a preference that is not understood is ignored."""
    for header in request.headers.getall("Prefer", []):
        for preference in header.split(","):
            form = _WAIT_FORM.fullmatch(preference.split(";")[0].strip())
            if form is not None:
                return min(int(form[1]), MAX_WAIT)
    return 0
