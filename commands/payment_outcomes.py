"""How a payment proceeds and ends, by what its processor reports.

Reports arrive late, twice and out of order. The rules:
- a repeated or outdated report changes nothing;
- a capture always wins: a payment that had failed or was cancelled becomes captured when the processor says so, and
  a captured one never goes back;
- money taken twice is returned: if two attempts of one order were captured, the later one is refunded at once;
- a charge counts once, however many attempts it is reported for.
"""

from uuid_utils.compat import uuid7

from payloops.commands.cancel_order import request_void
from payloops.commands.processor_refunds import record_processor_refunds
from payloops.commands.refund_payment import refund_from
from payloops.events.metadata import Metadata
from payloops.events.orders import (
    DUPLICATE_REASON,
    NO_REFERENCES,
    SAME_CHARGE,
    Failure,
    Order,
    OrderCancelled,
    OrderStatus,
    Payment,
    PaymentActionRequired,
    PaymentAuthorized,
    PaymentCancelled,
    PaymentCancelRequested,
    PaymentCaptured,
    PaymentCaptureFailed,
    PaymentFailed,
    PaymentProcessing,
    PaymentReferenceFound,
    PaymentStatus,
    PaymentVoided,
    PaymentVoidFailed,
    References,
    Transaction,
    TransactionStatus,
    TransactionType,
)

HAS_MONEY = frozenset({PaymentStatus.AUTHORIZED, PaymentStatus.CAPTURED})


def report_reference(order: Order, payment: Payment, *, processor_order_id: str | None, by: Metadata) -> None:
    """Record the reference of an authorized or captured payment that has none, unless it is another payment's."""
    if (
        processor_order_id is not None
        and payment.status in HAS_MONEY
        and payment.processor_order_id is None
        and not any(each.has_reference(processor_order_id) for each in order.other_payments(payment))
    ):
        record_reference(order, payment, processor_order_id, by=by)


def record_reference(order: Order, payment: Payment, processor_order_id: str, *, by: Metadata) -> None:
    """Record the processor's reference of a payment."""
    order.record(
        PaymentReferenceFound,
        by=by,
        status=order.status.value,
        attempt=payment.attempt,
        processor_order_id=processor_order_id,
    )


def report_processing(
    order: Order, payment: Payment, *, processor_order_id: str | None, by: Metadata
) -> None:
    """The processor has the payment. This is news if its reference is new, or the customer has acted."""
    news = payment.status is PaymentStatus.REQUIRES_ACTION or processor_order_id not in (
        None,
        payment.processor_order_id,
    )
    if payment.is_open and news:
        order.record(
            PaymentProcessing,
            by=by,
            status=_order_status(order, payment, OrderStatus.PROCESSING),
            attempt=payment.attempt,
            processor_order_id=processor_order_id,
        )


def report_action_required(
    order: Order,
    payment: Payment,
    *,
    processor_order_id: str | None,
    redirect_url: str | None,
    by: Metadata,
) -> None:
    """The customer has to act. A repeated report is news only if it brings another address."""
    repeated = payment.status is PaymentStatus.REQUIRES_ACTION and redirect_url in (
        None,
        payment.redirect_url,
    )
    if payment.is_open and not repeated:
        order.record(
            PaymentActionRequired,
            by=by,
            status=_order_status(order, payment, OrderStatus.REQUIRES_ACTION),
            attempt=payment.attempt,
            processor_order_id=processor_order_id,
            redirect_url=redirect_url,
        )


def report_authorized(order: Order, payment: Payment, *, references: References, by: Metadata) -> None:
    """The processor holds the money. Accepted also for a payment that was reported as failed before.

    An authorization that nobody wants any more (the order was cancelled, or paid by another attempt) is voided: see
    `release_unwanted`. The report is ignored if the processor's own event, which was faster, already said that the
    payment was cancelled; and if the payment failed, and another attempt that has money, or may get it, has one of
    these references: then this is its money.
    """
    reference = references.order_id or payment.processor_order_id
    is_news = payment.is_open or (
        payment.status is PaymentStatus.FAILED
        and not _is_retracted(payment, references)
        and not _sharing(order, payment, reference, references.transaction_id)
    )
    if not is_news or "cancelled" in payment.processor_outcomes:
        return
    order.record(
        PaymentAuthorized,
        by=by,
        status=(OrderStatus.AUTHORIZED if _is_wanted(order, payment) else order.status).value,
        attempt=payment.attempt,
        transaction_id=_pending_or_new_id(order, payment, TransactionType.AUTHORIZATION),
        amount=payment.amount,
        processor_order_id=references.order_id,
        processor_transaction_id=references.transaction_id,
    )
    _end_authorizations(order, _sharing(order, payment, payment.processor_order_id), by=by)
    if payment.cancel_requested:
        request_void(order, payment, by=by)


