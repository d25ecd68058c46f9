"""Applies what a processor reports of a payment, through a workflow's activity or by webhook.

Reports arrive late, twice and out of order. The rules:
- a repeated or outdated report changes nothing;
- a capture always wins: a payment that had failed or was cancelled becomes captured when the processor says so, and
  a captured one never goes back;
- money taken twice is returned: if two attempts of one order were captured, the later one is refunded at once;
- a charge counts once, however many attempts it is reported for.
"""

from functools import partial
from uuid import UUID

from uuid_utils.compat import uuid7

from payloops.commands.cancel_order import request_void
from payloops.commands.change_order import change_order, load_order
from payloops.commands.client_secrets import ClientSecrets
from payloops.commands.refund_payment import refund_from
from payloops.commands.refusals import OrderMovedOn, UnknownAttempt
from payloops.commands.processor_refunds import record_processor_refunds
from payloops.events.event_store import EventStore
from payloops.events.metadata import Metadata
from payloops.events.orders import (
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
    Transaction,
    TransactionStatus,
    TransactionType,
)

DUPLICATE_REASON = "duplicate payment"


async def update_order_status(
    store: EventStore,
    *,
    order_id: UUID,
    status: str,
    attempt: int | None = None,
    operation: tuple[TransactionType, int] | None = None,
    processor_order_id: str | None = None,
    processor_transaction_id: str | None = None,
    redirect_url: str | None = None,
    client_secret: str | None = None,
    client_secrets: ClientSecrets | None = None,
    amount: int | None = None,
    error_code: str | None = None,
    error_message: str | None = None,
    as_of: int | None = None,
    by: Metadata,
) -> None:
    """Record what a processor reports about a payment.

    Args:
        status: `processing`, `requires_action`, `authorized`, `captured`, `failed` or `cancelled`; or `expired`: an
            authorization is over that nobody here asked to release, and what was asked for under it.
        client_secret: lets the customer's browser finish the payment; it goes to `client_secrets`, never into an
            event.
        amount: what was captured, in minor units, where the processor says it.
        attempt: the payment meant; where None, that of the operation, else the one with these references at the
            processor, else the latest.
        operation: the capture or void that is reported of, as `Order.operations` has it.
        as_of: the order's version when the processor was asked, where the answer counts only if nothing came since.

    Raises:
        OrderNotFound, UnknownAttempt, OrderMovedOn.
    """

    def payment_of(order: Order) -> Payment:
        asked = order.requested_transaction(operation)
        return find_payment(
            order,
            attempt=attempt if asked is None else asked.attempt,
            processor_order_id=processor_order_id,
            processor_transaction_id=processor_transaction_id,
        )

    def decide(order: Order) -> None:
        _refuse_outdated(order, as_of=as_of)
        payment, asked = payment_of(order), order.requested_transaction(operation)
        who = payment.cause.apply_to(by)
        match status:
            case "processing":
                report_processing(order, payment, processor_order_id=processor_order_id, by=who)
            case "requires_action":
                report_action_required(
                    order, payment, processor_order_id=processor_order_id, redirect_url=redirect_url, by=who
                )
            case "authorized":
                report_authorized(
                    order,
                    payment,
                    processor_order_id=processor_order_id,
                    processor_transaction_id=processor_transaction_id,
                    by=who,
                )
            case "captured":
                report_captured(
                    order,
                    payment,
                    processor_order_id=processor_order_id,
                    processor_transaction_id=processor_transaction_id,
                    captured=amount,
                    asked=asked,
                    by=who,
                )
            case "failed" | "expired":
                own = attempt is not None and operation is None and as_of is None
                report = partial(report_failed, asked=asked, own=own) if status == "failed" else fail_payment
                report(
                    order,
                    payment,
                    processor_order_id=processor_order_id,
                    processor_transaction_id=processor_transaction_id,
                    error_code=error_code,
                    error_message=error_message,
                    by=who,
                )
            case "cancelled":
                report_cancelled(order, payment, processor_transaction_id=processor_transaction_id, by=who)
            case _:
                raise ValueError(f"no such status: {status}")

    if client_secret is not None and client_secrets is not None:
        # Before the fact is told: whoever hears of it and asks for the secret has to find it.
        order = await load_order(store, order_id=order_id)
        await client_secrets.keep(order_id=order_id, attempt=payment_of(order).attempt, secret=client_secret)
    await change_order(store, order_id=order_id, merchant_id=None, decide=decide)


