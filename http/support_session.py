"""Signing in to and out of the support console. `/support`."""

import re
from typing import Annotated

from aiohttp import hdrs
from pydantic import Field, StringConstraints

from payloops.commands.log_in import InvalidCredentials
from payloops.commands.log_in_staff import log_in_staff
from payloops.commands.staff_sessions import end_staff_session
from payloops.http.accounts import PresentedPassword
from payloops.http.authentication import is_https, session_cookie
from payloops.http.fields import PresentedEmail
from payloops.http.html import SUPPORT, rendered, see_other
from payloops.http.routing import Call, RequestModel, SessionForm, page

_CONSOLE_PATH = re.compile(rf"{SUPPORT}([/?][!-~]*)?")

WantedPath = Annotated[
    str,
    StringConstraints(max_length=2_048),
    Field(description="Page to continue to after signing in", examples=[SUPPORT]),
]


class SignIn(RequestModel):
    email: PresentedEmail
    password: PresentedPassword
    wanted: WantedPath = SUPPORT


class SignInQuery(RequestModel):
    wanted: WantedPath = SUPPORT


@page(
    "GET",
    "/support/sign-in",
    auth=None,
    query=SignInQuery,
    summary="Show the sign-in page of the support console",
)
async def read_sign_in(call: Call[None, SignInQuery]) -> bytes:
    return _form(call.query.wanted)


@page(
    "POST",
    "/support/sign-in",
    auth=None,
    form=SignIn,
    status=303,
    errors=("invalid_credentials",),
    limits=("staff_login",),
    summary="Sign in to the support console, for a session of eight hours",
)
async def sign_in(call: Call[SignIn]) -> bytes:
    form, services = call.body, call.services
    try:
        member = await log_in_staff(
            services.store.pool, email=form.email, password=form.password, passwords=services.passwords
        )
    except InvalidCredentials:
        call.status = 401
        call.headers[hdrs.WWW_AUTHENTICATE] = "Cookie"
        return _form(form.wanted, notice="That email address and password do not belong together.")
    call.headers[hdrs.SET_COOKIE] = _cookie(call, services.staff_sessions.issue(member, now=call.by.at))
    return see_other(call, _console_path(form.wanted))


@page(
    "POST",
    "/support/sign-out",
    auth="staff_session",
    form=SessionForm,
    status=303,
    summary="Sign out of the support console",
)
async def sign_out(call: Call[SessionForm]) -> bytes:
    assert call.session is not None
    await end_staff_session(call.services.store.pool, session=call.session)
    call.headers[hdrs.SET_COOKIE] = _cookie(call, "", also="; Max-Age=0")
    return see_other(call, "/support/sign-in")


def _form(wanted: str, *, notice: str | None = None) -> bytes:
    return rendered("support_sign_in.html", notice=notice, wanted=_console_path(wanted), arrived=False)


def _console_path(path: str) -> str:
    """The path, if it is one of the console, else that of its first page: signing in never redirects elsewhere."""
    return path if _CONSOLE_PATH.fullmatch(path) else SUPPORT


def _cookie(call: Call[SignIn] | Call[SessionForm], token: str, *, also: str = "") -> str:
    """`Set-Cookie` of a session: until the browser is closed, hidden from scripts, never sent from other sites."""
    secure = call.services.secure_cookies
    name = session_cookie(call.request, secure=secure)
    over_tls = "; Secure" if secure or is_https(call.request) else ""
    return f"{name}={token}; Path=/; HttpOnly; SameSite=Strict{over_tls}{also}"