def release_unwanted(order: Order, *, by: Metadata) -> None:
    """Have authorizations voided that nobody wants, once each; to be called after each report.

    A void names a payment by its reference alone, and workers may pay again under a reference that they used before. So
    it waits while the latest attempt is under way whose reference is the same, or not known: it may take its money.
    """
    latest = order.payment
    for payment in order.payments.values():
        if payment.status is not PaymentStatus.AUTHORIZED or _is_wanted(order, payment):
            continue
        assert latest is not None
        may_take_money = (
            latest.is_under_way
            and _is_wanted(order, latest)
            and latest.processor == payment.processor
            and (
                None in {latest.processor_order_id, payment.processor_order_id}
                or latest.processor_order_id == payment.processor_order_id
            )
        )
        void = TransactionType.VOID
        requested = any(t.attempt == payment.attempt and t.type is void for t in order.transactions.values())
        if not requested and not may_take_money:
            request_void(order, payment, by=payment.cause.apply_to(by))


def report_captured(
    order: Order,
    payment: Payment,
    *,
    references: References,
    captured: int | None = None,
    requested: Transaction | None = None,
    by: Metadata,
) -> None:
    """The processor captured the money: accepted in every state but captured.

    Args:
        captured: how much, if the processor says; otherwise the requested amount is recorded.
        requested: the capture or void that is reported on, if it is one.
    """
    if payment.status is PaymentStatus.CAPTURED or _is_retracted(payment, references):
        return
    if _is_charge_of_another_attempt(order, payment, references):
        fail_payment(order, payment, references=NO_REFERENCES, failure=SAME_CHARGE, by=by)
        return
    duplicate = order.amount_captured > 0
    capture_id = _pending_or_new_id(order, payment, TransactionType.CAPTURE)
    amount = _requested_amount(order, payment, requested) if captured is None else captured
    total = order.amount_captured + amount
    authorizations = order.pending(payment.attempt, TransactionType.AUTHORIZATION)
    order.record(
        PaymentCaptured,
        by=by,
        status=(OrderStatus.CAPTURED if order.amount_refunded == 0 else OrderStatus.PARTIALLY_REFUNDED).value,
        attempt=payment.attempt,
        transaction_id=capture_id,
        amount=amount,
        amount_captured=total,
        processor=payment.processor,
        processor_order_id=references.order_id,
        processor_transaction_id=references.transaction_id,
        authorizes=authorizations[0].id if authorizations else None,
        closes=[void.id for void in order.pending(payment.attempt, TransactionType.VOID)],
    )
    if duplicate:
        refund_from(order, order.transactions[capture_id], amount=amount, reason=DUPLICATE_REASON, by=by)
    _end_authorizations(order, _sharing(order, payment, payment.processor_order_id), by=by)
    latest = order.payment
    if latest is not None and latest is not payment:
        _stop_attempt(order, latest, by=by)
    record_processor_refunds(order, payment, amount_refunded=payment.processor_refunded, by=by)


def _is_retracted(payment: Payment, references: References) -> bool:
    """Whether a payment was found to be another attempt's charge, and a report has no reference that is new."""
    return payment.same_charge_as is not None and {None, *References.of(payment)}.issuperset(references)


def _requested_amount(order: Order, payment: Payment, requested: Transaction | None) -> int:
    """The amount of the capture that is reported on; else of the payment's latest capture request, which may have been
    reported as refused; else of the payment.
    """
    if requested is not None and requested.type is TransactionType.CAPTURE:
        return requested.amount
    requests = [
        order.transactions[id]
        for (kind, _), id in order.operations.items()
        if kind is TransactionType.CAPTURE
    ]
    return next((t.amount for t in reversed(requests) if t.attempt == payment.attempt), payment.amount)


def _is_charge_of_another_attempt(order: Order, payment: Payment, references: References) -> bool:
    """Whether a charge with these references is on record as captured for another attempt.

    Workers may pay again under the reference of an earlier attempt, and need not report the charge's own, or report
    that of the payment in its place.
    """
    reference, charge = references.order_id or payment.processor_order_id, references.transaction_id

    def is_same(other: Payment) -> bool:
        if charge in {None, reference, other.processor_order_id}:
            return other.has_reference(reference, charge) or reference in other.capture_references
        if other.processor_transaction_id in {None, reference}:
            return other.has_reference(reference) or charge in other.capture_references
        return charge == other.processor_transaction_id

    return any(
        other.processor == payment.processor and other.status is PaymentStatus.CAPTURED and is_same(other)
        for other in order.other_payments(payment)
    )


def _sharing(order: Order, payment: Payment, *references: str | None) -> list[Payment]:
    """Other attempts that have money, or may get it, under one of these references at the payment's processor."""
    return [
        other
        for other in order.other_payments(payment)
        if other.processor == payment.processor and not other.is_over and other.has_reference(*references)
    ]


def _end_authorizations(order: Order, payments: list[Payment], *, by: Metadata) -> None:
    """End authorized payments whose money turned out to be another attempt's, without a void, which would take it."""
    for payment in payments:
        if payment.status is PaymentStatus.AUTHORIZED:
            fail_payment(order, payment, references=NO_REFERENCES, failure=SAME_CHARGE, by=by)


