"""What holds for every page, whatever it shows: rules for the browser, forms, refusals that people can read."""

import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from browsing import fits, photograph, visiting
from calling import Answer, Api, running_api, with_routes
from masking import shows_card
from playwright.async_api import Browser

from payloops.http import html, static_files
from payloops.http.app import ROUTES
from payloops.http.html import rendered, see_other
from payloops.http.openapi import openapi_document
from payloops.http.problems import Problem
from payloops.http.routing import HTML, Call, RequestModel, page
from payloops.http.static_files import FILES, KEPT, static_url
from payloops.settings import Settings

FORM = {"Content-Type": "application/x-www-form-urlencoded"}


class Wish(RequestModel):
    wish: str


@page("GET", "/wish", auth=None, summary="A page")
async def read_wish(call: Call[None]) -> bytes:
    return rendered("layout.html")


@page("POST", "/wish", auth=None, form=Wish, status=303, summary="What its form is sent to")
async def make_wish(call: Call[Wish]) -> bytes:
    return see_other(call, f"/wish?made={len(call.body.wish)}")


@page("GET", "/refusal/{status}", auth=None, named={"status": ("503",)}, summary="Refuses")
async def refuse(call: Call[None]) -> bytes:
    status = int(call.request.match_info["status"])
    if status == 500:
        raise LookupError("a secret")
    raise Problem(status, "code", "a message for programs")


@pytest.fixture
async def api(settings: Settings) -> AsyncIterator[Api]:
    async with running_api(settings) as api, with_routes(api, read_wish, make_wish, refuse) as more:
        yield more


def is_page(answer: Answer) -> bool:
    return answer.headers["Content-Type"] == "text/html; charset=utf-8"


async def send(api: Api, form: bytes, **headers: str) -> Answer:
    return await api.anyone.call("POST", "/wish", data=form, headers={**FORM, **headers})


async def test_a_page_allows_nothing_of_another_host_and_nothing_inside_of_it(api: Api) -> None:
    for path in ("/wish", "/refusal/503"):
        answer = await api.anyone.get(path)
        assert is_page(answer)
        policy = answer.headers["Content-Security-Policy"]
        assert "default-src 'none';" in policy
        assert "frame-ancestors 'none'" in policy
        assert not re.search(r"unsafe|\*|https?:|data:", policy)
        assert answer.headers["Referrer-Policy"] == "same-origin"
        assert answer.headers["Cache-Control"] == "no-store"
        assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\s(on\w+|style)=|https?://", answer.raw.decode())


async def test_refusals_are_pages_that_say_what_to_do_and_nothing_of_the_inside(
    api: Api, subtests: pytest.Subtests
) -> None:
    for status in (400, 403, 404, 408, 429, 500, 503, 504):
        with subtests.test(status=status):
            answer = await api.anyone.get(f"/refusal/{status}")
            assert (answer.status, is_page(answer)) == (status, True)
            text = answer.raw.decode()
            assert answer.headers["X-Correlation-ID"] in text
            assert "a secret" not in text
            assert "for programs" not in text
            assert ("Retry-After" in answer.headers) == (status in (429, 503))


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/support/nowhere", 404),
        ("GET", "/support/", 404),
        ("GET", "/support/orders/%2e%2e/x", 404),
        ("GET", "/checkout/1/2", 404),
        ("POST", "/support", 405),
    ],
)
async def test_where_only_browsers_ask_a_path_without_a_route_is_answered_with_a_page(
    api: Api, method: str, path: str, status: int
) -> None:
    answer = await api.anyone.call(method, path)
    assert (answer.status, is_page(answer)) == (status, True)
    assert answer.headers["Content-Security-Policy"].startswith("default-src 'none';")
    assert not is_page(
        await api.anyone.call(method, path.replace("/support", "/supporter").replace("check", ""))
    )


async def test_what_a_form_holds_that_does_not_fit_is_named_and_not_repeated(api: Api) -> None:
    for form, field in (
        (b"", "wish"),
        (b"wish=a&wish=b", "wish"),
        (b"wish=a&other=%3Cb%3E", "other"),
        (b"wish=4242424242424242", "wish"),
        (b"wish=a%00b", "wish"),
        (b"wish=%ff", "wish"),
        (b"wish=a&%3Cb%3E=1", "&lt;b&gt;"),
        (b"wish", "body"),
        (b"&".join(b"a=1" for _ in range(200)), "body"),
        (b"wish=\xff", "body"),
    ):
        answer = await send(api, form)
        assert (answer.status, is_page(answer)) == (400, True), form
        assert f"<strong>{field}</strong>" in answer.raw.decode()
        assert not shows_card(answer.raw)
        assert b"<b>" not in answer.raw


