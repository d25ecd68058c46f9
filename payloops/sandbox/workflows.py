"""A processor's workflows, simulated by the sandbox: payment, capture, void and refund.

They report only what the processor said. A decline is `failed`. If an outcome is unknown, the processor is asked for
it; while the processor cannot be reached, nothing is reported; finally the workflow fails, which operators see.

Workflow code must be deterministic: this module imports little, and reads no clock but the workflow's.
"""

from datetime import timedelta
from typing import Any, TypeVar

from temporalio import workflow
from temporalio.common import RetryPolicy
from temporalio.exceptions import ActivityError, ApplicationError

from payloops.sandbox.messages import (
    ActionRequest,
    ChargeAnswer,
    ChargeRequest,
    OperationAnswer,
    OperationInput,
    OperationRequest,
    PaymentCompletion,
    PaymentInput,
    RefundInput,
)

T = TypeVar("T")
BACKEND_QUEUE = "backend-operations"
ACTION_WAIT = timedelta(minutes=15)
SOON = RetryPolicy(initial_interval=timedelta(milliseconds=200), maximum_interval=timedelta(seconds=30))


@workflow.defn(name="PaymentWorkflow")
class PaymentWorkflow:
    """Charges an order once, and reports the outcome."""

    def __init__(self) -> None:
        self._cancelled = False
        self._completion: PaymentCompletion | None = None

    @workflow.signal(name="completePayment")
    def complete_payment(self, completion: PaymentCompletion) -> None:
        self._completion = self._completion or completion

    @workflow.signal(name="cancelPayment")
    def cancel_payment(self) -> None:
        self._cancelled = True

    @workflow.run
    async def run(self, payment: PaymentInput) -> str:
        """Returns the last reported status."""
        order_id = payment["orderId"]
        refusal = await self._configuration_refusal(payment)
        if refusal is not None:
            return await _report(order_id, "failed", errorCode=refusal[0], errorMessage=refusal[1])
        request = ChargeRequest(
            orderId=order_id,
            attempt=attempt_of(workflow.info().workflow_id, order_id=order_id),
            amount=payment["amount"],
            currency=payment["currency"],
            token=(payment.get("paymentMethod") or {}).get("token"),
            capture=payment.get("capture") or "automatic",
            merchantId=payment["merchantId"],
            returnUrl=payment.get("returnUrl"),
        )
        charge = await self._charge(request)
        if charge["status"] == "requires_action":
            await self._report_charge(order_id, charge)
            charge = await self._after_action(request)
        status = await self._report_charge(order_id, charge)
        if status == "authorized" and self._cancelled:
            status = await self._report_charge(order_id, await _cancel_charge(request))
        return status

    async def _configuration_refusal(self, payment: PaymentInput) -> tuple[str, str] | None:
        processor = workflow.info().task_queue.removesuffix("-payments")
        try:
            config = await workflow.execute_activity(
                "getProcessorConfig",
                {"merchantId": payment["merchantId"], "processor": processor},
                task_queue=BACKEND_QUEUE,
                start_to_close_timeout=timedelta(seconds=10),
                schedule_to_close_timeout=timedelta(minutes=15),
                retry_policy=SOON,
            )
        except ActivityError:  # nothing was charged yet, so this is a definite failure
            return "processor_config_unavailable", f"The configuration of {processor} could not be read."
        if config is None:
            return "no_processor", f"The merchant has no configuration for {processor}."
        return None

    async def _charge(self, request: ChargeRequest) -> ChargeAnswer:
        """Charge, unless the merchant cancels first.

        Raises:
            ActivityError: it is unknown whether it was charged.
        """
        if self._cancelled:
            return await _cancel_charge(request)
        charging = workflow.start_activity(
            "sandboxCharge",
            request,
            result_type=ChargeAnswer,
            start_to_close_timeout=timedelta(seconds=30),
            retry_policy=RetryPolicy(initial_interval=timedelta(milliseconds=500), maximum_attempts=5),
        )
        await workflow.wait_condition(lambda: charging.done() or self._cancelled)
        if not charging.done():
            return await _cancel_charge(request)
        try:
            charge: ChargeAnswer = await charging
        except ActivityError:
            # The answers were lost, but it may be charged. If the processor has no charge, it is cancelled in advance,
            # because a request may still be on its way.
            return await _find_charge(request) or await _cancel_charge(request)
        return charge

    async def _after_action(self, request: ChargeRequest) -> ChargeAnswer:
        """Wait until the customer has decided, the time is up, or the merchant cancels. Returns the charge then."""
        try:
            await workflow.wait_condition(
                lambda: self._completion is not None or self._cancelled, timeout=ACTION_WAIT
            )
        except TimeoutError:
            workflow.logger.info("payment.action_timed_out")
        if self._completion is None:
            return await _cancel_charge(request)
        decision = ActionRequest(
            orderId=request["orderId"],
            attempt=request["attempt"],
            success=self._completion["success"],
            processorTransactionId=self._completion.get("processorTransactionId"),
        )
        return await _ask("sandboxCompleteAction", decision, result_type=ChargeAnswer)

    async def _report_charge(self, order_id: str, charge: ChargeAnswer) -> str:
        ids = {"processorOrderId": charge["processorOrderId"]}
        ids |= {"processorTransactionId": charge["processorTransactionId"]}
        match charge["status"]:
            case "requires_action":
                secret, url = charge["clientSecret"], charge["redirectUrl"]
                return await _report(order_id, "requires_action", **ids, redirectUrl=url, clientSecret=secret)
            case "declined":
                code, message = charge["errorCode"], charge["errorMessage"]
                return await _report(order_id, "failed", **ids, errorCode=code, errorMessage=message)
            case "cancelled" if not self._cancelled:
                code, message = "payment_expired", "The payment was not completed in time, and was given up."
                return await _report(order_id, "failed", **ids, errorCode=code, errorMessage=message)
            case status:
                return await _report(order_id, status, **ids)


