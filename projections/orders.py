"""The table `orders`: its row type, how events change it, and how one order is read.

Reads by id are never stale: they fetch the row together with the version of the order's stream, and fold the stream
where the row lags behind.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID
from weakref import WeakKeyDictionary

from psycopg import sql
from psycopg.rows import TupleRow

from payloops.events.columns import uuids_by_number
from payloops.events.event_store import EventStore
from payloops.events.lookups import Lookup
from payloops.events.orders import (
    Order,
    OrderCancelled,
    OrderCreated,
    OrderFact,
    OrderStatus,
    PaymentActionRequired,
    PaymentAuthorized,
    PaymentCaptured,
    PaymentCaptureFailed,
    PaymentCaptureRetracted,
    PaymentFailed,
    PaymentProcessing,
    PaymentReferenceFound,
    PaymentRequested,
    PaymentVoidFailed,
    PersonalDataErased,
    RefundFailed,
    RefundReversed,
    RefundSucceeded,
)
from payloops.events.stream import StreamEvent
from payloops.projections.patches import (
    NOTHING,
    Handler,
    HandlersByType,
    Rows,
    Table,
    Values,
    columns_of,
)
from payloops.projections.projection import Projection
from payloops.projections.totals import Totals
from payloops.projections.transactions import TRANSACTIONS

CHECKPOINT = "orders"
"""The projection whose position shows how far `orders` and `transactions` are."""


@dataclass(slots=True)  # not frozen: making one would take ten times as long, and a page has many
class OrderRow:
    """A row of `orders`. Amounts in the currency's minor unit.

    Attributes:
        attempt: number of the latest attempt to pay it, 0 before the first.
        correlation_id: of the request that created it.
        cancel_correlation_id: of the request that cancelled it while no payment was under way.
        version: of the order's stream, up to which the row includes all events.
    """

    id: UUID
    merchant_id: UUID
    external_id: str
    amount: int
    currency: str
    status: str
    processor: str | None
    processor_order_id: str | None
    metadata: dict[str, Any]
    customer_id: str | None
    customer_email: str | None
    description: str | None
    return_url: str | None
    cancel_url: str | None
    amount_captured: int
    amount_refunded: int
    attempt: int
    last_error_code: str | None
    last_error_message: str | None
    created_at: datetime
    updated_at: datetime
    correlation_id: str | None
    cancel_correlation_id: str | None
    version: int

    @property
    def last_error(self) -> dict[str, str | None] | None:
        """As everybody outside gets it: `code` and `message`; None if there is neither."""
        code, message = self.last_error_code, self.last_error_message
        return None if code is None and message is None else {"code": code, "message": message}


PENDING, FAILED = OrderStatus.PENDING.value, OrderStatus.FAILED.value
ORDER = 0
"""The key of an order's row: its stream has only one."""


def _created(fact: OrderCreated, rows: Rows) -> None:
    rows.make(ORDER, fact.originator_id, NOTHING).update(
        merchant_id=fact.merchant_id,
        external_id=fact.external_id,
        amount=fact.amount,
        currency=fact.currency,
        status=PENDING,
        metadata=fact.metadata,
        customer_id=fact.customer_id,
        customer_email=fact.customer_email,
        description=fact.description,
        return_url=fact.return_url,
        cancel_url=fact.cancel_url,
        amount_captured=0,
        amount_refunded=0,
        attempt=0,
        created_at=fact.timestamp,
        updated_at=fact.timestamp,
        correlation_id=fact.correlation_id,
    )


def _changed(fact: OrderFact, rows: Rows) -> Values:
    """What every fact but the first changes."""
    row = rows.get(ORDER)
    if row is None:
        row = rows.make(ORDER, fact.originator_id, NOTHING)
    row["status"] = fact.status
    row["updated_at"] = fact.timestamp
    return row


def _requested(fact: PaymentRequested, rows: Rows) -> None:
    row = _changed(fact, rows)
    row["attempt"] = fact.attempt
    row["processor"] = fact.processor
    row["processor_order_id"] = row["last_error_code"] = row["last_error_message"] = None


def _learned(
    fact: PaymentProcessing
    | PaymentActionRequired
    | PaymentAuthorized
    | PaymentCaptured
    | PaymentFailed
    | PaymentReferenceFound,
    rows: Rows,
) -> Values:
    row = _changed(fact, rows)
    if fact.processor_order_id is not None:
        row["processor_order_id"] = fact.processor_order_id
    return row


def _captured(fact: PaymentCaptured, rows: Rows) -> None:
    row = _learned(fact, rows)
    row["processor"] = fact.processor
    row["amount_captured"] = fact.amount_captured
    row["last_error_code"] = row["last_error_message"] = None


def _retracted(fact: PaymentCaptureRetracted, rows: Rows) -> None:
    _changed(fact, rows)["amount_captured"] = fact.amount_captured


def _failed(fact: PaymentFailed, rows: Rows) -> None:
    row = _learned(fact, rows)
    if fact.status == FAILED:
        _set_error(row, fact)


def _refused(fact: PaymentCaptureFailed | PaymentVoidFailed | RefundFailed, rows: Rows) -> None:
    _set_error(_changed(fact, rows), fact)


def _set_error(row: Values, fact: Any) -> None:
    row["last_error_code"] = fact.error_code
    row["last_error_message"] = fact.error_message


