"""True facts end alike in whatever order they arrive: a processor tells what became of charges by events, and workers
report it too, each at least once.

After every one of them the books are right as far as they go: a charge is counted once, and never given back unless
another one stays.
"""

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from ordering import AMOUNT, BY, new_order, pay
from processor_events import REASONABLE, after, came_back, refunded, refunds, summed, told

from payloops.commands.cancel_order import cancel
from payloops.commands.capture_payment import request_capture
from payloops.commands.payment_outcomes import (
    release_unwanted,
)
from payloops.commands.receive_processor_event import Outcome, ProcessorEvent, receive
from payloops.commands.refund_payment import request_refund
from payloops.commands.update_order_status import report_status
from payloops.commands.update_refund_status import report_refund
from payloops.events.orders import (
    NO_REASON,
    NO_REFERENCES,
    CaptureMethod,
    Order,
    References,
    TransactionStatus,
    TransactionType,
)
from payloops.workflows_client.payment_subscription import DuplicateUncertain, refuse_uncertain

HISTORIES: tuple[tuple[Outcome, ...], ...] = (
    ("failed",),
    ("captured",),
    ("requires_action", "captured"),
    ("failed", "captured"),
    ("authorized",),
    ("authorized", "captured"),
    ("authorized", "cancelled"),
    ("requires_action", "cancelled"),
)
"""What may become of a charge at its processor."""


@dataclass(frozen=True)
class Report:
    """What a payment's own workflow says, or that of its first capture or void, if it was asked for."""

    attempt: int
    status: Outcome
    references: References
    asked: TransactionType | None = None


Fact = ProcessorEvent | Report


def deliver(order: Order, fact: Fact) -> None:
    if isinstance(fact, ProcessorEvent):
        assert receive(order, fact, by=BY) != "contradiction"
        return
    payment, references = order.payments[fact.attempt], fact.references
    requested = order.requested_transaction(None if fact.asked is None else (fact.asked, 1))
    report_status(
        order,
        payment,
        "failed" if fact.status == "requires_action" else fact.status,  # the workflow has waited too long
        references=references,
        requested=requested,
        by_own_workflow=requested is None,
        by=BY,
    )
    release_unwanted(order, by=BY)


def paid_again(first: Iterable[Report], *, capture: CaptureMethod) -> Order:
    """An order each of whose attempts but the last was reported as failed."""
    order = pay(new_order(), capture=capture)
    for report in first:
        deliver(order, report)
        pay(order, capture=capture)
    return order


def total(order: Order, kind: TransactionType, *, of: int | None = None) -> int:
    """The sum of what was made or is pending."""
    return sum(
        t.amount
        for t in order.transactions.values()
        if t.type is kind and t.status is not TransactionStatus.FAILED and of in {None, t.attempt}
    )


def books(order: Order) -> Any:
    """What merchants and customers have of an order, and what is asked of processors for it."""
    return (
        order.status,
        order.amount_captured,
        order.amount_refunded,
        refunds(order),
        [
            (
                payment.attempt,
                payment.status,
                payment.processor_order_id,
                bool(order.pending(payment.attempt, TransactionType.VOID)),
            )
            for payment in order.payments.values()
            if not payment.is_over
        ],
    )


def some_twice(data: st.DataObject, facts: list[Any]) -> list[Any]:
    """All of them in any order, some more than once."""
    return data.draw(st.permutations([*facts, *data.draw(st.lists(st.sampled_from(facts), max_size=5))]))


@given(
    data=st.data(),
    histories=st.lists(st.sampled_from(HISTORIES), min_size=2, max_size=3),
    labelled=st.booleans(),
)
@REASONABLE
def test_several_attempts_end_alike(
    data: st.DataObject, histories: list[tuple[Outcome, ...]], labelled: bool
) -> None:
    """Each attempt is known by its reference, which its worker reported, or by the label of its events."""
    last = len(histories)
    known = {n: References(f"po_{n}", f"pt_{n}") for n in range(1, last + 1)}

    def reported(n: int, *, always: bool = False) -> References:
        partial = [known[n], References(known[n].order_id)]
        return data.draw(st.sampled_from(partial if always else [*partial, NO_REFERENCES]))

    capture: CaptureMethod = "manual" if any("authorized" in each for each in histories) else "automatic"
    first = [Report(n, "failed", reported(n, always=not labelled)) for n in range(1, last)]
    facts: list[Fact] = []
    for n, history in enumerate(histories, start=1):
        facts += [
            told(outcome, event_id=f"{outcome}_{n}", attempt=n if labelled else None, references=known[n])
            for outcome in history
        ]
        if n == last or data.draw(st.booleans()):
            facts.append(Report(n, history[-1], reported(n)))
    expected = paid_again(first, capture=capture)
    for fact in facts:
        deliver(expected, fact)
    charged = [n for n, history in enumerate(histories, start=1) if "captured" in history]
    assert expected.amount_captured == len(charged) * AMOUNT
    order = paid_again(first, capture=capture)
    for fact in some_twice(data, facts):
        deliver(order, fact)
        assert {total(order, TransactionType.CAPTURE, of=n) for n in charged} <= {0, AMOUNT}
        assert total(order, TransactionType.REFUND) == max(0, order.amount_captured - AMOUNT)
    assert books(order) == books(expected)


