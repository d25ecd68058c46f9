"""The table `transactions`: its row type, how events change it, and the queries that read it."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from psycopg import sql

from payloops.events.event_store import EventStore
from payloops.events.orders import (
    CLOSED_BY_CANCELLATION,
    CLOSED_BY_CAPTURE,
    CLOSED_BY_VOID,
    SAME_CHARGE,
    Failure,
    Order,
    PaymentAuthorized,
    PaymentCancelled,
    PaymentCaptured,
    PaymentCaptureFailed,
    PaymentCaptureRequested,
    PaymentCaptureRetracted,
    PaymentFailed,
    PaymentRequested,
    PaymentVoided,
    PaymentVoidFailed,
    PaymentVoidRequested,
    RefundDiscovered,
    RefundFailed,
    RefundRequested,
    RefundReversed,
    RefundSucceeded,
    TransactionStatus,
    TransactionType,
)
from payloops.events.stream import StreamEvent
from payloops.projections.patches import NOTHING, Handler, HandlersByType, Rows, Table, Values, columns_of


@dataclass(frozen=True, slots=True)
class TransactionRow:
    """A row of `transactions`. The amount is in the currency's minor unit.

    Attributes:
        attempt: number of the payment that it belongs to, 1 for the order's first.
        refunds: of a refund, the id of the refunded capture.
        correlation_id: of the request that opened it.
        version: the order's version that last changed it.
    """

    id: UUID
    order_id: UUID
    merchant_id: UUID
    attempt: int
    type: str
    amount: int
    status: str
    processor_transaction_id: str | None
    error_code: str | None
    error_message: str | None
    reason: str | None
    refunds: UUID | None
    created_at: datetime
    correlation_id: str | None
    version: int


PENDING, SUCCESS, FAILED = (each.value for each in TransactionStatus)
AUTHORIZATION, CAPTURE, REFUND, VOID = (each.value for each in TransactionType)


def _requested(fact: PaymentRequested, rows: Rows) -> None:
    _open(fact.transaction_id, AUTHORIZATION if fact.capture == "manual" else CAPTURE, fact, rows)


def _authorized(fact: PaymentAuthorized, rows: Rows) -> None:
    _settle(fact.transaction_id, AUTHORIZATION, fact, rows)


def _capture_requested(fact: PaymentCaptureRequested, rows: Rows) -> None:
    _open(fact.transaction_id, CAPTURE, fact, rows)


def _captured(fact: PaymentCaptured, rows: Rows) -> None:
    _settle(fact.transaction_id, CAPTURE, fact, rows)
    if fact.authorizes is not None:
        _row(fact.authorizes, rows)["status"] = SUCCESS
    _close(fact.closes, CLOSED_BY_CAPTURE, rows)


def _retracted(fact: PaymentCaptureRetracted, rows: Rows) -> None:
    _fail(fact.transaction_id, SAME_CHARGE, rows)


def _payment_failed(fact: PaymentFailed, rows: Rows) -> None:
    _close(fact.closes, Failure.of(fact), rows)


def _cancelled(fact: PaymentCancelled, rows: Rows) -> None:
    _close(fact.closes, CLOSED_BY_CANCELLATION, rows)


def _void_requested(fact: PaymentVoidRequested, rows: Rows) -> None:
    _open(fact.transaction_id, VOID, fact, rows)


def _voided(fact: PaymentVoided, rows: Rows) -> None:
    _settle(fact.transaction_id, VOID, fact, rows)
    _close(fact.closes, CLOSED_BY_VOID, rows)


def _refused(fact: PaymentCaptureFailed | PaymentVoidFailed, rows: Rows) -> None:
    _fail(fact.transaction_id, Failure.of(fact), rows)


def _refund_opened(fact: RefundRequested | RefundDiscovered, rows: Rows) -> None:
    row = _open(fact.refund_id, REFUND, fact, rows)
    row["reason"] = fact.reason
    row["refunds"] = fact.capture_id


def _refunded(fact: RefundSucceeded, rows: Rows) -> None:
    _settle(fact.refund_id, REFUND, fact, rows)


def _refund_failed(fact: RefundFailed, rows: Rows) -> None:
    _fail(fact.refund_id, Failure.of(fact), rows)


def _refund_reversed(fact: RefundReversed, rows: Rows) -> None:
    row = _fail(fact.refund_id, Failure.of(fact), rows)
    if fact.processor_transaction_id is not None:
        row["processor_transaction_id"] = fact.processor_transaction_id


def _row(id: str, rows: Rows) -> Values:
    row = rows.get(id)
    return rows.make(id, id, NOTHING) if row is None else row


def _open(id: str, kind: str, fact: Any, rows: Rows) -> Values:
    row = rows.get(id)
    if row is None:
        new = {
            "order_id": fact.originator_id,
            "merchant_id": fact.merchant_id,
            "attempt": fact.attempt,
            "type": kind,
            "status": PENDING,
            "created_at": fact.timestamp,
            "correlation_id": fact.correlation_id,
        }
        row = rows.make(id, id, new)
    row["amount"] = fact.amount
    return row


def _settle(id: str, kind: str, fact: Any, rows: Rows) -> None:
    """Record a success. The row may be new: the processor may report a transaction that was not requested here."""
    row = _open(id, kind, fact, rows)
    row["status"] = SUCCESS
    row["error_code"] = row["error_message"] = None
    if fact.processor_transaction_id is not None:
        row["processor_transaction_id"] = fact.processor_transaction_id


def _fail(id: str, failure: Failure, rows: Rows) -> Values:
    row = _row(id, rows)
    row["status"] = FAILED
    row["error_code"] = failure.code
    row["error_message"] = failure.message
    return row


def _close(ids: list[str], failure: Failure, rows: Rows) -> None:
    for id in ids:
        _fail(id, failure, rows)


HANDLERS: dict[type[StreamEvent], Handler] = {
    PaymentRequested: _requested,
    PaymentAuthorized: _authorized,
    PaymentCaptureRequested: _capture_requested,
    PaymentCaptured: _captured,
    PaymentCaptureRetracted: _retracted,
    PaymentCaptureFailed: _refused,
    PaymentFailed: _payment_failed,
    PaymentCancelled: _cancelled,
    PaymentVoidRequested: _void_requested,
    PaymentVoided: _voided,
    PaymentVoidFailed: _refused,
    RefundRequested: _refund_opened,
    RefundDiscovered: _refund_opened,
    RefundSucceeded: _refunded,
    RefundFailed: _refund_failed,
    RefundReversed: _refund_reversed,
}
"""What types of facts do to the order's transactions, as their `fold` does to the aggregate. All others do nothing."""