def _refunded(fact: RefundSucceeded, rows: Rows) -> None:
    _changed(fact, rows)["amount_refunded"] = fact.amount_refunded


def _reversed(fact: RefundReversed, rows: Rows) -> None:
    row = _changed(fact, rows)
    _set_error(row, fact)
    row["amount_refunded"] = fact.amount_refunded


def _cancelled(fact: OrderCancelled, rows: Rows) -> None:
    _changed(fact, rows)["cancel_correlation_id"] = fact.correlation_id


def _erased(fact: PersonalDataErased, rows: Rows) -> None:
    row = _changed(fact, rows)
    row["customer_email"] = fact.customer_email
    row["description"] = fact.description
    row["metadata"] = fact.metadata


HANDLERS: dict[type[StreamEvent], Handler] = {
    OrderCreated: _created,
    OrderCancelled: _cancelled,
    PaymentRequested: _requested,
    PaymentProcessing: _learned,
    PaymentActionRequired: _learned,
    PaymentAuthorized: _learned,
    PaymentCaptured: _captured,
    PaymentCaptureRetracted: _retracted,
    PaymentFailed: _failed,
    PaymentReferenceFound: _learned,
    PaymentCaptureFailed: _refused,
    PaymentVoidFailed: _refused,
    RefundSucceeded: _refunded,
    RefundFailed: _refused,
    RefundReversed: _reversed,
    PersonalDataErased: _erased,
}
"""What types of facts do to the order's row, as their `fold` does to the aggregate. All others only change the
status."""
handle_order = HandlersByType(HANDLERS, other=_changed)


def row_from_order(order: Order) -> OrderRow:
    """The row that the projection makes of the order's facts."""
    return OrderRow(
        id=order.id,
        merchant_id=UUID(order.merchant_id),
        external_id=order.external_id,
        amount=order.amount,
        currency=order.currency,
        status=order.status.value,
        processor=order.processor,
        processor_order_id=order.processor_order_id,
        metadata=order.metadata,
        customer_id=order.customer_id,
        customer_email=order.customer_email,
        description=order.description,
        return_url=order.return_url,
        cancel_url=order.cancel_url,
        amount_captured=order.amount_captured,
        amount_refunded=order.amount_refunded,
        attempt=order.attempt,
        last_error_code=order.last_error.code if order.last_error else None,
        last_error_message=order.last_error.message if order.last_error else None,
        created_at=order.created_on,
        updated_at=order.modified_on,
        correlation_id=order.correlation_id,
        cancel_correlation_id=order.cancel_correlation_id,
        version=order.version,
    )


ORDERS = Table(name="orders", row=OrderRow, handler=handle_order, every_fact=True)
COUNTS_SINCE = 3
"""The first version of the projection that has `ORDER_COUNTS`."""
ORDER_COUNTS = Totals(
    name="order_counts",
    of=ORDERS,
    keys=("merchant_id", "status", "currency", "processor"),
    sums=("orders",),
    contributions="SELECT merchant_id, status, currency, coalesce(processor, ''), 1 FROM r",
)
PROJECTION = Projection(
    name=CHECKPOINT,
    families=frozenset({"order", "payment", "refund"}),
    tables=(ORDERS, TRANSACTIONS),
    totals=(ORDER_COUNTS,),
    version=3,
)

# The array is in a subquery to hide its length from PostgreSQL, which would otherwise plan each call anew: that takes
# three times as long as reading an order.
GET = (
    sql.SQL("""
    SELECT first.originator_id, first.merchant_id, head.version, {columns}
    FROM unnest((SELECT $1::uuid[])) AS wanted (id)
    JOIN stored_events first ON first.originator_id = wanted.id AND first.originator_version = 1
    CROSS JOIN LATERAL (
        SELECT max(originator_version) AS version FROM stored_events WHERE originator_id = wanted.id
    ) head
    LEFT JOIN orders o ON o.id = wanted.id
    WHERE first.topic = 'order.created'
""")
    .format(columns=columns_of(OrderRow, "o"))
    .as_string(None)
)


@dataclass(slots=True)
class _Found:
    """An order's row, None if the projection has not made it yet, and the version of its stream (`head`)."""

    merchant_id: UUID
    head: int
    row: OrderRow | None


MOST_LOOKED_UP = 100
"""Orders read by one query."""

# Keyed by integers, because a UUID is hashed and compared in Python code.
_lookups: WeakKeyDictionary[EventStore, Lookup[int, _Found]] = WeakKeyDictionary()


async def get_order(store: EventStore, *, order_id: UUID, merchant_id: UUID) -> OrderRow | None:
    """The order, including every append acknowledged until now; None if it is unknown or another merchant's."""
    lookup = _lookups.get(store)
    if lookup is None:
        lookup = Lookup(store.pool, GET, column=uuids_by_number, read=_by_id, most=MOST_LOOKED_UP)
        _lookups[store] = lookup
    found = await lookup.find(order_id.int)
    if found is None or found.merchant_id.int != merchant_id.int:
        return None
    if found.row is not None and found.row.version == found.head:
        return found.row
    order = await store.load(Order, order_id)
    return row_from_order(order) if order is not None else None


def _by_id(rows: Sequence[TupleRow]) -> dict[int, _Found]:
    return {
        order_id.int: _Found(merchant_id, head, None if values[0] is None else OrderRow(*values))
        for order_id, merchant_id, head, *values in rows
    }
