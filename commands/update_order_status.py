"""Applies what a processor reports about a payment: through a workflow's activity, or when asked.

What follows from a report: `payment_outcomes`.
"""

from uuid import UUID

from payloops.commands.change_order import change_order, load_order
from payloops.commands.client_secrets import ClientSecrets
from payloops.commands.payment_outcomes import (
    fail_payment,
    release_unwanted,
    report_action_required,
    report_authorized,
    report_cancelled,
    report_captured,
    report_failed,
    report_processing,
    report_reference,
)
from payloops.commands.refusals import OrderMovedOn, UnknownAttempt
from payloops.events.event_store import EventStore
from payloops.events.metadata import Metadata
from payloops.events.orders import (
    NO_REASON,
    NO_REFERENCES,
    Failure,
    Order,
    Payment,
    References,
    Transaction,
    TransactionType,
)


async def update_order_status(
    store: EventStore,
    *,
    order_id: UUID,
    status: str,
    attempt: int | None = None,
    operation: tuple[TransactionType, int] | None = None,
    references: References = NO_REFERENCES,
    redirect_url: str | None = None,
    client_secret: str | None = None,
    client_secrets: ClientSecrets | None = None,
    amount: int | None = None,
    failure: Failure = NO_REASON,
    as_of: int | None = None,
    by: Metadata,
) -> None:
    """Record what a processor reports about a payment.

    Args:
        status: `processing`, `requires_action`, `authorized`, `captured`, `failed` or `cancelled`; or `expired`: an
            authorization ended that nobody here asked to release, and whatever was requested under it.
        operation: the capture or void that is reported on, by its key in `Order.operations`.
        attempt: else the payment that is reported on. If None, it is the one with these references, else the latest.
        client_secret: lets the customer's browser complete the payment; kept in `client_secrets`, never in an event.
        amount: what was captured, in minor units, if the processor says.
        as_of: version of the order when the processor was asked: if it has changed since, the answer may be outdated.

    Raises:
        OrderNotFound, UnknownAttempt.
        OrderMovedOn: the order is not at `as_of` any more.
    """

    def decide(order: Order) -> None:
        _refuse_outdated(order, as_of=as_of)
        payment, requested = _reported_on(order, attempt=attempt, operation=operation, references=references)
        report_status(
            order,
            payment,
            status,
            references=references,
            requested=requested,
            redirect_url=redirect_url,
            amount=amount,
            failure=failure,
            by_own_workflow=attempt is not None and operation is None and as_of is None,
            by=payment.cause.apply_to(by),
        )
        release_unwanted(order, by=by)

    if client_secret is not None and client_secrets is not None:
        # Stored before the event is appended: whoever learns of the event and asks for the secret must find it.
        order = await load_order(store, order_id=order_id)
        payment, _ = _reported_on(order, attempt=attempt, operation=operation, references=references)
        await client_secrets.keep(order_id=order_id, attempt=payment.attempt, secret=client_secret)
    await change_order(store, order_id=order_id, merchant_id=None, decide=decide)


def report_status(
    order: Order,
    payment: Payment,
    status: str,
    *,
    references: References,
    requested: Transaction | None = None,
    redirect_url: str | None = None,
    amount: int | None = None,
    failure: Failure = NO_REASON,
    by_own_workflow: bool = False,
    by: Metadata,
) -> None:
    """As `update_order_status`, for a loaded order and its payment. To be followed by `release_unwanted`.

    Args:
        requested: the capture or void that is reported on, if it is one.
        by_own_workflow: whether the payment's own workflow reports this: see `report_failed`.
    """
    match status:
        case "processing":
            report_processing(order, payment, processor_order_id=references.order_id, by=by)
        case "requires_action":
            report_action_required(
                order, payment, processor_order_id=references.order_id, redirect_url=redirect_url, by=by
            )
        case "authorized":
            report_authorized(order, payment, references=references, by=by)
        case "captured":
            report_captured(
                order, payment, references=references, captured=amount, requested=requested, by=by
            )
        case "failed":
            report_failed(
                order,
                payment,
                references=references,
                failure=failure,
                requested=requested,
                by_own_workflow=by_own_workflow,
                by=by,
            )
        case "expired":
            fail_payment(order, payment, references=references, failure=failure, by=by)
        case "cancelled":
            report_cancelled(order, payment, processor_transaction_id=references.transaction_id, by=by)
        case _:
            raise ValueError(f"no such status: {status}")
    if payment.processor_transaction_id in {None, *references}:  # else the charge on record is another one
        report_reference(order, payment, processor_order_id=references.order_id, by=by)


async def learn_reference(
    store: EventStore, *, order_id: UUID, attempt: int, processor_order_id: str, by: Metadata
) -> None:
    """Record a processor's reference of a payment, learned by asking the processor.

    Raises:
        OrderNotFound.
    """

    def decide(order: Order) -> None:
        report_reference(order, order.payments[attempt], processor_order_id=processor_order_id, by=by)
        release_unwanted(order, by=by)

    await change_order(store, order_id=order_id, merchant_id=None, decide=decide)


def _refuse_outdated(order: Order, *, as_of: int | None) -> None:
    if as_of not in (None, order.version):
        raise OrderMovedOn(order.id)


def _reported_on(
    order: Order,
    *,
    attempt: int | None,
    operation: tuple[TransactionType, int] | None,
    references: References,
) -> tuple[Payment, Transaction | None]:
    """The payment that a report is about; and the capture or void, if it is about one."""
    requested = order.requested_transaction(operation)
    about = attempt if requested is None else requested.attempt
    return find_payment(order, attempt=about, references=references), requested


def find_payment(order: Order, *, attempt: int | None, references: References = NO_REFERENCES) -> Payment:
    """The payment that a processor reports on: by attempt, by its references, else the latest.

    Raises:
        UnknownAttempt.
    """
    if attempt is not None:
        if attempt not in order.payments:
            raise UnknownAttempt(order.id, attempt)
        return order.payments[attempt]
    for payment in reversed(order.payments.values()):
        pairs = zip(references, References.of(payment), strict=True)
        if any(given is not None and given == known for given, known in pairs):
            return payment
    if order.payment is None:
        raise UnknownAttempt(order.id, 1)
    return order.payment
