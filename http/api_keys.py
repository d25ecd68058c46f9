"""A merchant's API keys. `/api/api-keys`, by dashboard token."""

from typing import Annotated
from uuid import UUID

from pydantic import Field, StringConstraints

from payloops.commands.api_keys import list_api_keys
from payloops.commands.issue_api_key import issue_api_key as issue
from payloops.commands.revoke_api_key import revoke_api_key as revoke
from payloops.http.fields import Moment, Timestamp
from payloops.http.problems import FieldError, validation_error
from payloops.http.routing import AnswerModel, Call, RequestModel, route


class NewApiKey(RequestModel):
    name: Annotated[
        str,
        StringConstraints(strip_whitespace=True, min_length=1, max_length=255),
        Field(examples=["Web shop"]),
    ]
    expires_at: Moment | None = None


class ApiKeyAnswer(AnswerModel):
    id: UUID
    name: Annotated[str, Field(examples=["Web shop"])]
    prefix: Annotated[str, Field(examples=["sk_test_a1b2c3d4"])]
    expires_at: Timestamp | None
    created_at: Timestamp


class ListedApiKey(ApiKeyAnswer):
    last_used_at: Timestamp | None


class IssuedApiKeyAnswer(AnswerModel):
    api_key: ApiKeyAnswer
    secret: Annotated[str, Field(examples=["sk_test_a1b2c3d4_shown_this_once"])]


@route(
    "GET",
    "/api/api-keys",
    auth="bearer",
    answers=list[ListedApiKey],
    summary="List API keys, newest first, without revoked ones",
)
async def read_api_keys(call: Call[None]) -> list[ListedApiKey]:
    rows = await list_api_keys(call.services.store.pool, merchant_id=call.merchant_id)
    return [ListedApiKey.model_validate(row) for row in rows]


@route(
    "POST",
    "/api/api-keys",
    auth="bearer",
    body=NewApiKey,
    answers=IssuedApiKeyAnswer,
    status=201,
    errors=("too_many_api_keys",),
    summary="Create an API key; its secret is shown only in this answer",
)
async def issue_api_key(call: Call[NewApiKey]) -> IssuedApiKeyAnswer:
    expires_at = call.body.expires_at
    if expires_at is not None and expires_at <= call.by.at:
        raise validation_error(FieldError("expiresAt", "Must be in the future"))
    issued = await issue(
        call.services.store,
        merchant_id=call.merchant_id,
        name=call.body.name,
        expires_at=expires_at,
        mode=call.services.key_mode,
        keys=call.services.key_hasher,
        by=call.by,
    )
    return IssuedApiKeyAnswer(api_key=ApiKeyAnswer.model_validate(issued.row), secret=issued.secret)


@route(
    "DELETE",
    "/api/api-keys/{id}",
    auth="bearer",
    status=204,
    errors=("not_found",),
    summary="Revoke an API key",
)
async def revoke_api_key(call: Call[None]) -> None:
    await revoke(call.services.store, merchant_id=call.merchant_id, api_key_id=call.id(), by=call.by)
