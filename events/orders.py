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
from typing import Any, ClassVar, Literal, Self
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
class Asked:
    """What asked for something that ends later: what is told of its end belongs to it."""

    correlation_id: str
    event: str

    @classmethod
    def by(cls, fact: StreamEvent) -> Self:
        return cls(fact.correlation_id, fact.reference)

    def answered(self, by: Metadata) -> Metadata:
        """`by`, as a consequence of this, and under its correlation id where `by` has none of its own."""
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
    asked: Asked
    status: TransactionStatus = TransactionStatus.PENDING
    processor_transaction_id: str | None = None
    error_code: str | None = None
    error_message: str | None = None
    reason: str | None = None
    refunds: str | None = None
    """Of a refund: the capture that it gives back from."""
    discovered: bool = False
    """Of a refund: it did not start here, the processor told of it."""

    def succeed(self, *, processor_transaction_id: str | None) -> None:
        self.status = TransactionStatus.SUCCESS
        self.processor_transaction_id = processor_transaction_id or self.processor_transaction_id
        self.error_code = self.error_message = None

    def fail(self, *, error_code: str | None, error_message: str | None) -> None:
        self.status = TransactionStatus.FAILED
        self.error_code = error_code
        self.error_message = error_message


@dataclass(slots=True, kw_only=True)
class Payment:
    """One attempt to pay the order at one processor."""

    attempt: int
    processor: str
    capture: CaptureMethod
    amount: int
    asked: Asked
    """The latest request of it: to pay, capture, void or cancel."""
    status: PaymentStatus = PaymentStatus.PROCESSING
    processor_order_id: str | None = None
    processor_transaction_id: str | None = None
    redirect_url: str | None = None
    cancel_requested: bool = False
    capture_pending: bool = False
    told: set[str] = field(default_factory=set)
    """Outcomes that the processor has told by events of its own, in whatever order they came."""
    told_as: set[str] = field(default_factory=set)
    """References of the charge that they told of, of a payment that may be known by none."""
    told_refunded: int = 0
    """The most that the processor said was refunded of it in all."""

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

    def names(self, *references: str | None) -> bool:
        """Whether one of these is a reference of this payment at its processor."""
        known = {self.processor_order_id, self.processor_transaction_id} - {None}
        return not known.isdisjoint(references)


@dataclass(slots=True, kw_only=True)
class ToldRefund:
    """A refund as the processor told of it, in whatever order it did."""

    attempt: int
    amount: int
    succeeded: bool
    """Whether it was ever said to have been made."""
    failed: bool
    """Whether it was ever said to have failed: also after it had been made, and for good."""
    refund_id: str | None
    """Ours, where the processor kept it with the refund."""
    error_code: str | None
    error_message: str | None


class OrderCreated(PersonalStreamCreated):
    """Version 1 had its personal fields in plain."""

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
        """In memory both are the same."""


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
    """The key to what the order held of its customer was dropped, in the transaction that appended this.

    Attributes:
        customer_email, description, metadata: what they read from here on; null and {} where none were given.
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
    """The merchant asked to be paid.

    Attributes:
        attempt: 1 for the first payment of the order, one more for each that follows a failed one.
        transaction_id: the transaction that it opens: the authorization where capture is manual, else the capture.
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
            asked=Asked.by(self),
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
        order.learn(self).status = PaymentStatus.PROCESSING


class PaymentActionRequired(OrderFact):
    """The customer has to act, 3-D Secure for example, at `redirect_url`."""

    TOPIC = "payment.action_required"
    attempt: int
    processor_order_id: str | None
    redirect_url: str | None

    def fold(self, order: "Order") -> None:
        payment = order.learn(self)
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
        payment = order.learn(self, processor_transaction_id=self.processor_transaction_id)
        payment.status = PaymentStatus.AUTHORIZED
        order.settle_transaction(self.transaction_id, TransactionType.AUTHORIZATION, self)


class PaymentReferenceFound(OrderFact):
    """The processor's reference of a payment that has money, which nobody had reported, was learned since."""

    TOPIC = "payment.reference_found"
    attempt: int
    processor_order_id: str | None

    def fold(self, order: "Order") -> None:
        order.learn(self)


