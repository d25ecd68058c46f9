"""A merchant's processors. `/api/processors`, by dashboard token."""

from typing import Annotated
from uuid import UUID

from pydantic import AfterValidator, Field, JsonValue, StringConstraints, ValidationError, WithJsonSchema

from payloops.commands.configure_processor import adjust_processor, configure_processor
from payloops.commands.processors import ProcessorUnknown, list_processors
from payloops.commands.remove_processor import remove_processor as remove
from payloops.events.merchants import ProcessorChoice
from payloops.http.bodies import field_errors
from payloops.http.fields import AbsentOnly, Timestamp
from payloops.http.problems import validation_error
from payloops.http.routing import AnswerModel, Call, RequestModel, route

DEFAULT_PRIORITY = 1


def _secret(secret: str) -> str:
    # Such as a line break that was copied with it, which no header of a request to the processor could contain.
    if secret != secret.strip() or not secret.isprintable():
        raise ValueError("Must have no spaces around it, and no control characters")
    return secret


Secret = Annotated[
    str,
    StringConstraints(min_length=1, max_length=1_000),
    AfterValidator(_secret),
    Field(description="Without spaces around it, and without control characters"),
]
Priority = Annotated[int, Field(ge=1, le=100, description="The lowest number is preferred")]


class StripeCredentials(RequestModel):
    secret_key: Annotated[Secret, Field(examples=["sk_test_51N"])]
    publishable_key: Secret | None = None
    webhook_secret: Secret | None = None


class RazorpayCredentials(RequestModel):
    key_id: Annotated[Secret, Field(examples=["rzp_test_1"])]
    key_secret: Annotated[Secret, Field(examples=["a secret"])]
    webhook_secret: Secret | None = None


CREDENTIALS: dict[str, type[RequestModel]] = {"stripe": StripeCredentials, "razorpay": RazorpayCredentials}


PROCESSORS = {"processor": tuple(CREDENTIALS)}


class NamedProcessorSettings(RequestModel):
    """`credentials` are those of the processor: `StripeCredentials` or `RazorpayCredentials`."""

    credentials: Annotated[
        dict[str, JsonValue],
        Field(repr=False),
        WithJsonSchema({"anyOf": [each.model_json_schema() for each in CREDENTIALS.values()]}),
    ]
    enabled: bool | None = None
    priority: Priority | None = None
    test_mode: bool | None = None


class ProcessorSettings(NamedProcessorSettings):
    processor: Annotated[
        str, StringConstraints(max_length=255), Field(json_schema_extra={"enum": list(CREDENTIALS)})
    ]


class ProcessorChanges(RequestModel):
    """Absent fields are kept."""

    enabled: Annotated[bool | None, AbsentOnly()] = None
    priority: Annotated[Priority | None, AbsentOnly()] = None
    test_mode: Annotated[bool | None, AbsentOnly()] = None


class ProcessorAnswer(AnswerModel):
    id: UUID
    processor: Annotated[str, Field(examples=["stripe"])]
    enabled: bool
    priority: int
    test_mode: bool
    created_at: Timestamp
    updated_at: Timestamp


@route(
    "GET",
    "/api/processors",
    auth="bearer",
    answers=list[ProcessorAnswer],
    summary="List configured processors, by priority",
)
async def read_processors(call: Call[None]) -> list[ProcessorAnswer]:
    configs = await list_processors(call.services.store.pool, merchant_id=call.merchant_id)
    return [ProcessorAnswer.model_validate(config) for config in configs]


@route(
    "POST",
    "/api/processors",
    auth="bearer",
    body=ProcessorSettings,
    answers=ProcessorAnswer,
    errors=("invalid_processor",),
    summary="Configure a processor, or replace its configuration",
)
async def set_processor(call: Call[ProcessorSettings]) -> ProcessorAnswer:
    return await _configure(call, call.body.processor, call.body)


@route(
    "POST",
    "/api/processors/{processor}",
    named=PROCESSORS,
    auth="bearer",
    body=NamedProcessorSettings,
    answers=ProcessorAnswer,
    errors=("invalid_processor",),
    summary="Configure the processor named in the path",
)
async def set_named_processor(call: Call[NamedProcessorSettings]) -> ProcessorAnswer:
    return await _configure(call, call.request.match_info["processor"], call.body)


async def _configure(
    call: Call[ProcessorSettings] | Call[NamedProcessorSettings], processor: str, body: NamedProcessorSettings
) -> ProcessorAnswer:
    if processor not in CREDENTIALS:
        raise ProcessorUnknown
    try:
        credentials = CREDENTIALS[processor].model_validate(body.credentials, strict=True)
    except ValidationError as error:
        raise validation_error(*field_errors(error, inside=("credentials",))) from None
    config = await configure_processor(
        call.services.store,
        merchant_id=call.merchant_id,
        processor=processor,
        credentials=credentials.model_dump(by_alias=True, exclude_none=True),
        choice=ProcessorChoice(
            enabled=body.enabled is not False,
            priority=body.priority or DEFAULT_PRIORITY,
            test_mode=call.services.key_mode == "test" if body.test_mode is None else body.test_mode,
        ),
        cipher=call.services.cipher,
        by=call.by,
    )
    return ProcessorAnswer.model_validate(config)


@route(
    "PATCH",
    "/api/processors/{processor}",
    named=PROCESSORS,
    auth="bearer",
    body=ProcessorChanges,
    answers=ProcessorAnswer,
    errors=("not_found",),
    summary="Enable, disable or rank a processor",
)
async def change_processor(call: Call[ProcessorChanges]) -> ProcessorAnswer:
    config = await adjust_processor(
        call.services.store,
        merchant_id=call.merchant_id,
        processor=call.request.match_info["processor"],
        enabled=call.body.enabled,
        priority=call.body.priority,
        test_mode=call.body.test_mode,
        by=call.by,
    )
    return ProcessorAnswer.model_validate(config)


@route(
    "DELETE",
    "/api/processors/{processor}",
    named=PROCESSORS,
    auth="bearer",
    status=204,
    errors=("not_found",),
    summary="Remove a processor and its credentials",
)
async def remove_processor(call: Call[None]) -> None:
    await remove(
        call.services.store,
        merchant_id=call.merchant_id,
        processor=call.request.match_info["processor"],
        by=call.by,
    )