def rows_from_order(order: Order) -> list[TransactionRow]:
    """The rows that the projection makes of the order's facts, newest first; their `version` is the order's."""
    rows = [
        TransactionRow(
            id=UUID(each.id),
            order_id=order.id,
            merchant_id=UUID(order.merchant_id),
            attempt=each.attempt,
            type=each.type.value,
            amount=each.amount,
            status=each.status.value,
            processor_transaction_id=each.processor_transaction_id,
            error_code=each.error_code,
            error_message=each.error_message,
            reason=each.reason,
            refunds=UUID(each.refunds) if each.refunds is not None else None,
            created_at=each.created_at,
            correlation_id=each.cause.correlation_id,
            version=order.version,
        )
        for each in order.transactions.values()
    ]
    return sorted(rows, key=lambda row: (row.created_at, row.id), reverse=True)


TRANSACTIONS = Table(name="transactions", row=TransactionRow, handler=HandlersByType(HANDLERS))

LIST = sql.SQL("""
    SELECT head.version, o.version, {columns}
    FROM stored_events first
    CROSS JOIN LATERAL (
        SELECT max(originator_version) AS version FROM stored_events WHERE originator_id = first.originator_id
    ) head
    LEFT JOIN orders o ON o.id = first.originator_id
    LEFT JOIN transactions t ON t.order_id = o.id
    WHERE first.originator_id = %(order_id)s AND first.originator_version = 1
      AND first.topic = 'order.created' AND first.merchant_id = %(merchant_id)s
    ORDER BY t.created_at DESC, t.id DESC
""").format(columns=columns_of(TransactionRow, "t"))


async def list_transactions(
    store: EventStore, *, order_id: UUID, merchant_id: UUID
) -> list[TransactionRow] | None:
    """The order's transactions, newest first, as of every append acknowledged until now.

    None if the order is unknown or another merchant's.
    """
    async with store.pool.connection() as connection:
        cursor = await connection.execute(LIST, {"order_id": order_id, "merchant_id": merchant_id})
        found = await cursor.fetchall()
    if not found:
        return None
    head, projected = found[0][:2]
    if projected == head:
        return [TransactionRow(*values) for _, _, *values in found if values[0] is not None]
    order = await store.load(Order, order_id)
    return rows_from_order(order) if order is not None else None


async def list_refunds(
    store: EventStore, *, order_id: UUID, merchant_id: UUID
) -> list[TransactionRow] | None:
    """The order's refunds; otherwise as `list_transactions`."""
    rows = await list_transactions(store, order_id=order_id, merchant_id=merchant_id)
    if rows is None:
        return None
    return [row for row in rows if row.type == TransactionType.REFUND]
