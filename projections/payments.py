"""The tables `payments` (attempts to pay an order) and `daily_volume` (their number and volume by day).

Their row types, how events change them, and what a payment counts for. `projections/stats.py` reads both.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import uuid_utils

from payloops.events.event_store import EventStore
from payloops.events.orders import (
    PaymentActionRequired,
    PaymentAuthorized,
    PaymentCancelled,
    PaymentCancelRequested,
    PaymentCaptured,
    PaymentCaptureRequested,
    PaymentCaptureRetracted,
    PaymentFailed,
    PaymentProcessing,
    PaymentReferenceFound,
    PaymentRequested,
    PaymentStatus,
    PaymentVoided,
    PaymentVoidRequested,
    References,
)
from payloops.events.stream import StreamEvent
from payloops.projections.own_writes import ProjectionBehind, wait_for_own_writes
from payloops.projections.patches import NOTHING, Handler, HandlersByType, Rows, Table, Values
from payloops.projections.projection import Projection
from payloops.projections.totals import Totals

CHECKPOINT = "daily_volume"
"""The projection whose position shows how far `payments` and `daily_volume` are."""


@dataclass(frozen=True, slots=True)
class PaymentRow:
    """A row of `payments`. Amounts in the currency's minor unit.

    Attributes:
        id: derived from order and attempt.
        amount: the requested amount. amount_captured: 0 until it is captured; refunds do not change it.
        status: of the payment; refunds do not change it.
        processor_order_id, processor_transaction_id: the latest references of the payment and its charge.
        correlation_id: of the latest request concerning it: to pay, capture, void or cancel.
        version: the order's version that last changed it.
    """

    id: UUID
    order_id: UUID
    merchant_id: UUID
    attempt: int
    processor: str
    amount: int
    currency: str
    status: str
    amount_captured: int
    created_at: datetime
    captured_at: datetime | None
    processor_order_id: str | None
    processor_transaction_id: str | None
    correlation_id: str | None
    version: int


PROCESSING, REQUIRES_ACTION, AUTHORIZED, CAPTURED, FAILED, CANCELLED = (each.value for each in PaymentStatus)


def _requested(fact: PaymentRequested, rows: Rows) -> None:
    row = rows.get(fact.attempt)
    if row is None:
        new = {
            "order_id": fact.originator_id,
            "merchant_id": fact.merchant_id,
            "attempt": fact.attempt,
            "processor": fact.processor,
            "amount": fact.amount,
            "currency": fact.currency,
            "amount_captured": 0,
            "created_at": fact.timestamp,
        }
        row = rows.make(fact.attempt, _payment_id(fact.originator_id, fact.attempt), new)
    row["status"] = PROCESSING
    row["correlation_id"] = fact.correlation_id


def _further_request(
    fact: PaymentCaptureRequested | PaymentVoidRequested | PaymentCancelRequested, rows: Rows
) -> None:
    _row(fact, rows)["correlation_id"] = fact.correlation_id


def _processing(fact: PaymentProcessing, rows: Rows) -> None:
    _update(_row(fact, rows), PROCESSING, fact.processor_order_id)


def _action_required(fact: PaymentActionRequired, rows: Rows) -> None:
    _update(_row(fact, rows), REQUIRES_ACTION, fact.processor_order_id)


def _authorized(fact: PaymentAuthorized, rows: Rows) -> None:
    _update(_row(fact, rows), AUTHORIZED, fact.processor_order_id, fact.processor_transaction_id)


def _captured(fact: PaymentCaptured, rows: Rows) -> None:
    row = _row(fact, rows)
    _update(row, CAPTURED, fact.processor_order_id, fact.processor_transaction_id)
    row["amount_captured"] = fact.amount
    row["captured_at"] = fact.timestamp


def _retracted(fact: PaymentCaptureRetracted, rows: Rows) -> None:
    row = _row(fact, rows)
    row["status"] = FAILED
    row["amount_captured"] = 0
    row["captured_at"] = None


def _failed(fact: PaymentFailed, rows: Rows) -> None:
    _update(_row(fact, rows), FAILED, fact.processor_order_id, fact.processor_transaction_id)


def _reference_found(fact: PaymentReferenceFound, rows: Rows) -> None:
    _row(fact, rows)["processor_order_id"] = fact.processor_order_id


def _ended(fact: PaymentVoided | PaymentCancelled, rows: Rows) -> None:
    _row(fact, rows)["status"] = CANCELLED


def _row(fact: Any, rows: Rows) -> Values:
    """The row of the payment that a fact is about."""
    row = rows.get(fact.attempt)
    if row is None:
        row = rows.make(fact.attempt, _payment_id(fact.originator_id, fact.attempt), NOTHING)
    return row


def _update(row: Values, status: str, order: str | None, transaction: str | None = None) -> None:
    row["status"] = status
    if order is not None:
        row["processor_order_id"] = order
    if transaction is not None:
        row["processor_transaction_id"] = transaction


HANDLERS: dict[type[StreamEvent], Handler] = {
    PaymentRequested: _requested,
    PaymentProcessing: _processing,
    PaymentActionRequired: _action_required,
    PaymentAuthorized: _authorized,
    PaymentCaptureRequested: _further_request,
    PaymentCaptured: _captured,
    PaymentCaptureRetracted: _retracted,
    PaymentFailed: _failed,
    PaymentReferenceFound: _reference_found,
    PaymentCancelRequested: _further_request,
    PaymentCancelled: _ended,
    PaymentVoidRequested: _further_request,
    PaymentVoided: _ended,
}
"""What types of facts do to the payment that they are about, as their `fold` does to the aggregate. All others do
nothing."""


def _payment_id(order_id: UUID, attempt: int) -> str:
    return str(uuid_utils.uuid5(uuid_utils.UUID(int=order_id.int), str(attempt)))


PAYMENTS = Table(name="payments", row=PaymentRow, handler=HandlersByType(HANDLERS))

BY_REFERENCE = """
    SELECT order_id FROM payments WHERE processor_order_id = %(order_id)s AND merchant_id = %(merchant_id)s
    UNION
    SELECT order_id FROM payments WHERE processor_transaction_id = %(transaction_id)s AND merchant_id = %(merchant_id)s
    LIMIT 2
