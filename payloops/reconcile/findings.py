"""What `payloops reconcile` found of each payment, and how it is printed."""

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from rich.text import Text

from payloops.commands.processor_events import ProcessorEventCount
from payloops.events.money import money_text
from payloops.events.orders import (
    Order,
    OrderStatus,
    Payment,
    PaymentStatus,
    TransactionStatus,
    TransactionType,
)
from payloops.printing import make_console, print_rows
from payloops.processors.port import ProcessorPayment

Outcome = Literal["agrees", "waits", "recorded", "differs", "unknown", "unreachable", "unreadable", "busy"]
"""`waits`: the processor has not finished either. `unknown`: the processor does not know the payment, or nothing of
what was requested for it; its workflows are restarted (`lost_workflows`). `unreadable`: this version of the code cannot
read the order's events. `busy`: nothing is certain to be recorded, because the order changed while its processor was
asked, kept changing, or the log, the database or anything else failed."""
NEEDS_ATTENTION = {"differs", "unknown", "unreachable", "unreadable", "busy"}
COLOURS = {"agrees": "green", "waits": "dim", "recorded": "cyan"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """The state of a payment, here or at the processor. Amounts in minor units."""

    status: str
    captured: int
    refunded: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """The result for one payment. `theirs`: None if the processor told nothing."""

    order_id: str
    merchant_id: str
    attempt: int
    processor: str
    currency: str
    outcome: Outcome
    ours: Standing
    theirs: Standing | None
    detail: str | None


def finding_of(
    order: Order, payment: Payment, outcome: Outcome, *, theirs: ProcessorPayment | None, detail: str | None
) -> Finding:
    return Finding(
        order_id=str(order.id),
        merchant_id=order.merchant_id,
        attempt=payment.attempt,
        processor=payment.processor,
        currency=order.currency,
        outcome=outcome,
        ours=standing_of(order, payment),
        theirs=None
        if theirs is None
        else Standing(status=theirs.status, captured=theirs.amount_captured, refunded=theirs.amount_refunded),
        detail=detail,
    )


def standing_of(order: Order, payment: Payment) -> Standing:
    """The state of a payment here: pending captures and refunds do not count."""
    return Standing(
        status=payment.status.value,
        captured=order.total(payment, TransactionType.CAPTURE, TransactionStatus.SUCCESS),
        refunded=order.total(payment, TransactionType.REFUND, TransactionStatus.SUCCESS),
    )


def difference_of(order: Order, payment: Payment, theirs: ProcessorPayment) -> str | None:
    """What does not agree after recording; a refund that is pending here may have been made there already."""
    ours = standing_of(order, payment)

    def told(what: str, here: int, there: int) -> str:
        return f"{what}: {money_text(here, order.currency)} here, {money_text(there, order.currency)} there"

    if ours.captured != theirs.amount_captured:
        return told("captured", ours.captured, theirs.amount_captured)
    pending = order.total(payment, TransactionType.REFUND, TransactionStatus.PENDING)
    if not ours.refunded <= theirs.amount_refunded <= ours.refunded + pending:
        return told("refunded", ours.refunded, theirs.amount_refunded)
    statuses = {payment.status, theirs.status}
    if "authorized" in statuses and statuses & {"failed", "cancelled"}:
        return f"{payment.status} here, {theirs.status} there"
    return None


def waiting_for_a_person(
    order: Order, payment: Payment, theirs: ProcessorPayment, *, before: datetime
) -> str | None:
    """What nothing ends by itself, though both sides agree as far as they can be compared; None if there is nothing.

    Args:
        before: what was requested since then may still be under way.
    """
    refunds = order.pending(payment.attempt, TransactionType.REFUND)
    ours = standing_of(order, payment)
    if theirs.amount_refunded > ours.refunded and all(each.created_at < before for each in refunds):
        there = money_text(theirs.amount_refunded, order.currency)
        ids = ", ".join(each.id for each in refunds)
        return (
            f"{there} refunded there, not all that is pending here: look up which was made ({ids}), and say so:"
            " payloops resolve refund-made, refund-not-made"
        )
    voids = [
        t
        for t in order.transactions.values()
        if t.attempt == payment.attempt and t.type is TransactionType.VOID
    ]
    unwanted = payment is not order.payment or order.status is not OrderStatus.AUTHORIZED
    refused = voids and all(each.status is TransactionStatus.FAILED for each in voids)
    if payment.status is PaymentStatus.AUTHORIZED and theirs.status == "authorized" and unwanted and refused:
        return "held for nothing, and its release was refused: release it in the processor's dashboard"
    return None


def print_findings(findings: list[Finding], received: list[ProcessorEventCount]) -> None:
    console = make_console()
    told = [each for each in findings if each.outcome != "agrees"]
    if told:
        cells = [
            (
                each.order_id,
                str(each.attempt),
                each.processor,
                Text(each.outcome, style=COLOURS.get(each.outcome, "red")),
                _standing_text(each.ours, each.currency),
                _standing_text(each.theirs, each.currency) if each.theirs is not None else "-",
                each.detail or "",
            )
            for each in told
        ]
        columns = ("Order", "Attempt", "Processor", "Outcome", "Here", "There", "Detail")
        print_rows(console, *columns, rows=cells)
    counts = {name: sum(e.outcome == name for e in findings) for name in ("agrees", "waits", "recorded")}
    left = sum(each.outcome in NEEDS_ATTENTION for each in findings)
    console.print(
        f"{len(findings)} payments: {counts['agrees']} agree, {counts['waits']} pending at the processor too,"
        f" {counts['recorded']} recorded, {left} need attention"
    )
    for count in received:
        if count.effect in {"received", "unknown_order", "unmatched", "contradiction"}:
            console.print(f"{count.events} events of {count.processor} without effect: {count.effect}")


def _standing_text(standing: Standing, currency: str) -> str:
    captured, refunded = money_text(standing.captured, currency), money_text(standing.refunded, currency)
    return f"{standing.status}, {captured} captured, {refunded} refunded"
