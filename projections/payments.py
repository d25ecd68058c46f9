"""Payments, the attempts to pay an order: facts to columns, and the row. `projections/stats.py` counts them."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID, uuid5

from payloops.events.orders import (
    PaymentActionRequired,
    PaymentAuthorized,
    PaymentCancelled,
    PaymentCaptured,
    PaymentFailed,
    PaymentProcessing,
    PaymentRequested,
    PaymentStatus,
    PaymentVoided,
)
from payloops.events.stream import StreamEvent
from payloops.projections.patches import Patch, Table

CHECKPOINT = "payments"
"""The projection whose position says what payments hold."""


@dataclass(frozen=True, slots=True)
class PaymentRow:
    """A row of `payments`. Amounts in the currency's minor unit.

    Attributes:
        id: made from order and attempt.
        amount: what was asked for. amount_captured: 0 until it is captured, and then for good.
        status: of the payment; refunds do not change it.
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
    version: int


def payment_patches(fact: StreamEvent) -> Iterator[Patch]:
    """What a fact does to the payment that it is about: the same as its `fold` does to the aggregate."""
    match fact:
        case PaymentRequested():
            requested = _moved(fact, PaymentStatus.PROCESSING)
            requested.new = {
                "order_id": str(fact.originator_id),
                "merchant_id": fact.merchant_id,
                "attempt": fact.attempt,
                "processor": fact.processor,
                "amount": fact.amount,
                "currency": fact.currency,
                "amount_captured": 0,
                "created_at": fact.timestamp,
            }
            yield requested
        case PaymentProcessing():
            yield _moved(fact, PaymentStatus.PROCESSING)
        case PaymentActionRequired():
            yield _moved(fact, PaymentStatus.REQUIRES_ACTION)
        case PaymentAuthorized():
            yield _moved(fact, PaymentStatus.AUTHORIZED)
        case PaymentCaptured():
            captured = _moved(fact, PaymentStatus.CAPTURED)
            captured.set |= {"amount_captured": fact.amount, "captured_at": fact.timestamp}
            yield captured
        case PaymentFailed():
            yield _moved(fact, PaymentStatus.FAILED)
        case PaymentVoided() | PaymentCancelled():
            yield _moved(fact, PaymentStatus.CANCELLED)


def _moved(fact: Any, status: PaymentStatus) -> Patch:
    return Patch(id=str(uuid5(fact.originator_id, str(fact.attempt))), set={"status": status})


PAYMENTS = Table(name="payments", row=PaymentRow, patches=payment_patches)