VOID, CAPTURE = TransactionType.VOID, TransactionType.CAPTURE


@pytest.mark.parametrize(
    ("asked", "event", "answer", "ends"),
    [
        (CAPTURE, "captured", "captured", "captured"),
        (CAPTURE, "captured", "failed", "captured"),  # the answer was lost
        (CAPTURE, None, "captured", "captured"),
        (CAPTURE, None, "failed", "authorized"),
        (CAPTURE, "cancelled", "failed", "failed"),  # the authorization has expired
        (VOID, "cancelled", "cancelled", "cancelled"),
        (VOID, "cancelled", "failed", "cancelled"),
        (VOID, None, "cancelled", "cancelled"),
        (VOID, None, "failed", "authorized"),
        (VOID, "captured", "failed", "captured"),  # too late
        (VOID, "captured", "cancelled", "captured"),
    ],
)
@pytest.mark.parametrize("references", [References("po_1", "pt_1"), NO_REFERENCES])
@pytest.mark.parametrize("told_first", [True, False])
def test_a_capture_and_a_void_end_alike(
    asked: TransactionType,
    event: Outcome | None,
    answer: Outcome,
    ends: str,
    references: References,
    told_first: bool,
) -> None:
    """Their workflows' answers come before or after what the processor tells, and each of these twice."""
    authorizations: list[Fact] = [told("authorized"), Report(1, "authorized", references)]
    first, second = authorizations if told_first else reversed(authorizations)
    amount = 400 if asked is CAPTURE else AMOUNT
    late: list[Fact] = [second, Report(1, answer, references, asked=asked)]
    if event is not None:
        late.append(told(event, amount=amount if event == "captured" else None))
    for facts in itertools.permutations(late):
        order = pay(new_order(), capture="manual")
        deliver(order, first)
        if asked is CAPTURE:
            request_capture(order, amount=amount, by=BY)
        else:
            cancel(order, by=BY)
        for fact in (*facts, *facts):
            deliver(order, fact)
        assert (order.status, order.amount_captured) == (ends, amount if ends == "captured" else 0)


@pytest.mark.parametrize("capture", ["automatic", "manual"])
@pytest.mark.parametrize("references", [References("po_1", "pt_1"), NO_REFERENCES])
def test_a_payment_that_its_workflow_says_was_cancelled_unasked_ends_alike(
    capture: CaptureMethod, references: References
) -> None:
    facts: list[Fact] = [told("cancelled"), told("failed"), Report(1, "cancelled", references)]
    if capture == "manual":
        facts.append(told("authorized"))
    for some in itertools.permutations(facts):
        order = pay(new_order(), capture=capture)
        for fact in (*some, *some):
            deliver(order, fact)
        assert (order.status, order.payments[1].status) == ("cancelled", "cancelled")


def test_a_payment_that_was_cancelled_unasked_ends_no_later_one() -> None:
    order = pay(after(told("cancelled")))
    deliver(order, Report(1, "cancelled", NO_REFERENCES))
    assert (order.status, order.payments[1].status) == ("processing", "failed")


def test_a_void_that_was_refused_is_not_meant_where_a_capture_was_requested_since_then() -> None:
    """An authorization that expires leaves the order to be paid again."""
    order = after(told("authorized"), capture="manual")
    cancel(order, by=BY)
    for kind in (VOID, CAPTURE):
        if kind is CAPTURE:
            request_capture(order, amount=None, by=BY)
        deliver(order, Report(1, "failed", NO_REFERENCES, asked=kind))
    deliver(order, told("cancelled"))
    assert order.status == "failed"


