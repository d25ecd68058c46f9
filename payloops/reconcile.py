"""`payloops reconcile`: ask the processors what became of payments, record it, and report what does not agree."""

import asyncio
import contextlib
import re
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Literal
from uuid import UUID

from psycopg.rows import class_row
from rich.table import Table
from rich.text import Text

from payloops.commands.change_order import insist
from payloops.commands.cipher import SealBroken
from payloops.commands.credentials import get_processor_credentials
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
    PaymentCancelRequested,
    PaymentRequested,
    PaymentStatus,
    TransactionStatus,
    TransactionType,
)
from payloops.events.stream import StreamEvent, topic_of
from payloops.events.timestamps import utc_now
from payloops.http.processor_payloads import text
from payloops.printing import make_console, print_plain_json
from payloops.processors.port import (
    PaymentQuestion,
    Processor,
    ProcessorPayment,
    ProcessorUnreachableError,
    ReferenceNeededError,
)
from payloops.processors.razorpay import RazorpayProcessor
from payloops.processors.sandbox import SandboxProcessor
from payloops.processors.stripe import StripeProcessor
from payloops.projections.parked import forward_again, parked_of, streams_with_parked
from payloops.settings import Settings
from payloops.wiring import make_cipher, open_store
from payloops.workflows_client.payments import READER, TOPICS, begun_by, is_done
from payloops.workflows_client.subscriber import WorkflowGoneError

AT_ONCE = 8
"""Payments that are asked about at the same time."""
UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}

Outcome = Literal["agrees", "waits", "recorded", "differs", "unknown", "unreachable", "unreadable", "busy"]
"""`waits`: the processor has not finished either. `unknown`: the processor knows of no such payment, or of nothing
that was asked for under it: what its workflow was to do is forwarded again, see `_forward_again`.
`unreadable`: the order has events that this version of the code makes no sense of. `busy`: the order changed while its
processor was asked, or kept changing, or the log took nothing, while it was to be recorded."""
LEFT = {"differs", "unknown", "unreachable", "unreadable", "busy"}

TO_LOOK_AT = """
    SELECT id, merchant_id, attempt, processor, currency, status, amount_captured, amount_refunded FROM orders
    WHERE (status IN ('processing', 'requires_action') AND updated_at < %(stuck_before)s)
       OR (attempt > 0 AND updated_at >= %(changed_since)s)
       OR id = ANY (ARRAY(SELECT originator_id FROM parked_events WHERE reader = %(reader)s))
"""

UNKNOWN_THERE = "the processor knows nothing of it: payloops reconcile has it forwarded again"

REFERENCE_MISSING = (
    "its reference there is not certain: do this in its dashboard, and its event will end it here"
)
ATTEMPT_UNKNOWN = "found by the order alone: it may be another attempt's, look it up in its dashboard"
TO_CANCEL = "to be cancelled, and its workflow is gone: cancel it at the processor, and ask again"

