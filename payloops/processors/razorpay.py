"""Looks up payments at Razorpay, with its own blocking library in a thread. https://razorpay.com/docs/api/orders/."""

import asyncio
from typing import Any

import requests
from razorpay import Client  # type: ignore[import-untyped]
from razorpay import client as library
from razorpay.errors import BadRequestError, GatewayError, ServerError  # type: ignore[import-untyped]

from payloops.events.orders import Failure
from payloops.http.processor_payloads import member, text
from payloops.processors.port import (
    DEADLINE,
    PaymentQuestion,
    ProcessorPayment,
    ProcessorStatus,
    ProcessorUnreachable,
    ReferenceNeeded,
)

STATUSES: dict[str, ProcessorStatus] = {
    "created": "processing",
    "authorized": "authorized",
    "captured": "captured",
    "refunded": "captured",
    "failed": "failed",
}
RANK = {"failed": 0, "processing": 1, "authorized": 2, "captured": 3}
# It would print failures, which `payloops reconcile` reports by itself.
library.print = lambda *_: None
FAILURES = (BadRequestError, GatewayError, ServerError, requests.RequestException, ValueError)


class RazorpayProcessor:
    """A merchant's account at Razorpay."""

    def __init__(self, *, key_id: str, key_secret: str, base_url: str | None = None) -> None:
        """
        Args:
            base_url: of the API, if it is not Razorpay's own.
        """
        options = {} if base_url is None else {"base_url": base_url}
        self._client = Client(auth=(key_id, key_secret), **options)

    async def look_up(self, question: PaymentQuestion) -> ProcessorPayment | None:
        """See `Processor`. Requires Razorpay's reference of the payment, because Razorpay cannot search by notes."""
        if question.processor_order_id is None:
            raise ReferenceNeeded(processor="razorpay")
        try:
            async with asyncio.timeout(DEADLINE * 1.5):
                tries = await asyncio.to_thread(self._payments, question.processor_order_id)
        except TimeoutError:
            raise ProcessorUnreachable(processor="razorpay", reason="no answer in time") from None
        except FAILURES as error:
            if isinstance(error, BadRequestError) and "does not exist" in str(error):
                return None
            raise ProcessorUnreachable(processor="razorpay", reason=type(error).__name__) from error
        if not tries:
            return None
        # Customers may try several times to pay one Razorpay order: the attempt that got furthest counts.
        best = max(tries, key=lambda each: (RANK[_status(each)], each["created_at"]))
        return ProcessorPayment(
            status=_status(best),
            processor_order_id=question.processor_order_id,
            processor_transaction_id=best["id"],
            currency=best["currency"],
            amount_captured=best["amount"] if _status(best) == "captured" else 0,
            amount_refunded=best.get("amount_refunded") or 0,
            failure=Failure(best.get("error_code"), best.get("error_description")),
            order_id=text(member(best, "notes", "order_id")),
        )

    def _payments(self, reference: str) -> list[dict[str, Any]]:
        if reference.startswith("pay_"):
            return [self._client.payment.fetch(reference, timeout=DEADLINE)]
        payments: list[dict[str, Any]] = self._client.order.payments(reference, timeout=DEADLINE)["items"]
        return payments


def _status(payment: dict[str, Any]) -> ProcessorStatus:
    return STATUSES.get(payment["status"], "processing")
