"""Whose request it is: by API key or by dashboard token."""

from dataclasses import dataclass
from uuid import UUID

from aiohttp import web

from payloops.commands.log_in import authenticate_token
from payloops.http.problems import Problem
from payloops.http.routing import Auth
from payloops.http.services import Services


@dataclass(frozen=True, slots=True)
class Caller:
    """Attributes: `actor`: as events name it; `merchant_id`: in whose account."""

    actor: str
    merchant_id: UUID


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
            headers = request.headers.getall("Authorization", [])
            scheme, _, token = headers[0].strip().partition(" ") if len(headers) == 1 else ("", "", "")
            if scheme.lower() != "bearer" or not token.strip():
                raise _unauthorized("Send a token in Authorization: Bearer", challenge="Bearer")
            merchant = await authenticate_token(
                services.store.pool, token=token.strip(), tokens=services.tokens
            )
            return Caller(f"merchant:{merchant.id}", merchant.id)


def _unauthorized(message: str, *, challenge: str) -> Problem:
    return Problem(401, "unauthorized", message, headers={"WWW-Authenticate": challenge})
