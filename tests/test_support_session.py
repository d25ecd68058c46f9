"""Staff sign in to the support console, and nobody else gets in: cookies, forms, ends of sessions."""

import re
from collections.abc import Mapping
from datetime import timedelta
from http.cookies import Morsel, SimpleCookie
from uuid import uuid4

import jwt
import pytest
from browsing import fits, photograph, visiting
from calling import PASSWORD, Answer, Api, Caller, running_api
from console import COOKIE, fill_in
from playwright.async_api import Browser
from psycopg_pool import AsyncConnectionPool
from test_staff import EMAIL, hire

from payloops.commands.remove_staff import remove_staff
from payloops.commands.staff_sessions import (
    end_staff_session,
    find_staff_session,
    forget_ended_staff_sessions,
)
from payloops.commands.staff_views import list_staff_views
from payloops.commands.tokens import AUDIENCE, SESSION_AUDIENCE, STAFF_AUDIENCE, InvalidToken
from payloops.events.timestamps import utc_now
from payloops.http.app import ROUTES
from payloops.http.routing import SessionForm
from payloops.settings import Environment, Settings


async def send(
    api: Api, path: str, fields: Mapping[str, str], headers: Mapping[str, str] | None = None
) -> Answer:
    """A form, as a browser sends it; where it leads to is not followed."""
    async with api.anyone.session.post(
        path, data=dict(fields), headers=dict(headers or {}), allow_redirects=False
    ) as response:
        return Answer(response.status, response.headers, await response.read())


async def sign_in(api: Api, headers: Mapping[str, str] | None = None, **fields: str) -> Answer:
    return await send(api, "/support/sign-in", {"email": EMAIL, "password": PASSWORD, **fields}, headers)


def cookie_of(answer: Answer) -> Morsel[str]:
    [morsel] = SimpleCookie(answer.headers["Set-Cookie"]).values()
    return morsel


async def desk(api: Api) -> Caller:
    """Somebody who is signed in."""
    answer = await sign_in(api)
    assert answer.status == 303, answer.raw
    token = cookie_of(answer).value
    return Caller(api.anyone.session, {"Cookie": f"{COOKIE}={token}"})


def form_token(answer: Answer) -> str:
    found = re.search(r'name="formToken" value="([^"]+)"', answer.raw.decode())
    assert found is not None
    return found[1]


async def test_whoever_signs_in_goes_on_to_what_was_wanted(api: Api, pool: AsyncConnectionPool) -> None:
    await hire(pool)
    asked = await api.anyone.get("/support?q=a%26b")
    assert asked.status == 401
    assert asked.headers["WWW-Authenticate"]
    assert 'value="/support?q=a%26b"' in asked.raw.decode()
    answer = await sign_in(api, email=EMAIL.upper(), wanted="/support?q=a%26b")
    assert (answer.status, answer.headers["Location"]) == (303, "/support?q=a%26b")
    shown = await api.anyone.get("/support", Cookie=f"{COOKIE}={cookie_of(answer).value}")
    assert shown.status == 200
    assert "Grace" in shown.raw.decode()


async def test_nobody_is_sent_on_to_somewhere_else(api: Api, pool: AsyncConnectionPool) -> None:
    await hire(pool)
    for wanted in (
        *("https://evil.example/", "//evil.example", "/\\evil.example", "/supportive", "/v1/orders", ""),
        *("/support\\..", "javascript:alert(1)", "/support/\u00fc"),
    ):
        answer = await sign_in(api, wanted=wanted)
        assert (answer.status, answer.headers["Location"]) == (303, "/support"), wanted
        page = await api.anyone.session.get("/support/sign-in", params={"wanted": wanted})
        assert 'name="wanted" value="/support"' in await page.text(), wanted


