"""The order's stream: facts, state and fold.

Payments (one per attempt) and transactions are entities inside the order's stream, because the rule that
refunds never exceed what was captured spans them. Amounts are integers in the currency's minor unit.

Facts carry their outcome (`status`: the order's status from here on; totals after the fact), so that folding
them, here or in a projection, is assignment and never a second decision. What may happen when is decided in
`payloops.commands`.
"""

from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from types import MappingProxyType
from typing import Any, ClassVar, Literal, NamedTuple, Self
from uuid import UUID

from payloops.events.metadata import Metadata
from payloops.events.personal_data import ERASED, ERASED_OBJECT
from payloops.events.stream import PersonalStreamCreated, Stream, StreamEvent, stream_topic


class OrderStatus(StrEnum):
    PENDING = "pending"
    PROCESSING = "processing"
    REQUIRES_ACTION = "requires_action"
    AUTHORIZED = "authorized"
    CAPTURED = "captured"
    PARTIALLY_REFUNDED = "partially_refunded"
    REFUNDED = "refunded"
    FAILED = "failed"
    CANCELLED = "cancelled"


class PaymentStatus(StrEnum):
    PROCESSING = "processing"
    REQUIRES_ACTION = "requires_action"
    AUTHORIZED = "authorized"
    CAPTURED = "captured"
    FAILED = "failed"
    CANCELLED = "cancelled"


class TransactionType(StrEnum):
    AUTHORIZATION = "authorization"
    CAPTURE = "capture"
    REFUND = "refund"
    VOID = "void"


class TransactionStatus(StrEnum):
    PENDING = "pending"
    SUCCESS = "success"
    FAILED = "failed"


CaptureMethod = Literal["automatic", "manual"]


@dataclass(frozen=True, slots=True)
class Failure:
    """Why something failed, mostly as the processor says it; both are None where it gives no reason."""

    code: str | None = None
    message: str | None = None

    @classmethod
    def of(cls, fact: Any) -> Self:
        """The failure that something tells of by its `error_code` and `error_message`."""
        return cls(fact.error_code, fact.error_message)


NO_REASON = Failure()


class References(NamedTuple):
    """How a processor names a payment, and its transaction there; None what it does not tell."""

    order_id: str | None = None
    transaction_id: str | None = None

    @classmethod
    def of(cls, known: Any) -> Self:
        """The references that something has as `processor_order_id` and `processor_transaction_id`."""
        return cls(known.processor_order_id, known.processor_transaction_id)


NO_REFERENCES = References()

SAME_CHARGE = Failure("same_charge", "The charge is that of another attempt")
"""Why an attempt fails that was reported to have money, which is on record for another one."""
DUPLICATE_REASON = "duplicate payment"
"""Of a refund that nobody requested: another attempt was captured before."""
SAME_REFUND = "same_refund"
"""The error code of a discovered refund that turned out to be one that is on record already."""

# How a payment's pending transactions end (`closes`).
CLOSED_BY_CAPTURE = Failure("already_captured", "The payment was captured already")
CLOSED_BY_VOID = Failure("cancelled", "The authorization was voided")
CLOSED_BY_CANCELLATION = Failure("cancelled", "The payment was cancelled")


@dataclass(frozen=True, slots=True)
class Cause:
    """The fact that requested something: facts about its outcome name it as their cause.

    Attributes:
        event: the fact's `reference`.
    """

    correlation_id: str
    event: str

    @classmethod
    def of(cls, fact: StreamEvent) -> Self:
        return cls(fact.correlation_id, fact.reference)

    def apply_to(self, by: Metadata) -> Metadata:
        """`by` with the correlation and causation ids of this cause, unless it has ids of its own."""
        return replace(
            by,
            correlation_id=by.correlation_id or self.correlation_id,
            causation_id=by.causation_id or self.event,
        )