Find = Callable[[UUID, str], Awaitable[Processor]]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    """An order to look at, as its table has it."""

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
    """A payment as one side has it. Amounts in minor units."""

    status: str
    captured: int
    refunded: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What asking about a payment came to. `theirs` is None where the processor said nothing."""

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
    """Reconcile and print; whether everything agrees now.

    Args:
        older_than: payments that are under way for longer are asked about.
        since: and all payments of orders that changed within this.
        sandbox: ask the sandbox's books in place of Stripe and Razorpay.
    """
    await reach(settings.database_url.get_secret_value(), application_name="payloops reconcile")
    # The library of Razorpay prints: that must not stand between the lines of a report.
    with contextlib.redirect_stdout(sys.stderr):
        async with (
            open_store(settings, application_name="payloops reconcile") as store,
            _processors(settings, store, sandbox=sandbox) as find,
        ):
            findings = await reconcile(store, find=find, older_than=older_than, since=since, now=utc_now())
            received = await count_processor_events(store.pool)
    if as_json:
        report = {"payments": [asdict(each) for each in findings], "events": [asdict(e) for e in received]}
        print_plain_json(report)
    else:
        _show(findings, received)
    return not any(each.outcome in LEFT for each in findings)


@asynccontextmanager
async def _processors(settings: Settings, store: EventStore, *, sandbox: bool) -> AsyncIterator[Find]:
    """Finds a merchant's processor."""
    cipher = make_cipher(settings)
    opened: dict[tuple[UUID, str], Processor] = {}
    async with AsyncExitStack() as stack:

        async def find(merchant_id: UUID, name: str) -> Processor:
            if sandbox:
                return SandboxProcessor(store.pool)
            try:
                config = await get_processor_credentials(
                    store.pool, merchant_id=merchant_id, processor=name, cipher=cipher
                )
            except SealBroken:
                raise ProcessorUnreachableError(
                    processor=name, reason="its credentials cannot be read"
                ) from None
            if config is None:
                raise ProcessorUnreachableError(processor=name, reason="the merchant has removed it")
            keys = config.credentials
            if (merchant_id, name) not in opened:
                if name == "stripe":
                    stripe = StripeProcessor(secret_key=keys["secretKey"])
                    stack.push_async_callback(stripe.close)
                    opened[merchant_id, name] = stripe
                else:
                    opened[merchant_id, name] = RazorpayProcessor(
                        key_id=keys["keyId"], key_secret=keys["keySecret"]
                    )
            return opened[merchant_id, name]

        yield find


async def reconcile(
    store: EventStore, *, find: Find, older_than: timedelta, since: timedelta, now: datetime
) -> list[Finding]:
    """Ask about payments, record what the processors say, and return what was found, by order and attempt."""
    places = asyncio.Semaphore(AT_ONCE)
    stuck_before = now - older_than

    async def of_order(row: _Row) -> list[Finding]:
        async with places:
            try:
                order = await _loaded(store, row.id)
                return [
                    await _of_payment(store, row.id, n, find=find, stuck_before=stuck_before)
                    for n in _to_ask_about(order)
                ]
            except StreamUnreadable as error:
                return [_left(row, "unreadable", str(error))]
            except (OrderMovedOn, VersionConflict, StoreUnavailable, OutcomeUnknown) as error:
                return [_left(row, "busy", str(error) or "whether it was recorded is not known")]

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
                await _clear_parked(store, row.id)
    return [finding for findings in found for finding in findings]


def _to_ask_about(order: Order) -> list[int]:
    """The order's attempts; of several that share a reference at their processor, the one that it stands for now."""
    stands_for: dict[str, int] = {}
    for n, payment in order.payments.items():
        reference = payment.processor_order_id
        if reference is not None:
            before = order.payments[stands_for.get(reference, n)]
            stands_for[reference] = before.attempt if before.status is PaymentStatus.CAPTURED else n
    return [n for n, p in order.payments.items() if stands_for.get(p.processor_order_id or "", n) == n]


async def _of_payment(
    store: EventStore, order_id: UUID, attempt: int, *, find: Find, stuck_before: datetime
) -> Finding:
    """Ask about an attempt. What was asked for before this, and is not there, is forwarded again."""
    order = await _loaded(store, order_id)
    payment = order.payments[attempt]
    stood = _standing(order, payment)
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
        # A payment that failed may never have reached the processor.
        return await _of_unknown(store, order, payment, stuck_before=stuck_before)
    if theirs.currency != order.currency or theirs.amount_captured > payment.amount:
        detail = f"{theirs.amount_captured} {theirs.currency} of {payment.amount} {order.currency}"
        return _finding(order, payment, "differs", theirs=theirs, detail=detail)
    if _may_be_another_s(order, payment, theirs):
        is_another_s = payment.is_over and theirs.processor_order_id is not None
        outcome = "agrees" if is_another_s else "differs"
        return _finding(order, payment, outcome, theirs=theirs, detail=ATTEMPT_UNKNOWN)
    await _record(store, order, payment, theirs, stuck_before=stuck_before)
    order = await _loaded(store, order_id)
    payment = order.payments[attempt]
    after = _standing(order, payment)
    difference = _difference(order, payment, theirs)
    if difference is not None:
        return _finding(order, payment, "differs", theirs=theirs, detail=difference)
    if after != stood:
        return _finding(order, payment, "recorded", theirs=theirs, detail=f"was {stood.status}")
    return await _of_agreed(store, order, payment, theirs, stuck_before=stuck_before)


