"""Ids of an order's workflows, as the Temporal contract defines them: derived from the order's id, so that starting a
workflow twice has no effect.
"""

from payloops.events.orders import (
    PaymentCaptureRequested,
    PaymentRequested,
    PaymentVoidRequested,
    RefundRequested,
    TransactionType,
)
from payloops.events.stream import StreamEvent


def payment_workflow_id(*, order_id: str, attempt: int) -> str:
    """`payment-{order}`; from the second attempt on with its number as a suffix."""
    return numbered(f"payment-{order_id}", attempt)


def attempt_of(workflow_id: str, *, order_id: str) -> int | None:
    """The attempt whose payment workflow this is; None if it is another kind of workflow."""
    return number_of(workflow_id, first=payment_workflow_id(order_id=order_id, attempt=1))


def operation_of(workflow_id: str, *, order_id: str) -> tuple[TransactionType, int] | None:
    """The capture or void that this workflow makes, as a key of `Order.operations`; None if it makes neither."""
    firsts = {
        TransactionType.CAPTURE: capture_workflow_id(order_id=order_id, sequence=1),
        TransactionType.VOID: void_workflow_id(order_id=order_id, sequence=1),
    }
    for kind, first in firsts.items():
        sequence = number_of(workflow_id, first=first)
        if sequence is not None:
            return kind, sequence
    return None


def capture_workflow_id(*, order_id: str, sequence: int) -> str:
    """`capture-{order}`; from the order's second capture request on with its number as a suffix."""
    return numbered(f"capture-{order_id}", sequence)


def void_workflow_id(*, order_id: str, sequence: int) -> str:
    """`void-{order}`, numbered the same way."""
    return numbered(f"void-{order_id}", sequence)


def refund_workflow_id(*, refund_id: str) -> str:
    return f"refund-{refund_id}"


def started_workflow_id(fact: StreamEvent) -> str | None:
    """The id of the workflow that a fact of an order starts; None if it starts none."""
    order_id = str(fact.originator_id)
    match fact:
        case PaymentRequested():
            return payment_workflow_id(order_id=order_id, attempt=fact.attempt)
        case PaymentCaptureRequested():
            return capture_workflow_id(order_id=order_id, sequence=fact.sequence)
        case PaymentVoidRequested():
            return void_workflow_id(order_id=order_id, sequence=fact.sequence)
        case RefundRequested():
            return refund_workflow_id(refund_id=fact.refund_id)
        case _:
            return None


def numbered(workflow_id: str, number: int) -> str:
    """The id of the n-th workflow of its kind: the first has none, later ones `-{n}`."""
    return workflow_id if number == 1 else f"{workflow_id}-{number}"


def number_of(workflow_id: str, *, first: str, unnumbered: int = 1) -> int | None:
    """The number of a workflow among those of its kind; None if it is of another kind.

    Args:
        first: the id of the first of its kind, which has no suffix.
        unnumbered: the number of that one.
    """
    if workflow_id == first:
        return unnumbered
    number = workflow_id.removeprefix(f"{first}-")
    return int(number) if number != workflow_id and number.isdecimal() else None
