"""`payloops reconcile`: ask the processors what became of payments, record it, and report what does not agree."""

import asyncio
import contextlib
import re
import sys
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Literal
from uuid import UUID

from psycopg.rows import class_row
from rich.table import Table
from rich.text import Text

from payloops.commands.change_order import load_order
from payloops.commands.processor_events import ProcessorEventCount, count_processor_events
from payloops.commands.receive_processor_event import awaits_capture, is_cancelling
from payloops.commands.refusals import OrderMovedOn
from payloops.commands.update_order_status import learn_reference, update_order_status
from payloops.commands.update_refund_status import update_refunded_amount
from payloops.events.connections import reach
from payloops.events.errors import OutcomeUnknown, StoreUnavailable, StreamUnreadable, VersionConflict
from payloops.events.event_store import EventStore
from payloops.events.metadata import Metadata
from payloops.events.orders import (
    Order,
    Payment,
    PaymentStatus,
    TransactionStatus,
    TransactionType,
)
from payloops.events.timestamps import utc_now
from payloops.http.processor_payloads import text
from payloops.lost_workflows import clear_parked, is_stranded, is_unheard_of, restart_workflows
from payloops.printing import make_console, print_plain_json
from payloops.processors.opening import FindProcessor, open_processors
from payloops.processors.port import (
    PaymentQuestion,
    ProcessorPayment,
    ProcessorUnreachableError,
    ReferenceNeededError,
)
from payloops.projections.parked import streams_with_parked
from payloops.settings import Settings
from payloops.wiring import make_cipher, open_store
from payloops.workflows_client.payment_subscription import READER

AT_ONCE = 8
"""Payments that are asked about at the same time."""
UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}

Outcome = Literal["agrees", "waits", "recorded", "differs", "unknown", "unreachable", "unreadable", "busy"]
"""`waits`: the processor has not finished either. `unknown`: the processor does not know the payment, or nothing of
what was requested for it; its workflows are restarted (`lost_workflows`). `unreadable`: this version of the code cannot
read the order's events. `busy`: nothing was recorded, because the order changed while its processor was asked, kept
changing, or the log accepted nothing."""
NEEDS_ATTENTION = {"differs", "unknown", "unreachable", "unreadable", "busy"}

TO_LOOK_AT = """
    SELECT id, merchant_id, attempt, processor, currency, status, amount_captured, amount_refunded FROM orders
    WHERE (status IN ('processing', 'requires_action') AND updated_at < %(stuck_before)s)
       OR (attempt > 0 AND updated_at >= %(changed_since)s)
       OR id = ANY (ARRAY(SELECT originator_id FROM parked_events WHERE reader = %(reader)s))
"""

