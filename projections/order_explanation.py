"""Explains in sentences how an order got into its current state, for support staff, from its events alone.

Nothing here reads a table or a clock, so the command line, the API and the console say the same.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import UUID

from payloops.events.money import money_text
from payloops.events.orders import (
    DUPLICATE_REASON,
    SAME_CHARGE,
    SAME_REFUND,
    DashboardChecked,
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
    PaymentCaptureRequested,
    PaymentCaptureRetracted,
    PaymentFailed,
    PaymentProcessing,
    PaymentRequested,
    PaymentStatus,
    PaymentVoided,
    PaymentVoidFailed,
    PaymentVoidRequested,
    PersonalDataErased,
    ProcessorEventReceived,
    RefundDiscovered,
    RefundFailed,
    RefundRequested,
    RefundReversed,
    RefundSucceeded,
    Transaction,
    TransactionStatus,
    TransactionType,
)
from payloops.events.stream import StreamEvent
from payloops.projections.order_history import fold

CUSTOMER_TIME = timedelta(minutes=15)
"""How long a payment's workflow waits for the customer, before it fails the payment."""
OPERATOR = "operator:"
"""How the actors of what somebody recorded by hand begin."""
RECORD = "an operator can record what you see with `payloops resolve`"
ASK = "an operator can ask {} with `payloops reconcile`"
ROUTED_BY_PRIORITY = re.compile(
    r"priority (?P<priority>\d+); (?P<preferred>\w+), (?P<why>.*), is not enabled"
)


@dataclass(frozen=True, kw_only=True)
class OrderExplanation:
    """
    Attributes:
        version: of the order's stream, up to which its facts are explained.
        as_of: the moment up to which durations are counted.
        state: its current state, in a sentence.
        history: how it got there, oldest first: each attempt to pay it, each refund, and events that did not fit.
        pending: what is under way, and since when; empty if nothing is.
        next: what the merchant can do.
    """

    order_id: UUID
    version: int
    status: OrderStatus
    as_of: datetime
    state: str
    history: list[str]
    pending: list[str]
    next: list[str]


def explain_order(facts: Sequence[StreamEvent], *, now: datetime) -> OrderExplanation:
    """Explain an order.

    Args:
        facts: the first events of its stream, in their order; at least one.
        now: the moment up to which durations are counted.
    """
    order = fold(facts)
    explainer = _Explainer(order, facts, now)
    return OrderExplanation(
        order_id=order.id,
        version=order.version,
        status=order.status,
        as_of=now,
        state=explainer.state(),
        history=list(explainer.history()),
        pending=list(explainer.pending()),
        next=list(explainer.next_steps()),
    )