async def test_the_cookie_is_for_this_host_alone_and_for_no_script(
    api: Api, pool: AsyncConnectionPool, settings: Settings
) -> None:
    await hire(pool)
    plain = cookie_of(await sign_in(api))
    assert (plain.key, plain["secure"], plain["httponly"]) == (COOKIE, "", True)
    assert (plain["samesite"], plain["path"], plain["domain"]) == ("Strict", "/", "")
    assert (plain["max-age"], plain["expires"]) == ("", "")
    proxied = cookie_of(await sign_in(api, {"X-Forwarded-Proto": "https"}))
    assert (proxied.key, proxied["secure"]) == (f"__Host-{COOKIE}", True)
    production = settings.model_copy(update={"environment": Environment.PRODUCTION})
    async with running_api(production) as live:
        answer = await sign_in(live)
        secure = cookie_of(answer)
        assert (secure.key, secure["secure"], secure["httponly"]) == (f"__Host-{COOKIE}", True, True)
        for name, status in ((COOKIE, 401), (f"__Host-{COOKIE}", 200)):
            assert (await live.anyone.get("/support", Cookie=f"{name}={secure.value}")).status == status


async def test_a_wrong_password_and_an_unknown_address_are_answered_alike(
    api: Api, pool: AsyncConnectionPool
) -> None:
    await hire(pool)
    answers = [
        await sign_in(api, email=email, password="wrong", wanted="/support?page=2")
        for email in (EMAIL, "nobody@payloops.example", "no address")
    ]
    assert {answer.status for answer in answers} == {401}
    assert len({answer.raw for answer in answers}) == 1
    assert "do not belong together" in answers[0].raw.decode()
    assert 'value="/support?page=2"' in answers[0].raw.decode()
    assert all("Set-Cookie" not in answer.headers for answer in answers)


async def test_passwords_are_tried_as_often_as_over_the_api_and_together_with_it(
    limited: Settings, pool: AsyncConnectionPool
) -> None:
    await hire(pool)
    async with running_api(limited.model_copy(update={"login_limit_per_account": "2/hour"})) as api:
        login = {"email": EMAIL, "password": "wrong"}
        assert (await api.anyone.post("/api/staff/login", login)).status == 401
        assert (await sign_in(api, password="wrong")).status == 401
        late = await sign_in(api)
        assert late.status == 429
        assert int(late.headers["Retry-After"]) > 60
        assert "Too many tries" in late.raw.decode()
        assert (await api.anyone.post("/api/staff/login", login)).status == 429


async def test_a_session_says_who_and_ends(api: Api, pool: AsyncConnectionPool, settings: Settings) -> None:
    member = await hire(pool)
    token = cookie_of(await sign_in(api)).value
    claims = jwt.decode(token, options={"verify_signature": False})
    assert (claims["aud"], claims["sub"]) == (SESSION_AUDIENCE, str(member.id))
    assert claims["exp"] - claims["iat"] == 8 * 3600
    for changed in (
        *({"aud": STAFF_AUDIENCE}, {"aud": AUDIENCE}, {"aud": [SESSION_AUDIENCE]}),
        *({"sub": str(uuid4())}, {"exp": 1}, {"ver": 2}, {"jti": "x"}),
    ):
        forged = jwt.encode({**claims, **changed}, settings.jwt_secret.get_secret_value(), algorithm="HS256")
        answer = await api.anyone.get("/support", Cookie=f"{COOKIE}={forged}")
        assert answer.status == 401, changed
        assert "Your session has ended" in answer.raw.decode()
    for cookie in (f"{COOKIE}=", f"{COOKIE}=x", f"{COOKIE}={token[:-2]}", f"other={token}"):
        assert (await api.anyone.get("/support", Cookie=cookie)).status == 401
    assert (await api.anyone.get("/support", Cookie=f"{COOKIE}={token}")).status == 200


async def test_a_session_is_no_token_of_the_api_and_none_of_its_tokens_is_a_session(
    api: Api, pool: AsyncConnectionPool
) -> None:
    await hire(pool)
    session = cookie_of(await sign_in(api)).value
    assert (await api.anyone.get("/api/staff/orders", Authorization=f"Bearer {session}")).status == 401
    login = await api.anyone.post("/api/staff/login", {"email": EMAIL, "password": PASSWORD})
    merchant = await api.merchant()
    tokens = [login.json["token"], merchant.dashboard.headers["Authorization"].removeprefix("Bearer ")]
    for token in tokens:
        assert (await api.anyone.get("/support", Cookie=f"{COOKIE}={token}")).status == 401
        assert (await api.anyone.get("/support", Authorization=f"Bearer {token}")).status == 401
    assert (await merchant.shop.get("/support")).status == 401


