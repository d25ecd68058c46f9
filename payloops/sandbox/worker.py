"""The sandbox's workers: one for each processor's task queue, in place of the platform's processor workers."""

import asyncio
from datetime import timedelta
from functools import partial

import psycopg
import structlog
from temporalio.client import Client
from temporalio.worker import Worker

from payloops.commands.processors import PROCESSORS
from payloops.events.pauses import pause_seconds, sleep_unless_stopped
from payloops.sandbox import ledger
from payloops.sandbox.activities import SandboxActivities
from payloops.sandbox.workflows import WORKFLOWS
from payloops.workflows_client.connection import POLLS, RUNNER, keep_serving

GRACE = timedelta(seconds=10)

log = structlog.get_logger(__name__)


async def serve_sandbox(
    *, client: Client, pool: ledger.Pool, stop: asyncio.Event, bank_url: str | None = None
) -> None:
    """Create the ledger's schema, and serve both processors' queues until `stop` is set; running activities may finish.

    Args:
        bank_url: where customers are sent to approve a payment (`bank.py`); None if no bank is served.
    """
    if not await _create_schema(pool, stop):
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


async def _create_schema(pool: ledger.Pool, stop: asyncio.Event) -> bool:
    """Create the ledger's schema, and keep trying while PostgreSQL is down; False if `stop` was set first."""
    failures = 0
    while not stop.is_set():
        try:
            await ledger.create_schema(pool)
        except (psycopg.OperationalError, OSError) as error:
            pause = pause_seconds(attempt=failures)
            log.warning("sandbox.ledger_unavailable", reason=repr(error), retry_in=pause)
            await sleep_unless_stopped(pause, stop=stop)
            failures += 1
        else:
            return True
    return False
