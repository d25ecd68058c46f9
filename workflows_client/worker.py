"""The worker of `backend-operations`: runs the activities that call commands, and delivers webhooks."""

import asyncio
from datetime import timedelta
from typing import Any

import psycopg
from temporalio import activity
from temporalio.client import Client
from temporalio.exceptions import ApplicationError
from temporalio.worker import ActivityInboundInterceptor, ExecuteActivityInput, Interceptor, Worker

from payloops.events.connections import one_line
from payloops.workflows_client.activities import BackendActivities, refused
from payloops.workflows_client.connection import POLLS, RUNNER, keep_serving
from payloops.workflows_client.webhook_delivery import WebhookDeliveryWorkflow

TASK_QUEUE = "backend-operations"
GRACE = timedelta(seconds=10)
ACTIVITIES = 500
"""At once. More than webhooks may be under way (`endpoint_places.py`), so that payments always find a slot."""

ANSWER_SECONDS = 20.0
"""How long an activity that sends nothing may take. PostgreSQL cancels statements after 5, unless it has stalled."""
SENDING = {"deliverWebhook", "attemptDelivery"}


class Failures(Interceptor):
    """How activities fail, beside what each raises itself."""

    def intercept_activity(self, next: ActivityInboundInterceptor) -> ActivityInboundInterceptor:
        return _Failures(next)


class _Failures(ActivityInboundInterceptor):
    async def execute_activity(self, input: ExecuteActivityInput) -> Any:
        """
        Raises:
            ApplicationError: without a retry: not called with one argument. With a retry: the database failed, or did
                not answer in time. Its details, which quote rows, are left out: failures are readable in histories,
                also with a codec key.
        """
        if len(input.args) != 1:
            raise refused("InvalidInput", "one argument is needed, an object")
        sends = activity.info().activity_type in SENDING
        try:
            async with asyncio.timeout(None if sends else ANSWER_SECONDS) as limit:
                return await super().execute_activity(input)
        except TimeoutError:
            if not limit.expired():
                raise
            raise ApplicationError(f"no answer within {ANSWER_SECONDS:g} s", type="DatabaseFailed") from None
        except psycopg.Error as error:
            raise ApplicationError(one_line(error), type="DatabaseFailed").with_traceback(
                error.__traceback__
            ) from None


async def serve_backend(*, client: Client, activities: BackendActivities, stop: asyncio.Event) -> None:
    """Serve the activities until `stop` is set; those that run then may finish."""
    await keep_serving(lambda: backend_worker(client=client, activities=activities), stop=stop)


def backend_worker(
    *, client: Client, activities: BackendActivities, slots: int = ACTIVITIES, grace: timedelta = GRACE
) -> Worker:
    """The worker, not yet running.

    Args:
        slots: activities at once.
        grace: for what runs when the worker is stopped; what takes longer is done again by another.
    """
    return Worker(
        client,
        task_queue=TASK_QUEUE,
        workflows=[WebhookDeliveryWorkflow],
        activities=activities.all(),
        interceptors=[Failures()],
        max_concurrent_activities=slots,
        # A webhook that is being sent holds one of each.
        max_concurrent_workflow_tasks=ACTIVITIES,
        max_concurrent_local_activities=ACTIVITIES,
        workflow_runner=RUNNER,
        workflow_task_poller_behavior=POLLS,
        activity_task_poller_behavior=POLLS,
        graceful_shutdown_timeout=grace,
    )
