"""`WebhookDeliveryWorkflow`: sends a webhook, and retries it for as long as its schedule lasts.

An attempt is first made as a local activity, in the worker that runs the workflow. Most succeed at once, and then the
whole workflow is a single task for Temporal; scheduling an activity would cost Temporal more than sending costs the
worker.
"""

from datetime import timedelta
from typing import Any, cast

from temporalio import workflow
from temporalio.common import RetryPolicy
from temporalio.exceptions import ApplicationError, FailureError, is_cancelled_exception

PAUSES = (
    timedelta(0),
    timedelta(minutes=1),
    timedelta(minutes=5),
    timedelta(minutes=30),
    timedelta(hours=2),
    timedelta(hours=24),
)
"""Before each attempt."""
GONE = 410
NO_ENDPOINT = "There is no webhookUrl, or it is switched off"
"""Why a webhook is not sent."""
SUPERSEDED = "WebhookSuperseded"
"""Type of the error by which `deliverWebhook` says that a later workflow delivers this webhook."""
ACTIVITY_TIMEOUT = timedelta(seconds=60)
"""Twice the time that an endpoint has to answer."""
LOOKUP_TIMEOUT = timedelta(seconds=5)
"""Less than a workflow task may take."""
LOCAL_ATTEMPT = "local-attempt"
LOCAL_LOOKUP = "local-endpoint-lookup"
"""Patches of the workflow: deliveries begun before them, up to 27 hours ago, continue in the old way."""
HEARTBEAT_TIMEOUT = timedelta(seconds=10)
"""Of a scheduled attempt: so long after its worker died, another one delivers. For local attempts it is the timeout of
a workflow task, which is the same by default."""
PATIENT = RetryPolicy(initial_interval=timedelta(seconds=1), maximum_interval=timedelta(minutes=1))
"""Of activities: their errors are failures of our own, which pass. Those of the endpoint are in their result."""
ONCE = RetryPolicy(maximum_attempts=1)


@workflow.defn(name="WebhookDeliveryWorkflow")
class WebhookDeliveryWorkflow:
    """Input `{webhookEventId, merchantId, webhookUrl, payload}`; result as of `deliverWebhook`."""

    @workflow.run
    async def run(self, given: dict[str, Any]) -> dict[str, Any]:
        result: dict[str, Any] = {"success": False, "attempts": 0}
        for number, pause in enumerate(PAUSES, 1):
            if pause:
                await workflow.sleep(pause)
            try:
                if workflow.patched(LOCAL_ATTEMPT):
                    result = await self._attempt(given["webhookEventId"], number)
                else:
                    result = await self._deliver(given, before=result)
            except FailureError as error:
                refusal = _refusal(error)
                if refusal is not None and refusal.type == SUPERSEDED:
                    return {**result, "errorMessage": "The merchant had the delivery begin anew"}
                raise
            over = result.pop("over", False)
            if result["success"]:
                return result
            if over or result.get("statusCode") == GONE:
                break
        return await self._failed(given, result, result.get("errorMessage") or "Not delivered")

    async def _attempt(self, webhook_id: str, number: int) -> dict[str, Any]:
        """Attempt it as a local activity; if that is impossible just now, have Temporal schedule the activity.

        Both have the same id, so that the second does not send again what the first has sent.
        """
        asked, id = {"webhookEventId": webhook_id}, f"attempt-{number}"
        try:
            result: dict[str, Any] = await workflow.execute_local_activity(
                "attemptDelivery",
                asked,
                activity_id=id,
                start_to_close_timeout=ACTIVITY_TIMEOUT,
                retry_policy=ONCE,
            )
        except FailureError as error:
            refusal = _refusal(error)
            if is_cancelled_exception(error) or (refusal is not None and refusal.non_retryable):
                raise
            result = await self._call("attemptDelivery", asked, id=id, heartbeat_timeout=HEARTBEAT_TIMEOUT)
        return result

    async def _deliver(self, given: dict[str, Any], *, before: dict[str, Any]) -> dict[str, Any]:
        """An attempt of a delivery that was begun before `LOCAL_ATTEMPT`."""
        endpoint = await self._endpoint(given["merchantId"])
        if endpoint["url"] is None:
            return {**before, "errorMessage": NO_ENDPOINT, "over": True}
        result: dict[str, Any] = await self._call(
            "deliverWebhook",
            {
                "webhookEventId": given["webhookEventId"],
                "webhookUrl": endpoint["url"],
                "webhookSecret": endpoint["secret"],
                "payload": given["payload"],
            },
            heartbeat_timeout=HEARTBEAT_TIMEOUT,
        )
        return result

    async def _endpoint(self, merchant_id: str) -> dict[str, Any]:
        asked = {"merchantId": merchant_id}
        if not workflow.patched(LOCAL_LOOKUP):
            return cast("dict[str, Any]", await self._call("getMerchantWebhookUrl", asked))
        endpoint: dict[str, Any] = await workflow.execute_local_activity(
            "getMerchantWebhookUrl",
            asked,
            start_to_close_timeout=LOOKUP_TIMEOUT,
            retry_policy=PATIENT,
            # Between retries Temporal waits, not the worker.
            local_retry_threshold=timedelta(milliseconds=1),
        )
        return endpoint

    async def _failed(self, given: dict[str, Any], result: dict[str, Any], why: str) -> dict[str, Any]:
        await self._call("failWebhook", {"webhookEventId": given["webhookEventId"], "errorMessage": why})
        return {**result, "errorMessage": why}

    async def _call(
        self,
        activity: str,
        argument: dict[str, Any],
        *,
        id: str | None = None,
        heartbeat_timeout: timedelta | None = None,
    ) -> Any:
        return await workflow.execute_activity(
            activity,
            argument,
            activity_id=id,
            start_to_close_timeout=ACTIVITY_TIMEOUT,
            heartbeat_timeout=heartbeat_timeout,
            retry_policy=PATIENT,
        )


def _refusal(error: FailureError) -> ApplicationError | None:
    """The error that an activity raised: of a local activity itself, of a scheduled one the cause."""
    raised = error if isinstance(error, ApplicationError) else error.cause
    return raised if isinstance(raised, ApplicationError) else None