@dataclass(slots=True, kw_only=True)
class Transaction:
    """A movement of money, or an attempt at one: what `GET /v1/orders/{id}/transactions` lists."""

    id: str
    type: TransactionType
    attempt: int
    amount: int
    created_at: datetime
    cause: Cause
    status: TransactionStatus = TransactionStatus.PENDING
    processor_transaction_id: str | None = None
    error_code: str | None = None
    error_message: str | None = None
    reason: str | None = None
    refunds: str | None = None
    """Of a refund: the id of the refunded capture."""
    discovered: bool = False
    """Of a refund: it was not requested here, but reported by the processor."""

    def succeed(self, *, processor_transaction_id: str | None) -> None:
        """Accepted also after a failure. A reference that is known is kept where none is given."""
        self.status = TransactionStatus.SUCCESS
        self.processor_transaction_id = processor_transaction_id or self.processor_transaction_id
        self.error_code = self.error_message = None

    def fail(self, failure: Failure) -> None:
        self.status = TransactionStatus.FAILED
        self.error_code = failure.code
        self.error_message = failure.message


@dataclass(slots=True, kw_only=True)
class Payment:
    """One attempt to pay the order at one processor."""

    attempt: int
    processor: str
    capture: CaptureMethod
    amount: int
    cause: Cause
    """The latest request concerning it: to pay, capture, void or cancel."""
    status: PaymentStatus = PaymentStatus.PROCESSING
    processor_order_id: str | None = None
    processor_transaction_id: str | None = None
    redirect_url: str | None = None
    cancel_requested: bool = False
    capture_pending: bool = False
    processor_reported: bool = False
    """Whether any event of the processor was taken to be about it, also one that contradicts the record."""
    processor_outcomes: set[str] = field(default_factory=set)
    """Outcomes that the processor's own events reported, in whatever order they arrived."""
    failed_charges: set[str] = field(default_factory=set)
    """References of its charges that failed."""
    capture_references: set[str] = field(default_factory=set)
    """References under which the processor's events reported its capture, also where none was recorded as its own."""
    processor_refunded: int = 0
    """The largest refunded sum that the processor's events reported."""
    same_charge_as: int | None = None
    """The attempt whose charge it turned out to be, after it had been recorded as captured itself."""

    @property
    def is_open(self) -> bool:
        """Whether it has no outcome yet: it is neither authorized nor captured nor over."""
        return self.status in {PaymentStatus.PROCESSING, PaymentStatus.REQUIRES_ACTION}

    @property
    def is_under_way(self) -> bool:
        """Whether it is open, or authorized and not captured yet."""
        return self.is_open or self.status is PaymentStatus.AUTHORIZED

    @property
    def is_over(self) -> bool:
        """Whether it ended without money, as far as is known: the processor may still report a capture."""
        return self.status in {PaymentStatus.FAILED, PaymentStatus.CANCELLED}

    @property
    def charge(self) -> str | None:
        """Reference of its charge, if it is known: a worker may report the payment's in its place."""
        id = self.processor_transaction_id
        return None if id == self.processor_order_id else id

    @property
    def charges(self) -> set[str | None]:
        """References of its charges, also of those that failed, as far as they are known."""
        return {self.charge, *self.failed_charges} - {None, self.processor_order_id}

    def has_reference(self, *references: str | None) -> bool:
        """Whether one of these is a reference of this payment at its processor."""
        known = {*References.of(self)} - {None}
        return not known.isdisjoint(references)

    def may_be_charge_of(self, other: "Payment") -> bool:
        """Whether its charge may be that of another payment at the same processor, as far as references tell."""
        if None not in {self.charge, other.charge}:
            return self.charge == other.charge
        if None not in {self.processor_order_id, other.processor_order_id}:
            return self.processor_order_id == other.processor_order_id
        told = other.capture_references
        return not told or References.of(self) == NO_REFERENCES or self.has_reference(*told)


