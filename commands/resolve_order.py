"""Somebody looked an order up in its processor's dashboard, and says what it shows: for what nothing else can end.

The processor keeps the last word: whatever it reports afterwards is taken as always, and may undo this.
"""

from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Literal, cast
from uuid import UUID

from payloops.commands.change_order import change_order
from payloops.commands.payment_outcomes import (
    fail_payment,
    record_reference,
    release_unwanted,
    report_cancelled,
)
from payloops.commands.processor_refunds import (
    capture_of,
    complete_refund,
    find_reported_failure,
    record_processor_refunds,
)
from payloops.commands.receive_processor_event import is_cancelling
from payloops.commands.refund_outcomes import fail_refund, reverse_refund, status_after
from payloops.commands.refusals import NotResolvable
from payloops.events.event_store import EventStore
from payloops.events.metadata import Metadata
from payloops.events.orders import (
    DUPLICATE_REASON,
    NO_REFERENCES,
    SAME_CHARGE,
    DashboardChecked,
    Failure,
    Order,
    Payment,
    PaymentCaptureRetracted,
    PaymentStatus,
    References,
    Transaction,
    TransactionStatus,
    TransactionType,
)
from payloops.events.stream import StreamEvent, topic_of

Shows = Literal["one_charge", "no_money", "reference", "refund_made", "refund_not_made"]

RECENT = timedelta(minutes=10)
"""What was requested more recently may still be under way: a workflow, or the answer of a processor."""
NO_MONEY = Failure("no_money", "The processor has no money for this payment")
NOT_REFUNDED = Failure("not_refunded", "The processor did not make this refund")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sighting:
    """What somebody saw in the dashboard, of an attempt or of a refund.

    Attributes:
        attempt: the payment that it is of; None for that of the refund.
        refund_id: ours.
        reference: the processor's, of the payment; or of the refund, if it was made.
        note: why this is said.
    """

    shows: Shows
    attempt: int | None = None
    refund_id: str | None = None
    reference: str | None = None
    note: str


async def resolve_order(
    store: EventStore, *, order_id: UUID, seen: Sighting, by: Metadata
) -> tuple[Order, list[str]]:
    """Record what somebody saw in the dashboard, and what follows; return the order, and types of its new events.

    Raises:
        OrderNotFound.
        NotResolvable: it cannot be, or it would change nothing.
        ContradictsRecord: more would be refunded than was captured.
    """

    def decide(order: Order) -> tuple[Order, list[str]]:
        return order, resolve(order, seen, by=by)

    return await change_order(store, order_id=order_id, merchant_id=None, decide=decide)


def resolve(order: Order, seen: Sighting, *, by: Metadata) -> list[str]:
    """As `resolve_order`, for a loaded order; return the types of the new events."""
    before = order.version
    if seen.refund_id is not None:
        _resolve_refund(order, _refund(order, seen.refund_id), seen, by=by)
    else:
        _resolve_payment(order, _payment(order, seen.attempt), seen, by=by)
    release_unwanted(order, by=by)
    new = cast("list[StreamEvent]", order.pending_events)
    return [topic_of(each) for each in new if each.originator_version > before]


def _payment(order: Order, attempt: int | None) -> Payment:
    payment = order.payments.get(attempt or 0)
    if payment is None:
        raise NotResolvable(f"order {order.id} has no attempt {attempt}")
    return payment


def _refund(order: Order, refund_id: str) -> Transaction:
    refund = order.transactions.get(refund_id)
    if refund is None or refund.type is not TransactionType.REFUND:
        raise NotResolvable(f"order {order.id} has no refund {refund_id}")
    return refund


def _record_sighting(order: Order, payment: Payment, seen: Sighting, *, by: Metadata) -> Metadata:
    """Record what was seen; return the metadata of what follows from it."""
    order.record(
        DashboardChecked,
        by=by,
        status=order.status.value,
        attempt=payment.attempt,
        refund_id=seen.refund_id,
        processor=payment.processor,
        shows=seen.shows,
        note=seen.note,
    )
    return replace(by, causation_id=f"{order.id}:{order.version}")


def _refuse_recent(what: str, *, since: timedelta) -> None:
    if since < RECENT:
        minutes = RECENT // timedelta(minutes=1)
        raise NotResolvable(
            f"{what} less than {minutes} minutes ago: it may still be under way; wait, and look again"
        )


# -- payments


def _resolve_payment(order: Order, payment: Payment, seen: Sighting, *, by: Metadata) -> None:
    match seen.shows:
        case "one_charge":
            _join_charges(order, payment, seen, by=by)
        case "reference":
            _learn_reference(order, payment, seen, by=by)
        case _:
            _end_without_money(order, payment, seen, by=by)


def _learn_reference(order: Order, payment: Payment, seen: Sighting, *, by: Metadata) -> None:
    """By its reference, the processor can be asked about the payment; and captures, voids and refunds need it."""
    assert seen.reference is not None
    if payment.processor_order_id is not None:
        raise NotResolvable(
            f"attempt {payment.attempt} has the reference {payment.processor_order_id} already"
        )
    for other in order.other_payments(payment):
        if other.has_reference(seen.reference):
            raise NotResolvable(
                f"{seen.reference} is recorded as the reference of attempt {other.attempt}: if both are captured, say"
                " one-charge"
            )
    by = _record_sighting(order, payment, seen, by=by)
    record_reference(order, payment, seen.reference, by=by)


