"""The API contract: `/openapi.json` for programs, `/docs` for people, from files that are part of the package."""

from functools import lru_cache
from importlib.metadata import version
from pathlib import Path

import orjson
from aiohttp import web

from payloops.http.openapi import openapi_document
from payloops.http.problems import not_found
from payloops.http.routing import HTML, Call, Route, route

ROUTES_KEY = web.AppKey("routes", tuple)
FILES = {
    "swagger-ui.css": "text/css",
    "swagger-ui-bundle.js": "text/javascript",
    "start.js": "text/javascript",
    "favicon-32x32.png": "image/png",
}
# Swagger UI draws its icons from data: URLs; scripts, styles and requests are this origin's only.
PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self';"
    " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

_FOLDER = Path(__file__).with_name("swagger_ui")


@lru_cache(maxsize=4)
def openapi_json(routes: tuple[Route, ...]) -> bytes:
    """The OpenAPI document, as served and as kept in docs/."""
    document = openapi_document(routes, version=version("payloops"))
    return orjson.dumps(document, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


@lru_cache(maxsize=len(FILES) + 1)
def _file(name: str) -> bytes:
    return (_FOLDER / name).read_bytes()


@route(
    "GET",
    "/openapi.json",
    auth=None,
    query=None,
    answers=dict[str, object],
    summary="Get this contract as OpenAPI 3.1",
)
async def read_openapi(call: Call[None]) -> bytes:
    return openapi_json(call.request.app[ROUTES_KEY])


@route(
    "GET",
    "/docs",
    auth=None,
    query=None,
    answers=str,
    media=(HTML,),
    summary="Read this contract in a browser",
)
async def read_docs(call: Call[None]) -> bytes:
    call.headers["Content-Security-Policy"] = PAGE_POLICY
    return _file("index.html")


@route(
    "GET",
    "/docs/{file}",
    auth=None,
    query=None,
    answers=bytes,
    media=tuple(dict.fromkeys(FILES.values())),
    named={"file": tuple(FILES)},
    summary="Get a script or stylesheet of the page at /docs",
)
async def read_docs_file(call: Call[None]) -> bytes:
    name = call.request.match_info["file"]
    if name not in FILES:
        raise not_found()
    call.media = FILES[name]
    call.headers["Cache-Control"] = "public, max-age=3600"
    return _file(name)
