"""The contract documents itself: made from the routes, kept in docs/, valid, and shown without any other host."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from calling import Api
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator

from payloops.http import documentation
from payloops.http.app import ROUTES
from payloops.http.documentation import openapi_json
from payloops.http.openapi import openapi_document
from payloops.http.routing import Call, Nothing, route

COPY = Path(__file__).resolve().parent.parent / "docs" / "openapi.json"
DOCUMENT: dict[str, Any] = json.loads(openapi_json(ROUTES))


def operations() -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, item in DOCUMENT["paths"].items():
        for method, operation in item.items():
            yield method.upper(), path, operation


def test_the_copy_in_docs_is_current() -> None:
    """`make openapi` writes it: a change of the contract is seen in review."""
    assert json.loads(COPY.read_text()) == DOCUMENT, "run make openapi, and look at what changed"


def test_the_document_is_valid_openapi() -> None:
    OpenAPIV31SpecValidator(DOCUMENT).validate()


def test_every_route_is_in_it_under_its_handlers_name() -> None:
    documented = {(method, path): operation["operationId"] for method, path, operation in operations()}
    assert documented == {(each.method, each.path): each.handler.__name__ for each in ROUTES}


def test_the_headers_of_processors_are_in_it() -> None:
    headers = {
        path: [(each["name"], each["required"]) for each in operation["parameters"] if "name" in each]
        for _, path, operation in operations()
    }
    assert headers["/webhooks/stripe"] == [("Stripe-Signature", True)]
    assert headers["/webhooks/razorpay"] == [("X-Razorpay-Signature", True), ("X-Razorpay-Event-Id", False)]


def test_every_example_fits_its_schema() -> None:
    schemas = {"components": DOCUMENT["components"]}
    count = 0
    for method, path, operation in operations():
        contents = [operation.get("requestBody", {}), *map(resolved, operation["responses"].values())]
        for content in (each for holder in contents for each in holder.get("content", {}).values()):
            if "example" in content:
                count += 1
                errors = Draft202012Validator({**schemas, **content["schema"]}).iter_errors(
                    content["example"]
                )
                assert [error.message for error in errors] == [], f"{method} {path}"
    assert count > len(ROUTES)


def resolved(item: dict[str, Any]) -> dict[str, Any]:
    if "$ref" in item:
        kind, name = item["$ref"].split("/")[-2:]
        referred: dict[str, Any] = DOCUMENT["components"][kind][name]
        return referred
    return item


def test_what_a_body_may_not_hold_is_said_of_every_text_and_object() -> None:
    """Whatever is taken has limits: no text without a pattern, format or list; no object open by mistake."""

    def holes(name: str) -> Iterator[str]:
        for at, schema in subschemas(DOCUMENT["components"]["schemas"][name], name):
            kinds = schema.get("type", ())
            kinds = [kinds] if isinstance(kinds, str) else kinds
            if "string" in kinds and not schema.keys() & {"pattern", "format", "enum", "const"}:
                yield at
            if "object" in kinds and not schema.keys() & {"additionalProperties", "propertyNames"}:
                yield at

    names = {each.body.__name__ for each in ROUTES if each.body is not None}
    assert names <= set(DOCUMENT["components"]["schemas"])
    found = [hole for name in names for hole in holes(name)]
    assert found == []


SCHEMA_KEYWORDS = {
    *("$ref", "type", "enum", "const", "anyOf", "allOf"),
    *("properties", "required", "additionalProperties", "propertyNames", "maxProperties"),
    *("items", "minItems", "maxItems"),
    *("minLength", "maxLength", "pattern", "format"),
    *("minimum", "maximum"),
    *("title", "description", "default", "examples"),
}


def schemas_in(node: Any, at: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every schema of the document, wherever one may stand."""
    match node:
        case list():
            for index, each in enumerate(node):
                yield from schemas_in(each, f"{at}/{index}")
        case dict():
            for name, each in node.items():
                if name == "schema":
                    yield from subschemas(each, f"{at}/{name}")
                elif name == "schemas":
                    for component, schema in each.items():
                        yield from subschemas(schema, f"{at}/{name}/{component}")
                elif name not in ("example", "examples"):
                    yield from schemas_in(each, f"{at}/{name}")