@given(
    data=st.data(),
    outcomes=st.sampled_from(
        [
            ("captured",),
            ("failed", "captured"),
            ("authorized",),
            ("failed", "authorized"),
            ("authorized", "captured"),
        ]
    ),
    named=st.booleans(),
)
@hypothesis_settings(REASONABLE, max_examples=600)  # fewer come upon no two charges
def test_the_only_charge_is_kept_though_attempts_share_its_payments_reference(
    data: st.DataObject, outcomes: tuple[Outcome, ...], named: bool
) -> None:
    """Workers may pay again under the same reference, and report the one charge for both attempts.

    Args:
        named: each report has the reference; otherwise some have none, or only one in place of the charge's.
    """
    charge = f"pt_{outcomes.count('failed')}"
    partial = [References("po", charge), References("po"), References("po", "po")]
    unnamed = [NO_REFERENCES, References(None, charge), References(None, "po")]
    references = st.sampled_from(partial if named else [*partial, *unnamed])
    capture: CaptureMethod = "manual" if "authorized" in outcomes else "automatic"
    order = paid_again([Report(1, "failed", data.draw(references))], capture=capture)
    facts: list[Fact] = [
        told(outcome, references=References("po", "pt_0" if outcome == "failed" else charge))
        for outcome in outcomes
    ]
    facts.append(Report(2, outcomes[-1], data.draw(references)))
    if data.draw(st.booleans()):
        facts.append(Report(1, outcomes[-1], data.draw(references)))
    for fact in some_twice(data, facts):
        deliver(order, fact)
        wanted = order.payments[2]
        if wanted.is_under_way and order.amount_captured == 0:
            assert total(order, TransactionType.VOID) == 0, "it would take the money"
        for payment in order.payments.values():
            if total(order, TransactionType.REFUND, of=payment.attempt) and payment.processor_order_id:
                with pytest.raises(DuplicateUncertain):
                    refuse_uncertain(order, payment)
    if named:
        assert order.status == outcomes[-1]
        assert order.amount_captured == (AMOUNT if "captured" in outcomes else 0)
        assert total(order, TransactionType.REFUND) == 0


@dataclass(frozen=True)
class Refund:
    """A refund at the processor. `fate`: whether it was made, and whether the bank returned it later.

    Attributes:
        ours: it was requested here, else in the processor's dashboard.
        labelled: the processor has our id.
        referenced: our worker reports its reference.
        lost: our worker did not hear of its success, and reports it as failed.
    """

    amount: int
    fate: str
    ours: bool
    labelled: bool
    referenced: bool
    lost: bool


REFUNDS = st.builds(
    Refund,
    amount=st.sampled_from([100, 200, 300]),
    fate=st.sampled_from(["made", "returned", "refused"]),
    ours=st.booleans(),
    labelled=st.booleans(),
    referenced=st.booleans(),
    lost=st.booleans(),
).filter(lambda refund: refund.ours or refund.fate != "refused")


@given(
    data=st.data(),
    made=st.lists(REFUNDS, min_size=1, max_size=3).filter(lambda made: sum(r.amount for r in made) <= AMOUNT),
    summing=st.booleans(),
)
@REASONABLE
def test_refunds_count_as_what_became_of_them(data: st.DataObject, made: list[Refund], summing: bool) -> None:
    """The sum that the processor tells besides is that of all that were made until then."""
    order = after(told("captured"))
    facts: list[ProcessorEvent | tuple[str, bool, str | None]] = []
    sent = 0
    for number, refund in enumerate(made):
        reference, label = f"re_{number}", None
        if refund.ours:
            id = request_refund(order, amount=refund.amount, reason=None, by=BY).id
            label = id if refund.labelled else None
            succeeded = refund.fate != "refused" and not refund.lost
            facts.append((id, succeeded, reference if refund.referenced else None))
            if refund.lost and refund.fate == "made":
                facts.append((id, True, None))  # it is asked again
        if refund.fate != "refused":
            sent += refund.amount
            facts.append(refunded(reference, refund.amount, refund_id=label))
            if summing:
                facts.append(summed(sent))
        if refund.fate != "made":
            facts.append(came_back(reference, refund.amount, refund_id=label))
    for fact in some_twice(data, facts):
        if isinstance(fact, ProcessorEvent):
            assert receive(order, fact, by=BY) != "contradiction"
        else:
            id, succeeded, known = fact
            report_refund(
                order, id, succeeded=succeeded, processor_transaction_id=known, failure=NO_REASON, by=BY
            )
        assert 0 <= order.amount_refunded <= sent
    kept = sum(refund.amount for refund in made if refund.fate == "made")
    assert (order.amount_refunded, total(order, TransactionType.REFUND)) == (kept, kept)
    assert order.refundable == AMOUNT - kept
