"""Subscribers in this process, and what Temporal has of them."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any, cast

from temporalio.client import Client, WorkflowHandle
from temporalio.service import RPCError

from payloops.events.event_store import EventStore
from payloops.settings import Settings
from payloops.workflows_client.payment_subscription import READER, payment_subscription
from payloops.workflows_client.subscriber import Subscription, run_subscriber

SECONDS = 60
"""That a test waits for what has to come."""


@contextlib.asynccontextmanager
async def subscribing(
    store: EventStore, settings: Settings, client: Client, subscription: Subscription | None = None
) -> AsyncIterator[asyncio.Task[None]]:
    """A subscriber, of payments if nothing else is said. At the end it is asked to stop, and has to."""
    stop = asyncio.Event()
    task = asyncio.create_task(
        run_subscriber(
            subscription=subscription or payment_subscription(store),
            store=store,
            database_url=settings.database_url.get_secret_value(),
            client=client,
            stop=stop,
        )
    )
    try:
        yield task
    finally:
        stop.set()
        await asyncio.wait_for(task, SECONDS)


async def started(client: Client, workflow_id: str) -> dict[str, Any]:
    """Wait until a workflow was started: its type, queue, memo and input."""
    handle: WorkflowHandle[Any, Any] = client.get_workflow_handle(workflow_id)
    async with asyncio.timeout(SECONDS):
        while True:
            try:
                description = await handle.describe()
                break
            except RPCError:
                await asyncio.sleep(0.02)
    first = (await handle.fetch_history()).events[0].workflow_execution_started_event_attributes
    return {
        "workflow": description.workflow_type,
        "queue": description.task_queue,
        "memo": await description.memo(),
        "input": (await client.data_converter.decode(first.input.payloads))[0],
        "run": description.run_id,
    }


async def signals(client: Client, workflow_id: str) -> list[str]:
    history = await client.get_workflow_handle(workflow_id).fetch_history()
    return [
        event.workflow_execution_signaled_event_attributes.signal_name
        for event in history.events
        if event.HasField("workflow_execution_signaled_event_attributes")
    ]


async def position(store: EventStore, name: str = READER) -> int:
    async with store.pool.connection() as connection:
        cursor = await connection.execute("SELECT position FROM checkpoints WHERE name = %s", (name,))
        row = await cursor.fetchone()
    return 0 if row is None else cast("int", row[0])


async def caught_up(store: EventStore, name: str = READER) -> None:
    """Wait until a subscriber has done all that the log has now."""
    head = await store.head()
    async with asyncio.timeout(SECONDS):
        while await position(store, name) < head:
            await asyncio.sleep(0.02)


async def parked(store: EventStore) -> list[tuple[str, str]]:
    """The topic and the error of each event that the subscriber of payments has parked."""
    async with store.pool.connection() as connection:
        cursor = await connection.execute(
            "SELECT topic, error FROM parked_events WHERE reader = %s", (READER,)
        )
        return [(row[0], row[1]) for row in await cursor.fetchall()]


async def exists(client: Client, workflow_id: str) -> bool:
    try:
        await client.get_workflow_handle(workflow_id).describe()
    except RPCError:
        return False
    return True


async def until_nothing_is_parked(store: EventStore) -> None:
    async with asyncio.timeout(SECONDS):
        while await parked(store):
            await asyncio.sleep(0.02)
