"""The checkout session's stream: what a customer is asked to pay, the order placed for it, and how the session ended.

The payment itself is recorded in the order's stream (`events/orders.py`). A session lives for half an hour; that it
has expired is recorded when somebody next looks at it, or by the periodic housekeeping.
"""

from datetime import datetime
from enum import StrEnum
from types import MappingProxyType
from typing import Any, TypedDict

from payloops.events.personal_data import ERASED, ERASED_OBJECT
from payloops.events.stream import PersonalStreamCreated, Stream, StreamEvent, stream_topic
from payloops.events.timestamps import parse_timestamp


class SessionStatus(StrEnum):
    PENDING = "pending"
    COMPLETED = "completed"
    EXPIRED = "expired"


class LineItem(TypedDict):
    """`amount`: price of one piece, in minor units."""

    name: str
    amount: int
    quantity: int


class CheckoutSessionCreated(PersonalStreamCreated):
    """The merchant sends a customer here to pay. `expires_at`: ISO 8601 in UTC."""

    TOPIC = "checkout_session.created"
    PERSONAL = MappingProxyType({"customer_email": ERASED, "metadata": ERASED_OBJECT, "line_items": []})
    amount: int
    currency: str
    success_url: str
    cancel_url: str
    metadata: dict[str, Any]
    line_items: list[LineItem]
    expires_at: str


class CheckoutOrderPlaced(StreamEvent):
    """The customer pays. Appended together with the order and its first payment, whose cause it is."""

    TOPIC = "checkout_session.order_placed"
    order_id: str

    def apply(self, session: "CheckoutSession") -> None:
        session.order_id = self.order_id


class CheckoutPaymentRetried(StreamEvent):
    """The customer pays again after a failed payment. Appended together with the next one.

    Attributes:
        attempt: number of that payment in the order.
    """

    TOPIC = "checkout_session.payment_retried"
    attempt: int


class CheckoutSessionCompleted(StreamEvent):
    """The order is captured or authorized."""

    TOPIC = "checkout_session.completed"

    def apply(self, session: "CheckoutSession") -> None:
        session.status = SessionStatus.COMPLETED
        session.completed_at = self.timestamp


class CheckoutSessionExpired(StreamEvent):
    """The session can no longer be paid. If a processor reports later that it has the money, it completes after all.

    Attributes:
        reason: `time`, `order_cancelled`, or `attempts` (the limit of payment attempts is reached).
    """

    TOPIC = "checkout_session.expired"
    reason: str

    def apply(self, session: "CheckoutSession") -> None:
        session.status = SessionStatus.EXPIRED
        session.expired_by = self.reason


@stream_topic("checkout_session")
class CheckoutSession(Stream):
    """A session, folded from its events. Attributes are named as in the HTTP contract, in snake case."""

    def __init__(
        self,
        *,
        merchant_id: str,
        amount: int,
        currency: str,
        success_url: str,
        cancel_url: str,
        customer_id: str | None,
        customer_email: str | None,
        metadata: dict[str, Any],
        line_items: list[LineItem],
        expires_at: str,
    ) -> None:
        self.merchant_id = merchant_id
        self.amount = amount
        self.currency = currency
        self.success_url = success_url
        self.cancel_url = cancel_url
        self.customer_id = customer_id
        self.customer_email = customer_email
        self.metadata = metadata
        self.line_items = line_items
        self.expires_at: datetime = parse_timestamp(expires_at)
        self.status = SessionStatus.PENDING
        self.order_id: str | None = None
        self.completed_at: datetime | None = None
        self.expired_by: str | None = None
