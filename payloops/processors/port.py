"""The interface for asking a processor about payments. Amounts in minor units."""

from dataclasses import dataclass
from typing import Literal, Protocol

from payloops.commands.cards import holds_card_number
from payloops.events.orders import NO_REASON, Failure, References
from payloops.http.processor_payloads import amount, reference

ProcessorStatus = Literal["processing", "requires_action", "authorized", "captured", "failed", "cancelled"]

DEADLINE = 10.0
"""Seconds that a processor has for an answer."""


class ProcessorUnreachable(Exception):
    """The processor did not answer in time, or refused to."""

    def __init__(self, *, processor: str, reason: str) -> None:
        super().__init__(f"{processor} does not answer: {reason}")
        self.processor = processor


class ReferenceNeeded(ProcessorUnreachable):
    """The processor can be asked about a payment only by its own reference, which was never reported."""

    def __init__(self, *, processor: str) -> None:
        super().__init__(
            processor=processor,
            reason="it can be asked only by its reference of the payment, which was never reported: look it up in its"
            " dashboard, and say what is there: payloops resolve reference, or no-money",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PaymentQuestion:
    """A payment to ask about.

    Attributes:
        processor_order_id: None if the processor's reference was never reported.
        others: references of the order's other payments, which must not be taken for this one.
    """

    order_id: str
    attempt: int
    processor_order_id: str | None
    others: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessorPayment:
    """A payment as the processor has it.

    Attributes:
        processor_order_id, processor_transaction_id: None as well if they look like card numbers, which must not get
            into the log.
        order_id: ours, if the payment is labelled with one.
        attempt_known: False if it was found by the order's id alone: it may be any attempt of the order.
    """

    status: ProcessorStatus
    processor_order_id: str | None
    processor_transaction_id: str | None
    currency: str
    amount_captured: int
    amount_refunded: int
    failure: Failure = NO_REASON
    order_id: str | None = None
    attempt_known: bool = True

    def __post_init__(self) -> None:
        """
        Raises:
            ValueError: an amount or a reference is not as documented, and must not get into the log.
        """
        for name in References._fields:
            known = getattr(self, f"processor_{name}")
            if isinstance(known, str) and holds_card_number(known):
                object.__setattr__(self, f"processor_{name}", None)
        amounts = (self.amount_captured, self.amount_refunded)
        references = (self.processor_order_id, self.processor_transaction_id)
        if any(amount(each) != each for each in amounts) or any(reference(e) != e for e in references):
            raise ValueError("an amount or a reference that is none")


class Processor(Protocol):
    """A processor, with a merchant's credentials."""

    async def look_up(self, question: PaymentQuestion) -> ProcessorPayment | None:
        """The state of a payment; None if the processor does not know it. Its references are given if they are certain.

        Raises:
            ProcessorUnreachable, ReferenceNeeded.
        """