class PaymentCaptureRequested(OrderFact):
    """The merchant asked for an authorized amount, or a part of it.

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
        payment.asked = Asked.by(self)
        order.open_transaction(self.transaction_id, TransactionType.CAPTURE, self)


class ProcessorEventReceived(OrderFact):
    """The processor told something of itself, by webhook. What follows from it are facts beside this one.

    Attributes:
        event_id: the processor's.
        body_hash: SHA-256 of the body, where the signature does not cover the event's id.
        type: as the processor names it: `payment_intent.succeeded`.
        outcome: what it says of the payment (`requires_action`, `failed`, `authorized`, `cancelled`, `captured`),
            or of a refund (`refunded`, `refund_failed`).
        attempt: the payment that it is about, None where it is none of the order's.
        processor_order_id, processor_transaction_id: the payment's references, as the event has them.
        amount: of the capture or refund, in minor units.
        amount_refunded: of the whole payment, so far.
        refund_reference: the processor's, of a refund.
        refund_id: ours, where the processor kept it.
        completes: whether the customer's action succeeded, for a workflow that waits to know; None where the
            event does not end the waiting.
        effect: `applied`, `none` (it told nothing new), `unmatched` or `contradiction`.
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
        if self.attempt is None or self.effect == "contradiction":
            return
        payment = order.payments[self.attempt]
        if self.outcome == "captured":
            names = (self.processor_order_id, self.processor_transaction_id)
            payment.told_as.update(each for each in names if each is not None)
        payment.told_refunded = max(payment.told_refunded, self.amount_refunded or 0)
        if self.outcome not in {"refunded", "refund_failed"}:
            payment.told.add(self.outcome)
        elif self.refund_reference is not None:
            before = order.told_refunds.get(self.refund_reference)
            order.told_refunds[self.refund_reference] = ToldRefund(
                attempt=self.attempt,
                amount=self.amount or (before.amount if before is not None else 0),
                succeeded=self.outcome == "refunded" or (before is not None and before.succeeded),
                failed=self.outcome == "refund_failed" or (before is not None and before.failed),
                refund_id=self.refund_id or (before.refund_id if before is not None else None),
                error_code=self.error_code or (before.error_code if before is not None else None),
                error_message=self.error_message or (before.error_message if before is not None else None),
            )


def processor_event_key(processor: str, id: str) -> str:
    """How an order remembers an event of a processor, or a body."""
    return f"{processor}:{id}"


class PaymentCaptured(OrderFact):
    """The money is ours.

    Attributes:
        amount_captured: of the whole order, after this.
        authorizes: id of the attempt's pending authorization, which a capture proves; None where there is none.
        closes: ids of pending voids of the attempt: they came too late.
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
        payment = order.learn(self, processor_transaction_id=self.processor_transaction_id)
        payment.status = PaymentStatus.CAPTURED
        payment.capture_pending = False
        order.processor = self.processor
        order.amount_captured = self.amount_captured
        order.last_error = None
        order.settle_transaction(self.transaction_id, TransactionType.CAPTURE, self)
        if self.authorizes is not None:
            order.transactions[self.authorizes].succeed(processor_transaction_id=None)
        order.close(
            self.closes, error_code="already_captured", error_message="The payment was captured already"
        )


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
    """An authorization is to be given back: the merchant cancelled, or another attempt was captured."""

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
        order.payments[self.attempt].asked = Asked.by(self)
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
        order.close(self.closes, error_code="cancelled", error_message="The authorization was voided")


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
        order.learn(self).status = PaymentStatus.FAILED
        if order.status is OrderStatus.FAILED:
            order.last_error = LastError(code=self.error_code, message=self.error_message)
        order.close(self.closes, error_code=self.error_code, error_message=self.error_message)


class PaymentCancelRequested(OrderFact):
    """The merchant asked to stop a payment that is under way; the processor will say how it ended."""

    TOPIC = "payment.cancel_requested"
    attempt: int

    def fold(self, order: "Order") -> None:
        payment = order.payments[self.attempt]
        payment.cancel_requested = True
        payment.asked = Asked.by(self)


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
        order.close(self.closes, error_code="cancelled", error_message="The payment was cancelled")


class RefundRequested(OrderFact):
    """Money is to be given back.

    Attributes:
        refund_id: also the id of the transaction that it opens.
        capture_id: the captured transaction that it gives back from.
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
    """Money is given back that nobody asked for here: in the processor's own dashboard.

    Attributes:
        refund_id: also the id of the transaction that it opens.
        capture_id: the captured transaction that it gives back from.
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
    """The processor gave the money back.

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
    """The processor refused a refund; its amount is free to be refunded again."""

    TOPIC = "refund.failed"
    refund_id: str
    attempt: int
    processor_transaction_id: str | None
    error_code: str | None
    error_message: str | None

    def fold(self, order: "Order") -> None:
        order.fail_transaction(self.refund_id, self)


