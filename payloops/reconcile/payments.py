"""`payloops reconcile`: ask the processors what became of payments, record it, and report what does not agree."""

import asyncio
import contextlib
import sys
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from uuid import UUID

import psycopg
import structlog
from psycopg.rows import class_row
from psycopg_pool import PoolTimeout

from payloops.commands.change_order import load_order
from payloops.commands.processor_events import ProcessorEventCount, count_processor_events
from payloops.commands.refusals import OrderMovedOn
from payloops.events.connections import one_line, reach
from payloops.events.errors import OutcomeUnknown, StoreUnavailable, StreamUnreadable, VersionConflict
from payloops.events.event_store import EventStore
from payloops.events.orders import Order, Payment, PaymentStatus
from payloops.events.timestamps import utc_now
from payloops.printing import camel_case, print_plain_json
from payloops.processors.opening import FindProcessor, open_processors
from payloops.processors.port import (
    PaymentQuestion,
    ProcessorPayment,
    ProcessorUnreachable,
    ReferenceNeeded,
)
from payloops.reconcile.findings import (
    NEEDS_ATTENTION,
    Finding,
    Outcome,
    Standing,
    difference_of,
    finding_of,
    print_findings,
    standing_of,
    waiting_for_a_person,
)
from payloops.reconcile.lost_workflows import clear_parked, is_stranded, is_unheard_of, restart_workflows
from payloops.reconcile.recording import record, record_cancelled
from payloops.settings import Settings
from payloops.wiring import make_cipher, open_store
from payloops.workflows_client.payment_subscription import READER

AT_ONCE = 8
"""Payments that are asked about at the same time."""
TO_LOOK_AT = """
    SELECT id, merchant_id, attempt, processor, currency, status, amount_captured, amount_refunded FROM orders
    WHERE (status IN ('processing', 'requires_action') AND updated_at < %(stuck_before)s)
       OR (attempt > 0 AND updated_at >= %(changed_since)s)
       OR id = ANY (ARRAY(SELECT originator_id FROM parked_events WHERE reader = %(reader)s))
"""

NOT_ASKED = "not asked about, because the database does not answer: run this again"
ATTEMPT_UNKNOWN = (
    "matched by the order alone, so it may be another attempt: look it up in the processor's dashboard, and say what is"
    " there: payloops resolve reference, or no-money"
)
NOT_THERE = (
    "the processor does not know it: look it up in its dashboard, and in other accounts of the merchant"
)
NO_MONEY = f"{NOT_THERE}; if it has no money there: payloops resolve no-money"
TO_CANCEL = (
    "a cancellation was requested, but its workflow is gone: cancel it at the processor, then run this again"
)

log = structlog.get_logger()


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


async def run_reconcile(
    settings: Settings, *, older_than: timedelta, since: timedelta, sandbox: bool, as_json: bool
) -> bool:
    """Reconcile and print the findings, also those made until it is cancelled; False if something is left for people to
    look at.

    Args:
        older_than: asks about payments that have been under way for longer than this,
        since: and about all payments of orders that changed within this.
        sandbox: asks the sandbox instead of Stripe and Razorpay.
    """
    await reach(settings.database_url.get_secret_value(), application_name="payloops reconcile")
    received: list[ProcessorEventCount] = []
    findings: list[Finding] = []
    try:
        # Lines of the log go to standard output, which is for the report alone.
        with contextlib.redirect_stdout(sys.stderr):
            async with (
                open_store(settings, application_name="payloops reconcile") as store,
                open_processors(store.pool, cipher=make_cipher(settings), sandbox=sandbox) as find,
            ):
                received += await count_processor_events(store.pool)
                await reconcile(
                    store, find=find, older_than=older_than, since=since, now=utc_now(), findings=findings
                )
    except asyncio.CancelledError:
        _print(findings, received, as_json=as_json)
        raise
    _print(findings, received, as_json=as_json)
    return not any(each.outcome in NEEDS_ATTENTION for each in findings)


def _print(findings: list[Finding], received: list[ProcessorEventCount], *, as_json: bool) -> None:
    if as_json:
        report = {
            "payments": [camel_case(each) for each in findings],
            "events": [asdict(e) for e in received],
        }
        print_plain_json(report)
    else:
        print_findings(findings, received)