async def test_only_forms_are_taken(api: Api) -> None:
    for headers in ({"Content-Type": "application/json"}, {**FORM, "Content-Encoding": "gzip"}):
        answer = await api.anyone.call("POST", "/wish", data=b"wish=a", headers=headers)
        assert (answer.status, is_page(answer)) == (415, True)
    for too_large in (64 * 1024, 1024 * 1024):
        answer = await send(api, b"wish=" + b"a" * too_large)
        assert (answer.status, is_page(answer)) == (413, True)


async def test_a_form_of_another_site_does_nothing(api: Api) -> None:
    own = f"http://127.0.0.1:{api.port}"
    for headers in (
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site", "Origin": own},
        {"Origin": "https://evil.example"},
        {"Origin": "http://127.0.0.1:1"},
        {"Origin": "null"},
        {"Origin": "http://["},
    ):
        answer = await send(api, b"wish=a", **headers)
        assert (answer.status, is_page(answer)) == (403, True), headers
    for headers in ({"Sec-Fetch-Site": "same-origin"}, {"Origin": own}, {}):
        sent = await api.anyone.session.post(
            "/wish", data=b"wish=a", headers={**FORM, **headers}, allow_redirects=False
        )
        assert (sent.status, sent.headers["Location"]) == (303, "/wish?made=1"), headers


async def test_a_refused_form_leads_back_to_its_page_and_to_no_other_site(api: Api) -> None:
    own = f"http://127.0.0.1:{api.port}"
    for referer, link in (
        (f"{own}/wish", 'href="/wish"'),
        (f"{own}//evil.example/", None),
        ("https://evil.example/wish", None),
        ("http://[", None),
    ):
        text = (await send(api, b"", Referer=referer)).raw.decode()
        assert "evil.example" not in text
        assert ("Try again" in text) == (link is not None)
        assert link is None or link in text


async def test_static_files_are_kept_for_ever_under_the_address_that_names_their_content(api: Api) -> None:
    for name in FILES:
        named = await api.anyone.get(static_url(name))
        assert (named.status, named.headers["Cache-Control"]) == (200, KEPT)
        assert named.headers["Content-Type"] == FILES[name]
        # A page of the version before or after this one: what there is, for now.
        for path in (f"/static/{name}", f"/static/{name}?v=0123456789abcdef"):
            other = await api.anyone.get(path)
            assert (other.status, other.raw, other.headers["Cache-Control"]) == (200, named.raw, "no-store")


async def test_no_other_file_is_served(api: Api) -> None:
    for name in ("layout.html", "..%2fhtml.py", "%2e%2e/html.py", "pages.css%00", ".", "pages.css/"):
        assert (await api.anyone.get(f"/static/{name}")).status == 404


def test_pages_stand_in_the_contract_as_what_they_are() -> None:
    """And are all there: what takes an id is seen by the tests of tenancy through it."""
    document = openapi_document((make_wish,), version="test")
    operation = document["paths"]["/wish"]["post"]
    assert operation["tags"] == ["Pages"]
    assert set(operation["requestBody"]["content"]) == set(FORM.values())
    answers = [
        document["components"]["responses"][each["$ref"].split("/")[-1]] if "$ref" in each else each
        for each in operation["responses"].values()
    ]
    assert {media for each in answers for media in each.get("content", ())} == {HTML}
    assert "Location" in operation["responses"]["303"]["headers"]
    assert "403" in operation["responses"]


def test_every_script_and_style_is_used_by_a_page() -> None:
    folder = Path(html.__file__).with_name("templates")
    texts = "".join(path.read_text() for path in folder.iterdir())
    assert set(re.findall(r'static\("([^"]+)"\)', texts)) == set(FILES)
    assert {path.name for path in Path(static_files.__file__).with_name("static").iterdir()} >= set(FILES)


def test_pages_take_nothing_but_forms() -> None:
    assert all(each.body is None for each in ROUTES if each.page)
    assert all(each.page for each in ROUTES if each.form is not None)


async def test_a_refusal_looks_like_one_of_our_pages(api: Api, browser: Browser) -> None:
    for phone, dark in ((False, False), (True, True)):
        async with visiting(browser, phone=phone, dark=dark) as visitor:
            seen = await visitor.open(f"{api.url}/refusal/503")
            await seen.get_by_role("heading", name="We are busy right now").wait_for()
            assert await fits(seen)
            await photograph(seen, "refusal" + "-phone" * phone)
            await seen.keyboard.press("Tab")
            assert await seen.evaluate("document.activeElement.textContent") == "Try again"