def report_failed(
    order: Order,
    payment: Payment,
    *,
    references: References,
    failure: Failure,
    requested: Transaction | None = None,
    by_own_workflow: bool = False,
    by: Metadata,
) -> None:
    """The processor refused a payment, or the capture or void of an authorized one, which then stays authorized.

    A payment that fails after the merchant asked to cancel it leaves the order cancelled.

    Args:
        requested: the capture or void that is reported on, if it is one.
        by_own_workflow: whether the payment's own workflow reports this. It may merely have stopped waiting for the
            customer, so it is ignored if the processor's own event said that it holds the money, or if a capture or
            void is under way.
    """
    operation = _pending_operation(order, payment)
    if by_own_workflow and ("authorized" in payment.processor_outcomes or operation is not None):
        return
    refused = requested or operation
    if refused is not None:
        _record_refusal(order, refused, failure, by=by)
        return
    fail_payment(order, payment, references=references, failure=failure, by=by)


def _pending_operation(order: Order, payment: Payment) -> Transaction | None:
    """The requested capture or void of a payment that is under way, if there is one."""
    kind = TransactionType.CAPTURE if payment.capture_pending else TransactionType.VOID
    return next(iter(order.pending(payment.attempt, kind)), None)


def _record_refusal(order: Order, requested: Transaction, failure: Failure, *, by: Metadata) -> None:
    """Record that the processor refused a capture or void, unless that has ended already."""
    if requested.status is not TransactionStatus.PENDING:
        return
    order.record(
        PaymentCaptureFailed if requested.type is TransactionType.CAPTURE else PaymentVoidFailed,
        by=by,
        status=order.status.value,
        attempt=requested.attempt,
        transaction_id=requested.id,
        error_code=failure.code,
        error_message=failure.message,
    )


def fail_payment(
    order: Order, payment: Payment, *, references: References, failure: Failure, by: Metadata
) -> None:
    """End an attempt without money; its authorization, and whatever was requested under it, end too."""
    if not payment.is_under_way:
        return
    order.record(
        PaymentFailed,
        by=by,
        status=_order_status(order, payment, OrderStatus.FAILED),
        attempt=payment.attempt,
        processor_order_id=references.order_id,
        processor_transaction_id=references.transaction_id,
        error_code=failure.code,
        error_message=failure.message,
        closes=_pending_ids(order, payment),
    )
    if payment.cancel_requested and order.status is OrderStatus.FAILED:
        order.record(OrderCancelled, by=by, status=OrderStatus.CANCELLED.value)


def report_cancelled(
    order: Order, payment: Payment, *, processor_transaction_id: str | None, by: Metadata
) -> None:
    """The processor stopped a payment or released an authorization.

    By the processor's own event alone, a payment that nobody here asked to cancel has failed. Where its workflow
    reports that it was cancelled, the order is cancelled, whichever of the two comes first.
    """
    status = _order_status(order, payment, OrderStatus.CANCELLED)
    told_before = payment.status is PaymentStatus.FAILED and "cancelled" in payment.processor_outcomes
    if payment.status is PaymentStatus.AUTHORIZED:
        void_id = _pending_or_new_id(order, payment, TransactionType.VOID)
        order.record(
            PaymentVoided,
            by=by,
            status=status,
            attempt=payment.attempt,
            transaction_id=void_id,
            amount=payment.amount,
            processor_order_id=payment.processor_order_id,
            processor_transaction_id=processor_transaction_id,
            closes=[id for id in _pending_ids(order, payment) if id != void_id],
        )
    elif payment.is_open or (told_before and status == OrderStatus.CANCELLED):
        order.record(
            PaymentCancelled,
            by=by,
            status=status,
            attempt=payment.attempt,
            closes=_pending_ids(order, payment),
        )


def _affects_order_status(order: Order, payment: Payment) -> bool:
    """Whether the order's status follows this payment: only the latest one, and none once money was captured."""
    return payment is order.payment and order.amount_captured == 0


def _is_wanted(order: Order, payment: Payment) -> bool:
    """Whether the order is to be paid by this payment."""
    return _affects_order_status(order, payment) and order.status is not OrderStatus.CANCELLED


def _order_status(order: Order, payment: Payment, status: OrderStatus) -> str:
    """The order's status once the payment has this one."""
    return (status if _affects_order_status(order, payment) else order.status).value


def _pending_ids(order: Order, payment: Payment) -> list[str]:
    """Ids of all pending transactions of a payment but refunds."""
    return [
        t.id
        for t in order.pending(
            payment.attempt, TransactionType.AUTHORIZATION, TransactionType.CAPTURE, TransactionType.VOID
        )
    ]


def _pending_or_new_id(order: Order, payment: Payment, kind: TransactionType) -> str:
    """Id of the payment's pending transaction of a type, else a new id."""
    opened = order.pending(payment.attempt, kind)
    return opened[0].id if opened else str(uuid7())


def _stop_attempt(order: Order, payment: Payment, *, by: Metadata) -> None:
    """Another attempt was captured: have this one voided or cancelled."""
    if payment.status is PaymentStatus.AUTHORIZED:
        request_void(order, payment, by=by)
    elif payment.is_open and not payment.cancel_requested:
        order.record(PaymentCancelRequested, by=by, status=order.status.value, attempt=payment.attempt)