def subschemas(schema: Any, at: str) -> Iterator[tuple[str, dict[str, Any]]]:
    if not isinstance(schema, dict):
        return
    yield at, schema
    inner = {
        name: schema[name] for name in ("items", "additionalProperties", "propertyNames") if name in schema
    }
    inner |= {f"properties/{name}": each for name, each in schema.get("properties", {}).items()}
    for name in ("anyOf", "allOf"):
        inner |= {f"{name}/{index}": each for index, each in enumerate(schema.get(name, ()))}
    for name, each in inner.items():
        yield from subschemas(each, f"{at}/{name}")


def test_generators_of_clients_can_read_every_schema() -> None:
    """What some of them stumble over: keywords that are none, values without a type, values that differ only in case
    (they make names of them), and types that contain themselves.
    """
    faults, count = [], 0
    for at, schema in schemas_in(DOCUMENT):
        count += 1
        faults += [f"{at}: {name}" for name in schema.keys() - SCHEMA_KEYWORDS]
        if schema.keys() & {"enum", "const"} and "type" not in schema:
            faults.append(f"{at}: no type")
        values = [each.lower() for each in schema.get("enum", ()) if isinstance(each, str)]
        if len(values) != len(set(values)):
            faults.append(f"{at}: values differ only in case")
        component = at.partition("/schemas/")[2].partition("/")[0]
        if component and schema.get("$ref", "").endswith(f"/{component}"):
            faults.append(f"{at}: contains itself")
    assert count > 500
    assert faults == []


def test_a_code_that_nothing_answers_with_cannot_be_declared() -> None:
    @route("GET", "/typo", auth=None, errors=("not_fuond",), summary="Has a typing mistake")
    async def typo(call: Call[None]) -> None: ...

    with pytest.raises(ValueError, match="not_fuond"):
        openapi_document((typo,), version="0")


def test_two_routes_cannot_have_one_name() -> None:
    @route("GET", "/one", auth=None, summary="One")
    async def same(call: Call[None]) -> None: ...

    first = same

    @route("POST", "/two", auth=None, body=Nothing, summary="Two")  # type: ignore[no-redef]
    async def same(call: Call[Nothing]) -> None: ...

    with pytest.raises(ValueError, match="same"):
        openapi_document((first, same), version="0")


async def test_the_document_is_served(api: Api) -> None:
    answer = await api.anyone.get("/openapi.json")
    assert (answer.status, answer.headers["Content-Type"]) == (200, "application/json")
    assert answer.json == DOCUMENT


async def test_the_page_is_made_of_files_that_are_served_here(api: Api) -> None:
    page = await api.anyone.get("/docs")
    assert (page.status, page.headers["Content-Type"]) == (200, "text/html")
    html = page.raw.decode()
    named = re.findall(r'(?:src|href)="([^"]+)"', html)
    assert named
    for path in named:
        answer = await api.anyone.get(path)
        assert answer.status == 200, path
        assert len(answer.raw) > 100
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\son\w+=|https?://", html)


async def test_the_page_may_ask_no_other_host(api: Api) -> None:
    policy = (await api.anyone.get("/docs")).headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "script-src 'self';" in policy
    assert not re.search(r"unsafe|\*|https?:", policy)


async def test_no_other_file_is_served(subtests: pytest.Subtests, api: Api) -> None:
    for name in ("index.html", "LICENSE", "..%2fopenapi.py", "%2e%2e%2fapp.py", "swagger-ui.css%00", "."):
        with subtests.test(name=name):
            answer = await api.anyone.get(f"/docs/{name}")
            assert answer.status == 404


def test_every_file_is_there_with_its_licence() -> None:
    folder = Path(documentation.__file__).with_name("swagger_ui")
    assert {"LICENSE", "NOTICE", *documentation.FILES} <= {path.name for path in folder.iterdir()}