def _end_without_money(order: Order, payment: Payment, seen: Sighting, *, by: Metadata) -> None:
    """The processor has no money for a payment that is under way, and will have none: the order can be paid again. If
    its cancellation was requested, it is cancelled.
    """
    if not payment.is_under_way:
        raise NotResolvable(f"attempt {payment.attempt} is {payment.status} already")
    _refuse_recent("the order has changed", since=by.at - order.modified_on)
    cancelled = is_cancelling(order, payment)
    by = _record_sighting(order, payment, seen, by=by)
    if cancelled:
        report_cancelled(order, payment, processor_transaction_id=None, by=by)
    else:
        fail_payment(order, payment, references=NO_REFERENCES, failure=NO_MONEY, by=by)


def _join_charges(order: Order, payment: Payment, seen: Sighting, *, by: Metadata) -> None:
    """Two attempts were recorded as captured, but there is one charge: it counts for one of them, and is not given back
    as a duplicate.
    """
    other = _same_charge(order, payment)
    # The attempt that keeps the charge: that of which refunds are on record, else the one with a reference, which
    # further refunds need.
    kept, dropped = sorted(
        (payment, other),
        key=lambda p: (not _wanted_refunds(order, p), p.processor_order_id is None, p.attempt),
    )
    if _wanted_refunds(order, dropped):
        raise NotResolvable(
            f"attempts {kept.attempt} and {dropped.attempt} both have refunds that were made or requested: end those"
            " that were not made first (refund-not-made)"
        )
    by = _record_sighting(order, payment, seen, by=by)
    if kept.processor_order_id is None and dropped.processor_order_id is not None:
        record_reference(order, kept, dropped.processor_order_id, by=by)
    capture = capture_of(order, dropped)
    assert capture is not None
    order.record(
        PaymentCaptureRetracted,
        by=by,
        status=status_after(order, captured=order.amount_captured - capture.amount).value,
        attempt=dropped.attempt,
        same_as=kept.attempt,
        transaction_id=capture.id,
        amount=capture.amount,
        amount_captured=order.amount_captured - capture.amount,
    )
    # Afterwards, so that the merchant's webhook about it has the sum of what is captured.
    for refund in [*_refunds(order, kept), *_refunds(order, dropped)]:
        if refund.status is TransactionStatus.PENDING and refund.reason == DUPLICATE_REASON:
            fail_refund(order, refund.id, processor_transaction_id=None, failure=SAME_CHARGE, by=by)


def _same_charge(order: Order, payment: Payment) -> Payment:
    """The other attempt whose charge this one may be.

    Raises:
        NotResolvable: there is none.
    """
    captured = [
        each
        for each in order.other_payments(payment)
        if each.processor == payment.processor and each.status is PaymentStatus.CAPTURED
    ]
    if payment.status is not PaymentStatus.CAPTURED or not captured:
        all_captured = ", ".join(
            str(each.attempt) for each in order.payments.values() if each.status is PaymentStatus.CAPTURED
        )
        raise NotResolvable(
            f"attempt {payment.attempt} is {payment.status} (captured: {all_captured or 'none'}): only two attempts"
            " that are captured at one processor can be one charge"
        )
    for other in captured:
        if payment.may_be_charge_of(other) and other.may_be_charge_of(payment):
            return other
    known = " and ".join(
        f"attempt {each.attempt} ({', '.join(filter(None, References.of(each)))})"
        for each in (payment, captured[0])
    )
    raise NotResolvable(f"their references show two charges: {known}")


def _refunds(order: Order, payment: Payment) -> list[Transaction]:
    return [t for t in order.transactions.values() if t.attempt == payment.attempt and t.refunds is not None]


def _wanted_refunds(order: Order, payment: Payment) -> list[Transaction]:
    """Refunds of a payment that were made, or requested by the merchant and not refused."""
    return [
        t
        for t in _refunds(order, payment)
        if t.status is TransactionStatus.SUCCESS
        or (t.status is TransactionStatus.PENDING and t.reason != DUPLICATE_REASON)
    ]


# -- refunds


def _resolve_refund(order: Order, refund: Transaction, seen: Sighting, *, by: Metadata) -> None:
    payment = order.payments[refund.attempt]
    if seen.shows == "refund_made":
        _make_refund(order, refund, payment, seen, by=by)
    else:
        _end_refund(order, refund, payment, seen, by=by)
    record_processor_refunds(order, payment, amount_refunded=None, by=by)


def _make_refund(
    order: Order, refund: Transaction, payment: Payment, seen: Sighting, *, by: Metadata
) -> None:
    """It was made. Also if it had been reported as failed: the report of its success may have been lost."""
    if refund.status is TransactionStatus.SUCCESS:
        raise NotResolvable(f"refund {refund.id} is recorded as made already")
    same = [
        t
        for t in order.transactions.values()
        if seen.reference and t.processor_transaction_id == seen.reference
    ]
    if same:
        raise NotResolvable(
            f"{seen.reference} is recorded already, as {same[0].type} {same[0].id}: where refund {refund.id} was not"
            " made beside it, say refund-not-made"
        )
    if find_reported_failure(order, refund.id, reference=seen.reference) is not None:
        raise NotResolvable(f"{payment.processor} reported that refund {refund.id} failed, which is final")
    by = _record_sighting(order, payment, seen, by=by)
    complete_refund(order, refund.id, processor_transaction_id=seen.reference, by=by)


def _end_refund(order: Order, refund: Transaction, payment: Payment, seen: Sighting, *, by: Metadata) -> None:
    """It was not made and will not be, or it came back: its amount can be refunded again."""
    if refund.status is TransactionStatus.FAILED:
        raise NotResolvable(f"refund {refund.id} is recorded as failed already")
    _refuse_recent("the refund was requested", since=by.at - refund.created_at)
    by = _record_sighting(order, payment, seen, by=by)
    end = fail_refund if refund.status is TransactionStatus.PENDING else reverse_refund
    end(order, refund.id, processor_transaction_id=None, failure=NOT_REFUNDED, by=by)