@dataclass(slots=True, kw_only=True)
class ProcessorRefund:
    """A refund as the processor's own events describe it, in whatever order they arrived."""

    attempt: int
    amount: int = 0
    succeeded: bool = False
    """Whether any event said that it was made."""
    failed: bool = False
    """Whether any event said that it failed, be it after it had been made. This is final."""
    refund_id: str | None = None
    """Our id of it, where the processor passes it on."""
    error_code: str | None = None
    error_message: str | None = None


class OrderCreated(PersonalStreamCreated):
    """Version 1 stored the personal fields unencrypted."""

    TOPIC = "order.created"
    PERSONAL = MappingProxyType({"customer_email": ERASED, "description": ERASED, "metadata": ERASED_OBJECT})
    class_version: ClassVar[int] = 2
    external_id: str
    amount: int
    currency: str
    description: str | None
    metadata: dict[str, Any]
    return_url: str | None
    cancel_url: str | None

    @staticmethod
    def upcast_v1_v2(state: dict[str, Any]) -> None:
        """Decrypted, both versions have the same fields."""


class OrderFact(StreamEvent):
    """A later fact of an order. `status`: the order's status from here on."""

    status: str

    def apply(self, order: "Order") -> None:
        order.status = OrderStatus(self.status)
        self.fold(order)

    def fold(self, order: "Order") -> None:
        """What this fact changes beside the status."""


class OrderCancelled(OrderFact):
    """The merchant cancelled the order while no payment was under way."""

    TOPIC = "order.cancelled"

    def fold(self, order: "Order") -> None:
        order.cancel_correlation_id = self.correlation_id


class PersonalDataErased(OrderFact):
    """The customer's personal data was erased: its key was dropped in the transaction that appended this.

    Attributes:
        customer_email, description, metadata: their values from here on; null and {} where none had been given.
    """

    TOPIC = "order.personal_data_erased"
    customer_email: str | None
    description: str | None
    metadata: dict[str, Any]

    def fold(self, order: "Order") -> None:
        order.customer_email = self.customer_email
        order.description = self.description
        order.metadata = self.metadata
        order.personal_data_erased = True


class PaymentRequested(OrderFact):
    """The merchant requested the payment of the order.

    Attributes:
        attempt: 1 for the first payment of the order, one more for each that follows a failed one.
        transaction_id: the transaction that it opens: an authorization if capture is manual, else a capture.
        routing: why this processor.
        payment_method: `{type, token}` as the client gave it; tokens only, never card data.
    """

    TOPIC = "payment.requested"
    attempt: int
    transaction_id: str
    processor: str
    routing: str
    capture: CaptureMethod
    amount: int
    currency: str
    return_url: str | None
    payment_method: dict[str, Any] | None

    def fold(self, order: "Order") -> None:
        order.payments[self.attempt] = Payment(
            attempt=self.attempt,
            processor=self.processor,
            capture=self.capture,
            amount=self.amount,
            cause=Cause.of(self),
        )
        order.processor = self.processor
        order.processor_order_id = None
        order.last_error = None
        kind = TransactionType.AUTHORIZATION if self.capture == "manual" else TransactionType.CAPTURE
        order.open_transaction(self.transaction_id, kind, self)


class PaymentProcessing(OrderFact):
    """The processor has the payment and works on it, possibly after the customer's action."""

    TOPIC = "payment.processing"
    attempt: int
    processor_order_id: str | None

    def fold(self, order: "Order") -> None:
        order.learn_references(self).status = PaymentStatus.PROCESSING


class PaymentActionRequired(OrderFact):
    """The customer has to act, 3-D Secure for example, at `redirect_url`."""

    TOPIC = "payment.action_required"
    attempt: int
    processor_order_id: str | None
    redirect_url: str | None

    def fold(self, order: "Order") -> None:
        payment = order.learn_references(self)
        payment.status = PaymentStatus.REQUIRES_ACTION
        payment.redirect_url = self.redirect_url


