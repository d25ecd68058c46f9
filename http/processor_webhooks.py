"""Webhooks received from processors. `/webhooks`, signed by the processor with the merchant's secret.

Nothing in a body is trusted before its signature is verified; it is only used to look up the merchant whose secret to
verify it with. A valid signature then proves the merchant, and only this merchant's orders are considered.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal
from uuid import UUID

import orjson
import structlog
from prometheus_client import Counter

from payloops.commands.authenticate_webhook import (
    InvalidSignature,
    MissingSignature,
    NoWebhookSecret,
    authenticate_webhook,
)
from payloops.commands.cards import holds_card_number, mask_card_numbers
from payloops.commands.processor_events import EFFECTS
from payloops.commands.processors import PROCESSORS
from payloops.commands.receive_processor_event import ProcessorEvent, receive_processor_event
from payloops.events.event_store import EventStore
from payloops.http.bodies import read_aside
from payloops.http.problems import FieldError, not_found, validation_error
from payloops.http.processor_payloads import CLIENT_SECRET, without_client_secrets
from payloops.http.razorpay_events import RAZORPAY_TYPES, razorpay_event, razorpay_labels
from payloops.http.routing import UUID_FORM, AnswerModel, Call, route
from payloops.http.stripe_events import STRIPE_TYPES, stripe_event, stripe_labels
from payloops.projections.payments import find_order_by_reference

STRIPE_SIGNATURE = "Stripe-Signature"
RAZORPAY_SIGNATURE = "X-Razorpay-Signature"
RAZORPAY_EVENT_ID = "X-Razorpay-Event-Id"
REFUSALS = ("missing_signature", "invalid_signature", "no_config")
MAX_EVENT_ID = 255
OTHER_TYPE = "other"
"""Metric label of types that are not handled: processors have hundreds of types, and add new ones."""

RECEIVED = Counter(
    "payloops_processor_events",
    "Events that processors delivered with a valid signature, including repeated deliveries",
    ["processor", "type", "effect"],
)

log = structlog.get_logger()


class ReceivedAnswer(AnswerModel):
    received: Literal[True] = True


@dataclass(frozen=True, slots=True)
class _Format:
    """The format of a processor's webhooks.

    Attributes:
        signature: name of the header with the signature.
        labels: extracts the labels of the payment that an event is about.
        event: translates an event into our terms.
        types: types of events that are handled.
    """

    signature: str
    labels: Callable[[Any], dict[str, Any]]
    event: Callable[[dict[str, Any]], ProcessorEvent | None]
    types: frozenset[str]


FORMATS = {
    "stripe": _Format(STRIPE_SIGNATURE, stripe_labels, stripe_event, STRIPE_TYPES),
    "razorpay": _Format(RAZORPAY_SIGNATURE, razorpay_labels, razorpay_event, RAZORPAY_TYPES),
}


def expect_effects() -> None:
    """Count from 0 whatever may be received: Prometheus sees no increase in a count that begins with 1."""
    for processor, format in FORMATS.items():
        for type in (*format.types, OTHER_TYPE):
            for effect in EFFECTS:
                RECEIVED.labels(processor, type, effect)


@route(
    "POST",
    "/webhooks/stripe",
    auth=None,
    query=None,
    signed_by=(STRIPE_SIGNATURE,),
    answers=ReceivedAnswer,
    errors=REFUSALS,
    summary="Receive an event from Stripe; the payment's metadata names merchant and order",
)
async def receive_stripe_webhook(call: Call[None]) -> ReceivedAnswer:
    return await _receive(call, "stripe", named=None)


@route(
    "POST",
    "/webhooks/razorpay",
    auth=None,
    query=None,
    signed_by=(RAZORPAY_SIGNATURE,),
    headers=(RAZORPAY_EVENT_ID,),
    answers=ReceivedAnswer,
    errors=REFUSALS,
    summary="Receive an event from Razorpay; the payment's notes name merchant and order",
)
async def receive_razorpay_webhook(call: Call[None]) -> ReceivedAnswer:
    return await _receive(call, "razorpay", named=None)


@route(
    "POST",
    "/webhooks/{processor}/{merchantId}",
    auth=None,
    query=None,
    named={"processor": PROCESSORS},
    signed_by=(STRIPE_SIGNATURE, RAZORPAY_SIGNATURE),
    headers=(RAZORPAY_EVENT_ID,),
    answers=ReceivedAnswer,
    errors=REFUSALS,
    summary="Receive an event from a processor, for the merchant named in the path",
)
async def receive_merchant_webhook(call: Call[None]) -> ReceivedAnswer:
    processor = call.request.match_info["processor"]
    if processor not in FORMATS:
        raise not_found()
    return await _receive(call, processor, named=call.request.match_info["merchantId"])


async def _receive(call: Call[None], processor: str, *, named: str | None) -> ReceivedAnswer:
    format = FORMATS[processor]
    signatures = call.request.headers.getall(format.signature, [])
    if not any(signatures):
        raise MissingSignature
    parsed = await read_aside(call.raw, partial(_parsed, call.raw))
    labels = format.labels(parsed)
    merchant_id = _uuid(named if named is not None else labels.get("merchant_id"))
    if merchant_id is None:
        raise NoWebhookSecret
    if len(signatures) > 1:
        raise InvalidSignature
    services = call.services
    await authenticate_webhook(
        services.store.pool,
        merchant_id=merchant_id,
        processor=processor,
        body=call.raw,
        signature=signatures[0].strip(),
        cipher=services.cipher,
        at=call.by.at,
    )
    event, body = await read_aside(call.raw, partial(_event_and_body, format, parsed, call.raw))
    if processor == "razorpay":
        event = _with_razorpay_id(event, call)
    event = replace(event, order_id=_uuid(labels.get("order_id")), attempt=_number(labels.get("attempt")))
    event = await _with_order(services.store, event, merchant_id=merchant_id)
    effect = await receive_processor_event(
        services.store,
        merchant_id=merchant_id,
        event=event,
        body=body,
        by=replace(call.by, actor=f"processor:{processor}", causation_id=event.event_id),
    )
    RECEIVED.labels(processor, event.type if event.type in format.types else OTHER_TYPE, effect).inc()
    log.info(
        "webhook.received",
        processor=processor,
        type=event.type,
        event_id=event.event_id,
        merchant_id=str(merchant_id),
        order_id=str(event.order_id) if event.order_id is not None else None,
        effect=effect,
    )
    return ReceivedAnswer()


async def _with_order(store: EventStore, event: ProcessorEvent, *, merchant_id: UUID) -> ProcessorEvent:
    """The event with the order that has its references on record, where its label is missing, or not to be trusted.

    Razorpay's labels may come from the customer's browser: what pays one order must not pay another that they name.
    """
    if not any(event.references) or (event.order_id is not None and event.processor != "razorpay"):
        return event
    found = await find_order_by_reference(
        store, merchant_id=merchant_id, references=event.references, wait=event.order_id is None
    )
    return replace(event, order_id=found or event.order_id)


def _parsed(raw: bytes) -> Any:
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError:
        return None


def _event_and_body(format: _Format, parsed: Any, raw: bytes) -> tuple[ProcessorEvent, str]:
    """The event, and the body as it is stored.

    Raises:
        Problem: 400 validation_error, if it is no event.
    """
    event = format.event(parsed) if isinstance(parsed, dict) else None
    if event is None:
        raise validation_error(FieldError("body", "Not an event as the processor sends them"))
    return event, _stored_body(raw, parsed)


def _with_razorpay_id(event: ProcessorEvent, call: Call[None]) -> ProcessorEvent:
    """Add the event's id and the hash of the body: the id is in a header that the signature does not cover."""
    digest = hashlib.sha256(call.raw).hexdigest()
    given = call.request.headers.get(RAZORPAY_EVENT_ID, "").strip()
    usable = 0 < len(given) <= MAX_EVENT_ID and given.isascii() and given.isprintable()
    event_id = given if usable and not holds_card_number(given) else f"sha256:{digest}"
    return replace(event, event_id=event_id, body_hash=digest)


def _uuid(label: Any) -> UUID | None:
    return UUID(label) if isinstance(label, str) and UUID_FORM.fullmatch(label) else None


def _number(label: Any) -> int | None:
    """Parse a label. Both processors have labels as texts."""
    text = str(label)
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 6 else None  # noqa: PLR2004


def _stored_body(raw: bytes, parsed: Any) -> str:
    """The body as it is stored for support: unchanged, unless card numbers or client secrets have to be removed.

    Raises:
        Problem: 400 validation_error, if it is nested deeper than any event is.
    """
    try:
        # Serialized again, because digits may have arrived as escapes.
        written = orjson.dumps(parsed).decode()
    except orjson.JSONEncodeError:
        raise validation_error(FieldError("body", "Nested too deep")) from None
    if CLIENT_SECRET in written:
        written = orjson.dumps(without_client_secrets(parsed)).decode()
    elif written.count('"') == raw.count(b'"') and not holds_card_number(written):  # no key was given twice
        return raw.decode()
    return mask_card_numbers(written)
