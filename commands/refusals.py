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
    """None of the merchant's processors takes what the customer wants to pay by."""

    def __init__(self, session_id: UUID, method: str) -> None:
        super().__init__(f"This cannot be paid by {method} in that way")
        self.session_id = session_id
        self.method = method


class InvalidStatus(Exception):
    """The order is not in a state that allows it."""

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
    """The processor asked for is not configured, or is disabled."""

    def __init__(self, merchant_id: UUID, processor: str) -> None:
        super().__init__(f"Processor {processor} is not configured and enabled")
        self.merchant_id = merchant_id
        self.processor = processor


class CaptureExceedsAuthorized(Exception):
    """More was to be captured than was authorized."""

    def __init__(self, order_id: UUID, amount: int, authorized: int) -> None:
        super().__init__(f"Capture of {amount} exceeds the authorized {authorized}")
        self.order_id = order_id
        self.amount = amount
        self.authorized = authorized


class RefundExceedsCaptured(Exception):
    """More was to be refunded than is left of what was captured, pending refunds counted."""

    def __init__(self, order_id: UUID, amount: int | None, refundable: int) -> None:
        asked = "everything is refunded already" if amount is None else f"{amount} was asked"
        super().__init__(f"Refund exceeds what was captured: {refundable} can be refunded, {asked}")
        self.order_id = order_id
        self.amount = amount
        self.refundable = refundable


class UnknownRefund(Exception):
    """A processor speaks of a refund that the order does not have."""

    def __init__(self, order_id: UUID, refund_id: str) -> None:
        super().__init__(f"order {order_id} has no refund {refund_id}")


class UnknownAttempt(Exception):
    """A processor speaks of a payment that the order does not have."""

    def __init__(self, order_id: UUID, attempt: int) -> None:
        super().__init__(f"order {order_id} has no payment attempt {attempt}")


class OrderMovedOn(Exception):
    """What was found out about a payment may be older than what its order was told since; nothing was recorded."""

    def __init__(self, order_id: UUID) -> None:
        super().__init__(f"order {order_id} changed while its processor was asked")


class ContradictsRecord(Exception):
    """A processor reports what cannot be true beside what it reported before; nothing was recorded, look at it."""
