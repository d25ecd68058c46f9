"""Refunds as a processor reports them by itself: individually by reference, or as the payment's refunded sum so far.

Reports arrive late, twice and in any order, and may name refunds not known here. Two kinds are distinguished:
- *ours*: refunds requested through this service. A reported refund is ours if it carries our id or a reference already
  on record. A refund with an unknown reference may still be ours, if the result of that refund has not been reported
  yet: it is taken for a pending one of the same amount.
- *theirs*: refunds made in the processor's own dashboard, discovered here. Either by reference, or without one, from a
  sum that exceeds the refunds on record; a reference that is reported later may be part of that sum.

So a refund is never counted twice. One that was taken for another shows up with the next reported sum.

A refund that failed once has failed for good, whatever else is reported of it. A reported sum may date from before the
failure, so failed refunds count as included in it: money that may not have been refunded is never counted as refunded.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from uuid_utils.compat import uuid7

from payloops.commands.end_refund import fail_refund, reverse_refund, succeed_refund
from payloops.commands.refusals import ContradictsRecord
from payloops.events.metadata import Metadata
from payloops.events.orders import (
    SAME_REFUND,
    Order,
    Payment,
    RefundDiscovered,
    ProcessorRefund,
    Transaction,
    TransactionStatus,
    TransactionType,
)

DISCOVERED_REASON = "refunded at the processor"
SUCCESS, FAILED = TransactionStatus.SUCCESS, TransactionStatus.FAILED


def settle_told_refunds(order: Order, payment: Payment, *, amount_refunded: int | None, by: Metadata) -> bool:
    """Record what was told of a payment's refunds, as far as it is not recorded yet.

    Before the capture is known, nothing is: the capture calls this again.

    Args:
        amount_refunded: the processor's sum of all refunds of the payment, where it tells one.

    Returns:
        False where more would be refunded than was captured: that much was not recorded.
    """
    capture = capture_of(order, payment)
    if capture is None:
        return True
    books = _Books(order=order, payment=payment, capture=capture, by=by)
    for reference, told in books.failed.items():
        books.fail_known(reference, told)
    fits = books.make_told()
    for reference, told in books.failed.items():
        books.take_failed_from_sums(reference, told)
        fits &= books.show_failed(reference, told)
    if amount_refunded is not None:
        missing = amount_refunded - books.known - books.discovered
        fits &= missing <= 0 or books.discover(missing, reference=None)
    return fits


def make_pending_refunds(
    order: Order, payment: Payment, *, amount_refunded: int, asked_before: datetime, by: Metadata
) -> None:
    """Record that refunds of ours were made of which nobody reported, where a sum as of now has all of them in it.

    Args:
        asked_before: of those asked for later the report may be under way: then none is recorded.
    """
    capture = capture_of(order, payment)
    if capture is None or amount_refunded > capture.amount:
        return
    books = _Books(order=order, payment=payment, capture=capture, by=by)
    pending = [t for t in books.standing if t.status is TransactionStatus.PENDING]
    if (
        not books.failed
        and sum(t.amount for t in books.standing) == amount_refunded
        and all(t.created_at < asked_before for t in pending)
    ):
        for refund in pending:
            books.make(refund, None)


def make_refund(order: Order, refund_id: str, *, processor_transaction_id: str | None, by: Metadata) -> None:
    """Record that a refund of ours was made, also where it had been reported failed before.

    Raises:
        ContradictsRecord: more would be refunded than was captured.
    """
    refund = order.transactions[refund_id]
    capture = order.transactions[refund.refunds or ""]
    books = _Books(order=order, payment=order.payments[refund.attempt], capture=capture, by=by)
    books.make(refund, processor_transaction_id)


def failure_told(order: Order, refund_id: str, *, reference: str | None) -> ProcessorRefund | None:
    """What was told of a refund that failed; None where it was not, or has not failed yet."""
    return next(
        (
            told
            for name, told in order.processor_refunds.items()
            if told.failed and (told.refund_id == refund_id or name == reference)
        ),
        None,
    )


def capture_of(order: Order, payment: Payment) -> Transaction | None:
    """What was captured of a payment; None where nothing was."""
    return next(
        (
            t
            for t in order.transactions.values()
            if t.attempt == payment.attempt
            and t.type is TransactionType.CAPTURE
            and t.status is TransactionStatus.SUCCESS
        ),
        None,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Books:
    """The refunds of a capture, as they are told and as they are recorded."""

    order: Order
    payment: Payment
    capture: Transaction
    by: Metadata

    # -- what is there

    @property
    def refunds(self) -> list[Transaction]:
        return [t for t in self.order.transactions.values() if t.refunds == self.capture.id]

    @property
    def standing(self) -> list[Transaction]:
        """Refunds that were made, or may have been."""
        return [t for t in self.refunds if t.status is not FAILED]

    @property
    def sums(self) -> list[Transaction]:
        """What was discovered and is none that is told of by reference: by sums, or its name is another's now."""
        named = [self.told_of(name, told) for name, told in self._told()]
        ids = {refund.id for refund in named if refund is not None}
        return [t for t in self.standing if t.discovered and t.id not in ids]

    @property
    def discovered(self) -> int:
        return sum(t.amount for t in self.standing if t.discovered)

    @property
    def failed(self) -> dict[str, ProcessorRefund]:
        return {name: told for name, told in self._told() if told.failed}

    @property
    def known(self) -> int:
        """How much of a sum is accounted for without what was discovered."""
        ours = sum(t.amount for t in self.standing if not t.discovered)
        return ours + sum(told.amount for told in self.failed.values())

    def _told(self) -> Iterator[tuple[str, ProcessorRefund]]:
        for name, told in self.order.processor_refunds.items():
            if told.attempt == self.payment.attempt:
                yield name, told

    def named(self, reference: str | None) -> list[Transaction]:
        if reference is None:
            return []
        return [t for t in self.refunds if t.processor_transaction_id == reference]

    def told_of(self, reference: str, told: ProcessorRefund) -> Transaction | None:
        """The refund that one told of is: by our id, or by its reference."""
        ours = [t for t in self.refunds if t.id == told.refund_id]
        return next(iter([*ours, *self.named(reference)]), None)

    def taken_for(self, told: ProcessorRefund, *, failed: bool = False) -> Transaction | None:
        """The refund of ours that one of an unknown reference may be.

        Args:
            failed: one that failed, instead of one that was made or may have been.
        """
        return next(
            (
                t
                for t in self.refunds
                if not t.discovered
                and t.processor_transaction_id is None
                and t.amount == told.amount
                and (t.status is FAILED) == failed
            ),
            None,
        )

    def made(self) -> tuple[list[tuple[str, Transaction, int]], list[tuple[str, int]]]:
        """Of those told to have been made: which are known here, and which are theirs and not known."""
        known, unknown = [], []
        for reference, told in self._told():
            refund = self.told_of(reference, told)
            if told.failed:
                continue
            if refund is not None:
                known.append((reference, refund, told.amount))
            else:
                unknown.append((reference, told.amount))
        ids = {refund.id for _, refund, _ in known}
        ours = [
            t.amount
            for t in self.standing
            if t.id not in ids and not t.discovered and t.processor_transaction_id is None
        ]
        theirs = []
        for reference, amount in unknown:
            if amount in ours:
                ours.remove(amount)
            else:
                theirs.append((reference, amount))
        return known, theirs

    def excess(self, *, ours_besides: int = 0) -> int:
        """How much more was discovered than there can be of theirs.

        Args:
            ours_besides: refunds of ours that do not stand as made yet.
        """
        known, unknown = self.made()
        named = sum(amount for _, refund, amount in known if refund.discovered)
        theirs = named + sum(amount for _, amount in unknown)
        return self.discovered - max(theirs, self.payment.processor_refunded - self.known - ours_besides)

    # -- what is recorded

    def make_told(self) -> bool:
        """Record refunds that were told of by reference; whether all of them could be."""
        fits = True
        known, _ = self.made()
        for reference, refund, _ in known:
            try:
                self.make(refund, reference)
            except ContradictsRecord:
                fits = False
        known, unknown = self.made()
        # Of what was discovered by sums, some may be known by reference since.
        nameless = sum(t.amount for t in self.sums) - sum(
            amount - refund.amount for _, refund, amount in known if refund.discovered
        )
        for reference, amount in unknown:
            part = min(amount, nameless)
            nameless -= part
            if amount > part:
                fits &= self.discover(amount - part, reference=reference)
        return fits

    def make(self, refund: Transaction, reference: str | None) -> None:
        """Record that a refund was made.

        One that had been reported failed may have been discovered meanwhile: it is then the same, and counts once.

        Raises:
            ContradictsRecord: more would be refunded than was captured.
        """
        if refund.status is FAILED:
            same = [t for t in self.named(reference) if t.discovered and t.status is SUCCESS]
            left = refund.amount - sum(t.amount for t in same)
            excess = self.excess(ours_besides=refund.amount) - sum(t.amount for t in same)
            for each in [*same, *self._covering(min(left, excess))]:
                self._reverse(each, None, code=SAME_REFUND, message=f"It is refund {refund.id}")
        succeed_refund(self.order, refund.id, processor_transaction_id=reference, by=self.by)

    def fail_known(self, reference: str, told: ProcessorRefund) -> None:
        """Record that a refund that is known here failed, or came back."""
        refund = self.told_of(reference, told) or self.taken_for(told)
        if refund is None:
            return
        if refund.status is SUCCESS:
            self._reverse(refund, reference, code=told.error_code, message=told.error_message)
        elif refund.id == told.refund_id:
            fail_refund(
                self.order,
                refund.id,
                processor_transaction_id=reference,
                error_code=told.error_code,
                error_message=told.error_message,
                by=self.by,
            )

    def take_failed_from_sums(self, reference: str, told: ProcessorRefund) -> None:
        """Record that what failed was a part of a sum, where more is discovered than there can be."""
        recorded = sum(t.amount for t in self.named(reference) if t.status is FAILED)
        if self.taken_for(told) is None:
            for each in self._covering(min(self.excess(), told.amount - recorded)):
                self._reverse(each, reference, code=told.error_code, message=told.error_message)

    def show_failed(self, reference: str, told: ProcessorRefund) -> bool:
        """Record a refund of theirs that nobody had heard of before it failed; whether that could be."""
        known = self.told_of(reference, told) or self.taken_for(told) or self.taken_for(told, failed=True)
        if known is None and 0 < told.amount <= self.capture.amount:
            refund = self._open_discovered(told.amount)
            self._reverse(refund, reference, code=told.error_code, message=told.error_message)
        return told.amount <= self.capture.amount

    def discover(self, amount: int, *, reference: str | None) -> bool:
        """Record a refund that did not start here; whether that could be."""
        made = sum(t.amount for t in self.standing if t.status is SUCCESS)
        if amount > self.capture.amount - made or amount <= 0:
            return False
        refund = self._open_discovered(amount)
        succeed_refund(self.order, refund.id, processor_transaction_id=reference, by=self.by)
        return True

    def _covering(self, amount: int) -> Iterator[Transaction]:
        """Sums to be taken back for this much; what they are more than that is discovered anew."""
        taken = 0
        for each in sorted(self.sums, key=lambda t: t.amount != amount):
            if taken < amount:
                taken += each.amount
                yield each
        if taken > amount > 0:
            self.discover(taken - amount, reference=None)

    def _reverse(
        self, refund: Transaction, reference: str | None, *, code: str | None, message: str | None
    ) -> None:
        reverse_refund(
            self.order,
            refund.id,
            processor_transaction_id=reference,
            error_code=code,
            error_message=message,
            by=self.by,
        )

    def _open_discovered(self, amount: int) -> Transaction:
        refund_id = str(uuid7())
        self.order.record(
            RefundDiscovered,
            by=self.by,
            status=self.order.status.value,
            refund_id=refund_id,
            capture_id=self.capture.id,
            attempt=self.capture.attempt,
            amount=amount,
            currency=self.order.currency,
            processor=self.payment.processor,
            reason=DISCOVERED_REASON,
        )
        return self.order.transactions[refund_id]