class PaymentAuthorized(OrderFact):
    """The processor holds `amount` for us."""

    TOPIC = "payment.authorized"
    attempt: int
    transaction_id: str
    amount: int
    processor_order_id: str | None
    processor_transaction_id: str | None

    def fold(self, order: "Order") -> None:
        payment = order.learn_references(self, processor_transaction_id=self.processor_transaction_id)
        payment.status = PaymentStatus.AUTHORIZED
        order.settle_transaction(self.transaction_id, TransactionType.AUTHORIZATION, self)


class PaymentReferenceFound(OrderFact):
    """The processor's reference of a payment became known after its money was authorized or captured, or from somebody
    who looked it up.
    """

    TOPIC = "payment.reference_found"
    attempt: int
    processor_order_id: str | None

    def fold(self, order: "Order") -> None:
        order.learn_references(self)


class PaymentCaptureRequested(OrderFact):
    """The merchant requested the capture of an authorized amount, or of a part of it.

    Attributes:
        sequence: 1 for the order's first such request, one more for each that follows a failed one.
    """

    TOPIC = "payment.capture_requested"
    attempt: int
    sequence: int
    transaction_id: str
    amount: int
    currency: str
    processor: str
    processor_order_id: str | None

    def fold(self, order: "Order") -> None:
        order.captures_requested = self.sequence
        order.operations[TransactionType.CAPTURE, self.sequence] = self.transaction_id
        payment = order.payments[self.attempt]
        payment.capture_pending = True
        payment.cause = Cause.of(self)
        order.open_transaction(self.transaction_id, TransactionType.CAPTURE, self)


class ProcessorEventReceived(OrderFact):
    """The processor sent an event by webhook. What follows from it is recorded as further facts in the same append.

    Attributes:
        event_id: the processor's.
        body_hash: SHA-256 of the body, where the signature does not cover the event's id.
        type: as the processor names it: `payment_intent.succeeded`.
        outcome: what it says of the payment (`requires_action`, `failed`, `authorized`, `cancelled`, `captured`),
            or of a refund (`refunded`, `refund_failed`).
        attempt: the payment that it is about; None if that is none of the order's, or not certain.
        processor_order_id, processor_transaction_id: the payment's references, as the event has them.
        amount: of the capture or refund, in minor units; of Razorpay's payments in any case.
        amount_refunded: of the whole payment, so far.
        refund_reference: the processor's, of a refund.
        refund_id: ours, where the processor passes it on.
        completes: tells a workflow that waits for the customer whether the payment succeeded; None if the event
            does not end the waiting.
        effect: `applied`, `none` (nothing new), `unmatched` or `contradiction`.
    """

    TOPIC = "order.processor_event_received"
    processor: str
    event_id: str
    body_hash: str | None
    type: str
    outcome: str
    attempt: int | None
    processor_order_id: str | None
    processor_transaction_id: str | None
    amount: int | None
    currency: str | None
    amount_refunded: int | None
    refund_reference: str | None
    refund_id: str | None
    error_code: str | None
    error_message: str | None
    completes: bool | None
    effect: str

    def fold(self, order: "Order") -> None:
        for each in (self.event_id, self.body_hash):
            if each is not None:
                order.processor_events[processor_event_key(self.processor, each)] = self.effect
        if self.attempt is None:
            return
        payment = order.payments[self.attempt]
        payment.processor_reported = True
        if self.effect == "contradiction":
            return
        payment.processor_refunded = max(payment.processor_refunded, self.amount_refunded or 0)
        if self.outcome not in {"refunded", "refund_failed"}:
            payment.processor_outcomes.add(self.outcome)
        elif self.refund_reference is not None:
            known = order.processor_refunds.get(self.refund_reference, ProcessorRefund(attempt=self.attempt))
            order.processor_refunds[self.refund_reference] = self._add_to(known, attempt=self.attempt)
        if self.outcome == "captured":
            references = References.of(self)
            payment.capture_references.update(each for each in references if each is not None)

    def _add_to(self, known: ProcessorRefund, *, attempt: int) -> ProcessorRefund:
        """What is known of a refund, with what this event says of it."""
        return ProcessorRefund(
            attempt=attempt,
            amount=self.amount or known.amount,
            succeeded=known.succeeded or self.outcome == "refunded",
            failed=known.failed or self.outcome == "refund_failed",
            refund_id=self.refund_id or known.refund_id,
            error_code=self.error_code or known.error_code,
            error_message=self.error_message or known.error_message,
        )


