"""The contract as an OpenAPI 3.1 document, made from the declarations of the routes alone.

Schemas of the models: `json_schemas`.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from http import HTTPStatus
from typing import Any

from payloops.http.answers import CORRELATION_HEADER
from payloops.http.json_schemas import SCHEMAS, UUID_SCHEMA, Json, Schemas, route_key
from payloops.http.problems import CONTENT_TYPE, REFUSALS, title_of
from payloops.http.routing import EVENT_STREAM, FORM, HTML, JSON, Route

DESCRIPTION = """\
Money for merchants: orders, payments, captures and refunds.

- JSON in and out, camelCase, UTF-8. Unknown fields are refused. Fields that do not apply are `null`, never absent.
- Amounts are integers in the currency's minor unit, as the processor counts it: 500 is 5.00 USD, 500 JPY. Not as in
  ISO 4217, 500 is 5.00 ISK, 5.00 UGX and 500 MGA. Of ISK and UGX, Stripe takes whole units only (an amount that ends in
  00), and of currencies with three decimals (BHD, JOD, KWD, OMR, TND) an amount that ends in 0.
- Times are ISO 8601 in UTC.
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

STATUSES = {refusal.code: refusal.status for refusal in REFUSALS.values()} | {
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
        "webhooks": {"order": {"post": ORDER_WEBHOOK}} if "OrderAnswer" in schemas.components else {},
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


WEBHOOK_TYPES = (
    *("payment.processing", "payment.requires_action", "payment.authorized", "payment.captured"),
    *("payment.failed", "payment.cancelled", "refund.processed", "refund.failed"),
)
_NULLABLE_TEXT = {"type": ["string", "null"]}
_TIME = {"type": "string", "format": "date-time"}
_WEBHOOK_FIELDS: dict[str, Json] = {
    "id": UUID_SCHEMA | {"description": "As in `webhook-id`, and the same for every attempt"},
    "type": {"type": "string", "enum": list(WEBHOOK_TYPES)},
    "eventType": {"type": "string", "description": "The same as `type`", "enum": list(WEBHOOK_TYPES)},
    "createdAt": _TIME,
    "sequence": {
        "type": "integer",
        "minimum": 1,
        "description": "Orders the webhooks of one order: deliveries may overtake each other",
    },
    "orderId": UUID_SCHEMA,
    "externalId": {"type": "string"},
    "amount": {"type": "integer"},
    "currency": {"type": "string"},
    "status": {"$ref": "#/components/schemas/OrderStatus"},
    "processor": _NULLABLE_TEXT,
    "data": {"$ref": "#/components/schemas/OrderAnswer"},
    "payload": {"type": "object", "description": "What is special to this type of event"},
}
ORDER_WEBHOOK: Json = {
    "operationId": "order_webhook",
    "tags": ["Merchants"],
    "summary": "Tell the merchant what happened to an order",
    "description": "Sent to the merchant's `webhookUrl`; `data` is the order as of the event. The README says how to"
    " verify the signatures.",
    "security": [],
    "parameters": [
        {
            "name": name,
            "in": "header",
            "required": required,
            "description": text,
            "schema": {"type": "string"},
        }
        for name, required, text in (
            ("webhook-id", True, "Detects repeated deliveries"),
            ("webhook-timestamp", True, "Unix time of this attempt, in seconds"),
            ("webhook-signature", False, "By Standard Webhooks: `v1,` and base64, one for each secret"),
            (
                "X-PayLoops-Signature",
                False,
                '`t=<Unix time in milliseconds>,v1=<hexadecimal HMAC-SHA256 of "t.body">`, a `v1` for each secret',
            ),
        )
    ],
    "requestBody": {
        "required": True,
        "content": {
            JSON: {
                "schema": {"type": "object", "properties": _WEBHOOK_FIELDS, "required": [*_WEBHOOK_FIELDS]}
            }
        },
    },
    "responses": {"2XX": {"description": "Delivered; after any other answer it is sent again, later"}},
}


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
    starts = {
        "/v1/": "Merchants",
        "/api/staff/": "Support",
        "/api/": "Dashboard",
        "/webhooks": "Webhooks",
        "/checkout": "Pages",
    }
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
    for name in route.headers:
        yield {"name": name, "in": "header", "required": False, "schema": {"type": "string"}}
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
            raise ValueError(f"{route_key(route)}: nothing answers with {code}")
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
    # Generators of clients merge types with `enum`, and none with `const`.
    properties = {
        "status": {"type": "integer", "enum": [status]},
        "code": {"type": "string", "enum": list(codes)},
    }
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