def _may_be_another_s(order: Order, payment: Payment, theirs: ProcessorPayment) -> bool:
    """Whether what was found by the order alone may be another attempt's: its end, or money that is on record there.

    Neither is recorded: a payment under way would end, or the same money would count, and be given back, twice.
    """
    if theirs.attempt_known:
        return False
    nameless = order.others_without_reference(payment)
    if theirs.status == "captured":
        return any(each.status is PaymentStatus.CAPTURED for each in nameless)
    return bool(nameless) and theirs.status in {"failed", "cancelled"} and not payment.is_over


async def _of_unknown(
    store: EventStore, order: Order, payment: Payment, *, stuck_before: datetime
) -> Finding:
    """Of a payment that its processor knows nothing of: one that failed may never have reached it."""
    if payment.is_over:
        return _finding(order, payment, "agrees", theirs=None, detail=None)
    if _is_unheard_of(payment) and await _is_stranded(store, order, payment, before=stuck_before):
        await _record_cancelled(store, order, payment)
        order = await _loaded(store, order.id)
        detail = "was to be cancelled, and never reached the processor"
        return _finding(order, order.payments[payment.attempt], "recorded", theirs=None, detail=detail)
    again = await _forward_again(store, order, payment, None, before=stuck_before)
    return _finding(order, payment, "unknown", theirs=None, detail=again)


async def _of_agreed(
    store: EventStore, order: Order, payment: Payment, theirs: ProcessorPayment, *, stuck_before: datetime
) -> Finding:
    """Of a payment that both sides have as the same: what is still to be done of it."""
    if await _is_stranded(store, order, payment, before=stuck_before):
        return _finding(order, payment, "differs", theirs=theirs, detail=TO_CANCEL)
    again = await _forward_again(store, order, payment, theirs, before=stuck_before)
    outcome: Outcome = "waits" if payment.is_open else "agrees"
    return _finding(order, payment, outcome if again is None else "unknown", theirs=theirs, detail=again)


async def _forward_again(
    store: EventStore, order: Order, payment: Payment, theirs: ProcessorPayment | None, *, before: datetime
) -> str | None:
    """Have the workflows started again of what the processor knows nothing of; what is told of it.

    Temporal may have lost them: it was restored from a backup, or began anew. Where it has not, starting a workflow
    again changes nothing. What the processor may have done is not asked of it a second time.

    A cancellation is signalled again, which shows whether there is a workflow: see `_is_stranded`.
    """
    undone = _undone(order, payment, theirs)
    unsignalled = payment.is_open and payment.cancel_requested
    if not undone and not unsignalled:
        return None
    facts = [
        each
        for each in await store.read_stream(order.id)
        if each.stored.topic in TOPICS
        and (begun_by(each.event) in undone or (unsignalled and _is_cancellation(each.event, payment)))
        and not is_done(order, each.event)
        and each.event.timestamp < before
    ]
    if undone and facts and theirs is not None and payment.processor_order_id is None:
        return REFERENCE_MISSING
    async with store.pool.connection() as connection:
        parked = await parked_of(connection, subscriber=READER, stream=order.id)
        for each in facts:
            if not unsignalled or each.stored.originator_version not in parked:
                await forward_again(connection, subscriber=READER, event=each, why=UNKNOWN_THERE)
    topics = ", ".join(each.stored.topic for each in facts)
    return f"{topics}: not there, its workflow is started where it is gone" if facts and undone else None


