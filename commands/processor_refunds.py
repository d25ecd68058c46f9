"""Refunds as the processor reports them by itself: one by one, by reference, or as the payment's refunded sum so far.

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

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from datetime import datetime

from uuid_utils.compat import uuid7

from payloops.commands.refund_outcomes import fail_refund, reverse_refund, succeed_refund
from payloops.commands.refusals import ContradictsRecord
from payloops.events.metadata import Metadata
from payloops.events.orders import (
    SAME_REFUND,
    Failure,
    Order,
    Payment,
    ProcessorRefund,
    RefundDiscovered,
    Transaction,
    TransactionStatus,
    TransactionType,
)

DISCOVERED_REASON = "refunded at the processor"
NOT_REFUNDED = Failure("not_refunded", "The processor's refunds do not include it")
"""The failure of a refund that a sum showed, and that the processor does not have when it is asked."""
SUCCESS, FAILED = TransactionStatus.SUCCESS, TransactionStatus.FAILED


def record_processor_refunds(
    order: Order, payment: Payment, *, amount_refunded: int | None, by: Metadata
) -> bool:
    """Record what the processor reported about a payment's refunds, as far as it is not on record yet.

    Records nothing before the capture is known; recording the capture calls this again.

    Args:
        amount_refunded: the processor's sum of all refunds of the payment, if it reports one.

    Returns:
        False if more would be refunded than was captured: that much was not recorded.
    """
    capture = capture_of(order, payment)
    if capture is None:
        return True
    refunds = _Refunds(order=order, payment=payment, capture=capture, by=by)
    for reference, report in refunds.reported_failures.items():
        refunds.fail_known(reference, report)
    fits = refunds.record_reported_successes()
    for reference, report in refunds.reported_failures.items():
        refunds.reverse_from_sums(reference, report)
        fits &= refunds.discover_failed(reference, report)
    if amount_refunded is not None:
        missing = amount_refunded - refunds.known_amount - refunds.discovered_amount
        fits &= missing <= 0 or refunds.discover(missing, reference=None)
    return fits


def complete_pending_refunds(
    order: Order, payment: Payment, *, amount_refunded: int, requested_before: datetime, by: Metadata
) -> None:
    """Record our pending refunds as made, if the processor's current refunded sum includes all of them.

    Args:
        requested_before: the result of a refund requested later may still be on its way: then none is recorded.
    """
    capture = capture_of(order, payment)
    if capture is None or amount_refunded > capture.amount:
        return
    refunds = _Refunds(order=order, payment=payment, capture=capture, by=by)
    pending = [t for t in refunds.active if t.status is TransactionStatus.PENDING]
    if (
        not refunds.reported_failures
        and sum(t.amount for t in refunds.active) == amount_refunded
        and all(t.created_at < requested_before for t in pending)
    ):
        for refund in pending:
            refunds.succeed(refund, None)


def reverse_refunds_beyond(order: Order, payment: Payment, *, amount_refunded: int, by: Metadata) -> None:
    """Reverse refunds that are on record by earlier sums alone, as far as the processor's current sum has less."""
    capture = capture_of(order, payment)
    if capture is None:
        return
    refunds = _Refunds(order=order, payment=payment, capture=capture, by=by)
    made = sum(t.amount for t in refunds.active if t.status is SUCCESS)
    for each in refunds.take_from_sums(made - amount_refunded):
        refunds.reverse(each, None, NOT_REFUNDED)


def complete_refund(
    order: Order, refund_id: str, *, processor_transaction_id: str | None, by: Metadata
) -> None:
    """Record that a refund of ours was made, even if it had been reported as failed before.

    Raises:
        ContradictsRecord: more would be refunded than was captured.
    """
    refund = order.transactions[refund_id]
    capture = order.transactions[refund.refunds or ""]
    refunds = _Refunds(order=order, payment=order.payments[refund.attempt], capture=capture, by=by)
    refunds.succeed(refund, processor_transaction_id)