def processor_event_key(processor: str, id: str) -> str:
    """The key under which an order remembers a processor's event id, or the hash of a body."""
    return f"{processor}:{id}"


class DashboardChecked(OrderFact):
    """Somebody looked an order up in its processor's dashboard. What follows is recorded as further facts in the same
    append.

    Attributes:
        shows: of the payment: `one_charge` (it is that of another captured attempt), `no_money` or `reference`; of the
            refund: `refund_made` or `refund_not_made`.
        note: why this was said, in words of the one who looked.
    """

    TOPIC = "order.dashboard_checked"
    attempt: int
    refund_id: str | None
    processor: str
    shows: str
    note: str


class PaymentCaptured(OrderFact):
    """The money is ours.

    Attributes:
        amount_captured: of the whole order, after this.
        authorizes: id of the attempt's pending authorization, which the capture shows to have succeeded.
        closes: ids of the attempt's pending voids, which came too late.
    """

    TOPIC = "payment.captured"
    attempt: int
    transaction_id: str
    amount: int
    amount_captured: int
    processor: str
    processor_order_id: str | None
    processor_transaction_id: str | None
    authorizes: str | None
    closes: list[str]

    def fold(self, order: "Order") -> None:
        payment = order.learn_references(self, processor_transaction_id=self.processor_transaction_id)
        payment.status = PaymentStatus.CAPTURED
        payment.capture_pending = False
        payment.same_charge_as = None
        order.processor = self.processor
        order.amount_captured = self.amount_captured
        order.last_error = None
        order.settle_transaction(self.transaction_id, TransactionType.CAPTURE, self)
        if self.authorizes is not None:
            order.transactions[self.authorizes].succeed(processor_transaction_id=None)
        order.fail_transactions(self.closes, CLOSED_BY_CAPTURE)


class PaymentCaptureRetracted(OrderFact):
    """A recorded capture was no money of its own: its charge is that of another attempt, which counts.

    Attributes:
        same_as: that attempt.
        transaction_id: of the capture that does not count.
        amount_captured: of the whole order, after this.
    """

    TOPIC = "payment.capture_retracted"
    attempt: int
    same_as: int
    transaction_id: str
    amount: int
    amount_captured: int

    def fold(self, order: "Order") -> None:
        payment = order.payments[self.attempt]
        payment.status = PaymentStatus.FAILED
        payment.same_charge_as = self.same_as
        order.amount_captured = self.amount_captured
        order.fail_transactions([self.transaction_id], SAME_CHARGE)


class PaymentCaptureFailed(OrderFact):
    """The processor refused a capture; the authorization stands."""

    TOPIC = "payment.capture_failed"
    attempt: int
    transaction_id: str
    error_code: str | None
    error_message: str | None

    def fold(self, order: "Order") -> None:
        order.payments[self.attempt].capture_pending = False
        order.fail_transaction(self.transaction_id, self)


class PaymentVoidRequested(OrderFact):
    """An authorization is to be released: the merchant cancelled, or another attempt was captured."""

    TOPIC = "payment.void_requested"
    attempt: int
    sequence: int
    transaction_id: str
    amount: int
    currency: str
    processor: str
    processor_order_id: str | None

    def fold(self, order: "Order") -> None:
        order.voids_requested = self.sequence
        order.operations[TransactionType.VOID, self.sequence] = self.transaction_id
        order.payments[self.attempt].cause = Cause.of(self)
        order.open_transaction(self.transaction_id, TransactionType.VOID, self)