@dataclass(frozen=True)
class _Explainer:
    order: Order
    facts: Sequence[StreamEvent]
    now: datetime

    def state(self) -> str:
        order, payment = self.order, self.order.payment
        captured, refunded = self.money(order.amount_captured), self.money(order.amount_refunded)
        at = "" if payment is None else f"Attempt {payment.attempt} at {named(payment.processor)}"
        match order.status:
            case OrderStatus.PENDING:
                return f"The order of {self.money(order.amount)} has not been paid, and no payment was asked for."
            case OrderStatus.PROCESSING:
                return f"{at} is under way: how it ends is not known yet."
            case OrderStatus.REQUIRES_ACTION:
                return f"{at} waits for the customer to act, to confirm the payment at the bank for example."
            case OrderStatus.AUTHORIZED:
                return f"{at} is authorized: the money is held for the merchant, and nothing is captured yet."
            case OrderStatus.CAPTURED:
                part = "" if order.amount_captured == order.amount else f" of {self.money(order.amount)}"
                return f"The order is paid: {captured}{part} is captured, and nothing was refunded."
            case OrderStatus.PARTIALLY_REFUNDED:
                return f"The order is paid, and partly refunded: {refunded} of the {captured} captured."
            case OrderStatus.REFUNDED:
                return f"The order was paid, and all of the {captured} captured was refunded."
            case OrderStatus.FAILED:
                return f"{at} failed, and no money was taken."
            case OrderStatus.CANCELLED:
                return "The order is cancelled, and no money was taken."

    def history(self) -> Iterator[str]:
        created = self.facts[0].timestamp
        yield f"The order of {self.money(self.order.amount)} was created on {time_text(created)}."
        for payment in self.order.payments.values():
            yield " ".join(self.attempt(payment))
        for fact in self.facts:
            match fact:
                case OrderCancelled():
                    yield f"The order was cancelled on {time_text(fact.timestamp)}."
                case PersonalDataErased():
                    yield f"What it held of its customer was erased on {time_text(fact.timestamp)}."
                case RefundRequested() | RefundDiscovered():
                    refund = self.order.transactions[fact.refund_id]
                    if refund.status is not TransactionStatus.PENDING:
                        yield self.refund(fact, refund)
                case ProcessorEventReceived(effect="contradiction" | "unmatched"):
                    yield self.strange(fact)
                case DashboardChecked():
                    yield self.looked_up(fact)

    def attempt(self, payment: Payment) -> Iterator[str]:  # noqa: C901  # a branch for each kind of fact
        """The course of a payment, as far as it is known."""
        facts = [fact for fact in self.facts if getattr(fact, "attempt", None) == payment.attempt]
        at = named(payment.processor)
        for fact in facts:
            when = time_text(fact.timestamp)
            reference = referred(getattr(fact, "processor_transaction_id", None), payment.processor_order_id)
            match fact:
                case PaymentRequested():
                    yield self.requested(fact)
                case PaymentActionRequired():
                    yield f"{at} asked the customer to act on {when}."
                case PaymentAuthorized():
                    yield f"{at} authorized {self.money(fact.amount)} on {when}{reference}."
                case PaymentCaptured():
                    late = _late(facts, fact)
                    yield f"{at} captured {self.money(fact.amount)} on {when}{reference}{late}."
                case PaymentCaptureRetracted():
                    yield f"Its charge turned out to be that of attempt {fact.same_as}, and counts there alone."
                case PaymentFailed() if Failure.of(fact) == SAME_CHARGE:
                    yield f"It failed on {when}: its charge is that of another attempt."
                case PaymentFailed() if fact.actor.startswith(OPERATOR):
                    yield f"It was ended on {when}, after somebody looked it up: {fact.error_code}."
                case PaymentFailed():
                    yield f"It failed on {when}{reference}: {said(Failure.of(fact), at)}."
                case PaymentCaptureFailed():
                    yield f"A capture failed on {when}: {said(Failure.of(fact), at)}; the authorization stood."
                case PaymentVoidFailed():
                    yield f"{at} did not release the authorization on {when}: {said(Failure.of(fact), at)}."
                case PaymentVoided():
                    yield f"{at} released the authorization on {when}{reference}."
                case PaymentCancelRequested():
                    yield f"Its cancellation was asked for on {when}."
                case PaymentCancelled():
                    yield f"{at} stopped it on {when}, before any money was taken."

    def requested(self, fact: PaymentRequested) -> str:
        kind = (fact.payment_method or {}).get("type")
        by = f" by {kind}" if kind else ""
        later = ", to be captured later" if fact.capture == "manual" else ""
        return (
            f"Attempt {fact.attempt}, {self.money(fact.amount)}{by}{later}, was asked for on"
            f" {time_text(fact.timestamp)} and went to {named(fact.processor)}, {chosen(fact)}."
        )

    def refund(self, fact: RefundRequested | RefundDiscovered, refund: Transaction) -> str:
        """A refund that has ended."""
        at = named(fact.processor)
        [*_, end] = (
            each
            for each in self.facts
            if isinstance(each, RefundSucceeded | RefundFailed | RefundReversed)
            and each.refund_id == fact.refund_id
        )
        when, amount = time_text(end.timestamp), self.money(refund.amount)
        reference = referred(refund.processor_transaction_id)
        asked = f"A refund of {amount}, asked for on {time_text(fact.timestamp)}{_reason(fact.reason)},"
        if isinstance(end, RefundReversed) and end.error_code == SAME_REFUND:
            return f"{amount} that {at} told of was no further refund, which was learned on {when}."
        if isinstance(end, RefundReversed):
            what = f"A refund of {amount} at {at} itself" if isinstance(fact, RefundDiscovered) else asked
            why = end.error_code if end.actor.startswith(OPERATOR) else said(Failure.of(end), at)
            return f"{what} came back on {when}{reference}: {why}; the customer has not got the money."
        if isinstance(fact, RefundDiscovered):
            return f"{amount} was refunded at {at} itself, which was learned on {when}{reference}."
        if isinstance(end, RefundFailed) and end.actor.startswith(OPERATOR):
            return f"{asked} was ended on {when}, after somebody looked it up: {end.error_code}."
        if isinstance(end, RefundFailed):
            return f"{asked} failed on {when}: {said(Failure.of(end), at)}."
        return f"{asked} was made by {at} on {when}{reference}."

    def strange(self, fact: ProcessorEventReceived) -> str:
        """A processor's event that had no effect and needs attention."""
        at, when = named(fact.processor), time_text(fact.timestamp)
        what = "contradicts what is on record"
        if fact.effect == "unmatched":
            what = "is about no payment of the order, or nobody can tell about which"
        return f"On {when} {at} sent {fact.type} ({fact.event_id}), which {what}: it changed nothing."

    def looked_up(self, fact: DashboardChecked) -> str:
        """What somebody saw in the processor's dashboard."""
        what = {
            "one_charge": f"the charge of attempt {fact.attempt} is that of another attempt",
            "reference": f"attempt {fact.attempt} has a reference that nobody had reported",
            "no_money": f"there is no money for attempt {fact.attempt}",
            "refund_made": f"refund {fact.refund_id} was made",
            "refund_not_made": f"refund {fact.refund_id} was not made, or came back",
        }.get(fact.shows, fact.shows)
        at = f"{named(fact.processor)}'s dashboard"
        return f'On {time_text(fact.timestamp)} {fact.actor} said that, by {at}, {what}: "{fact.note.rstrip(".")}".'

    def pending(self) -> Iterator[str]:
        for payment in self.order.payments.values():
            yield from self.pending_payment(payment)
        for transaction in self.order.transactions.values():
            if transaction.status is TransactionStatus.PENDING:
                yield from self.pending_transaction(transaction)

    def pending_payment(self, payment: Payment) -> Iterator[str]:
        at = named(payment.processor)
        attempt = f"Attempt {payment.attempt}"
        match payment.status:
            case PaymentStatus.PROCESSING:
                fact = self.latest(payment, PaymentRequested, PaymentProcessing)
                has = f"{at} has it{referred(payment.processor_order_id)}, and its"
                what = f"{has} answer" if payment.processor_order_id is not None else f"{at}'s answer"
                yield f"{attempt}: {what} has been awaited {self.since(fact)}{self.long(fact, payment)}."
            case PaymentStatus.REQUIRES_ACTION:
                fact = self.latest(payment, PaymentActionRequired)
                minutes = CUSTOMER_TIME // timedelta(minutes=1)
                yield (
                    f"{attempt}: the customer has been awaited {self.since(fact)}; it fails {minutes} minutes after"
                    f" that, where the customer does nothing{self.long(fact, payment)}."
                )
            case PaymentStatus.AUTHORIZED if not payment.capture_pending:
                fact = self.latest(payment, PaymentAuthorized)
                yield f"{attempt}: {at} has held {self.money(payment.amount)} {self.since(fact)}."
        if payment.cancel_requested and payment.is_open:
            fact = self.latest(payment, PaymentCancelRequested)
            yield (
                f"{attempt}: its cancellation was asked for {self.ago(fact)}; should {at} have taken the money already,"
                f" the order is captured all the same{self.long(fact, payment)}."
            )

    def pending_transaction(self, transaction: Transaction) -> Iterator[str]:
        """A capture, void or refund that was requested. The transaction that a payment opens is part of the payment."""
        [*_, fact] = (each for each in self.facts if each.reference == transaction.cause.event)
        payment, amount = self.order.payments[transaction.attempt], self.money(transaction.amount)
        match fact:
            case PaymentRequested() if payment.capture_pending:
                fact = self.latest(payment, PaymentCaptureRequested)
                what = "capture"
            case PaymentCaptureRequested():
                what = "capture"
            case PaymentVoidRequested():
                what = "release"
            case RefundRequested():
                what = "refund"
            case _:
                return
        yield f"The {what} of {amount} was asked for {self.ago(fact)}; {self.awaited(transaction, payment)}."

    def awaited(self, transaction: Transaction, payment: Payment) -> str:
        """What a capture, void or refund waits for, as `payment_subscription` has it."""
        at = named(payment.processor)
        uncertain = self.order.not_told_apart(payment)
        if transaction.reason == DUPLICATE_REASON and uncertain:
            both = f"attempts {uncertain[0].attempt} and {payment.attempt}"
            return f"it was not passed on to {at}, because {both} may be one charge: look it up there, and {RECORD}"
        if payment.processor_order_id is None:
            return f"it was not passed on to {at}, whose reference of the payment is not known"
        return f"{at} has not answered yet"

    def next_steps(self) -> Iterator[str]:  # noqa: C901  # a branch for each status
        order, payment = self.order, self.order.payment
        match order.status:
            case OrderStatus.PENDING:
                yield "The merchant can have it paid, or cancel it."
            case OrderStatus.FAILED:
                yield f"The merchant can have it paid again, which will be attempt {order.attempt + 1}, or cancel it."
            case OrderStatus.PROCESSING | OrderStatus.REQUIRES_ACTION if payment and payment.cancel_requested:
                yield "There is nothing to do but wait: it is being cancelled."
            case OrderStatus.PROCESSING | OrderStatus.REQUIRES_ACTION:
                yield "It cannot be paid again before this attempt has ended; the merchant can cancel it."
            case OrderStatus.AUTHORIZED if payment and payment.capture_pending:
                yield "There is nothing to do but wait: the capture is under way."
            case OrderStatus.AUTHORIZED if payment and order.pending(payment.attempt, TransactionType.VOID):
                yield "There is nothing to do but wait: the authorization is being released."
            case OrderStatus.AUTHORIZED:
                amount = self.money(payment.amount if payment else order.amount)
                yield f"The merchant can capture up to {amount}, or cancel the order, which releases the money."
            case OrderStatus.CANCELLED:
                yield "It cannot be paid any more: the merchant can create another order."
            case _ if order.refundable:
                yield f"The merchant can refund up to {self.money(order.refundable)}."
            case OrderStatus.REFUNDED:
                yield "There is nothing left to refund."
            case _:
                yield "All that was captured is refunded or being refunded."

    def latest(self, payment: Payment, *kinds: type[StreamEvent]) -> StreamEvent:
        [*_, found] = (
            fact
            for fact in self.facts
            if isinstance(fact, kinds) and getattr(fact, "attempt", None) == payment.attempt
        )
        return found

    def since(self, fact: StreamEvent) -> str:
        return f"since {time_text(fact.timestamp)}, for {duration_text(self.now - fact.timestamp)}"

    def long(self, fact: StreamEvent, payment: Payment) -> str:
        """A remark, if the payment should have ended since: its workflow may be gone."""
        is_long = self.now - fact.timestamp > CUSTOMER_TIME
        return f"; that is long, and {ASK.format(named(payment.processor))}" if is_long else ""

    def ago(self, fact: StreamEvent) -> str:
        return f"on {time_text(fact.timestamp)}, {duration_text(self.now - fact.timestamp)} ago"

    def money(self, amount: int) -> str:
        return money_text(amount, self.order.currency)


