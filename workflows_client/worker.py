"""The worker of `backend-operations`: lets workflows call back in, through commands."""

import asyncio
from datetime import timedelta

from temporalio.client import Client
from temporalio.worker import Worker

from payloops.workflows_client.activities import BackendActivities
from payloops.workflows_client.connection import keep_serving

TASK_QUEUE = "backend-operations"
GRACE = timedelta(seconds=10)


async def serve_backend(*, client: Client, activities: BackendActivities, stop: asyncio.Event) -> None:
    """Serve the activities until `stop` is set; those that run then may finish."""
    await keep_serving(lambda: backend_worker(client=client, activities=activities), stop=stop)


def backend_worker(*, client: Client, activities: BackendActivities) -> Worker:
    """The worker, not yet running."""
    return Worker(client, task_queue=TASK_QUEUE, activities=activities.all(), graceful_shutdown_timeout=GRACE)
