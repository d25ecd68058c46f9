"""The JSON Schemas of the models that routes name, for the OpenAPI document.

They are those that pydantic makes (draft 2020-12, as OpenAPI 3.1 expects). Rules that hold for every request, whatever
its model, are added here: the text, numbers and names that `bodies` refuses.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaMode, JsonSchemaValue
from pydantic_core import core_schema

from payloops.http.bodies import MAX_INTEGER_DIGITS
from payloops.http.fields import NOT_IN_QUERIES
from payloops.http.routing import AnswerModel, Route

Json = dict[str, Any]

SCHEMAS = "#/components/schemas/"
UUID_SCHEMA = {"type": "string", "format": "uuid", "examples": ["019ab3c8-8f4c-7cc1-b7c1-1f0a5d9e2b64"]}

# Characters that `bodies` refuses in JSON; in queries and forms it refuses `NOT_IN_QUERIES`.
NOT_IN_BODIES = r"\u0000"
BEYOND_NUMBERS = 10**MAX_INTEGER_DIGITS
# What stripping removes: Unicode's White_Space, spelled out because dialects of regular expressions differ.
SPACES = r"\t-\r \u0085\u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"


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


class Schemas:
    """The JSON Schema of every model that a route names."""

    def __init__(self, routes: Sequence[Route]) -> None:
        bodies = [(route_key(route), TypeAdapter(route.body)) for route in routes if route.body is not None]
        forms = [(route_key(route), TypeAdapter(route.form)) for route in routes if route.form is not None]
        queries = [
            (route_key(route), TypeAdapter(route.query)) for route in routes if route.query is not None
        ]
        answers = [(route_key(route), route.adapter) for route in routes if route.adapter is not None]
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
                form = self.components[self._forms[route_key(route)]["$ref"].removeprefix(SCHEMAS)]
                form["properties"] = {name: _without_null(each) for name, each in form["properties"].items()}
        if "JsonValue" in taken:
            self.components["JsonValue"] = JSON_VALUE

    def body(self, route: Route) -> Json:
        return self._bodies[route_key(route)] if route.body is not None else self._forms[route_key(route)]

    def answer(self, route: Route) -> Json:
        schema: Json = _tidy(self._answers[route_key(route)])
        return schema

    def parameters(self, route: Route) -> Iterator[tuple[str, Json, bool]]:
        """Name, schema, and whether it is required, of each parameter of the query."""
        schema = self._resolved(self._queries[route_key(route)])
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


def route_key(route: Route) -> str:
    return f"{route.method} {route.path}"


# The value of a free-form field (`metadata`). Without a type, because many generators of clients cannot make one that
# contains itself.
JSON_VALUE: Json = {"description": "Any JSON, with text and numbers as everywhere, nested at most 32 deep"}


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
