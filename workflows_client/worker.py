"""The worker of `backend-operations`: runs the activities that call commands, and delivers webhooks."""

import asyncio
from datetime import timedelta

from temporalio.client import Client
from temporalio.worker import Worker

from payloops.workflows_client.activities import BackendActivities
from payloops.workflows_client.connection import POLLS, RUNNER, keep_serving
from payloops.workflows_client.webhook_delivery import WebhookDeliveryWorkflow

TASK_QUEUE = "backend-operations"
GRACE = timedelta(seconds=10)
ACTIVITIES = 500
"""At once. More than webhooks may be under way (`endpoint_places.py`), so that payments always find a slot."""


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
        max_concurrent_activities=slots,
        # A webhook that is being sent holds one of each.
        max_concurrent_workflow_tasks=ACTIVITIES,
        max_concurrent_local_activities=ACTIVITIES,
        workflow_runner=RUNNER,
        workflow_task_poller_behavior=POLLS,
        activity_task_poller_behavior=POLLS,
        graceful_shutdown_timeout=grace,
    )
