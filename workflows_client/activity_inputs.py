"""The arguments of activities, as workflows send them: what is odd is put right where its meaning is clear."""

import json
import math
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.alias_generators import to_camel

from payloops.commands.cards import mask_card_numbers
from payloops.commands.processors import recorded_reference

LONGEST_MESSAGE = 1_000
LONGEST_INTEGER = 63
"""Bits. A larger number becomes a float."""
MAX_DEPTH = 200
"""Objects and lists within each other in a webhook's payload: a little less than can be written as JSON."""


def _storable(value: Any) -> Any:
    """The value as PostgreSQL can store it: an odd text must not keep a report from being recorded.

    Raises:
        ValueError: a number that JSON does not have, or nested too deep.
    """
    return _storable_within(value, MAX_DEPTH)


def _storable_within(value: Any, depth: int) -> Any:
    match value:
        case str():
            return value.replace("\0", "").encode(errors="replace").decode()
        case dict() | list() if depth == 0:
            raise ValueError("nested too deep")
        case dict():
            return {_storable(name): _storable_within(each, depth - 1) for name, each in value.items()}
        case list():
            return [_storable_within(each, depth - 1) for each in value]
        case int() if value.bit_length() > LONGEST_INTEGER:  # JavaScript writes a large number like this
            return _storable(float(str(value)))
        case float() if not math.isfinite(value):
            raise ValueError("not a finite number")
        case _:
            return value


def _none_if_empty(value: Any) -> Any:
    return None if value == "" else value


def _written(value: Any) -> Any:
    """The code or message of an error as text, whatever a worker passes on as such."""
    return value if value is None or isinstance(value, str) else json.dumps(value)


Text = Annotated[str, BeforeValidator(_storable)]
OptionalText = Annotated[Text | None, AfterValidator(_none_if_empty)]
Reference = Annotated[
    OptionalText,
    AfterValidator(lambda text: text and recorded_reference(text)),
    BeforeValidator(lambda value: value.get("id") if isinstance(value, dict) else value),
]
"""A processor's, or the whole object that it expanded it to."""
Message = Annotated[Text, AfterValidator(lambda text: mask_card_numbers(text)[:LONGEST_MESSAGE])]
ErrorText = Annotated[Message | None, AfterValidator(_none_if_empty), BeforeValidator(_written)]
Payload = Annotated[dict[str, Any], BeforeValidator(_storable)]


class Input(BaseModel):
    """The argument of an activity. Workers may send further fields, which are ignored."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        coerce_numbers_to_str=True,
        extra="ignore",
        frozen=True,
        hide_input_in_errors=True,
    )


class ProcessorConfigInput(Input):
    merchant_id: UUID
    processor: Text


class OrderInput(Input):
    order_id: UUID


class OrderStatusInput(Input):
    order_id: UUID
    status: Literal["processing", "requires_action", "authorized", "captured", "failed", "cancelled"]
    processor_order_id: Reference = None
    processor_transaction_id: Reference = None
    redirect_url: OptionalText = None
    client_secret: OptionalText = None
    error_code: ErrorText = None
    error_message: ErrorText = None


class RefundStatusInput(Input):
    order_id: UUID
    refund_id: UUID
    status: Literal["success", "failed"]
    processor_transaction_id: Reference = None
    error_code: ErrorText = None
    error_message: ErrorText = None


class MerchantInput(Input):
    merchant_id: UUID


class NewWebhookInput(Input):
    merchant_id: UUID
    order_id: UUID
    event_type: Text = Field(min_length=1, max_length=255)
    payload: Payload


class DeliveryInput(Input):
    """Its `payload` is ignored: the stored one is sent, from which personal data may have been erased."""

    webhook_event_id: UUID
    webhook_url: Text
    webhook_secret: OptionalText = None


class WebhookInput(Input):
    webhook_event_id: UUID


class FailedWebhookInput(Input):
    webhook_event_id: UUID
    error_message: Message