ATTEMPT_UNKNOWN = (
    "matched by the order alone, so it may be another attempt: look it up in the processor's dashboard"
)
TO_CANCEL = (
    "a cancellation was requested, but its workflow is gone: cancel it at the processor, then run this again"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    """An order to reconcile: its row in the table `orders`."""

    id: UUID
    merchant_id: UUID
    attempt: int
    processor: str | None
    currency: str
    status: str
    amount_captured: int
    amount_refunded: int


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


def duration(text: str) -> timedelta:
    """`10m`, `24h`, `90s` or `7d`.

    Raises:
        ValueError.
    """
    form = re.fullmatch(r"([0-9]{1,6})([smhd])", text)
    if form is None:
        raise ValueError(f"{text!r} is no duration: write 90s, 10m, 24h or 7d")
    return timedelta(**{UNITS[form[2]]: int(form[1])})


async def run_reconcile(
    settings: Settings, *, older_than: timedelta, since: timedelta, sandbox: bool, as_json: bool
) -> bool:
    """Reconcile and print the findings; False if something is left for people to look at.

    Args:
        older_than: asks about payments that have been under way for longer than this,
        since: and about all payments of orders that changed within this.
        sandbox: asks the sandbox instead of Stripe and Razorpay.
    """
    await reach(settings.database_url.get_secret_value(), application_name="payloops reconcile")
    # Razorpay's library prints to stdout, which is for the report alone.
    with contextlib.redirect_stdout(sys.stderr):
        async with (
            open_store(settings, application_name="payloops reconcile") as store,
            open_processors(store.pool, cipher=make_cipher(settings), sandbox=sandbox) as find,
        ):
            findings = await reconcile(store, find=find, older_than=older_than, since=since, now=utc_now())
            received = await count_processor_events(store.pool)
    if as_json:
        report = {"payments": [asdict(each) for each in findings], "events": [asdict(e) for e in received]}
        print_plain_json(report)
    else:
        _print_findings(findings, received)
    return not any(each.outcome in NEEDS_ATTENTION for each in findings)


async def reconcile(
    store: EventStore, *, find: FindProcessor, older_than: timedelta, since: timedelta, now: datetime
) -> list[Finding]:
    """Ask about payments, record what the processors say, and return what was found, by order and attempt."""
    places = asyncio.Semaphore(AT_ONCE)
    stuck_before = now - older_than

    async def of_order(row: _Row) -> list[Finding]:
        async with places:
            try:
                order = await load_order(store, order_id=row.id)
                return [
                    await _reconcile_payment(store, row.id, n, find=find, stuck_before=stuck_before)
                    for n in _attempts_to_ask_about(order)
                ]
            except StreamUnreadable as error:
                return [_finding_of_row(row, "unreadable", str(error))]
            except (OrderMovedOn, VersionConflict, StoreUnavailable, OutcomeUnknown) as error:
                return [_finding_of_row(row, "busy", str(error) or "whether it was recorded is not known")]

    async with (
        store.pool.connection() as connection,
        connection.cursor(row_factory=class_row(_Row)) as cursor,
    ):
        await cursor.execute(
            TO_LOOK_AT, {"stuck_before": stuck_before, "changed_since": now - since, "reader": READER}
        )
        rows = sorted(await cursor.fetchall(), key=lambda row: row.id)
    found = await asyncio.gather(*(of_order(row) for row in rows))
    async with store.pool.connection() as connection:
        parked = await streams_with_parked(connection, subscriber=READER)
    for row in rows:
        if row.id in parked:
            with contextlib.suppress(StreamUnreadable):
                await clear_parked(store, row.id)
    return [finding for findings in found for finding in findings]


def _attempts_to_ask_about(order: Order) -> list[int]:
    """The order's attempts; of several that share a reference, only the captured one, else the latest."""
    attempt_of: dict[str, int] = {}
    for n, payment in order.payments.items():
        reference = payment.processor_order_id
        if reference is not None:
            before = order.payments[attempt_of.get(reference, n)]
            attempt_of[reference] = before.attempt if before.status is PaymentStatus.CAPTURED else n
    return [n for n, p in order.payments.items() if attempt_of.get(p.processor_order_id or "", n) == n]


async def _reconcile_payment(
    store: EventStore, order_id: UUID, attempt: int, *, find: FindProcessor, stuck_before: datetime
) -> Finding:
    """Ask about a payment, and record the answer.

    Args:
        stuck_before: what was requested before this, and the processor knows nothing of, is restarted.
    """
    order = await load_order(store, order_id=order_id)
    payment = order.payments[attempt]
    before = _standing(order, payment)
    others = order.other_payments(payment)
    question = PaymentQuestion(
        order_id=str(order_id),
        attempt=attempt,
        processor_order_id=payment.processor_order_id,
        others=frozenset(each.processor_order_id for each in others if each.processor_order_id is not None),
    )
    try:
        processor = await find(UUID(order.merchant_id), payment.processor)
        theirs = await processor.look_up(question)
    except ReferenceNeededError as error:
        outcome: Outcome = "agrees" if payment.is_over else "unknown"
        return _finding(order, payment, outcome, theirs=None, detail=str(error))
    except ProcessorUnreachableError as error:
        return _finding(order, payment, "unreachable", theirs=None, detail=str(error))
    if theirs is None:
        return await _settle_unknown(store, order, payment, stuck_before=stuck_before)
    if theirs.currency != order.currency or theirs.amount_captured > payment.amount:
        detail = f"{theirs.amount_captured} {theirs.currency} of {payment.amount} {order.currency}"
        return _finding(order, payment, "differs", theirs=theirs, detail=detail)
    if _may_be_another_attempt(order, payment, theirs):
        is_another_attempt = payment.is_over and theirs.processor_order_id is not None
        outcome = "agrees" if is_another_attempt else "differs"
        return _finding(order, payment, outcome, theirs=theirs, detail=ATTEMPT_UNKNOWN)
    await _record(store, order, payment, theirs, stuck_before=stuck_before)
    order = await load_order(store, order_id=order_id)
    payment = order.payments[attempt]
    difference = _difference(order, payment, theirs)
    if difference is not None:
        return _finding(order, payment, "differs", theirs=theirs, detail=difference)
    if _standing(order, payment) != before:
        return _finding(order, payment, "recorded", theirs=theirs, detail=f"was {before.status}")
    return await _settle_agreed(store, order, payment, theirs, stuck_before=stuck_before)


def _may_be_another_attempt(order: Order, payment: Payment, theirs: ProcessorPayment) -> bool:
    """Whether a payment that was found by the order alone may be another attempt, which has ended, or whose capture is
    on record.

    It is not recorded then: it would end a payment that is under way, or count the same money twice and refund it.
    """
    if theirs.attempt_known:
        return False
    candidates = order.others_without_reference(payment)
    if theirs.status == "captured":
        return any(each.status is PaymentStatus.CAPTURED for each in candidates)
    return bool(candidates) and theirs.status in {"failed", "cancelled"} and not payment.is_over


async def _settle_unknown(
    store: EventStore, order: Order, payment: Payment, *, stuck_before: datetime
) -> Finding:
    """Deal with a payment that its processor does not know. One that failed may never have reached it."""
    if payment.is_over:
        return _finding(order, payment, "agrees", theirs=None, detail=None)
    if is_unheard_of(payment) and await is_stranded(store, order, payment, before=stuck_before):
        await _record_cancelled(store, order, payment)
        order = await load_order(store, order_id=order.id)
        detail = "cancelled as requested: it never reached the processor"
        return _finding(order, order.payments[payment.attempt], "recorded", theirs=None, detail=detail)
    restarted = await restart_workflows(store, order, payment, None, before=stuck_before)
    return _finding(order, payment, "unknown", theirs=None, detail=restarted)


async def _settle_agreed(
    store: EventStore, order: Order, payment: Payment, theirs: ProcessorPayment, *, stuck_before: datetime
) -> Finding:
    """Deal with a payment that both sides agree on: restart what was requested for it and is not under way there."""
    if await is_stranded(store, order, payment, before=stuck_before):
        return _finding(order, payment, "differs", theirs=theirs, detail=TO_CANCEL)
    restarted = await restart_workflows(store, order, payment, theirs, before=stuck_before)
    outcome: Outcome = "unknown" if restarted is not None else "waits" if payment.is_open else "agrees"
    return _finding(order, payment, outcome, theirs=theirs, detail=restarted)


def _finding_of_row(row: _Row, outcome: Outcome, detail: str) -> Finding:
    """The finding for an order that could not be loaded or recorded."""
    return Finding(
        order_id=str(row.id),
        merchant_id=str(row.merchant_id),
        attempt=row.attempt,
        processor=row.processor or "-",
        currency=row.currency,
        outcome=outcome,
        ours=Standing(status=row.status, captured=row.amount_captured, refunded=row.amount_refunded),
        theirs=None,
        detail=detail,
    )


async def _record(
    store: EventStore, order: Order, payment: Payment, theirs: ProcessorPayment, *, stuck_before: datetime
) -> None:
    """Record the processor's answer, as far as it is news."""
    await _record_status(store, order, payment, theirs, stuck_before=stuck_before)
    by = _metadata(order, payment)
    reference = _reference_of(payment, theirs)
    if reference is not None:
        await learn_reference(
            store, order_id=order.id, attempt=payment.attempt, processor_order_id=reference, by=by
        )
    if theirs.amount_refunded or order.amount_refunded:
        same_charge = payment.has_reference(theirs.processor_transaction_id)
        await update_refunded_amount(
            store,
            order_id=order.id,
            attempt=payment.attempt,
            amount_refunded=theirs.amount_refunded,
            requested_before=stuck_before,
            as_of=order.version if same_charge else None,
            by=by,
        )


async def _record_status(
    store: EventStore, order: Order, payment: Payment, theirs: ProcessorPayment, *, stuck_before: datetime
) -> None:
    """Record any status of an open payment, the end of an authorization, and a capture in any case."""
    expired = payment.status is PaymentStatus.AUTHORIZED and theirs.status in {"failed", "cancelled"}
    held = _is_held_after_all(order, payment, theirs, before=stuck_before)
    if not (payment.is_open or expired or held or theirs.status == "captured"):
        return
    status = _status_to_report(order, payment, theirs)
    # A capture is final. Other answers may be outdated if anything was recorded since the processor was asked.
    as_of = order.version if held or status in {"failed", "expired", "cancelled"} else None
    known = payment.processor_order_id is not None
    await update_order_status(
        store,
        order_id=order.id,
        attempt=payment.attempt,
        status=status,
        processor_order_id=None if known else theirs.processor_order_id,
        processor_transaction_id=theirs.processor_transaction_id,
        amount=theirs.amount_captured if status == "captured" else None,
        error_code=text(theirs.error_code),
        error_message=text(theirs.error_message),
        as_of=as_of,
        by=_metadata(order, payment),
    )


def _status_to_report(order: Order, payment: Payment, theirs: ProcessorPayment) -> str:
    """The processor's status, as `update_order_status` takes it."""
    match theirs.status:
        case "authorized" if not awaits_capture(payment):
            return "processing"
        case "cancelled" if is_cancelling(order, payment):
            return "cancelled"
        case "failed" | "cancelled":  # not at the merchant's request: the order can be paid again
            return "expired" if payment.status is PaymentStatus.AUTHORIZED else "failed"
        case status:
            return status


async def _record_cancelled(store: EventStore, order: Order, payment: Payment) -> None:
    await update_order_status(
        store,
        order_id=order.id,
        attempt=payment.attempt,
        status="cancelled",
        as_of=order.version,
        by=_metadata(order, payment),
    )


def _is_held_after_all(order: Order, payment: Payment, theirs: ProcessorPayment, *, before: datetime) -> bool:
    """Whether the processor holds the money of a payment that failed here, and it is certain to be this payment.

    It is then recorded as authorized, as an event of the processor would have: the merchant can capture or cancel it,
    or it is voided at once, if the order was cancelled or paid by another attempt. A void names a payment by its
    reference alone, so no other attempt may have the same reference, or one that is not known. Whatever its workflow
    last requested of the processor must have been done, so the order must not have changed recently.
    """
    reference = payment.processor_order_id or theirs.processor_order_id
    others = order.other_payments(payment)
    return (
        payment.status is PaymentStatus.FAILED
        and theirs.status == "authorized"
        and awaits_capture(payment)
        and reference is not None
        and not any(each.processor_order_id is None or each.has_reference(reference) for each in others)
        and order.modified_on < before
    )


def _metadata(order: Order, payment: Payment) -> Metadata:
    return Metadata(
        at=utc_now(),
        actor=f"processor:{payment.processor}",
        correlation_id=order.correlation_id,
        causation_id="reconcile",
    )


def _reference_of(payment: Payment, theirs: ProcessorPayment) -> str | None:
    """The processor's reference of a payment that has none here, if the payment is certainly the same one there."""
    if payment.processor_order_id is not None:
        return None
    same = payment.processor_transaction_id in {
        None,
        theirs.processor_transaction_id,
        theirs.processor_order_id,
    }
    return theirs.processor_order_id if same and payment.status == theirs.status else None


def _standing(order: Order, payment: Payment) -> Standing:
    return Standing(
        status=payment.status.value,
        captured=order.total(payment, TransactionType.CAPTURE, TransactionStatus.SUCCESS),
        refunded=order.total(payment, TransactionType.REFUND, TransactionStatus.SUCCESS),
    )


def _difference(order: Order, payment: Payment, theirs: ProcessorPayment) -> str | None:
    """What does not agree after recording; a refund that is pending here may have been made there already."""
    ours = _standing(order, payment)
    if ours.captured != theirs.amount_captured:
        return f"captured: {ours.captured} here, {theirs.amount_captured} there"
    pending = order.total(payment, TransactionType.REFUND, TransactionStatus.PENDING)
    if not ours.refunded <= theirs.amount_refunded <= ours.refunded + pending:
        return f"refunded: {ours.refunded} here, {theirs.amount_refunded} there"
    over = {"failed", "cancelled"}
    if "authorized" in {payment.status, theirs.status} and not over.isdisjoint(
        {payment.status, theirs.status}
    ):
        return f"{payment.status} here, {theirs.status} there"
    return None


def _finding(
    order: Order, payment: Payment, outcome: Outcome, *, theirs: ProcessorPayment | None, detail: str | None
) -> Finding:
    return Finding(
        order_id=str(order.id),
        merchant_id=order.merchant_id,
        attempt=payment.attempt,
        processor=payment.processor,
        currency=order.currency,
        outcome=outcome,
        ours=_standing(order, payment),
        theirs=None
        if theirs is None
        else Standing(status=theirs.status, captured=theirs.amount_captured, refunded=theirs.amount_refunded),
        detail=detail,
    )


COLOURS = {"agrees": "green", "waits": "dim", "recorded": "cyan"}


def _print_findings(findings: list[Finding], received: list[ProcessorEventCount]) -> None:
    console = make_console()
    told = [each for each in findings if each.outcome != "agrees"]
    if told:
        table = Table("Order", "Attempt", "Processor", "Outcome", "Here", "There", "")
        for each in told:
            colour = COLOURS.get(each.outcome, "red")
            table.add_row(
                each.order_id,
                str(each.attempt),
                each.processor,
                Text(each.outcome, style=colour),
                _standing_text(each.ours, each.currency),
                _standing_text(each.theirs, each.currency) if each.theirs is not None else "-",
                each.detail or "",
            )
        console.print(table)
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
    return f"{standing.status} {standing.captured}/{standing.refunded} {currency}"
