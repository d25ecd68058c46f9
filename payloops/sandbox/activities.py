"""The activities of the sandbox's workflows: calls of the ledger, with Temporal's retries.

A decline or refusal is returned as a result. An error means that the outcome is unknown: Temporal retries with the same
idempotency key.
"""

import asyncio
from collections.abc import Callable
from typing import Any

from temporalio import activity
from temporalio.exceptions import ApplicationError, ApplicationErrorCategory

from payloops.events.crash_points import crash_point
from payloops.sandbox import ledger
from payloops.sandbox.messages import (
    ActionRequest,
    ChargeAnswer,
    ChargeRequest,
    OperationAnswer,
    OperationRequest,
)

SLOW_SECONDS = 5.0


class SandboxActivities:
    """The activities of one processor's queue."""

    def __init__(
        self,
        *,
        pool: ledger.Pool,
        processor: str,
        bank_url: str | None = None,
        slow_seconds: float = SLOW_SECONDS,
    ) -> None:
        """
        Args:
            bank_url: where customers approve payments (`bank.py`); None if no bank is served.
        """
        self._pool = pool
        self._processor = processor
        self._bank_url = bank_url
        self._slow_seconds = slow_seconds

    def all(self) -> list[Callable[..., Any]]:
        charges = [self.charge, self.find_charge, self.cancel_charge, self.complete_action]
        return [*charges, self.capture, self.void, self.refund]

    @activity.defn(name="sandboxCharge")
    async def charge(self, request: ChargeRequest) -> ChargeAnswer:
        token = request["token"]
        if token == "tok_slow":  # noqa: S105  (a role, no secret)
            await asyncio.sleep(self._slow_seconds)
        try:
            charge, made = await ledger.charge(
                self._pool,
                order_id=request["orderId"],
                attempt=request["attempt"],
                processor=self._processor,
                amount=request["amount"],
                currency=request["currency"],
                token=token,
                manual_capture=request["capture"] == "manual",
                merchant_id=request.get("merchantId"),
                return_url=request.get("returnUrl"),
                bank_url=self._bank_url,
            )
        except ledger.IdempotencyKeyReused as error:
            raise ApplicationError(str(error), type="IdempotencyMismatch", non_retryable=True) from error
        crash_point("sandbox.charged")
        if made and token == "tok_lost":  # noqa: S105
            # Simulates a broken connection; benign, because it is intended.
            raise ApplicationError(
                f"The answer to charge {charge.processor_order_id} was lost",
                type="AnswerLost",
                category=ApplicationErrorCategory.BENIGN,
            )
        return _charge_answer(charge)

    @activity.defn(name="sandboxCancelCharge")
    async def cancel_charge(self, request: ChargeRequest) -> ChargeAnswer:
        charge = await ledger.cancel_charge(
            self._pool,
            order_id=request["orderId"],
            attempt=request["attempt"],
            processor=self._processor,
            amount=request["amount"],
            currency=request["currency"],
        )
        return _charge_answer(charge)

    @activity.defn(name="sandboxFindCharge")
    async def find_charge(self, request: ChargeRequest) -> ChargeAnswer | None:
        charge = await ledger.find_charge(self._pool, order_id=request["orderId"], attempt=request["attempt"])
        return _charge_answer(charge) if charge else None

    @activity.defn(name="sandboxCompleteAction")
    async def complete_action(self, request: ActionRequest) -> ChargeAnswer:
        charge = await ledger.complete_action(
            self._pool,
            order_id=request["orderId"],
            attempt=request["attempt"],
            success=request["success"],
            processor_transaction_id=request["processorTransactionId"],
        )
        return _charge_answer(charge)

    @activity.defn(name="sandboxCapture")
    async def capture(self, request: OperationRequest) -> OperationAnswer:
        return await self._operate("capture", request)

    @activity.defn(name="sandboxVoid")
    async def void(self, request: OperationRequest) -> OperationAnswer:
        return await self._operate("void", request)

    @activity.defn(name="sandboxRefund")
    async def refund(self, request: OperationRequest) -> OperationAnswer:
        return await self._operate("refund", request)

    async def _operate(self, kind: ledger.OperationKind, request: OperationRequest) -> OperationAnswer:
        try:
            operation = await ledger.operate(
                self._pool,
                kind=kind,
                request_id=request["requestId"],
                order_id=request["orderId"],
                processor_order_id=request["processorOrderId"],
                amount=request["amount"],
                currency=request["currency"],
            )
        except ledger.NoSuchCharge as error:
            return OperationAnswer(
                processorTransactionId=None, errorCode="no_such_charge", errorMessage=str(error)
            )
        except ledger.IdempotencyKeyReused as error:
            raise ApplicationError(str(error), type="IdempotencyMismatch", non_retryable=True) from error
        crash_point("sandbox.operated")
        return OperationAnswer(
            processorTransactionId=operation.processor_transaction_id,
            errorCode=operation.error_code,
            errorMessage=operation.error_message,
        )


def _charge_answer(charge: ledger.Charge) -> ChargeAnswer:
    return ChargeAnswer(
        status=charge.status,
        processorOrderId=charge.processor_order_id,
        processorTransactionId=charge.processor_transaction_id,
        redirectUrl=charge.redirect_url,
        clientSecret=charge.client_secret,
        errorCode=charge.error_code,
        errorMessage=charge.error_message,
    )
