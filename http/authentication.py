"""Whose request it is: by API key, by dashboard token, or by a token of the staff."""

from dataclasses import dataclass
from uuid import UUID

from aiohttp import web

from payloops.commands.log_in import authenticate_token
from payloops.commands.log_in_staff import authenticate_staff_token
from payloops.http.problems import Problem
from payloops.http.routing import Auth
from payloops.http.services import Services


@dataclass(frozen=True, slots=True)
class Caller:
    """Who is calling.

    Attributes:
        actor: as events name it.
        merchant_id: in whose account; of staff: none.
        staff_id: of a member of the staff.
    """

    actor: str
    merchant_id: UUID | None = None
    staff_id: UUID | None = None


async def authenticate(request: web.Request, *, auth: Auth, services: Services) -> Caller:
    """Who is calling.

    Raises:
        Problem: 401 unauthorized where nothing was shown. Besides, what the commands raise.
    """
    match auth:
        case "api_key":
            keys = request.headers.getall("X-API-Key", [])
            if len(keys) != 1 or not keys[0].strip():
                raise _unauthorized("Send an API key in X-API-Key", challenge="ApiKey")
            owner = await services.gate.authenticate(keys[0].strip())
            return Caller(f"api_key:{owner.api_key_id}", owner.merchant_id)
        case "bearer":
            merchant = await authenticate_token(
                services.store.pool, token=_token(request), tokens=services.tokens
            )
            return Caller(f"merchant:{merchant.id}", merchant.id)
        case "staff":
            member = await authenticate_staff_token(
                services.store.pool, token=_token(request), tokens=services.staff_tokens
            )
            return Caller(f"staff:{member.id}", staff_id=member.id)


def _token(request: web.Request) -> str:
    headers = request.headers.getall("Authorization", [])
    scheme, _, token = headers[0].strip().partition(" ") if len(headers) == 1 else ("", "", "")
    if scheme.lower() != "bearer" or not token.strip():
        raise _unauthorized("Send a token in Authorization: Bearer", challenge="Bearer")
    return token.strip()


def _unauthorized(message: str, *, challenge: str) -> Problem:
    return Problem(401, "unauthorized", message, headers={"WWW-Authenticate": challenge})
