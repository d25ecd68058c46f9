"""What processors tell of an order by webhook, as the command gets it."""

from typing import Any

from hypothesis import settings as hypothesis_settings
from ordering import AMOUNT, BY, new_order, pay

from payloops.commands.receive_processor_event import Outcome, ProcessorEvent, receive
from payloops.events.orders import CaptureMethod, Failure, Order, References, TransactionType

REASONABLE = hypothesis_settings(max_examples=300, deadline=None)


def told(outcome: Outcome, **fields: Any) -> ProcessorEvent:
    """An event of the first attempt."""
    known: dict[str, Any] = {
        "processor": "stripe",
        "event_id": f"evt_{outcome}",
        "type": outcome,
        "references": References("po_1", "pt_1"),
        "currency": "usd",
        "amount": AMOUNT if outcome == "captured" else None,
    }
    return ProcessorEvent(outcome=outcome, **(known | fields))


def refunded(reference: str, amount: int, **fields: Any) -> ProcessorEvent:
    """A refund was made."""
    return told("refunded", event_id=f"evt_{reference}", refund_reference=reference, amount=amount, **fields)


def summed(total: int) -> ProcessorEvent:
    """This much was refunded so far."""
    return told("refunded", event_id=f"evt_sum_{total}", amount_refunded=total)


def came_back(reference: str, amount: int, **fields: Any) -> ProcessorEvent:
    """A refund was returned by the bank."""
    known = {"refund_reference": reference, "amount": amount, "failure": Failure("expired_or_canceled_card")}
    return told("refund_failed", event_id=f"evt_failed_{reference}", **(known | fields))


def after(*events: ProcessorEvent, capture: CaptureMethod = "automatic") -> Order:
    """An order that was asked to be paid, after these."""
    order = pay(new_order(), capture=capture)
    for event in events:
        receive(order, event, by=BY)
    return order


def refunds(order: Order) -> list[tuple[int, str]]:
    """Amount and status of each."""
    return sorted(
        (t.amount, t.status.value) for t in order.transactions.values() if t.type is TransactionType.REFUND
    )