class PaymentVoided(OrderFact):
    """The processor released an authorization.

    Attributes:
        closes: ids of pending transactions of the attempt that end with it.
    """

    TOPIC = "payment.voided"
    attempt: int
    transaction_id: str
    amount: int
    processor_order_id: str | None
    processor_transaction_id: str | None
    closes: list[str]

    def fold(self, order: "Order") -> None:
        order.payments[self.attempt].status = PaymentStatus.CANCELLED
        order.settle_transaction(self.transaction_id, TransactionType.VOID, self)
        order.fail_transactions(self.closes, CLOSED_BY_VOID)


class PaymentVoidFailed(OrderFact):
    """The processor refused to release an authorization; it stands."""

    TOPIC = "payment.void_failed"
    attempt: int
    transaction_id: str
    error_code: str | None
    error_message: str | None

    def fold(self, order: "Order") -> None:
        order.fail_transaction(self.transaction_id, self)


class PaymentFailed(OrderFact):
    """The attempt ended without money. The order may be paid again.

    Attributes:
        closes: ids of pending transactions of the attempt that end with it.
    """

    TOPIC = "payment.failed"
    attempt: int
    processor_order_id: str | None
    processor_transaction_id: str | None
    error_code: str | None
    error_message: str | None
    closes: list[str]

    def fold(self, order: "Order") -> None:
        payment = order.learn_references(self)
        payment.status = PaymentStatus.FAILED
        if self.processor_transaction_id is not None:
            payment.failed_charges.add(self.processor_transaction_id)
        if order.status is OrderStatus.FAILED:
            order.last_error = Failure.of(self)
        order.fail_transactions(self.closes, Failure.of(self))


class PaymentCancelRequested(OrderFact):
    """The merchant asked to stop a payment that is under way; the processor will say how it ended."""

    TOPIC = "payment.cancel_requested"
    attempt: int

    def fold(self, order: "Order") -> None:
        payment = order.payments[self.attempt]
        payment.cancel_requested = True
        payment.cause = Cause.of(self)


class PaymentCancelled(OrderFact):
    """The processor stopped a payment before it had any money.

    Attributes:
        closes: ids of pending transactions of the attempt that end with it.
    """

    TOPIC = "payment.cancelled"
    attempt: int
    closes: list[str]

    def fold(self, order: "Order") -> None:
        order.payments[self.attempt].status = PaymentStatus.CANCELLED
        order.fail_transactions(self.closes, CLOSED_BY_CANCELLATION)


class RefundRequested(OrderFact):
    """A refund was requested here.

    Attributes:
        refund_id: also the id of the transaction that it opens.
        capture_id: the transaction that is refunded.
        processor_order_id: of the attempt that captured.
    """

    TOPIC = "refund.requested"
    refund_id: str
    capture_id: str
    attempt: int
    amount: int
    currency: str
    reason: str | None
    processor: str
    processor_order_id: str | None

    def fold(self, order: "Order") -> None:
        refund = order.open_transaction(self.refund_id, TransactionType.REFUND, self)
        refund.reason = self.reason
        refund.refunds = self.capture_id


class RefundDiscovered(OrderFact):
    """The processor reported a refund that was not requested here, but for example in its own dashboard.

    Attributes:
        refund_id: also the id of the transaction that it opens.
        capture_id: the transaction that is refunded.
    """

    TOPIC = "refund.discovered"
    refund_id: str
    capture_id: str
    attempt: int
    amount: int
    currency: str
    processor: str
    reason: str | None

    def fold(self, order: "Order") -> None:
        refund = order.open_transaction(self.refund_id, TransactionType.REFUND, self)
        refund.reason = self.reason
        refund.refunds = self.capture_id
        refund.discovered = True


