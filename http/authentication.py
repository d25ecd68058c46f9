"""Authenticates requests: by API key, dashboard token, staff token, or staff session."""

from dataclasses import dataclass
from uuid import UUID

from aiohttp import web

from payloops.commands.log_in_staff import authenticate_staff_token
from payloops.commands.staff_sessions import StaffSession, find_staff_session
from payloops.http.problems import Problem
from payloops.http.request_context import RequestContext
from payloops.http.routing import Auth
from payloops.http.services import Services


@dataclass(slots=True)  # not frozen: creating one would take several times as long
class Caller:
    """Who makes a request.

    Attributes:
        actor: as in events (`Metadata.actor`).
        merchant_id: of the merchant's account; None for staff.
        staff_id: of a member of the staff.
        session: of a member who uses the support console.
    """

    actor: str
    merchant_id: UUID | None = None
    staff_id: UUID | None = None
    session: StaffSession | None = None


async def authenticate(
    request: web.Request, *, auth: Auth | None, services: Services, context: RequestContext
) -> Caller:
    """Who makes a request. From here on, the request's log lines name the caller.

    Raises:
        Problem: 401 unauthorized, if there are no credentials. Other exceptions of the commands that check them.
    """
    match auth:
        case "api_key":
            owner = await services.gate.authenticate(_key(request))
            caller = Caller(owner.actor, owner.merchant_id)
        case "bearer":
            merchant_id = await services.token_gate.authenticate(_token(request))
            caller = Caller(f"merchant:{merchant_id}", merchant_id)
        case "staff":
            member = await authenticate_staff_token(
                services.store.pool, token=_token(request), tokens=services.staff_tokens
            )
            caller = Caller(f"staff:{member.id}", staff_id=member.id)
        case "staff_session":
            cookie = _cookie(request, session_cookie(request, secure=services.secure_cookies))
            if cookie is None:
                raise _unauthorized("Sign in", challenge="Cookie")
            session = await find_staff_session(
                services.store.pool, token=cookie, tokens=services.staff_sessions
            )
            caller = Caller(f"staff:{session.member.id}", staff_id=session.member.id, session=session)
        case None:
            return Caller("system")
    context.bound["actor"] = caller.actor
    if caller.merchant_id is not None:
        context.bound["merchant_id"] = caller.merchant_id
    return caller


def session_cookie(request: web.Request, *, secure: bool) -> str:
    """The name of the cookie with a staff session.

    Browsers accept a `__Host-` cookie only over TLS, and send it only to this host (RFC 6265bis, 4.1.3.2).

    Args:
        secure: use that name even if the request came over plain HTTP, for example from a proxy.
    """
    return "__Host-payloops-staff" if secure or is_https(request) else "payloops-staff"


def is_https(request: web.Request) -> bool:
    """Whether the browser uses TLS, also by `X-Forwarded-Proto`: a client that forges it only harms itself."""
    return request.secure or request.headers.get("X-Forwarded-Proto", "").strip().lower() == "https"


def _cookie(request: web.Request, name: str) -> str | None:
    """The value of a cookie; None if there is none. aiohttp parses all of them, which may take long."""
    for header in request.headers.getall("Cookie", []):
        for pair in header.split(";"):
            its_name, _, value = pair.partition("=")
            if its_name.strip() == name:
                return value.strip()
    return None


def _key(request: web.Request) -> str:
    keys = request.headers.getall("X-API-Key", [])
    if len(keys) != 1 or not (key := keys[0].strip()):
        raise _unauthorized("Send an API key in X-API-Key", challenge="ApiKey")
    return key


def _token(request: web.Request) -> str:
    headers = request.headers.getall("Authorization", [])
    scheme, _, token = headers[0].strip().partition(" ") if len(headers) == 1 else ("", "", "")
    if scheme.lower() != "bearer" or not token.strip():
        raise _unauthorized("Send a token in Authorization: Bearer", challenge="Bearer")
    return token.strip()


def _unauthorized(message: str, *, challenge: str) -> Problem:
    return Problem(401, "unauthorized", message, headers={"WWW-Authenticate": challenge})
