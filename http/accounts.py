"""Accounts: register, log in, change the password. `/api/auth`."""

from typing import Annotated
from uuid import UUID

from pydantic import Field, StringConstraints

from payloops.commands.change_password import change_password as replace_password
from payloops.commands.log_in import log_in as sign_in
from payloops.commands.merchants import MerchantRow
from payloops.commands.register_merchant import register_merchant
from payloops.http.fields import Email, Password, PresentedEmail, Timestamp
from payloops.http.routing import AnswerModel, Call, RequestModel, route

MerchantName = Annotated[
    str,
    StringConstraints(strip_whitespace=True, min_length=2, max_length=255),
    Field(examples=["Ada's shop"]),
]
PresentedPassword = Annotated[str, StringConstraints(max_length=1_000), Field(repr=False)]
"""A password to check. One that the rules for new passwords exclude is no error here: it is just wrong."""


class Registration(RequestModel):
    name: MerchantName
    email: Email
    password: Annotated[Password, Field(repr=False)]


class Login(RequestModel):
    email: PresentedEmail
    password: PresentedPassword


class PasswordChange(RequestModel):
    current_password: PresentedPassword
    new_password: Annotated[Password, Field(repr=False)]


class MerchantAnswer(AnswerModel):
    id: UUID
    name: Annotated[str, Field(examples=["Ada's shop"])]
    email: Annotated[str, Field(examples=["ada@example.com"])]
    webhook_url: Annotated[str | None, Field(examples=["https://shop.example/webhooks"])]
    created_at: Timestamp
    updated_at: Timestamp


class SessionAnswer(AnswerModel):
    token: Annotated[str, Field(examples=["eyJhbGciOiJIUzI1NiJ9.e30.signature"])]
    merchant: MerchantAnswer


class TokenAnswer(AnswerModel):
    token: str


@route(
    "POST",
    "/api/auth/register",
    auth=None,
    body=Registration,
    answers=SessionAnswer,
    status=201,
    errors=("email_exists",),
    limits=("register",),
    summary="Open a merchant account",
)
async def register(call: Call[Registration]) -> SessionAnswer:
    merchant = await register_merchant(
        call.services.store,
        name=call.body.name,
        email=call.body.email,
        password=call.body.password,
        passwords=call.services.passwords,
        by=call.by,
    )
    return _session(call, merchant)


@route(
    "POST",
    "/api/auth/login",
    auth=None,
    body=Login,
    answers=SessionAnswer,
    errors=("invalid_credentials",),
    limits=("login",),
    summary="Log in to a merchant account",
)
async def log_in(call: Call[Login]) -> SessionAnswer:
    merchant = await sign_in(
        call.services.store.pool,
        email=call.body.email,
        password=call.body.password,
        passwords=call.services.passwords,
    )
    return _session(call, merchant)


def _session(call: Call[Registration] | Call[Login], merchant: MerchantRow) -> SessionAnswer:
    token = call.services.tokens.issue(merchant, now=call.by.at)
    return SessionAnswer(token=token, merchant=MerchantAnswer.model_validate(merchant))


@route(
    "POST",
    "/api/auth/password",
    auth="bearer",
    body=PasswordChange,
    answers=TokenAnswer,
    errors=("invalid_credentials",),
    limits=("password",),
    summary="Change the password, and revoke all older tokens",
)
async def change_password(call: Call[PasswordChange]) -> TokenAnswer:
    merchant = await replace_password(
        call.services.store,
        merchant_id=call.merchant_id,
        current_password=call.body.current_password,
        new_password=call.body.new_password,
        passwords=call.services.passwords,
        by=call.by,
    )
    return TokenAnswer(token=call.services.tokens.issue(merchant, now=call.by.at))