async def reconcile(
    store: EventStore,
    *,
    find: FindProcessor,
    older_than: timedelta,
    since: timedelta,
    now: datetime,
    findings: list[Finding] | None = None,
) -> list[Finding]:
    """Ask about payments, record what the processors say, and return what was found, by order and attempt.

    Trouble with an order, of whatever kind, is a finding, and the others go on: what was recorded is told. Once the
    database gives no connection any more, no further orders are asked about.

    Args:
        findings: receives each at once, for a caller that is cancelled.
    """
    places = asyncio.Semaphore(AT_ONCE)
    stuck_before = now - older_than
    away = False
    findings = [] if findings is None else findings

    async def of_order(row: _Row) -> None:
        nonlocal away
        async with places:
            if away:
                findings.append(_finding_of_row(row, "busy", NOT_ASKED))
                return
            try:
                order = await load_order(store, order_id=row.id)
                for n in _attempts_to_ask_about(order):
                    finding = await _reconcile_payment(store, row.id, n, find=find, stuck_before=stuck_before)
                    findings.append(finding)
                await clear_parked(store, row.id)
            except Exception as error:  # noqa: BLE001  # whatever it is, the others go on
                away = away or isinstance(error, PoolTimeout)
                findings.append(_finding_of_trouble(row, error))

    rows = await _orders_to_look_at(store, stuck_before=stuck_before, changed_since=now - since)
    try:
        await asyncio.gather(*(of_order(row) for row in rows))
    finally:
        findings.sort(key=lambda each: each.order_id)  # those of one order stay as they were made
    return findings


async def _orders_to_look_at(
    store: EventStore, *, stuck_before: datetime, changed_since: datetime
) -> list[_Row]:
    arguments = {"stuck_before": stuck_before, "changed_since": changed_since, "reader": READER}
    async with (
        store.pool.connection() as connection,
        connection.cursor(row_factory=class_row(_Row)) as cursor,
    ):
        await cursor.execute(TO_LOOK_AT, arguments)
        return sorted(await cursor.fetchall(), key=lambda row: row.id)


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
    before = standing_of(order, payment)
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
    except ReferenceNeeded as error:
        outcome: Outcome = "agrees" if payment.is_over else "unknown"
        return finding_of(order, payment, outcome, theirs=None, detail=str(error))
    except ProcessorUnreachable as error:
        return finding_of(order, payment, "unreachable", theirs=None, detail=str(error))
    if theirs is None:
        return await _settle_unknown(store, order, payment, stuck_before=stuck_before)
    if theirs.currency != order.currency or theirs.amount_captured > payment.amount:
        detail = f"{theirs.amount_captured} {theirs.currency} of {payment.amount} {order.currency}"
        return finding_of(order, payment, "differs", theirs=theirs, detail=detail)
    if _may_be_another_attempt(order, payment, theirs):
        is_another_attempt = payment.is_over and theirs.processor_order_id is not None
        outcome = "agrees" if is_another_attempt else "differs"
        return finding_of(order, payment, outcome, theirs=theirs, detail=ATTEMPT_UNKNOWN)
    await record(store, order, payment, theirs, stuck_before=stuck_before)
    order = await load_order(store, order_id=order_id)
    payment = order.payments[attempt]
    difference = difference_of(order, payment, theirs)
    if difference is not None:
        return finding_of(order, payment, "differs", theirs=theirs, detail=difference)
    if standing_of(order, payment) != before:
        return finding_of(order, payment, "recorded", theirs=theirs, detail=f"was {before.status}")
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
        return finding_of(order, payment, "agrees", theirs=None, detail=None)
    if is_unheard_of(payment) and await is_stranded(store, order, payment, before=stuck_before):
        await record_cancelled(store, order, payment)
        order = await load_order(store, order_id=order.id)
        detail = "cancelled as requested: it never reached the processor"
        return finding_of(order, order.payments[payment.attempt], "recorded", theirs=None, detail=detail)
    restarted = await restart_workflows(store, order, payment, None, before=stuck_before)
    detail = restarted or (NO_MONEY if payment.is_under_way else NOT_THERE)
    return finding_of(order, payment, "unknown", theirs=None, detail=detail)


async def _settle_agreed(
    store: EventStore, order: Order, payment: Payment, theirs: ProcessorPayment, *, stuck_before: datetime
) -> Finding:
    """Deal with a payment that both sides agree on: restart what was requested for it and is not under way there."""
    if await is_stranded(store, order, payment, before=stuck_before):
        return finding_of(order, payment, "differs", theirs=theirs, detail=TO_CANCEL)
    waiting = waiting_for_a_person(order, payment, theirs, before=stuck_before)
    if waiting is not None:
        return finding_of(order, payment, "differs", theirs=theirs, detail=waiting)
    restarted = await restart_workflows(store, order, payment, theirs, before=stuck_before)
    outcome: Outcome = "unknown" if restarted is not None else "waits" if payment.is_open else "agrees"
    return finding_of(order, payment, outcome, theirs=theirs, detail=restarted)


def _finding_of_trouble(row: _Row, error: Exception) -> Finding:
    """The finding for an order with which something failed."""
    match error:
        case StreamUnreadable():
            return _finding_of_row(row, "unreadable", str(error))
        case OutcomeUnknown():
            return _finding_of_row(row, "busy", "whether it was recorded is not known")
        case OrderMovedOn() | VersionConflict() | StoreUnavailable():
            return _finding_of_row(row, "busy", str(error))
        case psycopg.Error():
            return _finding_of_row(row, "busy", one_line(error))
        case _:  # an answer that is not as documented, for example
            log.error("reconcile.failed", order_id=str(row.id), exc_info=error)
            return _finding_of_row(row, "busy", f"unforeseen: {type(error).__name__}")


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