async def test_a_session_ends_at_once_with_whoever_is_removed(api: Api, pool: AsyncConnectionPool) -> None:
    await hire(pool)
    member = await desk(api)
    assert (await member.get("/support")).status == 200
    await remove_staff(pool, email=EMAIL, at=utc_now())
    ended = await member.get("/support")
    assert ended.status == 401
    assert "Grace" not in ended.raw.decode()
    await hire(pool)
    assert (await member.get("/support")).status == 401, "who is added again signs in again"


async def test_what_was_signed_out_of_stays_so_where_the_cookie_was_copied(
    api: Api, pool: AsyncConnectionPool
) -> None:
    await hire(pool)
    one, other = await desk(api), await desk(api)
    token = form_token(await one.get("/support"))
    answer = await send(api, "/support/sign-out", {"formToken": token}, one.headers)
    assert (answer.status, answer.headers["Location"]) == (303, "/support/sign-in")
    removed = cookie_of(answer)
    assert (removed.key, removed.value, removed["max-age"]) == (COOKIE, "", "0")
    assert (await one.get("/support")).status == 401
    assert (await other.get("/support")).status == 200
    assert await forget_ended_staff_sessions(pool, now=utc_now()) == 0
    assert await forget_ended_staff_sessions(pool, now=utc_now() + timedelta(hours=9)) == 1


async def test_two_clicks_may_end_a_session_at_once(api: Api, pool: AsyncConnectionPool) -> None:
    tokens = api.services.staff_sessions
    token = tokens.issue(await hire(pool), now=utc_now())
    session = await find_staff_session(pool, token=token, tokens=tokens)
    for _ in range(2):
        await end_staff_session(pool, session=session)
    with pytest.raises(InvalidToken):
        await find_staff_session(pool, token=token, tokens=tokens)


async def test_only_a_form_of_the_same_session_is_taken(api: Api, pool: AsyncConnectionPool) -> None:
    await hire(pool)
    one, other = await desk(api), await desk(api)
    anothers = form_token(await other.get("/support"))
    own = form_token(await one.get("/support"))
    assert own != anothers
    for fields, headers, status in (
        ({"formToken": anothers}, {}, 403),
        ({"formToken": "\u00fc"}, {}, 403),
        ({"formToken": ""}, {}, 403),
        ({}, {}, 400),
        ({"formToken": own}, {"Sec-Fetch-Site": "cross-site"}, 403),
        ({"formToken": own}, {"Origin": "https://evil.example"}, 403),
    ):
        answer = await send(api, "/support/sign-out", fields, {**one.headers, **headers})
        assert answer.status == status, (fields, headers)
    assert (await one.get("/support")).status == 200


async def test_no_other_site_can_sign_anybody_in(api: Api, pool: AsyncConnectionPool) -> None:
    await hire(pool)
    for headers in ({"Sec-Fetch-Site": "cross-site"}, {"Origin": "https://evil.example"}):
        answer = await sign_in(api, headers)
        assert (answer.status, answer.headers.get("Set-Cookie")) == (403, None)


def test_every_form_of_a_session_is_bound_to_it() -> None:
    forms = [each for each in ROUTES if each.auth == "staff_session" and each.method != "GET"]
    assert forms
    assert all(each.form is not None and issubclass(each.form, SessionForm) for each in forms)


def test_the_console_shows_and_changes_nothing() -> None:
    pages = [each for each in ROUTES if each.path.startswith("/support")]
    assert {each.path for each in pages if each.method != "GET"} == {"/support/sign-in", "/support/sign-out"}
    assert {each.path for each in pages if each.auth is None} == {"/support/sign-in"}
    assert {each.auth for each in pages} == {None, "staff_session"}
    assert all(each.page for each in pages)


