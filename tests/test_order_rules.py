"""Any order of requests and reports keeps the money right: a state machine drives the order against a ledger."""

from folding import folded_from_stored
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from ordering import AMOUNT, BY, new_order, pay, report

from payloops.commands.cancel_order import cancel
from payloops.commands.capture_payment import request_capture
from payloops.commands.receive_processor_event import ProcessorEvent, receive
from payloops.commands.refund_payment import request_refund
from payloops.commands.refusals import (
    CaptureExceedsAuthorized,
    ContradictsRecord,
    InvalidStatus,
    RefundExceedsCaptured,
)
from payloops.commands.update_refund_status import report_refund
from payloops.events.orders import (
    CaptureMethod,
    Failure,
    OrderStatus,
    PaymentStatus,
    TransactionStatus,
    TransactionType,
)

HAS_MONEY = {OrderStatus.CAPTURED, OrderStatus.PARTIALLY_REFUNDED, OrderStatus.REFUNDED}
REPORTS = ("processing", "requires_action", "authorized", "captured", "failed", "cancelled")


class OrderMachine(RuleBasedStateMachine):
    """The model is what a bookkeeper would write: what was taken for each attempt, what was given back."""

    @initialize()
    def create(self) -> None:
        self.order = new_order()
        self.taken: dict[int, int] = {}
        self.wanted: dict[int, int] = {}
        self.given: dict[str, int] = {}
        self.asked: dict[str, int] = {}
        self.back: set[str] = set()
        self.late = 0
        self.seen_money = False

    @rule(capture=st.sampled_from(["automatic", "manual"]))
    def pay(self, capture: CaptureMethod) -> None:
        before = self.order.status
        try:
            pay(self.order, capture=capture)
        except InvalidStatus:
            assert before not in {OrderStatus.PENDING, OrderStatus.FAILED}
        else:
            assert before in {OrderStatus.PENDING, OrderStatus.FAILED}
            assert self.order.status is OrderStatus.PROCESSING
            assert not self.taken, "an order with money in it is never paid again"

    @precondition(lambda self: self.order.payments)
    @rule(data=st.data(), status=st.sampled_from(REPORTS), times=st.integers(1, 2))
    def report(self, data: st.DataObject, status: str, times: int) -> None:
        attempt = data.draw(st.sampled_from(sorted(self.order.payments)))
        payment = self.order.payments[attempt]
        if status == "captured" and attempt not in self.taken:
            self.taken[attempt] = self.wanted.get(attempt, AMOUNT)
        report(self.order, status, attempt=attempt)
        self.note_automatic_refunds()
        version = self.order.version
        for _ in range(times):
            if status == "authorized" or (status == "failed" and payment.status is PaymentStatus.AUTHORIZED):
                break  # these say something else the second time: see the tests of each
            report(self.order, status, attempt=attempt)
        assert self.order.version == version, "a repeated report changes nothing"

    def note_automatic_refunds(self) -> None:
        for transaction in self.order.transactions.values():
            if transaction.type is TransactionType.REFUND and transaction.id not in self.asked:
                assert transaction.reason == "duplicate payment"
                self.asked[transaction.id] = transaction.amount

    @rule(amount=st.none() | st.integers(1, AMOUNT + 200))
    def capture(self, amount: int | None) -> None:
        before = self.order.status
        try:
            request_capture(self.order, amount=amount, by=BY)
        except InvalidStatus:
            pass
        except CaptureExceedsAuthorized:
            assert amount is not None
            assert amount > AMOUNT
        else:
            assert before is OrderStatus.AUTHORIZED
            assert amount is None or amount <= AMOUNT
            self.wanted[self.order.attempt] = AMOUNT if amount is None else amount

    @precondition(lambda self: self.order.operations)
    @rule(data=st.data(), status=st.sampled_from(["captured", "failed"]))
    def report_an_operation(self, data: st.DataObject, status: str) -> None:
        """Of a capture or void, however long ago it was asked for: a refusal is of this one alone."""
        asked = self.order.requested_transaction(data.draw(st.sampled_from(sorted(self.order.operations))))
        assert asked is not None
        if status == "captured" and asked.attempt not in self.taken:
            captures = asked.type is TransactionType.CAPTURE
            self.taken[asked.attempt] = asked.amount if captures else self.wanted.get(asked.attempt, AMOUNT)
        before = {t.id: t.status for t in self.order.transactions.values()}
        for _ in range(2):
            version = self.order.version
            report(self.order, status, attempt=asked.attempt, asked=asked)
            self.note_automatic_refunds()
        assert self.order.version == version, "a repeated report changes nothing"
        changed = {t.id for t in self.order.transactions.values() if before.get(t.id) != t.status}
        assert status == "captured" or changed <= {asked.id}

    @rule()
    def cancel(self) -> None:
        try:
            cancel(self.order, by=BY)
        except InvalidStatus:
            assert self.order.status in HAS_MONEY | {OrderStatus.CANCELLED, OrderStatus.AUTHORIZED}

    @rule(amount=st.none() | st.integers(1, AMOUNT + 200))
    def refund(self, amount: int | None) -> None:
        try:
            refund = request_refund(self.order, amount=amount, reason=None, by=BY)
        except (InvalidStatus, RefundExceedsCaptured):
            failed = sum(
                amount
                for id, amount in self.asked.items()
                if self.order.transactions[id].status is TransactionStatus.FAILED
            )
            left = sum(self.taken.values()) - sum(self.asked.values()) + failed
            assert left <= 0 or amount is None or amount > left or len(self.taken) > 1
        else:
            self.asked[refund.id] = refund.amount

    @precondition(lambda self: self.asked)
    @rule(data=st.data(), succeeded=st.booleans())
    def report_refund(self, data: st.DataObject, succeeded: bool) -> None:
        refund_id = data.draw(st.sampled_from(sorted(self.asked)))
        for _ in range(2):
            try:
                if succeeded:
                    late = self.order.transactions[refund_id].status is TransactionStatus.FAILED
                report_refund(
                    self.order,
                    refund_id,
                    succeeded=succeeded,
                    processor_transaction_id=f"re_{refund_id}" if succeeded else None,
                    failure=Failure("no"),
                    by=BY,
                )
                if succeeded and refund_id not in self.back:
                    self.late += late * self.order.transactions[refund_id].amount
                    self.given[refund_id] = self.order.transactions[refund_id].amount
            except ContradictsRecord:
                amount = self.order.transactions[refund_id].amount
                assert sum(self.given.values()) + amount > sum(self.taken.values())

    @precondition(lambda self: self.asked)
    @rule(data=st.data(), labelled=st.booleans())
    def tell_that_a_refund_came_back(self, data: st.DataObject, labelled: bool) -> None:
        """By the processor itself, and twice: it failed for good, whatever a workflow reports."""
        refund = self.order.transactions[data.draw(st.sampled_from(sorted(self.asked)))]
        if not labelled and refund.processor_transaction_id is None:
            return
        for number in range(2):
            event = ProcessorEvent(
                processor="stripe",
                event_id=f"{refund.id}-{number}",
                type="refund.updated",
                attempt=refund.attempt,
                outcome="refund_failed",
                amount=refund.amount,
                refund_reference=f"re_{refund.id}",
                refund_id=refund.id if labelled else None,
            )
            receive(self.order, event, by=BY)
        assert self.order.transactions[refund.id].status is TransactionStatus.FAILED
        self.given.pop(refund.id, None)
        self.back.add(refund.id)

    @invariant()
    def the_books_agree(self) -> None:
        if not hasattr(self, "order"):
            return
        order = self.order
        assert order.amount_captured == sum(self.taken.values())
        assert order.amount_refunded == sum(self.given.values())
        assert 0 <= order.amount_refunded <= order.amount_captured <= AMOUNT * order.attempt
        unfailed = sum(
            t.amount
            for t in order.transactions.values()
            if t.type is TransactionType.REFUND and t.status is not TransactionStatus.FAILED
        )
        # A refund that was reported failed, and made after all, may have been asked for again meanwhile.
        assert unfailed <= order.amount_captured + self.late, "pending refunds never exceed what was captured"

    @invariant()
    def money_never_goes_back_by_itself(self) -> None:
        if not hasattr(self, "order"):
            return
        self.seen_money = self.seen_money or bool(self.taken)
        assert (self.order.status in HAS_MONEY) == self.seen_money
        if self.order.status is OrderStatus.REFUNDED:
            assert self.order.amount_refunded == self.order.amount_captured

    @invariant()
    def what_is_over_has_nothing_pending(self) -> None:
        if not hasattr(self, "order"):
            return
        for payment in self.order.payments.values():
            if payment.status in {PaymentStatus.FAILED, PaymentStatus.CANCELLED, PaymentStatus.CAPTURED}:
                assert not self.order.pending(
                    payment.attempt,
                    TransactionType.AUTHORIZATION,
                    TransactionType.CAPTURE,
                    TransactionType.VOID,
                )

    def teardown(self) -> None:
        """The stored events fold to the order that recorded them."""
        if not hasattr(self, "order"):
            return
        folded = folded_from_stored(self.order.pending_events)
        folded.pending_events.extend(self.order.pending_events)
        assert folded == self.order


OrderMachine.TestCase.settings = hypothesis_settings(max_examples=120, stateful_step_count=40, deadline=None)
TestAnyOrderOfRequestsAndReports = OrderMachine.TestCase
