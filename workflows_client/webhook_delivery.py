"""`WebhookDeliveryWorkflow`: sends a webhook, and retries it for as long as its schedule lasts.

An attempt is first made as a local activity, by the worker that runs the workflow: most succeed at once, and then the
whole workflow is a single task for Temporal, for which scheduling an activity is more work than sending is for the
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
"""Twice as long as an endpoint has to answer."""
LOOKUP_TIMEOUT = timedelta(seconds=5)
"""Shorter than a workflow task may take."""
LOCAL_ATTEMPT = "local-attempt"
LOCAL_LOOKUP = "local-endpoint-lookup"
"""What deliveries do that were begun since; those begun before, up to 27 hours ago, go on as they began."""
HEARTBEAT_TIMEOUT = timedelta(seconds=10)
"""Of an attempt that Temporal hands over: so long after its worker has died another one delivers. The same as a
workflow task has by default, for those that are made where the workflow runs."""
PATIENT = RetryPolicy(initial_interval=timedelta(seconds=1), maximum_interval=timedelta(minutes=1))
"""Of activities: what they run into is our own trouble, and passes. The endpoint's is in what they return."""
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
        """Try it here, and where that is not possible just now, have Temporal try it until it is.

        Both are one activity by its id, so that what one of them has sent the other knows.
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
        """The same for deliveries that were begun before `LOCAL_ATTEMPT`."""
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
            # A pause is Temporal's: the worker keeps no place for it.
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
    """What the activity raised: a local one's error comes as it is, another's as a cause."""
    raised = error if isinstance(error, ApplicationError) else error.cause
    return raised if isinstance(raised, ApplicationError) else None