class RefundSucceeded(OrderFact):
    """The processor made a refund.

    Attributes:
        amount_refunded: of the whole order, after this.
    """

    TOPIC = "refund.succeeded"
    refund_id: str
    attempt: int
    amount: int
    amount_refunded: int
    processor_transaction_id: str | None

    def fold(self, order: "Order") -> None:
        order.amount_refunded = self.amount_refunded
        order.settle_transaction(self.refund_id, TransactionType.REFUND, self)


class RefundFailed(OrderFact):
    """The processor refused a refund; its amount can be refunded again."""

    TOPIC = "refund.failed"
    refund_id: str
    attempt: int
    processor_transaction_id: str | None
    error_code: str | None
    error_message: str | None

    def fold(self, order: "Order") -> None:
        order.fail_transaction(self.refund_id, self)


class RefundReversed(OrderFact):
    """A refund that the processor had made was returned: the customer does not have the money.

    Also recorded for a refund that became known only when it was returned, and was never counted; and for a discovered
    refund that turned out to be one that is on record already (SAME_REFUND).

    Attributes:
        amount_refunded: of the whole order, after this.
    """

    TOPIC = "refund.reversed"
    refund_id: str
    attempt: int
    amount: int
    amount_refunded: int
    processor_transaction_id: str | None
    error_code: str | None
    error_message: str | None

    def fold(self, order: "Order") -> None:
        order.amount_refunded = self.amount_refunded
        refund = order.transactions[self.refund_id]
        refund.processor_transaction_id = self.processor_transaction_id or refund.processor_transaction_id
        order.fail_transaction(self.refund_id, self)