@workflow.defn(name="CaptureWorkflow")
class CaptureWorkflow:
    """Captures an authorized charge."""

    @workflow.run
    async def run(self, capture: OperationInput) -> str:
        answer = await _operate("sandboxCapture", capture, request_id=workflow.info().workflow_id)
        return await _report_operation(capture, answer, done="captured")


@workflow.defn(name="VoidWorkflow")
class VoidWorkflow:
    """Releases an authorized charge."""

    @workflow.run
    async def run(self, void: OperationInput) -> str:
        answer = await _operate("sandboxVoid", void, request_id=workflow.info().workflow_id)
        return await _report_operation(void, answer, done="cancelled")


@workflow.defn(name="RefundWorkflow")
class RefundWorkflow:
    """Refunds a captured charge."""

    @workflow.run
    async def run(self, refund: RefundInput) -> str:
        answer = await _operate("sandboxRefund", refund, request_id=refund["refundId"])
        status = "failed" if answer["errorCode"] else "success"
        await _backend(
            "updateRefundStatus",
            {
                "orderId": refund["orderId"],
                "refundId": refund["refundId"],
                "status": status,
                "processorTransactionId": answer["processorTransactionId"],
                "errorCode": answer["errorCode"],
                "errorMessage": answer["errorMessage"],
            },
        )
        return status


WORKFLOWS = (PaymentWorkflow, CaptureWorkflow, VoidWorkflow, RefundWorkflow)


def attempt_of(workflow_id: str, *, order_id: str) -> int:
    """The number of the attempt in a workflow id: 1 for `payment-{order}`, n for `payment-{order}-{n}`."""
    rest = workflow_id.removeprefix(f"payment-{order_id}")
    if rest == "":
        return 1
    if rest.startswith("-") and rest[1:].isdecimal():
        return int(rest[1:])
    raise ApplicationError(f"{workflow_id} is no payment of order {order_id}", non_retryable=True)


async def _find_charge(request: ChargeRequest) -> ChargeAnswer | None:
    # `result_type` is declared for classes, but works with unions.
    return await _ask("sandboxFindCharge", request, result_type=ChargeAnswer | None)  # type: ignore[arg-type]


async def _cancel_charge(request: ChargeRequest) -> ChargeAnswer:
    """Cancel the charge at the processor. If it is too late for that, the answer says so."""
    return await _ask("sandboxCancelCharge", request, result_type=ChargeAnswer)


async def _operate(
    activity_name: str, operation: OperationInput | RefundInput, *, request_id: str
) -> OperationAnswer:
    """Request an operation: repeating the same request id returns an answer that was lost."""
    request = OperationRequest(
        requestId=request_id,
        orderId=operation["orderId"],
        processorOrderId=operation["processorOrderId"],
        amount=operation["amount"],
        currency=operation["currency"],
    )
    return await _ask(activity_name, request, result_type=OperationAnswer)


async def _ask(activity_name: str, request: Any, *, result_type: type[T]) -> T:
    """Call the processor until it answers, for up to an hour."""
    answer: T = await workflow.execute_activity(
        activity_name,
        request,
        result_type=result_type,
        start_to_close_timeout=timedelta(seconds=30),
        schedule_to_close_timeout=timedelta(hours=1),
        retry_policy=SOON,
    )
    return answer


async def _report_operation(operation: OperationInput, answer: OperationAnswer, *, done: str) -> str:
    order_id, ids = operation["orderId"], {"processorOrderId": operation["processorOrderId"]}
    match answer["errorCode"]:
        case None if answer["processorTransactionId"] is not None:
            ids["processorTransactionId"] = answer["processorTransactionId"]
            return await _report(order_id, done, **ids)
        case "charge_already_captured":  # report the actual state, whatever was requested
            return await _report(order_id, "captured", **ids)
        case "charge_already_cancelled":
            return await _report(order_id, "cancelled", **ids)
        case code:
            return await _report(
                order_id, "failed", **ids, errorCode=code, errorMessage=answer["errorMessage"]
            )


async def _report(order_id: str, status: str, **details: str | None) -> str:
    await _backend("updateOrderStatus", {"orderId": order_id, "status": status, **details})
    return status


async def _backend(activity_name: str, report: dict[str, Any]) -> None:
    """Report to the backend, retrying for up to a day, because the outcome is known and must not be lost."""
    await workflow.execute_activity(
        activity_name,
        {name: value for name, value in report.items() if value is not None},
        task_queue=BACKEND_QUEUE,
        start_to_close_timeout=timedelta(seconds=10),
        schedule_to_close_timeout=timedelta(days=1),
        retry_policy=SOON,
    )