def _refuse_outdated(order: Order, *, as_of: int | None) -> None:
    if as_of not in (None, order.version):
        raise OrderMovedOn(order.id)


async def learn_reference(
    store: EventStore, *, order_id: UUID, attempt: int, processor_order_id: str, by: Metadata
) -> None:
    """Record what a processor, when asked for this payment, calls it.

    Raises:
        OrderNotFound.
    """

    def decide(order: Order) -> None:
        report_reference(order, order.payments[attempt], processor_order_id=processor_order_id, by=by)

    await change_order(store, order_id=order_id, merchant_id=None, decide=decide)


def report_reference(order: Order, payment: Payment, *, processor_order_id: str, by: Metadata) -> None:
    """Record what the processor calls a payment that has money, where nobody had said; never another payment's."""
    if (
        payment.status in {PaymentStatus.AUTHORIZED, PaymentStatus.CAPTURED}
        and payment.processor_order_id is None
        and not any(each.has_reference(processor_order_id) for each in order.other_payments(payment))
    ):
        order.record(
            PaymentReferenceFound,
            by=by,
            status=order.status.value,
            attempt=payment.attempt,
            processor_order_id=processor_order_id,
        )


def find_payment(
    order: Order,
    *,
    attempt: int | None,
    processor_order_id: str | None = None,
    processor_transaction_id: str | None = None,
) -> Payment:
    """The payment that a processor speaks of: by attempt, by its references, else the latest.

    Raises:
        UnknownAttempt.
    """
    if attempt is not None:
        if attempt not in order.payments:
            raise UnknownAttempt(order.id, attempt)
        return order.payments[attempt]
    for payment in reversed(order.payments.values()):
        if processor_order_id is not None and payment.processor_order_id == processor_order_id:
            return payment
        if (
            processor_transaction_id is not None
            and payment.processor_transaction_id == processor_transaction_id
        ):
            return payment
    if order.payment is None:
        raise UnknownAttempt(order.id, 1)
    return order.payment


