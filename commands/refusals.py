"""The reasons for which commands refuse, one exception class per rule. When one is raised, nothing was appended."""

from uuid import UUID


class OrderNotFound(Exception):
    """No such order, or it is another merchant's: the two are never told apart."""

    def __init__(self, order_id: UUID) -> None:
        super().__init__(f"no order {order_id}")
        self.order_id = order_id


class CheckoutSessionNotFound(Exception):
    """No such checkout session, or it is another merchant's: the two are never told apart."""

    def __init__(self, session_id: UUID) -> None:
        super().__init__(f"no checkout session {session_id}")
        self.session_id = session_id


class WayToPayNotOffered(Exception):
    """None of the merchant's processors supports the payment method that the customer chose."""

    def __init__(self, session_id: UUID, method: str) -> None:
        super().__init__(f"This cannot be paid by {method} in that way")
        self.session_id = session_id
        self.method = method


class InvalidStatus(Exception):
    """The order's status does not allow the operation."""

    def __init__(self, order_id: UUID, status: str, message: str) -> None:
        super().__init__(message)
        self.order_id = order_id
        self.status = status


class NoProcessor(Exception):
    """The merchant has no enabled processor."""

    def __init__(self, merchant_id: UUID) -> None:
        super().__init__("No payment processor is configured: configure and enable one first")
        self.merchant_id = merchant_id


class InvalidProcessor(Exception):
    """The requested processor is not configured, or is disabled."""

    def __init__(self, merchant_id: UUID, processor: str) -> None:
        super().__init__(f"Processor {processor} is not configured and enabled")
        self.merchant_id = merchant_id
        self.processor = processor


class CaptureExceedsAuthorized(Exception):
    """A capture was requested of more than was authorized."""

    def __init__(self, order_id: UUID, amount: int, authorized: int) -> None:
        super().__init__(f"Capture of {amount} exceeds the authorized {authorized}")
        self.order_id = order_id
        self.amount = amount
        self.authorized = authorized


class RefundExceedsCaptured(Exception):
    """A refund was requested of more than is left of what was captured; pending refunds count as made."""

    def __init__(self, order_id: UUID, amount: int | None, refundable: int) -> None:
        asked = "everything is refunded, or being refunded" if amount is None else f"{amount} was asked"
        super().__init__(f"Refund exceeds what was captured: {refundable} can be refunded, {asked}")
        self.order_id = order_id
        self.amount = amount
        self.refundable = refundable


class UnknownRefund(Exception):
    """A report about a refund that the order does not have."""

    def __init__(self, order_id: UUID, refund_id: str) -> None:
        super().__init__(f"order {order_id} has no refund {refund_id}")


class UnknownAttempt(Exception):
    """A report about a payment that the order does not have."""

    def __init__(self, order_id: UUID, attempt: int) -> None:
        super().__init__(f"order {order_id} has no payment attempt {attempt}")


class TooManyProcessorEvents(Exception):
    """The order has had so many events of its processors that no more are recorded: `payloops reconcile` asks them."""

    def __init__(self, order_id: UUID) -> None:
        super().__init__("Order has more processor events than any payment causes; no more are recorded")
        self.order_id = order_id


class OrderMovedOn(Exception):
    """The order changed while its processor was asked, so the answer may be outdated; nothing was recorded."""

    def __init__(self, order_id: UUID) -> None:
        super().__init__(f"order {order_id} changed while its processor was asked")


class ContradictsRecord(Exception):
    """A report contradicts what is on record; nothing was recorded, and somebody has to look at it."""


class NotResolvable(Exception):
    """What somebody saw in the processor's dashboard cannot be, or would change nothing; the message says why."""