@stream_topic("order")
class Order(Stream):
    """An order as its facts leave it. Attributes are named as in the HTTP contract, in snake case."""

    def __init__(
        self,
        *,
        merchant_id: str,
        external_id: str,
        amount: int,
        currency: str,
        customer_id: str | None,
        customer_email: str | None,
        description: str | None,
        metadata: dict[str, Any],
        return_url: str | None,
        cancel_url: str | None,
        correlation_id: str,
    ) -> None:
        self.merchant_id = merchant_id
        self.external_id = external_id
        self.amount = amount
        self.currency = currency
        self.customer_id = customer_id
        self.customer_email = customer_email
        self.description = description
        self.metadata = metadata
        self.return_url = return_url
        self.cancel_url = cancel_url
        self.correlation_id = correlation_id
        self.cancel_correlation_id: str | None = None
        self.personal_data_erased = False
        self.status = OrderStatus.PENDING
        self.processor: str | None = None
        self.processor_order_id: str | None = None
        self.amount_captured = 0
        self.amount_refunded = 0
        self.last_error: Failure | None = None
        self.captures_requested = 0
        self.voids_requested = 0
        self.operations: dict[tuple[TransactionType, int], str] = {}
        """The id of the transaction that each request to capture or void opened, by its type and sequence."""
        self.payments: dict[int, Payment] = {}
        self.transactions: dict[str, Transaction] = {}
        self.processor_events: dict[str, str] = {}
        """The effect of each event received from a processor, by `processor_event_key`."""
        self.processor_refunds: dict[str, ProcessorRefund] = {}
        """By the processor's reference of the refund."""

    @property
    def attempt(self) -> int:
        """Number of the latest attempt to pay the order, 0 before the first."""
        return len(self.payments)

    @property
    def payment(self) -> Payment | None:
        """The latest attempt."""
        return self.payments.get(self.attempt)

    @property
    def refundable(self) -> int:
        """What can still be refunded; pending refunds count as made."""
        return sum(self.refundable_of(t) for t in self.transactions.values())

    def refundable_of(self, transaction: Transaction) -> int:
        """What can still be refunded of a captured transaction; 0 for any other."""
        if (
            transaction.type is not TransactionType.CAPTURE
            or transaction.status is not TransactionStatus.SUCCESS
        ):
            return 0
        refunded = sum(
            t.amount
            for t in self.transactions.values()
            if t.refunds == transaction.id and t.status is not TransactionStatus.FAILED
        )
        # The processor may report a refund beside one that is pending here: together they may exceed the capture.
        return max(0, transaction.amount - refunded)

    def requested_transaction(self, operation: tuple[TransactionType, int] | None) -> Transaction | None:
        """The transaction that a request to capture or void opened, by its key in `operations`, if there is one."""
        id = None if operation is None else self.operations.get(operation)
        return None if id is None else self.transactions[id]

    def pending(self, attempt: int, *types: TransactionType) -> list[Transaction]:
        """The attempt's pending transactions of these types, oldest first."""
        return [
            t
            for t in self.transactions.values()
            if t.attempt == attempt and t.type in types and t.status is TransactionStatus.PENDING
        ]

    def total(self, payment: Payment, type: TransactionType, status: TransactionStatus) -> int:
        """The sum of a payment's transactions of one type and status."""
        return sum(
            t.amount
            for t in self.transactions.values()
            if t.attempt == payment.attempt and t.type is type and t.status is status
        )

    def other_payments(self, payment: Payment) -> list[Payment]:
        return [each for each in self.payments.values() if each is not payment]

    def others_without_reference(self, payment: Payment) -> list[Payment]:
        """Other payments at the same processor whose reference there is not known."""
        return [
            each
            for each in self.other_payments(payment)
            if each.processor == payment.processor and each.processor_order_id is None
        ]

    def not_told_apart(self, payment: Payment) -> list[Payment]:
        """Other payments captured at the same processor whose charge may be the same, as far as references tell."""
        return [
            each
            for each in self.other_payments(payment)
            if each.processor == payment.processor
            and each.status is PaymentStatus.CAPTURED
            and payment.may_be_charge_of(each)
        ]

    def learn_references(self, fact: Any, *, processor_transaction_id: str | None = None) -> Payment:
        """Take over the processor's references that a fact carries; return the payment that it is about."""
        payment = self.payments[fact.attempt]
        if fact.processor_order_id is not None:
            payment.processor_order_id = self.processor_order_id = fact.processor_order_id
        if processor_transaction_id is not None:
            payment.processor_transaction_id = processor_transaction_id
        return payment

    def open_transaction(self, id: str, kind: TransactionType, fact: Any) -> Transaction:
        """The transaction that a fact opens, or that was opened before; with the fact's amount in either case."""
        transaction = self.transactions.get(id)
        if transaction is None:
            transaction = self.transactions[id] = Transaction(
                id=id,
                type=kind,
                attempt=fact.attempt,
                amount=fact.amount,
                created_at=fact.timestamp,
                cause=Cause.of(fact),
            )
        transaction.amount = fact.amount
        return transaction

    def settle_transaction(self, id: str, kind: TransactionType, fact: Any) -> None:
        """Note that a transaction succeeded, which need not have been requested here."""
        self.open_transaction(id, kind, fact).succeed(processor_transaction_id=fact.processor_transaction_id)

    def fail_transaction(self, id: str, fact: Any) -> None:
        """Note that a transaction failed for the reason that a fact gives, which is the order's last error then."""
        self.last_error = Failure.of(fact)
        self.transactions[id].fail(self.last_error)

    def fail_transactions(self, ids: list[str], failure: Failure) -> None:
        """End pending transactions. The order's last error stays as it is."""
        for id in ids:
            transaction = self.transactions[id]
            transaction.fail(failure)
            if transaction.type is TransactionType.CAPTURE:
                self.payments[transaction.attempt].capture_pending = False

    @classmethod
    def created(cls, details: dict[str, Any], *, id: UUID, merchant_id: str, by: Metadata) -> OrderCreated:
        """The first fact of a new order."""
        return cls.first(OrderCreated, details, id=id, merchant_id=merchant_id, by=by)

    @classmethod
    def create(cls, *, id: UUID, merchant_id: str, by: Metadata, **details: Any) -> Self:
        """A new order with its first fact."""
        return cls.begin(OrderCreated, id=id, merchant_id=merchant_id, by=by, **details)