def find_reported_failure(order: Order, refund_id: str, *, reference: str | None) -> ProcessorRefund | None:
    """The processor's report that a refund failed, found by our id or its reference; None if there is none."""
    return next(
        (
            report
            for name, report in order.processor_refunds.items()
            if report.failed and (report.refund_id == refund_id or name == reference)
        ),
        None,
    )


def may_be_made(order: Order, refund: Transaction, *, when_requested: Order) -> bool:
    """Whether the processor has reported a refund that may be this pending one of ours, though it does not name it.

    If the workflow of ours was not started yet, somebody made it in the dashboard, or another one beside it.

    Args:
        when_requested: the order when it was requested: what was reported before is about other refunds.
    """
    payment, capture = order.payments[refund.attempt], order.transactions[refund.refunds or ""]
    by = Metadata(at=refund.created_at, actor="system", correlation_id=refund.cause.correlation_id)
    refunds = _Refunds(order=order, payment=payment, capture=capture, by=by)  # to look only
    known = when_requested.payments[refund.attempt].processor_refunded
    return refunds.has_report_like(refund, besides=when_requested.processor_refunds.keys()) or (
        payment.processor_refunded > max(known, refunds.made_or_failed)
    )


def capture_of(order: Order, payment: Payment) -> Transaction | None:
    """The successful capture of a payment; None if nothing was captured."""
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
class _Refunds:
    """The refunds of one capture: those on record (transactions), and the processor's reports of them."""

    order: Order
    payment: Payment
    capture: Transaction
    by: Metadata

    # -- what is on record, and what is reported

    @property
    def recorded(self) -> list[Transaction]:
        return [t for t in self.order.transactions.values() if t.refunds == self.capture.id]

    @property
    def active(self) -> list[Transaction]:
        """Refunds that were made, or are pending."""
        return [t for t in self.recorded if t.status is not FAILED]

    @property
    def from_sums(self) -> list[Transaction]:
        """Discovered refunds that belong to no report by reference: they are the excess of a reported sum."""
        matches = [self.match(reference, report) for reference, report in self._reports()]
        ids = {refund.id for refund in matches if refund is not None}
        return [t for t in self.active if t.discovered and t.id not in ids]

    @property
    def discovered_amount(self) -> int:
        return sum(t.amount for t in self.active if t.discovered)

    @property
    def known_amount(self) -> int:
        """How much of a reported sum is accounted for by refunds of ours and by failed ones."""
        ours = sum(t.amount for t in self.active if not t.discovered)
        return ours + sum(report.amount for report in self.reported_failures.values())

    @property
    def reported_failures(self) -> dict[str, ProcessorRefund]:
        return {reference: report for reference, report in self._reports() if report.failed}

    def _reports(self) -> Iterator[tuple[str, ProcessorRefund]]:
        for reference, report in self.order.processor_refunds.items():
            if report.attempt == self.payment.attempt:
                yield reference, report

    def by_reference(self, reference: str | None) -> list[Transaction]:
        if reference is None:
            return []
        return [t for t in self.recorded if t.processor_transaction_id == reference]

    def match(self, reference: str, report: ProcessorRefund) -> Transaction | None:
        """The recorded refund that a report is about for certain: by our id, or by its reference.

        A refund that another report names by our id may have been presumed to be this report's before.
        """
        ours = [t for t in self.recorded if t.id == report.refund_id]
        others = [t for t in self.by_reference(reference) if not self.is_labelled(t, besides=reference)]
        return next(iter([*ours, *others]), None)

    def is_labelled(self, refund: Transaction, *, besides: str | None = None) -> bool:
        """Whether a report names a refund by our id; one with the reference `besides` does not count."""
        return any(r.refund_id == refund.id for reference, r in self._reports() if reference != besides)

    def is_nameless(self, refund: Transaction) -> bool:
        """Whether a refund's reference is not known: a worker may have reported that of the charge in its place."""
        reference = refund.processor_transaction_id
        return reference is None or self.payment.has_reference(reference)

    def presumed_ours(self, report: ProcessorRefund, *, failed: bool = False) -> Transaction | None:
        """A refund of ours, of the same amount and without a reference, that a report may be about.

        Args:
            failed: look among the failed ones instead of the active ones.
        """
        return next(
            (
                t
                for t in self.recorded
                if not t.discovered
                and self.is_nameless(t)
                and t.amount == report.amount
                and (t.status is FAILED) == failed
                and not self.is_labelled(t)
            ),
            None,
        )

    @property
    def made_or_failed(self) -> int:
        """How much of a reported sum is accounted for by refunds that have ended."""
        made = sum(t.amount for t in self.recorded if t.status is SUCCESS)
        return made + sum(report.amount for report in self.reported_failures.values())

    def may_be_release(self, amount: int) -> bool:
        """Whether a refund of theirs may be what a partial capture released, which earlier versions of Stripe's API
        report as one. Only a sum shows that it was made: in the sums of its events no release counts.
        """
        return self.payment.processor == "stripe" and amount == self.payment.amount - self.capture.amount

    def has_report_like(self, refund: Transaction, *, besides: Collection[str]) -> bool:
        """Whether a report of a success, but of these references, matches no refund on record, and may be this one."""
        return any(
            reference not in besides
            and report.amount == refund.amount
            and not report.failed
            and self.match(reference, report) is None
            for reference, report in self._reports()
        )

    def reported_successes(
        self, *, besides: Transaction | None = None
    ) -> tuple[list[tuple[str, Transaction, int]], list[tuple[str, int]]]:
        """Reports that a refund was made: those that match a recorded refund, and those of theirs not on record yet.

        Args:
            besides: a refund of ours that was made, but is not recorded as such yet.
        """
        matched, unmatched = [], []
        for reference, report in self._reports():
            refund = self.match(reference, report)
            if report.failed:
                continue
            if refund is not None:
                matched.append((reference, refund, report.amount))
            else:
                unmatched.append((reference, report.amount))
        ids = {refund.id for _, refund, _ in matched}
        ours = [
            t.amount
            for t in self.recorded
            if t.id not in ids
            and not t.discovered
            and self.is_nameless(t)
            and (t.status is not FAILED or t is besides)
        ]
        theirs = []
        for reference, amount in unmatched:
            if amount in ours:  # presumed to be about that refund of ours
                ours.remove(amount)
            else:
                theirs.append((reference, amount))
        return matched, theirs

    def discovered_excess(self, *, besides: Transaction | None = None) -> int:
        """By how much the discovered refunds exceed all that theirs can be, by any report.

        Args:
            besides: a refund that was made, but is not recorded as such yet: of ours, or of theirs that had been taken
                for one of ours.
        """
        matched, new = self.reported_successes(besides=besides)
        theirs = sum(amount for _, refund, amount in matched if refund.discovered)
        theirs += sum(amount for _, amount in new)
        discovered = self.discovered_amount + (besides.amount if besides and besides.discovered else 0)
        return discovered - max(theirs, self._theirs_by_sum(besides=besides))

    def _theirs_by_sum(self, *, besides: Transaction | None) -> int:
        ours = self.known_amount + (besides.amount if besides and not besides.discovered else 0)
        return self.payment.processor_refunded - ours

    # -- recording

    def record_reported_successes(self) -> bool:
        """Record refunds that were reported as made, by reference; False if not all of them fit."""
        fits = True
        matched, _ = self.reported_successes()
        for reference, refund, _ in matched:
            try:
                self.succeed(refund, reference)
            except ContradictsRecord:
                fits = False
        matched, new = self.reported_successes()
        # A refund that was discovered by a sum may be one of those reported by reference now.
        nameless = sum(t.amount for t in self.from_sums) - sum(
            amount - refund.amount for _, refund, amount in matched if refund.discovered
        )
        for reference, amount in new:
            part = min(amount, nameless)
            nameless -= part
            if amount > part and not self.may_be_release(amount):
                fits &= self.discover(amount - part, reference=reference)
        return fits

    def succeed(self, refund: Transaction, reference: str | None) -> None:
        """Record that a refund was made.

        If it had been reported as failed, it may have been discovered meanwhile. The discovered one is then reversed,
        so that the refund counts once.

        Raises:
            ContradictsRecord: more would be refunded than was captured.
        """
        if refund.status is FAILED:
            reference = reference or self._presumed_reference(refund)
            same = [t for t in self.by_reference(reference) if t.discovered and t.status is SUCCESS]
            left = refund.amount - sum(t.amount for t in same)
            excess = self.discovered_excess(besides=refund) - sum(t.amount for t in same)
            for each in [*same, *self.take_from_sums(min(left, excess))]:
                self.reverse(each, None, Failure(SAME_REFUND, f"It is refund {refund.id}"))
        succeed_refund(self.order, refund.id, processor_transaction_id=reference, by=self.by)

    def _presumed_reference(self, refund: Transaction) -> str | None:
        """The reference of a discovered refund that may be this one of ours, unless a sum shows both of them."""
        beyond_sum = self.discovered_amount - self._theirs_by_sum(besides=refund)
        if beyond_sum < refund.amount or self.is_labelled(refund):
            return None
        return next(
            (
                t.processor_transaction_id
                for t in self.active
                if t.discovered and t.processor_transaction_id is not None and t.amount == refund.amount
            ),
            None,
        )

    def fail_known(self, reference: str, report: ProcessorRefund) -> None:
        """Record that a refund on record failed, or was returned."""
        refund = self.match(reference, report) or self.presumed_ours(report)
        if refund is None:
            return
        if refund.status is SUCCESS:
            self.reverse(refund, reference, Failure.of(report))
        elif refund.id == report.refund_id:
            fail_refund(
                self.order,
                refund.id,
                processor_transaction_id=reference,
                failure=Failure.of(report),
                by=self.by,
            )

    def reverse_from_sums(self, reference: str, report: ProcessorRefund) -> None:
        """Record that a failed refund was part of a sum, if more was discovered than theirs can be."""
        recorded = sum(t.amount for t in self.by_reference(reference) if t.status is FAILED)
        if self.match(reference, report) or self.presumed_ours(report) is None:
            for each in self.take_from_sums(min(self.discovered_excess(), report.amount - recorded)):
                self.reverse(each, reference, Failure.of(report))

    def discover_failed(self, reference: str, report: ProcessorRefund) -> bool:
        """Record a refund of theirs that was not on record before it failed; False if it exceeds the capture."""
        known = (
            self.match(reference, report)
            or self.presumed_ours(report)
            or self.presumed_ours(report, failed=True)
        )
        if known is None and 0 < report.amount <= self.capture.amount:
            refund = self._open_discovered(report.amount)
            self.reverse(refund, reference, Failure.of(report))
        return report.amount <= self.capture.amount

    def discover(self, amount: int, *, reference: str | None) -> bool:
        """Record a refund of theirs as made; False if more would be refunded than was captured."""
        made = sum(t.amount for t in self.active if t.status is SUCCESS)
        if amount > self.capture.amount - made or amount <= 0:
            return False
        refund = self._open_discovered(amount)
        succeed_refund(self.order, refund.id, processor_transaction_id=reference, by=self.by)
        return True

    def take_from_sums(self, amount: int) -> Iterator[Transaction]:
        """Refunds discovered by sums, to be reversed for this amount; what they exceed it by is discovered anew."""
        taken = 0
        for each in sorted(self.from_sums, key=lambda t: t.amount != amount):
            if taken < amount:
                taken += each.amount
                yield each
        if taken > amount > 0:
            self.discover(taken - amount, reference=None)

    def reverse(self, refund: Transaction, reference: str | None, failure: Failure) -> None:
        reverse_refund(self.order, refund.id, processor_transaction_id=reference, failure=failure, by=self.by)

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
