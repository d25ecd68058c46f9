"""An order's events and states described in words, for the command line and the console."""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import orjson
from pydantic.alias_generators import to_camel

from payloops.events.money import money_text
from payloops.projections.order_events import OrderEvent

AMOUNTS = {"amount", "amount_captured", "amount_refunded"}
"""Fields that hold money, in the minor unit of the order's currency."""
REFERENCES = ("processor_order_id", "processor_transaction_id", "refund_reference", "event_id")
TITLES = {
    "order.created": "Order created",
    "order.cancelled": "Order cancelled",
    "order.personal_data_erased": "Personal data erased",
    "order.processor_event_received": "Message from the processor",
    "order.dashboard_checked": "Looked up in the processor's dashboard",
    "payment.requested": "Payment asked for",
    "payment.processing": "Payment under way at the processor",
    "payment.action_required": "Customer asked to act",
    "payment.authorized": "Payment authorized",
    "payment.reference_found": "Reference at the processor found",
    "payment.capture_requested": "Capture asked for",
    "payment.captured": "Payment captured",
    "payment.capture_retracted": "Capture found to be another attempt's",
    "payment.capture_failed": "Capture failed",
    "payment.void_requested": "Release of the authorization asked for",
    "payment.voided": "Authorization released",
    "payment.void_failed": "Authorization not released",
    "payment.failed": "Payment failed",
    "payment.cancel_requested": "Cancellation of the payment asked for",
    "payment.cancelled": "Payment cancelled",
    "refund.requested": "Refund asked for",
    "refund.discovered": "Refund made at the processor itself",
    "refund.succeeded": "Refund made",
    "refund.failed": "Refund failed",
    "refund.reversed": "Refund came back",
}


def event_title(type: str) -> str:
    """What happened, in a few words; of a type that this version does not know, its name."""
    return TITLES.get(type, type)


def event_money(event: OrderEvent, currency: str) -> str:
    """The money that an event is about, empty where it is about none."""
    amount = event.data.get("amount")
    return money_text(amount, currency) if isinstance(amount, int) else ""


def event_references(event: OrderEvent) -> list[str]:
    """What the processor calls the things that an event is about."""
    return list(dict.fromkeys(each for name in REFERENCES if (each := event.data.get(name))))


def event_details(event: OrderEvent) -> Iterator[str]:
    """What else there is to say of an event, a line each."""
    data = event.data
    if "attempt" in data and data["attempt"] is not None:
        at = f" at {data['processor']}" if data.get("processor") else ""
        yield f"attempt {data['attempt']}{at}"
    if data.get("routing"):
        yield f"why: {data['routing']}"
    if data.get("reason"):
        yield f"reason: {data['reason']}"
    if data.get("shows"):
        yield f"shows: {data['shows']}"
    if data.get("note"):
        yield f"why: {data['note']}"
    if data.get("outcome"):
        yield f"{data['type']}: {data['outcome']}, effect: {data['effect']}"
    error = ": ".join(str(data[name]) for name in ("error_code", "error_message") if data.get(name))
    if error:
        yield error


def field_name(name: str) -> str:
    """`transactions.<id>.processorTransactionId`: a field of an order's state as the API names it."""
    *path, last = name.split(".")
    return ".".join([*path, to_camel(last)])


def entity_of(name: str) -> tuple[str, str]:
    """`("payment 1", "status")` of `payments.1.status`; the order's own fields belong to ``""``."""
    entity, _, field = name.rpartition(".")
    kind, _, id = entity.partition(".")
    return f"{kind.removesuffix('s')} {id}".strip(), field


def value_text(field: str, value: Any, currency: str) -> str:
    """A field's value; money with its currency, what is not there as a dash."""
    match value:
        case None:
            return "-"
        case int() if field.rpartition(".")[2] in AMOUNTS:
            return money_text(value, currency)
        case bool():
            return "yes" if value else "no"
        case datetime():
            return exact_time(value)
        case dict() | list():
            return orjson.dumps(value).decode()
        case _:
            return str(value)


def exact_time(moment: datetime) -> str:
    """`2026-11-23 15:40:02.123456`, in UTC."""
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S.%f}"
