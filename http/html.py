"""HTML pages, rendered from `templates/`, with a strict Content-Security-Policy.

Pages contain no inline scripts or styles, and load nothing from other hosts, so that the policy can forbid both. The
template engine escapes all text; using a name that was not passed in is an error.
"""

from collections.abc import Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import orjson
from aiohttp import hdrs, web
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from payloops.events.money import money_text
from payloops.events.timestamps import timestamp_text
from payloops.http.money import money
from payloops.http.problems import Problem
from payloops.http.routing import HTML, Call
from payloops.http.static_files import static_url

PAGE_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self';"
        " form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    # Other sites never learn a page's URL, which may be all it takes to see the page. This site's own forms send it, so
    # that a refusal can link back.
    "Referrer-Policy": "same-origin",
}

FOLDER = Path(__file__).with_name("templates")


MOST_INDENTED = 32 * 1024
"""Characters of JSON. Indented, each may become five hundred, if it is nested deep."""


def readable(text: str) -> str:
    """Indented JSON; a text that is long, or not JSON, for example because it was truncated, unchanged."""
    if len(text) > MOST_INDENTED:
        return text
    try:
        return orjson.dumps(orjson.loads(text), option=orjson.OPT_INDENT_2).decode()
    except orjson.JSONDecodeError:
        return text


templates = Environment(
    loader=FileSystemLoader(FOLDER),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    auto_reload=False,
)
templates.globals["static"] = static_url
templates.filters["money"] = money
templates.filters["amount"] = money_text
templates.filters["moment"] = timestamp_text
templates.filters["readable"] = readable


def rendered(template: str, **values: Any) -> bytes:
    """Render a page.

    Args:
        template: its file in `templates/`.
        values: the template's variables.
    """
    return templates.get_template(template).render(values).encode()


def see_other(call: Call[Any, Any], path: str) -> bytes:
    """Redirect the browser to a path of this origin, with GET (303)."""
    call.status = 303
    call.headers[hdrs.LOCATION] = path
    return b""


def refuse_foreign_forms(request: web.Request) -> None:
    """Refuse forms that another site makes a browser send (CSRF). Clients that are not browsers are accepted.

    This is the rule of Go's `http.CrossOriginProtection`: every current browser states where a request comes from, and
    no page can forge that.

    Raises:
        Problem: 403 forbidden.
    """
    site = request.headers.get("Sec-Fetch-Site")
    if site is not None:
        foreign = site not in ("same-origin", "none")
    else:
        origin = request.headers.get(hdrs.ORIGIN)
        foreign = origin is not None and not _is_ours(origin, request)
    if foreign:
        raise Problem(403, "forbidden", "Forms are taken from this site's own pages only")


SUPPORT = "/support"
"""The console's first page."""


class Excuse(NamedTuple):
    """An error, worded for people."""

    title: str
    text: str


EXCUSES = {
    400: Excuse("That did not go through", "Something in the form does not fit."),
    403: Excuse(
        "That was not sent from here", "Forms are taken from our own pages only. Open the page again."
    ),
    404: Excuse("Page not found", "The link may be mistyped, or it is no longer in use."),
    429: Excuse("Too many tries", "Please wait a moment, then try again."),
    500: Excuse("Something went wrong", "The fault is on our side."),
    503: Excuse("We are busy right now", "Nothing was done. Please try again in a few seconds."),
    504: Excuse(
        "That took too long", "Whether it was done is not known yet. Open the page again: it will show."
    ),
}
"""By status. For other statuses, 400 or 500 is used."""
NOT_OFFERED = Excuse(
    "This way to pay is not offered any more", "Nothing was charged. Please choose another one."
)
"""If the merchant has switched off a way to pay after the page was opened."""


def refusal_page(problem: Problem, request: web.Request, *, correlation_id: str) -> web.Response:
    """The error page. It names invalid fields, and never repeats their values."""
    if problem.status == HTTPStatus.UNAUTHORIZED:
        return _sign_in_page(problem, request)
    excuse = EXCUSES.get(problem.status) or EXCUSES[problem.status // 100 * 100]
    if problem.code == "no_processor":
        excuse = NOT_OFFERED
    page = rendered(
        "refusal.html",
        status=problem.status,
        excuse=excuse,
        errors=problem.errors or (),
        again=_again(request, problem),
        reference=correlation_id,
    )
    return _page_response(problem.status, page, headers=problem.headers)


def _sign_in_page(problem: Problem, request: web.Request) -> web.Response:
    """The sign-in page, instead of a page for staff. After signing in, they are redirected to that page."""
    wanted = request.path_qs if request.method != hdrs.METH_POST else SUPPORT
    page = rendered(
        "support_sign_in.html",
        notice="Your session has ended. Please sign in again." if problem.code == "invalid_token" else None,
        wanted=wanted,
        # Coming from another site, browsers do not send the cookie (SameSite=Strict), although there may be a session.
        arrived=request.headers.get("Sec-Fetch-Site") == "cross-site",
    )
    return _page_response(problem.status, page, headers={hdrs.WWW_AUTHENTICATE: "Cookie"})


def _page_response(status: int, page: bytes, *, headers: Mapping[str, str]) -> web.Response:
    return web.Response(
        status=status, body=page, content_type=HTML, charset="utf-8", headers={**PAGE_HEADERS, **headers}
    )


def _again(request: web.Request, problem: Problem) -> str | None:
    """The path for trying again: the page itself, without a wrong query, or the page of this origin with the form."""
    if request.method != hdrs.METH_POST:
        if problem.status == HTTPStatus.NOT_FOUND:
            return None
        return request.path if problem.status == HTTPStatus.BAD_REQUEST else request.path_qs
    referer = request.headers.get(hdrs.REFERER, "")
    if not _is_ours(referer, request):
        return None
    path = urlsplit(referer).path
    return path if not path.startswith("//") else None


def _is_ours(url: str, request: web.Request) -> bool:
    """Whether a URL, from a header that may contain anything, is of this origin."""
    try:
        return urlsplit(url).netloc.lower() == request.host.lower()
    except ValueError:
        return False
