"""Orders for tests: given what happened, when somebody asks."""

from uuid import UUID

from uuid_utils.compat import uuid7

from payloops.commands.pay_order import request_payment
from payloops.commands.payment_outcomes import release_unwanted
from payloops.commands.route_payment import Route
from payloops.commands.update_order_status import report_status
from payloops.events.metadata import Metadata
from payloops.events.orders import CaptureMethod, Failure, Order, References, Transaction
from payloops.events.stream import topic_of
from payloops.events.timestamps import utc_now

AMOUNT = 1_000
BY = Metadata(at=utc_now(), actor="system", correlation_id="test")


def new_order(*, merchant_id: UUID | None = None) -> Order:
    """A pending order of 10.00 USD."""
    return Order.create(
        id=uuid7(),
        merchant_id=str(merchant_id or uuid7()),
        by=BY,
        external_id="order",
        amount=AMOUNT,
        currency="USD",
        customer_id=None,
        customer_email=None,
        description=None,
        metadata={},
        return_url=None,
        cancel_url=None,
    )


def pay(order: Order, *, capture: CaptureMethod = "automatic") -> Order:
    """Request the next attempt."""
    request_payment(order, route=Route("stripe", "test"), payment_method=None, capture=capture, by=BY)
    return order


def report(
    order: Order, status: str, *, attempt: int | None = None, asked: Transaction | None = None
) -> Order:
    """What the processor says of an attempt, the latest where none is named, or of a capture or void of it."""
    attempt = attempt or order.attempt
    report_status(
        order,
        order.payments[attempt],
        status,
        references=References(f"po_{attempt}", f"pt_{attempt}"),
        requested=asked,
        redirect_url="https://bank.example",
        failure=Failure("card_declined", "The card was declined"),
        by=BY,
    )
    release_unwanted(order, by=BY)
    return order


def facts(order: Order, *, after: int = 0) -> list[str]:
    """Topics of what was recorded after a version."""
    return [topic_of(event) for event in order.pending_events if event.originator_version > after]  # type: ignore[arg-type]


def transactions(order: Order) -> list[tuple[str, str, int]]:
    """(type, status, amount) of the order's transactions, oldest first."""
    return [(t.type.value, t.status.value, t.amount) for t in order.transactions.values()]


def authorized() -> Order:
    """Paid by hand: its money is held, and waits to be captured."""
    return report(pay(new_order(), capture="manual"), "authorized")


def captured() -> Order:
    return report(pay(new_order()), "captured")
