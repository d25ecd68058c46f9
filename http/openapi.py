"""The contract as an OpenAPI 3.1 document, made from the declarations of the routes alone.

Schemas are those that pydantic makes of the models (JSON Schema, draft 2020-12, as OpenAPI 3.1 expects). Rules that
hold for every request, whatever its model, are added here: the text, numbers and names that `bodies` refuses.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from http import HTTPStatus
from typing import Any

from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaMode, JsonSchemaValue
from pydantic_core import core_schema

from payloops.http.answers import CORRELATION_HEADER
from payloops.http.bodies import MAX_INTEGER_DIGITS
from payloops.http.fields import NOT_IN_QUERIES
from payloops.http.problems import ANSWERS, CONTENT_TYPE, title_of
from payloops.http.routing import EVENT_STREAM, FORM, HTML, JSON, AnswerModel, Route

Json = dict[str, Any]

SCHEMAS = "#/components/schemas/"
DESCRIPTION = """\
Money for merchants: orders, payments, captures and refunds.

- JSON in and out, camelCase, UTF-8. Unknown fields are refused. Fields that do not apply are `null`, never absent.
- Amounts are integers in the currency's minor unit. Times are ISO 8601 in UTC.
- Errors are `application/problem+json` (RFC 9457), with `code` and `message` at the top level; `errors` names each
  invalid field. `not_found` is also the answer to the id of somebody else's object.
