"""Payments, the attempts to pay an order, and how many of them and how much money there were on each day.

Facts to columns, the rows, and what a payment counts. `projections/stats.py` reads both.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, datetime
from functools import lru_cache
from typing import Any
from uuid import UUID

from uuid_utils.compat import uuid5

from payloops.events.event_store import EventStore
from payloops.events.orders import (
    PaymentActionRequired,
    PaymentAuthorized,
    PaymentCancelled,
    PaymentCancelRequested,
    PaymentCaptured,
    PaymentCaptureRequested,
    PaymentFailed,
    PaymentProcessing,
    PaymentRequested,
    PaymentStatus,
    PaymentVoided,
    PaymentVoidRequested,
)
from payloops.events.stream import StreamEvent
from payloops.projections.own_writes import ProjectionBehind, wait_for_own_writes
from payloops.projections.patches import NOTHING, Patches, PatchesByType, Table, Values
from payloops.projections.projection import Projection
from payloops.projections.totals import Totals

CHECKPOINT = "daily_volume"
"""The projection whose position says what payments and their totals hold."""


@dataclass(frozen=True, slots=True)
class PaymentRow:
    """A row of `payments`. Amounts in the currency's minor unit.

    Attributes:
        id: made from order and attempt.
        amount: what was asked for. amount_captured: 0 until it is captured, and then for good.
        status: of the payment; refunds do not change it.
        processor_order_id, processor_transaction_id: what the processor called it, and its money, last.
        correlation_id: of the latest request of it: to pay, capture, void or cancel.
        version: the order's version that changed it last.
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


def _requested(fact: PaymentRequested) -> Patches:
    requested = {"status": PaymentStatus.PROCESSING, "correlation_id": fact.correlation_id}
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
    return ((_payment_id(fact.originator_id, fact.attempt), requested, new),)


def _asked_again(fact: PaymentCaptureRequested | PaymentVoidRequested | PaymentCancelRequested) -> Patches:
    return _moved(fact, {"correlation_id": fact.correlation_id})


def _processing(fact: PaymentProcessing) -> Patches:
    return _moved(fact, _told(PaymentStatus.PROCESSING, fact.processor_order_id))


def _action_required(fact: PaymentActionRequired) -> Patches:
    return _moved(fact, _told(PaymentStatus.REQUIRES_ACTION, fact.processor_order_id))


def _authorized(fact: PaymentAuthorized) -> Patches:
    return _moved(
        fact, _told(PaymentStatus.AUTHORIZED, fact.processor_order_id, fact.processor_transaction_id)
    )


def _captured(fact: PaymentCaptured) -> Patches:
    captured = _told(PaymentStatus.CAPTURED, fact.processor_order_id, fact.processor_transaction_id)
    captured["amount_captured"] = fact.amount
    captured["captured_at"] = fact.timestamp
    return _moved(fact, captured)


def _failed(fact: PaymentFailed) -> Patches:
    return _moved(fact, _told(PaymentStatus.FAILED, fact.processor_order_id, fact.processor_transaction_id))


def _given_up(fact: PaymentVoided | PaymentCancelled) -> Patches:
    return _moved(fact, {"status": PaymentStatus.CANCELLED})


def _told(status: PaymentStatus, order: str | None, transaction: str | None = None) -> Values:
    told: Values = {"status": status}
    if order is not None:
        told["processor_order_id"] = order
    if transaction is not None:
        told["processor_transaction_id"] = transaction
    return told


def _moved(fact: Any, changes: Values) -> Patches:
    return ((_payment_id(fact.originator_id, fact.attempt), changes, NOTHING),)


PATCHES: dict[type[StreamEvent], Callable[[Any], Patches]] = {
    PaymentRequested: _requested,
    PaymentProcessing: _processing,
    PaymentActionRequired: _action_required,
    PaymentAuthorized: _authorized,
    PaymentCaptureRequested: _asked_again,
    PaymentCaptured: _captured,
    PaymentFailed: _failed,
    PaymentCancelRequested: _asked_again,
    PaymentCancelled: _given_up,
    PaymentVoidRequested: _asked_again,
    PaymentVoided: _given_up,
}
"""What each type of fact does; others do nothing here."""

payment_patches = PatchesByType(PATCHES)
"""What a fact does to the payment that it is about: the same as its `fold` does to the aggregate."""


@lru_cache(maxsize=1_000)
def _payment_id(order_id: UUID, attempt: int) -> UUID:
    return uuid5(order_id, str(attempt))


PAYMENTS = Table(name="payments", row=PaymentRow, patches=payment_patches)

BY_REFERENCE = """
    SELECT order_id FROM payments WHERE processor_order_id = %(order)s AND merchant_id = %(merchant_id)s
    UNION
    SELECT order_id FROM payments WHERE processor_transaction_id = %(transaction)s AND merchant_id = %(merchant_id)s
    LIMIT 2
"""


async def find_order_by_reference(
    store: EventStore,
    *,
    merchant_id: UUID,
    processor_order_id: str | None,
    processor_transaction_id: str | None = None,
) -> UUID | None:
    """The merchant's order with a payment, of any attempt, that its processor knows by one of these references.

    None where there is not just one.

    Raises:
        ProjectionBehind: there is none as of now, and there may be one in a moment.
    """
    is_up_to_date = await wait_for_own_writes(store, merchant_id=merchant_id, projection=CHECKPOINT)
    references = {"order": processor_order_id, "transaction": processor_transaction_id}
    async with store.pool.connection() as connection:
        cursor = await connection.execute(BY_REFERENCE, {"merchant_id": merchant_id, **references})
        found = await cursor.fetchall()
    if not found and not is_up_to_date:
        raise ProjectionBehind(CHECKPOINT)
    return found[0][0] if len(found) == 1 else None


@dataclass(frozen=True, slots=True)
class DailyVolumeRow:
    """A row of `daily_volume`: of a merchant, currency and processor, the payments of one status on one day in UTC.

    Attributes:
        begun: payments begun on that day that have this status now.
        captured: payments captured on that day; their status is `captured`.
        volume: what these brought, before refunds, in the currency's minor unit.
    """

    merchant_id: UUID
    day: date
    currency: str
    processor: str
    status: str
    begun: int
    captured: int
    volume: int


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

PROJECTION = Projection(
    name=CHECKPOINT, families=frozenset({"payment"}), tables=(PAYMENTS,), totals=(DAILY_VOLUME,), version=2
)
