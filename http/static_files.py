"""Static files of pages: stylesheets, scripts and images in `static/`.

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
    """The URL of a file in `static/`."""
    return f"/static/{name}?v={_version(name)}"


def static_file(name: str, *, version: str | None) -> tuple[bytes, str, dict[str, str]]:
    """A file in `static/`: its content, its type, and headers about caching.

    Raises:
        Problem: 404 if there is no such file.
    """
    if name not in FILES:
        raise not_found()
    # During a deployment, a page of one version may get the file of another one, which must not be cached.
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
