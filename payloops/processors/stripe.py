"""Looks up payments at Stripe, with its own library: https://docs.stripe.com/api/payment_intents."""

from dataclasses import replace
from typing import Any

from stripe import AIOHTTPClient, InvalidRequestError, StripeClient, StripeError, api_version

from payloops.events.orders import Failure
from payloops.http.processor_payloads import member, text
from payloops.http.stripe_events import refunded_sum
from payloops.processors.port import (
    DEADLINE,
    PaymentQuestion,
    ProcessorPayment,
    ProcessorStatus,
    ProcessorUnreachable,
)

STATUSES: dict[str, ProcessorStatus] = {
    "requires_confirmation": "processing",
    "requires_payment_method": "processing",
    "requires_action": "requires_action",
    "processing": "processing",
    "requires_capture": "authorized",
    "succeeded": "captured",
    "canceled": "cancelled",
}
RANK = {"requires_capture": 1, "succeeded": 2}
"""Statuses of intents that hold money."""
EXPANDED = ["latest_charge"]
MAX_FOUND = 100
"""Intents of one order; Stripe's maximum for a page of search results (the default is 10)."""


class StripeProcessor:
    """A merchant's account at Stripe. Close it after use."""

    def __init__(self, *, secret_key: str, base_url: str | None = None) -> None:
        """
        Args:
            base_url: of the API, if it is not Stripe's own.
        """
        self._http = AIOHTTPClient(timeout=DEADLINE)
        self._client = StripeClient(
            secret_key,
            http_client=self._http,
            base_addresses={"api": base_url} if base_url is not None else {},
            max_network_retries=1,
        )

    async def close(self) -> None:
        await self._http.close_async()  # type: ignore[no-untyped-call]

    async def look_up(self, question: PaymentQuestion) -> ProcessorPayment | None:
        try:
            intents = await self._intents(question)
        except InvalidRequestError as error:
            if error.code == "resource_missing":
                return None
            raise _unreachable(error) from error
        except StripeError as error:
            raise _unreachable(error) from error
        label = str(question.attempt)
        labelled = [i for i in intents if (i.get("metadata") or {}).get("attempt", label) == label]
        # There may be several intents for a payment: the one that holds money counts.
        best = max(labelled, key=lambda i: (RANK.get(i["status"], 0), i["created"]), default=None)
        if best is None:
            return None
        certain = sum(i["status"] in RANK for i in labelled) <= 1
        return replace(
            _payment(best),
            processor_order_id=best["id"] if certain else None,
            attempt_known=question.processor_order_id is not None
            or "attempt" in (best.get("metadata") or {}),
        )

    async def _intents(self, question: PaymentQuestion) -> list[dict[str, Any]]:
        intents = self._client.v1.payment_intents
        if question.processor_order_id is not None:
            known = await intents.retrieve_async(question.processor_order_id, {"expand": EXPANDED})
            return [known.to_dict()]
        found = await intents.search_async(
            {
                "query": f"metadata['order_id']:'{question.order_id}'",
                "limit": MAX_FOUND,
                "expand": [f"data.{name}" for name in EXPANDED],
            }
        )
        return [each.to_dict() for each in found.data if each.id not in question.others]


def _payment(intent: dict[str, Any]) -> ProcessorPayment:
    charge = intent.get("latest_charge")
    if not isinstance(charge, dict):
        charge = {"id": charge}
    error = intent.get("last_payment_error")
    status = STATUSES.get(intent["status"], "processing")
    if intent["status"] == "requires_payment_method" and error is not None:
        status = "failed"
    return ProcessorPayment(
        status=status,
        processor_order_id=intent["id"],
        processor_transaction_id=charge["id"],
        currency=intent["currency"].upper(),
        amount_captured=intent["amount_received"] if status == "captured" else 0,
        amount_refunded=refunded_sum(charge, version=api_version) or 0,
        failure=Failure((error or {}).get("code"), (error or {}).get("message")),
        order_id=text(member(intent, "metadata", "order_id")),
    )


def _unreachable(error: StripeError) -> ProcessorUnreachable:
    return ProcessorUnreachable(processor="stripe", reason=type(error).__name__)