"""


async def find_order_by_reference(
    store: EventStore, *, merchant_id: UUID, references: References, wait: bool = True
) -> UUID | None:
    """The merchant's order with a payment that has one of these references; None unless it is exactly one order.

    Args:
        wait: for the merchant's latest events, if the projection does not include them.

    Raises:
        ProjectionBehind: there is none yet, but the projection does not include the merchant's latest events.
    """
    is_up_to_date = not wait or await wait_for_own_writes(
        store, merchant_id=merchant_id, projection=CHECKPOINT
    )
    async with store.pool.connection() as connection:
        cursor = await connection.execute(BY_REFERENCE, {"merchant_id": merchant_id, **references._asdict()})
        found = await cursor.fetchall()
    if not found and not is_up_to_date:
        raise ProjectionBehind(CHECKPOINT)
    return found[0][0] if len(found) == 1 else None


DAILY_VOLUME = Totals(
    name="daily_volume",
    of=PAYMENTS,
    keys=("merchant_id", "day", "currency", "processor", "status"),
    sums=("begun", "captured", "volume"),
    contributions="""
        SELECT merchant_id, (created_at AT TIME ZONE 'UTC')::date, currency, processor, status, 1, 0, 0 FROM r
        UNION ALL
        SELECT merchant_id, (captured_at AT TIME ZONE 'UTC')::date, currency, processor, 'captured', 0, 1,
               amount_captured
        FROM r WHERE captured_at IS NOT NULL
    """,
)
"""The payments of a merchant, currency, processor and status on each day in UTC: `begun`, those begun on it that have
this status now; `captured`, those captured on it, whose status is `captured`; and `volume`, their captured amounts
before refunds, in the currency's minor unit."""

PROJECTION = Projection(
    name=CHECKPOINT, families=frozenset({"payment"}), tables=(PAYMENTS,), totals=(DAILY_VOLUME,), version=2
)