SAME_REFUND = "same_refund"


class RefundReversed(OrderFact):
    """A refund that the processor had made came back: the customer has not got the money.

    Also of one that it told of only when it had come back, and that never counted; and of one that was discovered
    and turned out to be another that is known (SAME_REFUND).

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


@dataclass(slots=True, frozen=True, kw_only=True)
class LastError:
    code: str | None
    message: str | None


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
        self.last_error: LastError | None = None
        self.captures_requested = 0
        self.voids_requested = 0
        self.operations: dict[tuple[TransactionType, int], str] = {}
        """The transaction that each request to capture or void opened, by its kind and sequence."""
        self.payments: dict[int, Payment] = {}
        self.transactions: dict[str, Transaction] = {}
        self.processor_events: dict[str, str] = {}
        """What became of each event of a processor, by `processor_event_key`."""
        self.told_refunds: dict[str, ToldRefund] = {}

    @property
    def attempt(self) -> int:
        """How many times the order was paid or tried to: 0 before the first payment."""
        return len(self.payments)

    @property
    def payment(self) -> Payment | None:
        """The latest attempt."""
        return self.payments.get(self.attempt)

    @property
    def refundable(self) -> int:
        """What can still be given back; pending refunds count as given."""
        return sum(self.refundable_of(t) for t in self.transactions.values())

    def refundable_of(self, transaction: Transaction) -> int:
        """What can still be given back of one captured transaction, 0 of any other."""
        if (
            transaction.type is not TransactionType.CAPTURE
            or transaction.status is not TransactionStatus.SUCCESS
        ):
            return 0
        given = sum(
            t.amount
            for t in self.transactions.values()
            if t.refunds == transaction.id and t.status is not TransactionStatus.FAILED
        )
        # The processor may tell of a refund beside one that is pending here: together they may be too much.
        return max(0, transaction.amount - given)

    def asked_for(self, operation: tuple[TransactionType, int] | None) -> Transaction | None:
        """The transaction that a request to capture or void opened; None where there was no such request."""
        id = None if operation is None else self.operations.get(operation)
        return None if id is None else self.transactions[id]

    def pending(self, attempt: int, *types: TransactionType) -> list[Transaction]:
        """The attempt's pending transactions of these types, oldest first."""
        return [
            t
            for t in self.transactions.values()
            if t.attempt == attempt and t.type in types and t.status is TransactionStatus.PENDING
        ]

    def other_payments(self, payment: Payment) -> list[Payment]:
        return [each for each in self.payments.values() if each is not payment]

    def nameless_beside(self, payment: Payment) -> list[Payment]:
        """Other payments at the same processor of which no reference is known."""
        return [
            each
            for each in self.other_payments(payment)
            if each.processor == payment.processor and each.processor_order_id is None
        ]

    def learn(self, fact: Any, *, processor_transaction_id: str | None = None) -> Payment:
        """The payment a fact is about, with the processor's references where the fact brings any."""
        payment = self.payments[fact.attempt]
        if fact.processor_order_id is not None:
            payment.processor_order_id = self.processor_order_id = fact.processor_order_id
        if processor_transaction_id is not None:
            payment.processor_transaction_id = processor_transaction_id
        return payment

    def open_transaction(self, id: str, kind: TransactionType, fact: Any) -> Transaction:
        transaction = self.transactions.get(id)
        if transaction is None:
            transaction = self.transactions[id] = Transaction(
                id=id,
                type=kind,
                attempt=fact.attempt,
                amount=fact.amount,
                created_at=fact.timestamp,
                asked=Asked.by(fact),
            )
        transaction.amount = fact.amount
        return transaction

    def settle_transaction(self, id: str, kind: TransactionType, fact: Any) -> None:
        self.open_transaction(id, kind, fact).succeed(processor_transaction_id=fact.processor_transaction_id)

    def fail_transaction(self, id: str, fact: Any) -> None:
        self.transactions[id].fail(error_code=fact.error_code, error_message=fact.error_message)
        self.last_error = LastError(code=fact.error_code, message=fact.error_message)

    def close(self, ids: list[str], *, error_code: str | None, error_message: str | None) -> None:
        for id in ids:
            transaction = self.transactions[id]
            transaction.fail(error_code=error_code, error_message=error_message)
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
