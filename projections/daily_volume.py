"""Payments, the attempts to pay an order, and how many of them and how much money there were on each day.

Facts to columns, the rows, and what a payment counts. `projections/stats.py` reads both.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, datetime
from functools import lru_cache
from typing import Any
from uuid import UUID, uuid5

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
from payloops.projections.patches import Patch, Table
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


def payment_patches(fact: StreamEvent) -> Iterator[Patch]:
    """What a fact does to the payment that it is about: the same as its `fold` does to the aggregate."""
    match fact:
        case PaymentRequested():
            requested = _moved(fact, PaymentStatus.PROCESSING)
            requested.set["correlation_id"] = fact.correlation_id
            requested.new = {
                "order_id": fact.originator_id,
                "merchant_id": fact.merchant_id,
                "attempt": fact.attempt,
                "processor": fact.processor,
                "amount": fact.amount,
                "currency": fact.currency,
                "amount_captured": 0,
                "created_at": fact.timestamp,
            }
            yield requested
        case PaymentCaptureRequested() | PaymentVoidRequested() | PaymentCancelRequested():
            asked = {"correlation_id": fact.correlation_id}
            yield Patch(id=_payment_id(fact.originator_id, fact.attempt), set=asked)
        case PaymentProcessing():
            yield _moved(fact, PaymentStatus.PROCESSING, order=fact.processor_order_id)
        case PaymentActionRequired():
            yield _moved(fact, PaymentStatus.REQUIRES_ACTION, order=fact.processor_order_id)
        case PaymentAuthorized():
            yield _moved(fact, PaymentStatus.AUTHORIZED, **_references(fact))
        case PaymentCaptured():
            captured = _moved(fact, PaymentStatus.CAPTURED, **_references(fact))
            captured.set |= {"amount_captured": fact.amount, "captured_at": fact.timestamp}
            yield captured
        case PaymentFailed():
            yield _moved(fact, PaymentStatus.FAILED, **_references(fact))
        case PaymentVoided() | PaymentCancelled():
            yield _moved(fact, PaymentStatus.CANCELLED)


def _references(fact: PaymentAuthorized | PaymentCaptured | PaymentFailed) -> dict[str, str | None]:
    return {"order": fact.processor_order_id, "transaction": fact.processor_transaction_id}


def _moved(
    fact: Any, status: PaymentStatus, *, order: str | None = None, transaction: str | None = None
) -> Patch:
    patch = Patch(id=_payment_id(fact.originator_id, fact.attempt), set={"status": status})
    if order is not None:
        patch.set["processor_order_id"] = order
    if transaction is not None:
        patch.set["processor_transaction_id"] = transaction
    return patch


@lru_cache(maxsize=1_000)
def _payment_id(order_id: UUID, attempt: int) -> UUID:
    return uuid5(order_id, str(attempt))


PAYMENTS = Table(name="payments", row=PaymentRow, patches=payment_patches)


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
