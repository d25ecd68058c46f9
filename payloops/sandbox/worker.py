"""The sandbox's worker: one for each processor's task queue, in place of the platform's processor workers."""

import asyncio
from datetime import timedelta
from functools import partial

import psycopg
import structlog
from temporalio.client import Client
from temporalio.worker import Worker

from payloops.sandbox import ledger
from payloops.sandbox.activities import SandboxActivities
from payloops.sandbox.workflows import WORKFLOWS
from payloops.workflows_client.connection import (
    POLLS,
    RUNNER,
    keep_serving,
    pause_seconds,
    sleep_unless_stopped,
)

PROCESSORS = ("stripe", "razorpay")
GRACE = timedelta(seconds=10)

log = structlog.get_logger(__name__)


async def serve_sandbox(
    *, client: Client, pool: ledger.Pool, stop: asyncio.Event, bank_url: str | None = None
) -> None:
    """Open the books, and serve both processors' queues until `stop` is set; what runs then may finish.

    Args:
        bank_url: where customers are sent to approve a payment, None where no bank is served (`bank.py`).
    """
    if not await _books_opened(pool, stop):
        return
    async with asyncio.TaskGroup() as group:
        for processor in PROCESSORS:
            make = partial(sandbox_worker, client=client, pool=pool, processor=processor, bank_url=bank_url)
            group.create_task(keep_serving(make, stop=stop))


def sandbox_worker(
    *, client: Client, pool: ledger.Pool, processor: str, bank_url: str | None = None
) -> Worker:
    """The worker of one processor's queue, not yet running."""
    return Worker(
        client,
        task_queue=f"{processor}-payments",
        workflows=WORKFLOWS,
        activities=SandboxActivities(pool=pool, processor=processor, bank_url=bank_url).all(),
        workflow_runner=RUNNER,
        workflow_task_poller_behavior=POLLS,
        activity_task_poller_behavior=POLLS,
        graceful_shutdown_timeout=GRACE,
    )


async def _books_opened(pool: ledger.Pool, stop: asyncio.Event) -> bool:
    """Open the books, however long PostgreSQL takes to come up; False where `stop` was set first."""
    failures = 0
    while not stop.is_set():
        try:
            await ledger.open_books(pool)
        except (psycopg.OperationalError, OSError) as error:
            pause = pause_seconds(attempt=failures)
            log.warning("sandbox.books_unavailable", reason=repr(error), retry_in=pause)
            await sleep_unless_stopped(pause, stop=stop)
            failures += 1
        else:
            return True
    return False
