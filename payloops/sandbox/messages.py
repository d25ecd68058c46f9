"""Messages of the processors' task queues: plain JSON in camelCase, with the names that the other workers use.

Only the standard library is imported here: the workflow sandbox imports this module again for each workflow.
"""

from typing import Literal, NotRequired, TypedDict

ChargeStatus = Literal["requires_action", "authorized", "captured", "declined", "cancelled"]


class PaymentMethod(TypedDict):
    type: NotRequired[str]
    token: NotRequired[str | None]


class PaymentInput(TypedDict):
    """Input of PaymentWorkflow. Amounts everywhere are in minor units."""

    orderId: str
    merchantId: str
    amount: int
    currency: str
    returnUrl: NotRequired[str | None]
    paymentMethod: NotRequired[PaymentMethod | None]
    capture: NotRequired[str | None]


class OperationInput(TypedDict):
    """Input of CaptureWorkflow and VoidWorkflow."""

    orderId: str
    merchantId: str
    processorOrderId: str
    amount: int
    currency: str


class RefundInput(TypedDict):
    """Input of RefundWorkflow."""

    refundId: str
    orderId: str
    merchantId: str
    transactionId: str
    processorOrderId: str
    amount: int
    currency: str
    reason: NotRequired[str | None]


class PaymentCompletion(TypedDict):
    """Argument of the signal `completePayment`."""

    success: bool
    processorTransactionId: NotRequired[str | None]


class ChargeRequest(TypedDict):
    """A payment attempt. The idempotency key is the order with the attempt."""

    merchantId: NotRequired[str]
    returnUrl: NotRequired[str | None]

    orderId: str
    attempt: int
    amount: int
    currency: str
    token: str | None
    capture: str


class ActionRequest(TypedDict):
    """The customer's decision about a charge that requires approval."""

    orderId: str
    attempt: int
    success: bool
    processorTransactionId: str | None


class OperationRequest(TypedDict):
    """A capture, void or refund of a charge. The idempotency key is the request id."""

    requestId: str
    orderId: str
    processorOrderId: str
    amount: int
    currency: str


class ChargeAnswer(TypedDict):
    """A charge in its current state."""

    status: ChargeStatus
    processorOrderId: str
    processorTransactionId: str
    redirectUrl: str | None
    clientSecret: str | None
    errorCode: str | None
    errorMessage: str | None


class OperationAnswer(TypedDict):
    """The result of a capture, void or refund: accepted if there is no error code."""

    processorTransactionId: str | None
    errorCode: str | None
    errorMessage: str | None