- `Idempotency-Key` makes a request safe to retry: its first answer is kept for 24 hours and replayed.
- Card numbers are refused wherever they appear; use tokens of the processor.
"""

TAGS = {
    "Merchants": "For merchants' servers, authenticated by `X-API-Key`",
    "Dashboard": "For the dashboard, authenticated by the token from `POST /api/auth/login`",
    "Support": "For support staff: read-only",
    "Webhooks": "For processors, authenticated by their signature",
    "Pages": "Pages for browsers; forms are accepted from these pages only",
    "Service": "The service itself",
}

SECURITY_SCHEMES: dict[str, Json] = {
    "api_key": {
        "type": "apiKey",
        "in": "header",
        "name": "X-API-Key",
        "description": "A merchant's key, `sk_test_…` or `sk_live_…`",
    },
    "bearer": {
        "type": "http",
        "scheme": "bearer",
        "bearerFormat": "JWT",
        "description": "A dashboard token",
    },
    "staff": {
        "type": "http",
        "scheme": "bearer",
        "bearerFormat": "JWT",
        "description": "A token of support staff",
    },
    "staff_session": {
        "type": "apiKey",
        "in": "cookie",
        "name": "payloops-staff",
        "description": "A session of support staff in a browser; over TLS the name begins with `__Host-`",
    },
}
INVALID_CREDENTIALS = {
    "api_key": "invalid_api_key",
    "bearer": "invalid_token",
    "staff": "invalid_token",
    "staff_session": "invalid_token",
}
"""By security scheme: the code of a refusal of invalid credentials."""

UUID_SCHEMA = {"type": "string", "format": "uuid", "examples": ["019ab3c8-8f4c-7cc1-b7c1-1f0a5d9e2b64"]}

# Characters that `bodies` refuses in JSON; in queries and forms it refuses `NOT_IN_QUERIES`.
NOT_IN_BODIES = r"\u0000"
BEYOND_NUMBERS = 10**MAX_INTEGER_DIGITS
# What stripping removes: Unicode's White_Space, spelled out because dialects of regular expressions differ.
SPACES = r"\t-\r \u0085\u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"

STATUSES = {answer.code: answer.status for answer in ANSWERS.values()} | {
    "validation_error": 400,
    "unauthorized": 401,
    "forbidden": 403,
    "request_timeout": 408,
    "payload_too_large": 413,
    "unsupported_media_type": 415,
    "rate_limit": 429,
    "internal_error": 500,
}
"""The status of each code that a refusal may have."""

MEANINGS = {
    400: "The request is invalid, or not allowed in the current state",
    401: "Missing or invalid credentials",
    403: "Authenticated, but not allowed",
    404: "Unknown, or not the caller's",
    408: "The body did not arrive in time",
    409: "A conflicting change, or a conflict over the same Idempotency-Key",
    413: "The body is larger than 1 MiB",
    415: "The body is not JSON in UTF-8, or it is compressed",
    429: "Too many requests; retry later",
    500: "An internal error",
    503: "A dependency is down, or the service is overloaded; nothing was done",
    504: "The outcome is unknown: retry with the same Idempotency-Key",
}


class FieldErrorAnswer(AnswerModel):
    field: str
    message: str


class Problem(AnswerModel):
    """The form of errors (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    message: str
    errors: list[FieldErrorAnswer] | None
    correlation_id: str


def openapi_document(routes: Sequence[Route], *, version: str) -> Json:
    """The OpenAPI document of these routes.

    Args:
        version: of the API.

    Raises:
        ValueError: a route names an unknown code, or two handlers have the same name.
    """
    schemas = Schemas(routes)
    paths: dict[str, Json] = {}
    names: set[str] = set()
    for route in routes:
        operation = _operation(route, routes, schemas)
        if operation["operationId"] in names:
            raise ValueError(f"two handlers are named {operation['operationId']}")
        names.add(operation["operationId"])
        paths.setdefault(route.path, {})[route.method.lower()] = operation
    used = {route.auth for route in routes}
    tags = {tag for operations in paths.values() for each in operations.values() for tag in each["tags"]}
    return {
        "openapi": "3.1.0",
        "info": {"title": "PayLoops", "version": version, "description": DESCRIPTION},
        "servers": [{"url": "/"}],
        "tags": [{"name": name, "description": text} for name, text in TAGS.items() if name in tags],
        "paths": paths,
        "components": {
            "schemas": dict(sorted(schemas.components.items())),
            "responses": dict(sorted(schemas.responses.items())),
            "parameters": HEADERS,
            "headers": ANSWER_HEADERS,
            "securitySchemes": {name: scheme for name, scheme in SECURITY_SCHEMES.items() if name in used},
        },
    }


HEADERS: dict[str, Json] = {
    "CorrelationId": {
        "name": CORRELATION_HEADER,
        "in": "header",
        "description": "Names the request in answers, logs and events. Taken where it is 1 to 128 of"
        " `[A-Za-z0-9._-]`, else another one is made.",
        "schema": {"type": "string"},
        "example": "checkout-7",
    },
    "IdempotencyKey": {
        "name": "Idempotency-Key",
        "in": "header",
        "description": "1 to 255 printable ASCII characters. The first answer under a key is kept for 24 hours.",
        "schema": {"type": "string", "pattern": "^[!-~]([ -~]{0,253}[!-~])?$"},
        "example": "order-7-pay-1",
    },
    "Prefer": {
        "name": "Prefer",
        "in": "header",
        "description": "`wait=N` (RFC 7240): the answer waits up to N seconds, at most 30, for the processor,"
        " unless too many of the merchant's requests wait",
        "schema": {"type": "string"},
        "example": "wait=10",
    },
}
ANSWER_HEADERS: dict[str, Json] = {
    "CorrelationId": {
        "description": "As in the request, or generated",
        "required": True,
        "schema": {"type": "string", "pattern": "^[A-Za-z0-9._-]{1,128}$"},
    },
    "IdempotentReplayed": {
        "description": "`true` where the answer is that of an earlier request under the same key",
        "schema": {"type": "string", "enum": ["true"]},
    },
    "Location": {
        "description": "The page to load instead",
        "required": True,
        "schema": {"type": "string"},
    },
    "PreferenceApplied": {
        "description": "The wait that was granted",
        "schema": {"type": "string", "pattern": "^wait=[0-9]+$"},
    },
    "RetryAfter": {"description": "Seconds", "schema": {"type": "integer", "minimum": 0}},
    "WWWAuthenticate": {"description": "What to show", "schema": {"type": "string"}},
}


class Schemas:
    """The JSON Schema of every model that a route names."""

    def __init__(self, routes: Sequence[Route]) -> None:
        bodies = [(_key(route), TypeAdapter(route.body)) for route in routes if route.body is not None]
        forms = [(_key(route), TypeAdapter(route.form)) for route in routes if route.form is not None]
        queries = [(_key(route), TypeAdapter(route.query)) for route in routes if route.query is not None]
        answers = [(_key(route), route.adapter) for route in routes if route.adapter is not None]
        self.responses: dict[str, Json] = {}
        self._bodies, taken = _generate(bodies, mode="validation")
        # Parameters of queries are not components, and their types have rules of their own, so nothing is shared.
        self._forms, filled = _generate(forms, mode="validation", generator=_QueryGenerator)
        self._queries, asked = _generate(queries, mode="validation", generator=_QueryGenerator)
        self._answers, given = _generate([*answers, ("problem", TypeAdapter(Problem))], mode="serialization")
        self._asked = {
            name: _tidy(_narrow(schema, excluded=NOT_IN_QUERIES)) for name, schema in asked.items()
        }
        self.components = {name: _tidy(schema) for name, schema in given.items()}
        for name, schema in taken.items():
            self.components[name] = _tidy(_narrow(schema, excluded=NOT_IN_BODIES))
        for name, schema in filled.items():
            self.components[name] = _tidy(_narrow(schema, excluded=NOT_IN_QUERIES))
        for route in routes:
            if route.form is not None:
                form = self.components[self._forms[_key(route)]["$ref"].removeprefix(SCHEMAS)]
                form["properties"] = {name: _without_null(each) for name, each in form["properties"].items()}
        if "JsonValue" in taken:
            self.components["JsonValue"] = JSON_VALUE

    def body(self, route: Route) -> Json:
        return self._bodies[_key(route)] if route.body is not None else self._forms[_key(route)]

    def answer(self, route: Route) -> Json:
        schema: Json = _tidy(self._answers[_key(route)])
        return schema

    def parameters(self, route: Route) -> Iterator[tuple[str, Json, bool]]:
        """Name, schema, and whether it is required, of each parameter of the query."""
        schema = self._resolved(self._queries[_key(route)])
        for name, property_ in schema.get("properties", {}).items():
            yield name, self._resolved(_without_null(property_)), name in schema.get("required", ())

    def _resolved(self, schema: Json) -> Json:
        if "$ref" in schema:
            name = schema["$ref"].removeprefix(SCHEMAS)
            if self._asked[name] == self.components.get(name):
                return schema
            return {
                **self._asked[name],
                **{name: value for name, value in schema.items() if name != "$ref"},
            }
        return schema

    def example(self, schema: Any) -> Any:
        """An example that fits the schema, made of the examples of its fields."""
        if "$ref" in schema:
            return self.example(self.components[schema["$ref"].removeprefix(SCHEMAS)])
        for keyword in ("examples", "enum"):
            if schema.get(keyword):
                return schema[keyword][0]
        if "const" in schema:
            return schema["const"]
        for keyword in ("anyOf", "oneOf"):
            if keyword in schema:
                return self.example(schema[keyword][0])
        match schema.get("type"):
            case "object":
                return {name: self.example(each) for name, each in schema.get("properties", {}).items()}
            case "array":
                return [self.example(schema.get("items", {}))]
            case [str(), *_]:
                return None
            case _:
                return self._plain_example(schema)

    @staticmethod
    def _plain_example(schema: Json) -> Any:
        match schema.get("type"), schema.get("format"):
            case "string", "uuid":
                return UUID_SCHEMA["examples"][0]
            case "string", "date":
                return "2026-11-23"
            case "string", _:
                return "text"
            case (("integer" | "number"), _):
                return schema.get("default", schema.get("minimum", 1))
            case "boolean", _:
                return True
            case _:
                return None


class _Generator(GenerateJsonSchema):
    """pydantic's generator, without titles, and with a pattern for text whose white space is stripped."""

    excluded = NOT_IN_BODIES

    def field_title_should_be_set(self, schema: Any) -> bool:  # noqa: ARG002  # as pydantic calls it
        return False

    def str_schema(self, schema: core_schema.StringSchema) -> JsonSchemaValue:
        made = super().str_schema(schema)
        if self.mode == "validation" and schema.get("strip_whitespace") and schema.get("min_length"):
            # The first and the last character that stripping leaves, and what is between them.
            end, any_ = f"[^{self.excluded}{SPACES}]", f"[^{self.excluded}]*"
            ends = end if schema["min_length"] == 1 else f"{end}{any_}{end}"
            made["pattern"] = f"^{any_}{ends}{any_}$"
        return made


class _QueryGenerator(_Generator):
    excluded = NOT_IN_QUERIES


def _generate(
    inputs: Sequence[tuple[str, TypeAdapter[Any]]],
    *,
    mode: JsonSchemaMode,
    generator: type[_Generator] = _Generator,
) -> tuple[dict[str, Json], Json]:
    """Schemas by key, and the definitions that they refer to."""
    made, definitions = TypeAdapter.json_schemas(
        [(key, mode, adapter) for key, adapter in inputs],
        by_alias=True,
        ref_template=SCHEMAS + "{model}",
        schema_generator=generator,
    )
    return {key: schema for (key, _), schema in made.items()}, definitions.get("$defs", {})


def _without_null(schema: Json) -> Json:
    """The schema of a parameter or of a form's field without null, which cannot be written there: it is left out."""
    stated = {key: value for key, value in schema.items() if key != "anyOf"}
    options = [each for each in schema.get("anyOf", ()) if each.get("type") != "null"]
    if len(options) == 1:
        stated = {**options[0], **stated}
    elif options:
        stated["anyOf"] = options
    if isinstance(stated.get("type"), list):
        stated["type"] = next(kind for kind in stated["type"] if kind != "null")
        if "enum" in stated:
            stated["enum"] = [value for value in stated["enum"] if value is not None]
    return stated


def _key(route: Route) -> str:
    return f"{route.method} {route.path}"


# The value of a free-form field (`metadata`).
JSON_VALUE: Json = {
    "description": "Any JSON, with text and numbers as everywhere, nested at most 32 deep",
    "type": ["object", "array", "string", "number", "boolean", "null"],
    "pattern": f"^[^{NOT_IN_BODIES}]*$",
    "exclusiveMinimum": -BEYOND_NUMBERS,
    "exclusiveMaximum": BEYOND_NUMBERS,
    "items": {"$ref": SCHEMAS + "JsonValue"},
    "propertyNames": {"pattern": f"^[^{NOT_IN_BODIES}]*$"},
    "additionalProperties": {"$ref": SCHEMAS + "JsonValue"},
}


def _narrow(schema: Any, *, excluded: str) -> Any:
    """A schema for requests, with the rules that hold for all text, names and numbers."""
    if isinstance(schema, list):
        return [_narrow(each, excluded=excluded) for each in schema]
    if not isinstance(schema, dict):
        return schema
    narrowed = {
        name: {key: _narrow(each, excluded=excluded) for key, each in value.items()}
        if name == "properties"
        else value
        if name in ("examples", "default", "enum", "const")
        else _narrow(value, excluded=excluded)
        for name, value in schema.items()
    }
    if narrowed.get("type") == "string" and not narrowed.keys() & {"enum", "const", "format", "pattern"}:
        narrowed["pattern"] = f"^[^{excluded}]*$"
    if narrowed.get("type") == "object" and narrowed.get("additionalProperties", True) is not False:
        narrowed.setdefault("propertyNames", {"pattern": f"^[^{excluded}]*$"})
    if narrowed.get("type") == "integer":
        # For a field with a validator that runs before it, pydantic writes limits in its own keywords.
        for word, keyword in (("ge", "minimum"), ("le", "maximum")):
            if word in narrowed:
                narrowed[keyword] = narrowed.pop(word)
        narrowed.setdefault("minimum", 1 - BEYOND_NUMBERS)
        narrowed.setdefault("maximum", BEYOND_NUMBERS - 1)
    return narrowed


def _tidy(schema: Any) -> Any:
    """The same schema, shorter: `T or null` as one type, and no `default: null`."""
    if isinstance(schema, list):
        return [_tidy(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    tidied = {
        name: value if name in ("examples", "default", "enum", "const") else _tidy(value)
        for name, value in schema.items()
        if not (name == "default" and value is None)
    }
    match tidied.get("anyOf"):
        case [{"type": str() as kind} as option, {"type": "null", **rest}] if not rest:
            del tidied["anyOf"]
            tidied = {**option, **tidied, "type": [kind, "null"]}
            if "enum" in tidied:
                tidied["enum"] = [*tidied["enum"], None]
    return tidied


def _operation(route: Route, routes: Sequence[Route], schemas: Schemas) -> Json:
    operation: Json = {
        "operationId": route.handler.__name__,
        "tags": [_tag(route)],
        "summary": route.summary,
    }
    if route.handler.__doc__:
        operation["description"] = " ".join(route.handler.__doc__.split())
    parameters = [*_path_parameters(route), *_query_parameters(route, schemas), *_header_parameters(route)]
    operation["parameters"] = parameters
    operation["security"] = [] if route.auth is None else [{route.auth: []}]
    if route.model is not None:
        schema = schemas.body(route)
        media = FORM if route.form is not None else JSON
        operation["requestBody"] = {
            "required": route.body_required,
            "content": {media: {"schema": schema, "example": schemas.example(schema)}},
        }
    if route.signed_by:
        operation["requestBody"] = {"required": True, "content": {JSON: {"schema": {"type": "object"}}}}
    operation["responses"] = dict(sorted(_responses(route, routes, schemas)))
    return operation


def _tag(route: Route) -> str:
    if route.page:
        return "Pages"
    if route.auth == "staff" or route.path.startswith("/staff"):
        return "Support"
    starts = {"/v1/": "Merchants", "/api/": "Dashboard", "/webhooks": "Webhooks", "/checkout": "Pages"}
    return next((tag for start, tag in starts.items() if route.path.startswith(start)), "Service")


def _names_in(path: str) -> list[str]:
    return re.findall(r"\{(\w+)\}", path)


def _path_parameters(route: Route) -> Iterator[Json]:
    for name in _names_in(route.path):
        schema = UUID_SCHEMA
        if name in route.named:
            schema = {"type": "string", "enum": list(route.named[name])}
        yield {"name": name, "in": "path", "required": True, "schema": schema}


def _query_parameters(route: Route, schemas: Schemas) -> Iterator[Json]:
    if route.query is None:
        return
    for name, schema, required in schemas.parameters(route):
        yield {"name": name, "in": "query", "required": required, "schema": schema}


def _header_parameters(route: Route) -> Iterator[Json]:
    for name in route.signed_by:
        required = len(route.signed_by) == 1
        yield {"name": name, "in": "header", "required": required, "schema": {"type": "string"}}
    if route.idempotent:
        yield _reference("parameters", "IdempotencyKey")
    if route.waits:
        yield _reference("parameters", "Prefer")
    yield _reference("parameters", "CorrelationId")


def _reference(kind: str, name: str) -> Json:
    return {"$ref": f"#/components/{kind}/{name}"}


def _responses(route: Route, routes: Sequence[Route], schemas: Schemas) -> Iterator[tuple[str, Json]]:
    refusals: dict[int, list[str]] = {}
    for code in _codes(route):
        if code not in STATUSES:
            raise ValueError(f"{_key(route)}: nothing answers with {code}")
        refusals.setdefault(STATUSES[code], []).append(code)
    answers = {route.status, *route.also}
    for status in answers | set(refusals):
        response: Json = {"description": MEANINGS[status] if status in refusals else title_of(status)}
        response["headers"] = dict(_answer_headers(route, status))
        content: Json = {}
        if status in answers and not _is_redirect(status):
            content |= _answer_content(route, schemas)
        if status in refusals:
            content |= PAGE_CONTENT if route.page else _problem_content(status, refusals[status])
        if content:
            response["content"] = content
        links = _links(route, routes, schemas) if status == HTTPStatus.CREATED else {}
        if links:
            response["links"] = links
        if status in answers or _may_be_replayed(status):
            yield str(status), response
        else:
            # Shared by many routes, as a component named by its codes.
            name = "_".join(code.title().replace("_", "") for code in refusals[status])
            name += "_Page" if route.page else ""
            schemas.responses[name] = response
            yield str(status), _reference("responses", name)


def _is_redirect(status: int) -> bool:
    """Whether an answer is a redirect, which has no content."""
    return HTTPStatus.MULTIPLE_CHOICES <= status < HTTPStatus.BAD_REQUEST


def _may_be_replayed(status: int) -> bool:
    """Whether an answer is stored under its idempotency key and may be replayed: success, or a definite refusal."""
    return status < HTTPStatus.BAD_REQUEST or status in (400, 403, 404)


def _codes(route: Route) -> Iterator[str]:
    """The codes of refusals that the route may answer with, those it declares first."""
    changes = route.method != "GET"
    stated: Iterable[tuple[bool, Sequence[str]]] = (
        (True, ("validation_error", *route.errors)),
        (route.auth is not None, ("unauthorized", INVALID_CREDENTIALS.get(str(route.auth), ""))),
        (bool(_names_in(route.path)), ("not_found",)),
        (
            route.model is not None or bool(route.signed_by),
            ("request_timeout", "payload_too_large", "unsupported_media_type"),
        ),
        (changes, ("conflict", "outcome_unknown")),
        (route.idempotent, ("idempotency_in_progress", "idempotency_mismatch")),
        (route.auth == "api_key" or bool(route.limits), ("rate_limit",)),
        (True, ("internal_error", "unavailable")),
    )
    yield from dict.fromkeys(code for applies, codes in stated if applies for code in codes)


def _answer_headers(route: Route, status: int) -> Iterator[tuple[str, Json]]:
    yield CORRELATION_HEADER, _reference("headers", "CorrelationId")
    if _is_redirect(status):
        yield "Location", _reference("headers", "Location")
    if route.idempotent and _may_be_replayed(status):
        yield "Idempotent-Replayed", _reference("headers", "IdempotentReplayed")
    if route.waits and status == route.status:
        yield "Preference-Applied", _reference("headers", "PreferenceApplied")
    if status in (HTTPStatus.CONFLICT, HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE):
        yield "Retry-After", _reference("headers", "RetryAfter")
    if status == HTTPStatus.UNAUTHORIZED:
        yield "WWW-Authenticate", _reference("headers", "WWWAuthenticate")


def _answer_content(route: Route, schemas: Schemas) -> Json:
    if route.adapter is None:
        return {}
    if route.media != (JSON,):
        return {
            media: {"schema": {"type": "string"}}
            if media.startswith("text/") and media != EVENT_STREAM
            else {}
            for media in route.media
        }
    schema = schemas.answer(route)
    return {JSON: {"schema": schema, "example": schemas.example(schema)}}


PAGE_CONTENT: Json = {HTML: {"schema": {"type": "string"}}}


def _problem_content(status: int, codes: Sequence[str]) -> Json:
    properties = {"status": {"const": status}, "code": {"enum": list(codes)}}
    schema = {"allOf": [{"$ref": f"{SCHEMAS}Problem"}, {"type": "object", "properties": properties}]}
    example = {
        "type": "about:blank",
        "title": title_of(status),
        "status": status,
        "detail": MEANINGS[status],
        "code": codes[0],
        "message": MEANINGS[status],
        "errors": [{"field": "amount", "message": "Required"}] if codes[0] == "validation_error" else None,
        "correlationId": "checkout-7",
    }
    return {CONTENT_TYPE: {"schema": schema, "example": example}}


def _links(route: Route, routes: Sequence[Route], schemas: Schemas) -> Json:
    """Links from a created object to the routes that take its id."""
    pointer = next(_id_pointers(schemas.answer(route), schemas), None)
    if pointer is None or _names_in(route.path):
        return {}
    return {
        other.handler.__name__: {
            "operationId": other.handler.__name__,
            "parameters": {"id": f"$response.body#{pointer}"},
        }
        for other in routes
        if _names_in(other.path) == ["id"] and other.path.startswith(f"{route.path}/{{id}}")
    }


def _id_pointers(schema: Mapping[str, Any], schemas: Schemas) -> Iterator[str]:
    """JSON pointers to the ids in an answer, the outermost first."""
    if "$ref" in schema:
        schema = schemas.components[schema["$ref"].removeprefix(SCHEMAS)]
    properties = schema.get("properties", {})
    if "id" in properties:
        yield "/id"
    for name, inner in properties.items():
        if "$ref" in inner:
            yield from (f"/{name}{pointer}" for pointer in _id_pointers(inner, schemas))