def _undone(order: Order, payment: Payment, theirs: ProcessorPayment | None) -> set[str]:
    """The payment's pending transactions that its processor has nothing of."""
    types: list[TransactionType] = []
    if theirs is None:
        # One that the processor knew may be with the account that the merchant had before; and one that was cancelled
        # is not made after all.
        if _is_unheard_of(payment) and not is_cancelling(order, payment):
            types = [TransactionType.AUTHORIZATION, TransactionType.CAPTURE]
    else:
        if payment.status is PaymentStatus.AUTHORIZED and theirs.status == "authorized":
            types = [TransactionType.CAPTURE, TransactionType.VOID]
        if theirs.amount_refunded == _standing(order, payment).refunded:
            types.append(TransactionType.REFUND)
    return {each.id for each in order.pending(payment.attempt, *types)}


def _is_unheard_of(payment: Payment) -> bool:
    """Whether nothing says that the processor ever had the payment: only then is its not knowing it believed."""
    references = {payment.processor_order_id, payment.processor_transaction_id} - {None}
    return payment.status is PaymentStatus.PROCESSING and not references and not payment.processor_outcomes


def _is_cancellation(fact: StreamEvent, payment: Payment) -> bool:
    return isinstance(fact, PaymentCancelRequested) and fact.attempt == payment.attempt


async def _is_stranded(store: EventStore, order: Order, payment: Payment, *, before: datetime) -> bool:
    """Whether a payment was to be cancelled, and Temporal said before this that its workflow is gone.

    Whatever that workflow had asked of the processor has arrived since, and nothing will start it anew.
    """
    if not payment.is_open or not payment.cancel_requested:
        return False
    async with store.pool.connection() as connection:
        parked = await parked_of(connection, subscriber=READER, stream=order.id)
    if any(each.topic == topic_of(PaymentRequested) for each in parked.values()):
        return False
    versions = [
        each.stored.originator_version
        for each in await store.read_stream(order.id)
        if _is_cancellation(each.event, payment)
    ]
    return any(
        each.error.startswith(WorkflowGoneError.__name__) and each.parked_at < before and not each.retry
        for version, each in parked.items()
        if version in versions
    )


async def _clear_parked(store: EventStore, order_id: UUID) -> None:
    """Have what is parked of an order forwarded where it is over by now: there is nothing left of it to do."""
    async with store.pool.connection() as connection:
        parked = await parked_of(connection, subscriber=READER, stream=order_id)
        order = await _loaded(store, order_id)
        for each in await store.read_stream(order_id):
            if each.stored.originator_version in parked and _is_over(order, each.event):
                await forward_again(connection, subscriber=READER, event=each, why="it is over")


def _is_over(order: Order, fact: StreamEvent) -> bool:
    if isinstance(fact, PaymentCancelRequested):
        return not order.payments[fact.attempt].is_open
    return is_done(order, fact)


def _left(row: _Row, outcome: Outcome, detail: str) -> Finding:
    """An order that could not be dealt with, as its table has it."""
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


async def _loaded(store: EventStore, order_id: UUID) -> Order:
    order = await store.load(Order, order_id)
    assert order is not None, "orders are never deleted"
    return order