def chosen(fact: PaymentRequested) -> str:
    """Why this processor was chosen: what `commands/route_payment.py` recorded, as the end of a sentence."""
    if fact.routing == "named in the request":
        return "because the request named it"
    if fact.routing.startswith("preferred for "):
        return f"because it is {fact.routing}"
    by_priority = ROUTED_BY_PRIORITY.fullmatch(fact.routing)
    if by_priority is not None:
        return (
            f"because it comes first by priority ({by_priority['priority']}), and {named(by_priority['preferred'])},"
            f" {by_priority['why']}, is not enabled"
        )
    return f"for this reason: {fact.routing}"


def said(failure: Failure, processor: str) -> str:
    """`Stripe said card_declined, "Your card was declined"`."""
    words = [failure.code, f'"{failure.message.rstrip(".")}"' if failure.message else None]
    told = ", ".join(word for word in words if word)
    return f"{processor} said {told}" if told else f"{processor} gave no reason"


def referred(*references: str | None) -> str:
    """` (reference ch_1, pi_1)`: those that are not None, each once."""
    there = dict.fromkeys(each for each in references if each is not None)
    if not there:
        return ""
    return f" (reference {', '.join(there)})"


def named(processor: str) -> str:
    """The processor's name in a sentence."""
    return processor.capitalize()


def time_text(moment: datetime) -> str:
    """`2026-11-23 15:40:02 UTC`."""
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def duration_text(duration: timedelta) -> str:
    """`3 minutes`: in the largest unit of which there are two or more."""
    seconds = max(0, int(duration.total_seconds()))
    for unit, length in (("day", 86_400), ("hour", 3_600), ("minute", 60)):
        if seconds >= 2 * length:
            return f"{seconds // length} {unit}s"
    return "1 second" if seconds == 1 else f"{seconds} seconds"


def _reason(reason: str | None) -> str:
    return f' with the reason "{reason}"' if reason else ""


def _late(facts: Sequence[StreamEvent], captured: PaymentCaptured) -> str:
    """A remark, if a payment had been reported to be over before it was captured."""
    for fact in reversed(facts[: facts.index(captured)]):
        match fact:
            case PaymentFailed() | PaymentCancelled() | PaymentVoided():
                return ", though it had been reported to be over"
            case PaymentRequested() | PaymentAuthorized():
                return ""
    return ""
