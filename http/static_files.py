"""Static files of pages: styles, scripts and pictures in `static/`.

Each file's URL contains a hash of its content, so that browsers may cache it forever and never show an old version.
"""

import hashlib
from functools import cache
from pathlib import Path

from payloops.http.problems import not_found
from payloops.http.routing import Call, route

TYPES = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
HASH_DIGITS = 16
KEPT = "public, max-age=31536000, immutable"

_FOLDER = Path(__file__).with_name("static")
FILES = {path.name: TYPES[path.suffix] for path in sorted(_FOLDER.iterdir()) if path.suffix in TYPES}


@cache
def _file(name: str) -> bytes:
    return (_FOLDER / name).read_bytes()


@cache
def _version(name: str) -> str:
    return hashlib.sha256(_file(name)).hexdigest()[:HASH_DIGITS]


def static_url(name: str) -> str:
    """The address of a file of `static/`, for pages."""
    return f"/static/{name}?v={_version(name)}"


def static_file(name: str, *, version: str | None) -> tuple[bytes, str, dict[str, str]]:
    """A file of `static/`, its type, and headers for how long it may be kept.

    Raises:
        Problem: 404 where there is no such file.
    """
    if name not in FILES:
        raise not_found()
    # While versions are replaced, a page of one may get the file of another: that is not to be kept.
    headers = {"Cache-Control": KEPT} if version == _version(name) else {}
    return _file(name), FILES[name], headers


@route(
    "GET",
    "/static/{file}",
    auth=None,
    query=None,
    answers=bytes,
    media=tuple(TYPES.values()),
    named={"file": tuple(FILES)},
    summary="Get a script, stylesheet or picture of a page",
)
async def read_static_file(call: Call[None]) -> bytes:
    body, call.media, headers = static_file(
        call.request.match_info["file"], version=call.request.query.get("v")
    )
    call.headers.update(headers)
    return body
