"""An order as workers and receivers of webhooks get it: in the form of the HTTP API, as plain JSON."""

from datetime import datetime
from typing import Any
from uuid import UUID

from pydantic.alias_generators import to_camel

from payloops.events.timestamps import timestamp_text
from payloops.projections.orders import OrderRow

ORDER_FIELDS = (
    *("id", "external_id", "amount", "currency", "status", "processor", "processor_order_id", "metadata"),
    *("customer_id", "customer_email", "description", "return_url", "cancel_url"),
    *("amount_captured", "amount_refunded", "attempt", "created_at", "updated_at"),
)
"""The columns of an order that workers and merchants see, beside its last error. All others are internal."""


def order_json(row: OrderRow) -> dict[str, Any]:
    """An order in the form of the HTTP API."""
    fields = {to_camel(name): _json_value(getattr(row, name)) for name in ORDER_FIELDS}
    return fields | {"lastError": row.last_error}


def _json_value(value: Any) -> Any:
    match value:
        case UUID():
            return str(value)
        case datetime():
            return timestamp_text(value)
        case _:
            return value