async def test_a_look_is_on_record_before_it_is_shown(api: Api, pool: AsyncConnectionPool) -> None:
    member = await hire(pool)
    caller = await desk(api)
    merchant = uuid4()
    await caller.get(f"/support?q=ada%40example.com&merchantId={merchant}", **{"X-Correlation-ID": "look"})
    [view] = await list_staff_views(pool, limit=10)
    assert (view.staff_id, view.route, view.merchant_id) == (member.id, "GET /support", merchant)
    assert view.query == {"q": "ada@example.com", "merchantId": str(merchant), "page": 1}
    assert view.correlation_id == "look"
    async with pool.connection() as connection:
        await connection.execute("ALTER TABLE staff_views RENAME TO elsewhere")
    assert (await caller.get("/support")).status >= 500


async def test_in_a_browser_staff_sign_in_look_around_and_sign_out(
    api: Api, pool: AsyncConnectionPool, browser: Browser
) -> None:
    await hire(pool)
    async with visiting(browser) as visitor:
        page = await visitor.open(f"{api.url}/support?q=nothing")
        await page.get_by_role("heading", name="Sign in").wait_for()
        assert await fits(page)
        await photograph(page, "support-sign-in")
        await fill_in(page, password="wrong")
        await page.get_by_role("alert").wait_for()
        await fill_in(page)
        await page.get_by_text("No order fits").wait_for()
        assert page.url.endswith("/support?q=nothing")
        assert await page.evaluate("document.cookie") == ""
        await page.get_by_role("button", name="Sign out").click()
        await page.get_by_role("heading", name="Sign in").wait_for()
        await page.goto(f"{api.url}/support")
        await page.get_by_role("heading", name="Sign in").wait_for()
        await page.go_back()
        assert await page.get_by_text("No order fits").count() == 0


async def test_in_a_browser_who_is_removed_is_out_with_the_next_click(
    api: Api, pool: AsyncConnectionPool, browser: Browser
) -> None:
    await hire(pool)
    async with visiting(browser) as visitor:
        page = await visitor.open(f"{api.url}/support")
        await fill_in(page)
        await page.get_by_role("heading", name="Orders").wait_for()
        await remove_staff(pool, email=EMAIL, at=utc_now())
        await page.get_by_role("button", name="Search").click()
        await page.get_by_text("Your session has ended").wait_for()
        await fill_in(page)
        await page.get_by_text("do not belong together").wait_for()


async def test_in_a_browser_too_many_tries_are_told_so(
    limited: Settings, pool: AsyncConnectionPool, browser: Browser
) -> None:
    await hire(pool)
    async with (
        running_api(limited.model_copy(update={"login_limit_per_account": "1/hour"})) as api,
        visiting(browser, phone=True, dark=True) as visitor,
    ):
        page = await visitor.open(f"{api.url}/support")
        await photograph(page, "support-sign-in-phone")
        await fill_in(page, password="wrong")
        await page.get_by_role("alert").wait_for()
        await fill_in(page)
        await page.get_by_role("heading", name="Too many tries").wait_for()
        assert await fits(page)


async def test_in_a_browser_a_link_from_elsewhere_opens_with_one_more_click(
    api: Api, pool: AsyncConnectionPool, browser: Browser
) -> None:
    """The cookie is not sent along from another site, so that none can make staff look at what it chooses."""
    await hire(pool)
    async with visiting(browser) as visitor:
        await visitor.meets("tickets.example")
        page = await visitor.open(f"{api.url}/support")
        await fill_in(page)
        await page.get_by_role("heading", name="Orders").wait_for()
        looks = len(await list_staff_views(pool, limit=100))
        await page.goto("https://tickets.example/")
        await page.evaluate("url => { location.href = url }", f"{api.url}/support?q=victim")
        await page.get_by_role("link", name="open the page").wait_for()
        assert len(await list_staff_views(pool, limit=100)) == looks
        await page.get_by_role("link", name="open the page").click()
        await page.get_by_text("No order fits").wait_for()