def report_processing(
    order: Order, payment: Payment, *, processor_order_id: str | None, by: Metadata
) -> None:
    """The processor has the payment: news where its reference is new, or after the customer's action."""
    news = payment.status is PaymentStatus.REQUIRES_ACTION or processor_order_id not in (
        None,
        payment.processor_order_id,
    )
    if payment.is_open and news:
        order.record(
            PaymentProcessing,
            by=by,
            status=_unless_superseded(order, payment, OrderStatus.PROCESSING),
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
    """The customer has to act. A repeated report is news only where it brings another address."""
    repeated = payment.status is PaymentStatus.REQUIRES_ACTION and redirect_url in (
        None,
        payment.redirect_url,
    )
    if payment.is_open and not repeated:
        order.record(
            PaymentActionRequired,
            by=by,
            status=_unless_superseded(order, payment, OrderStatus.REQUIRES_ACTION),
            attempt=payment.attempt,
            processor_order_id=processor_order_id,
            redirect_url=redirect_url,
        )


def report_authorized(
    order: Order,
    payment: Payment,
    *,
    processor_order_id: str | None,
    processor_transaction_id: str | None,
    by: Metadata,
) -> None:
    """The processor holds the money; accepted late, too, from a payment that had failed.

    An authorization that nobody wants any more (the order was cancelled or paid otherwise) is voided. One that
    the processor told to be over, by an event that was faster than this, is not believed any more.
    """
    is_news = payment.is_open or payment.status is PaymentStatus.FAILED
    if not is_news or "cancelled" in payment.processor_outcomes:
        return
    wanted = _moves(order, payment) and order.status is not OrderStatus.CANCELLED
    order.record(
        PaymentAuthorized,
        by=by,
        status=(OrderStatus.AUTHORIZED if wanted else order.status).value,
        attempt=payment.attempt,
        transaction_id=_opened(order, payment, TransactionType.AUTHORIZATION),
        amount=payment.amount,
        processor_order_id=processor_order_id,
        processor_transaction_id=processor_transaction_id,
    )
    if not wanted or payment.cancel_requested:
        request_void(order, payment, by=by)


def report_captured(
    order: Order,
    payment: Payment,
    *,
    processor_order_id: str | None,
    processor_transaction_id: str | None,
    captured: int | None = None,
    asked: Transaction | None = None,
    by: Metadata,
) -> None:
    """The money was taken: accepted from every state but captured.

    Args:
        captured: how much, where the processor says it; else what was asked for.
        asked: the capture or void that is reported of, where it is one.
    """
    if payment.status is PaymentStatus.CAPTURED:
        return
    if _is_another_s(order, payment, processor_transaction_id):
        fail_payment(
            order,
            payment,
            processor_order_id=None,
            processor_transaction_id=None,
            error_code="same_charge",
            error_message="The charge is that of another attempt",
            by=by,
        )
        return
    duplicate = order.amount_captured > 0
    capture_id = _opened(order, payment, TransactionType.CAPTURE)
    amount = _asked_amount(order, payment, asked) if captured is None else captured
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
        processor_order_id=processor_order_id,
        processor_transaction_id=processor_transaction_id,
        authorizes=authorizations[0].id if authorizations else None,
        closes=[void.id for void in order.pending(payment.attempt, TransactionType.VOID)],
    )
    if duplicate:
        refund_from(order, order.transactions[capture_id], amount=amount, reason=DUPLICATE_REASON, by=by)
    latest = order.payment
    if latest is not None and latest is not payment:
        _stop(order, latest, by=by)
    record_processor_refunds(order, payment, amount_refunded=payment.processor_refunded, by=by)


def _asked_amount(order: Order, payment: Payment, asked: Transaction | None) -> int:
    """What was to be captured: by the latest request where none is named, also where that was said to be refused."""
    if asked is not None and asked.type is TransactionType.CAPTURE:
        return asked.amount
    requests = [
        order.transactions[id]
        for (kind, _), id in order.operations.items()
        if kind is TransactionType.CAPTURE
    ]
    return next((t.amount for t in reversed(requests) if t.attempt == payment.attempt), payment.amount)


def _is_another_s(order: Order, payment: Payment, charge: str | None) -> bool:
    """Whether a charge, by its reference, is what another attempt was captured with."""
    return charge is not None and any(
        other.status is PaymentStatus.CAPTURED
        and (other.processor, other.processor_transaction_id) == (payment.processor, charge)
        for other in order.payments.values()
    )


def report_failed(
    order: Order,
    payment: Payment,
    *,
    processor_order_id: str | None,
    processor_transaction_id: str | None,
    error_code: str | None,
    error_message: str | None,
    asked: Transaction | None = None,
    own: bool = False,
    by: Metadata,
) -> None:
    """The processor refused: a payment, or the capture or void of an authorized one, which then stands.

    A payment that failed after the merchant had asked to cancel it ends the order as cancelled.

    Args:
        asked: the capture or void that is reported of, where it is one.
        own: whether the payment's own workflow reports it, which may only have waited for too long: where the
            processor holds the money by its own word, or is asked for it already, that outweighs it.
    """
    if own and ("authorized" in payment.processor_outcomes or _operations(order, payment)):
        return
    if asked is None:
        asked = next(iter(_operations(order, payment)), None)
    if asked is not None:
        _report_refused(order, asked, error_code=error_code, error_message=error_message, by=by)
        return
    fail_payment(
        order,
        payment,
        processor_order_id=processor_order_id,
        processor_transaction_id=processor_transaction_id,
        error_code=error_code,
        error_message=error_message,
        by=by,
    )