async def _record(
    store: EventStore, order: Order, payment: Payment, theirs: ProcessorPayment, *, stuck_before: datetime
) -> None:
    """Record what is news: anything of a payment under way, the end of an authorization, and money anyway."""
    by = _by(order, payment)
    expired = payment.status is PaymentStatus.AUTHORIZED and theirs.status in {"failed", "cancelled"}
    held = _is_held_after_all(order, payment, theirs, before=stuck_before)
    if payment.is_open or expired or held or theirs.status == "captured":
        status: str = theirs.status
        if status == "authorized" and not awaits_capture(payment):
            status = "processing"
        if status in {"failed", "cancelled"}:
            # Not by the merchant's wish, it can be paid again.
            ended = "expired" if expired else "failed"
            status = "cancelled" if status == "cancelled" and is_cancelling(order, payment) else ended
        # Money that was taken stays so; an end may be outdated by now, and so may be that nothing came after one.
        as_of = order.version if held or status in {"failed", "expired", "cancelled"} else None
        known = payment.processor_order_id is not None
        await insist(
            lambda: update_order_status(
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
                by=by,
            )
        )
    reference = _reference_of(payment, theirs)
    if reference is not None:
        await insist(
            lambda: learn_reference(
                store, order_id=order.id, attempt=payment.attempt, processor_order_id=reference, by=by
            )
        )
    if theirs.amount_refunded:
        await insist(
            lambda: update_refunded_amount(
                store,
                order_id=order.id,
                attempt=payment.attempt,
                amount_refunded=theirs.amount_refunded,
                requested_before=stuck_before,
                by=by,
            )
        )


async def _record_cancelled(store: EventStore, order: Order, payment: Payment) -> None:
    await insist(
        lambda: update_order_status(
            store,
            order_id=order.id,
            attempt=payment.attempt,
            status="cancelled",
            as_of=order.version,
            by=_by(order, payment),
        )
    )


def _is_held_after_all(order: Order, payment: Payment, theirs: ProcessorPayment, *, before: datetime) -> bool:
    """Whether the processor holds money of a payment that failed here, and certainly of this one.

    It is then authorized, as if the processor had told it by an event of its own: to be captured or cancelled, or
    voided at once where the order was cancelled or paid otherwise. A void names a payment by its reference, so none
    that another attempt has, or may have, will do; and what its workflow asked of the processor last has to be through.
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


def _by(order: Order, payment: Payment) -> Metadata:
    return Metadata(
        at=utc_now(),
        actor=f"processor:{payment.processor}",
        correlation_id=order.correlation_id,
        causation_id="reconcile",
    )


def _reference_of(payment: Payment, theirs: ProcessorPayment) -> str | None:
    """What the processor calls a payment that has money here, where it has it there as well and is the same."""
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
        captured=_sum(order, payment, TransactionType.CAPTURE, TransactionStatus.SUCCESS),
        refunded=_sum(order, payment, TransactionType.REFUND, TransactionStatus.SUCCESS),
    )


def _sum(order: Order, payment: Payment, kind: TransactionType, status: TransactionStatus) -> int:
    return sum(
        t.amount
        for t in order.transactions.values()
        if t.attempt == payment.attempt and t.type is kind and t.status is status
    )


def _difference(order: Order, payment: Payment, theirs: ProcessorPayment) -> str | None:
    """What still does not agree; what is under way here may be done there already."""
    ours = _standing(order, payment)
    if ours.captured != theirs.amount_captured:
        return f"captured: {ours.captured} here, {theirs.amount_captured} there"
    pending = _sum(order, payment, TransactionType.REFUND, TransactionStatus.PENDING)
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


def _show(findings: list[Finding], received: list[ProcessorEventCount]) -> None:
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
                _shown(each.ours, each.currency),
                _shown(each.theirs, each.currency) if each.theirs is not None else "-",
                each.detail or "",
            )
        console.print(table)
    counts = {name: sum(e.outcome == name for e in findings) for name in ("agrees", "waits", "recorded")}
    left = sum(each.outcome in LEFT for each in findings)
    console.print(
        f"{len(findings)} payments: {counts['agrees']} agree, {counts['waits']} wait at the processor too,"
        f" {counts['recorded']} recorded, {left} to look at"
    )
    for count in received:
        if count.effect in {"received", "unknown_order", "unmatched", "contradiction"}:
            console.print(f"{count.events} events of {count.processor} without effect: {count.effect}")


def _shown(standing: Standing, currency: str) -> str:
    return f"{standing.status} {standing.captured}/{standing.refunded} {currency}"
