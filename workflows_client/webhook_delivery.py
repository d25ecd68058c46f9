"""`WebhookDeliveryWorkflow`: sends a webhook, and again after each failure, for as long as the schedule lasts."""

from datetime import timedelta
from typing import Any, cast

from temporalio import workflow
from temporalio.common import RetryPolicy
from temporalio.exceptions import ActivityError, ApplicationError

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
SUPERSEDED = "WebhookSuperseded"
"""Type of the error by which `deliverWebhook` says that a later workflow delivers this webhook."""
ACTIVITY_TIMEOUT = timedelta(seconds=60)
"""Twice as long as an endpoint has to answer."""
LOOKUP_TIMEOUT = timedelta(seconds=5)
"""Shorter than a workflow task may take."""
LOCAL_LOOKUP = "local-endpoint-lookup"
"""What deliveries do that were begun since; those begun before, up to 27 hours ago, go on as they began."""
HEARTBEAT_TIMEOUT = timedelta(seconds=10)
"""Of `deliverWebhook`: so long after its worker has died another one delivers."""
PATIENT = RetryPolicy(initial_interval=timedelta(seconds=1), maximum_interval=timedelta(minutes=1))
"""Of activities: what they run into is our own trouble, and passes. The endpoint's is in what they return."""


@workflow.defn(name="WebhookDeliveryWorkflow")
class WebhookDeliveryWorkflow:
    """Input `{webhookEventId, merchantId, webhookUrl, payload}`; result as of `deliverWebhook`."""

    @workflow.run
    async def run(self, given: dict[str, Any]) -> dict[str, Any]:
        result: dict[str, Any] = {"success": False, "attempts": 0}
        for pause in PAUSES:
            if pause:
                await workflow.sleep(pause)
            # Asked each time: in a day the merchant may have another URL or secret, or none.
            endpoint = await self._endpoint(given["merchantId"])
            if endpoint["url"] is None:
                return await self._failed(given, result, "There is no webhookUrl, or it is switched off")
            try:
                result = await self._deliver(given, endpoint)
            except ActivityError as error:
                if isinstance(error.cause, ApplicationError) and error.cause.type == SUPERSEDED:
                    return {**result, "errorMessage": "The merchant had the delivery begin anew"}
                raise
            if result["success"]:
                return result
            if result.get("statusCode") == GONE:
                break
        return await self._failed(given, result, result.get("errorMessage") or "Not delivered")

    async def _endpoint(self, merchant_id: str) -> dict[str, Any]:
        """Looked up by the worker that has the workflow: half of what a delivery costs Temporal is handing it on."""
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

    async def _deliver(self, given: dict[str, Any], endpoint: dict[str, Any]) -> dict[str, Any]:
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

    async def _failed(self, given: dict[str, Any], result: dict[str, Any], why: str) -> dict[str, Any]:
        await self._call("failWebhook", {"webhookEventId": given["webhookEventId"], "errorMessage": why})
        return {**result, "errorMessage": why}

    async def _call(
        self, activity: str, argument: dict[str, Any], *, heartbeat_timeout: timedelta | None = None
    ) -> Any:
        return await workflow.execute_activity(
            activity,
            argument,
            start_to_close_timeout=ACTIVITY_TIMEOUT,
            heartbeat_timeout=heartbeat_timeout,
            retry_policy=PATIENT,
        )