def _operations(order: Order, payment: Payment) -> list[Transaction]:
    """The capture or void of an authorized payment that is under way."""
    if payment.status is not PaymentStatus.AUTHORIZED:
        return []
    kind = TransactionType.CAPTURE if payment.capture_pending else TransactionType.VOID
    return order.pending(payment.attempt, kind)


def _report_refused(
    order: Order,
    asked: Transaction,
    *,
    error_code: str | None,
    error_message: str | None,
    by: Metadata,
) -> None:
    """The processor refused a capture or void; one that has ended is not refused any more."""
    if asked.status is not TransactionStatus.PENDING:
        return
    order.record(
        PaymentCaptureFailed if asked.type is TransactionType.CAPTURE else PaymentVoidFailed,
        by=by,
        status=order.status.value,
        attempt=asked.attempt,
        transaction_id=asked.id,
        error_code=error_code,
        error_message=error_message,
    )


def fail_payment(
    order: Order,
    payment: Payment,
    *,
    processor_order_id: str | None,
    processor_transaction_id: str | None,
    error_code: str | None,
    error_message: str | None,
    by: Metadata,
) -> None:
    """End an attempt without money, an authorization and what was asked for under it included."""
    if not payment.is_under_way:
        return
    order.record(
        PaymentFailed,
        by=by,
        status=_unless_superseded(order, payment, OrderStatus.FAILED),
        attempt=payment.attempt,
        processor_order_id=processor_order_id,
        processor_transaction_id=processor_transaction_id,
        error_code=error_code,
        error_message=error_message,
        closes=_pending(order, payment),
    )
    if payment.cancel_requested and order.status is OrderStatus.FAILED:
        order.record(OrderCancelled, by=by, status=OrderStatus.CANCELLED.value)


def report_cancelled(
    order: Order, payment: Payment, *, processor_transaction_id: str | None, by: Metadata
) -> None:
    """The processor stopped a payment or released an authorization."""
    status = _unless_superseded(order, payment, OrderStatus.CANCELLED)
    if payment.status is PaymentStatus.AUTHORIZED:
        void_id = _opened(order, payment, TransactionType.VOID)
        order.record(
            PaymentVoided,
            by=by,
            status=status,
            attempt=payment.attempt,
            transaction_id=void_id,
            amount=payment.amount,
            processor_order_id=payment.processor_order_id,
            processor_transaction_id=processor_transaction_id,
            closes=[id for id in _pending(order, payment) if id != void_id],
        )
    elif payment.is_open:
        order.record(
            PaymentCancelled,
            by=by,
            status=status,
            attempt=payment.attempt,
            closes=_pending(order, payment),
        )


def _moves(order: Order, payment: Payment) -> bool:
    """Whether news of a payment moves the order: only the latest does, and none once there is money."""
    return payment is order.payment and order.amount_captured == 0


def _unless_superseded(order: Order, payment: Payment, status: OrderStatus) -> str:
    """The order's status after news of a payment."""
    return (status if _moves(order, payment) else order.status).value


def _pending(order: Order, payment: Payment) -> list[str]:
    return [
        t.id
        for t in order.pending(
            payment.attempt, TransactionType.AUTHORIZATION, TransactionType.CAPTURE, TransactionType.VOID
        )
    ]


def _opened(order: Order, payment: Payment, kind: TransactionType) -> str:
    """Id of the attempt's pending transaction of a kind, else of a new one."""
    opened = order.pending(payment.attempt, kind)
    return opened[0].id if opened else str(uuid7())


def _stop(order: Order, payment: Payment, *, by: Metadata) -> None:
    """Another attempt was captured: this one shall not be."""
    if payment.status is PaymentStatus.AUTHORIZED:
        request_void(order, payment, by=by)
    elif payment.is_open and not payment.cancel_requested:
        order.record(PaymentCancelRequested, by=by, status=order.status.value, attempt=payment.attempt)
