"""The subscriber: tails the log and forwards to Temporal what workflows are to do.

Its checkpoint stands behind everything that is done, so that whatever is killed when, an event is forwarded at
least once; and workflow ids are derived from the order, so that forwarding one twice changes nothing.

Any number of replicas may run. The one that forwards holds an advisory lock on a connection of its own, by
which it also moves the checkpoint: without the connection it is neither the one nor able to move anything.
(Through a pooler in transaction mode there are no such connections: give it the database's own address.)
"""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta

import psycopg
import structlog
from psycopg.rows import TupleRow
from temporalio.api.errordetails.v1 import NamespaceNotFoundFailure
from temporalio.client import Client
from temporalio.common import WorkflowIDReusePolicy
from temporalio.exceptions import WorkflowAlreadyStartedError
from temporalio.service import RPCError, RPCStatusCode

from payloops.events.connections import connect
from payloops.events.event_store import EventStore, RecordedEvent
from payloops.workflows_client.connection import pause_seconds, sleep_unless_stopped
from payloops.workflows_client.payments import TOPICS, SignalWorkflow, StartWorkflow, forwarding_of

READER = "temporal"
BATCH = 500
CONCURRENCY = 32
TAKEOVER_SECONDS = 1.0
WATCH_SECONDS = 2.0
RPC_TIMEOUT = timedelta(seconds=5)
LONGEST_RETRY_SECONDS = 3.0
STOP_SECONDS = 5.0

UNFORWARDABLE = {RPCStatusCode.INVALID_ARGUMENT, RPCStatusCode.OUT_OF_RANGE}
"""What Temporal answers where no repetition helps. All else may be its own trouble, and is tried again."""

log = structlog.get_logger(__name__)


async def run_subscriber(
    *, store: EventStore, database_url: str, client: Client, stop: asyncio.Event
) -> None:
    """Forward, or stand by while another replica does, until `stop` is set; the batch under way is finished.

    Trouble with the database or Temporal ends nothing: it is logged and tried again.
    """
    serving = asyncio.create_task(_serve(store, database_url, client, stop))
    stopped = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({serving, stopped}, return_when=asyncio.FIRST_COMPLETED)
        done, _ = await asyncio.wait({serving}, timeout=STOP_SECONDS)
        if done:
            serving.result()
    finally:
        stopped.cancel()
        serving.cancel()
        await asyncio.gather(stopped, serving, return_exceptions=True)


async def _serve(store: EventStore, database_url: str, client: Client, stop: asyncio.Event) -> None:
    failures = 0
    while not stop.is_set():
        try:
            async with _leadership(database_url, stop) as connection:
                failures = 0
                if connection is not None:
                    await _forward_while_leading(store, connection, client, stop)
        except* (psycopg.Error, OSError, TimeoutError) as errors:
            pause = pause_seconds(attempt=failures, longest=LONGEST_RETRY_SECONDS)
            log.warning("subscriber.interrupted", errors=[repr(e) for e in errors.exceptions], retry_in=pause)
            await sleep_unless_stopped(pause, stop=stop)
            failures += 1


@asynccontextmanager
async def _leadership(
    database_url: str, stop: asyncio.Event
) -> AsyncIterator[psycopg.AsyncConnection[TupleRow] | None]:
    """Wait for the lock; the connection that holds it, None where `stop` came first."""
    async with await connect(database_url, application_name="payloops subscriber") as connection:
        # A machine that vanished must not keep the lock for as long as TCP would wait for it.
        await connection.execute(
            "SELECT set_config('tcp_keepalives_idle', '5', false),"
            " set_config('tcp_keepalives_interval', '2', false), set_config('tcp_keepalives_count', '3', false)"
        )
        while not await _locked(connection):
            await sleep_unless_stopped(TAKEOVER_SECONDS, stop=stop)
            if stop.is_set():
                yield None
                return
        log.info("subscriber.leading")
        yield connection


async def _locked(connection: psycopg.AsyncConnection[TupleRow]) -> bool:
    cursor = await connection.execute(
        "SELECT pg_try_advisory_lock(hashtextextended('payloops.subscriber.temporal', 0))"
    )
    row = await cursor.fetchone()
    return row is not None and bool(row[0])


async def _forward_while_leading(
    store: EventStore,
    connection: psycopg.AsyncConnection[TupleRow],
    client: Client,
    stop: asyncio.Event,
) -> None:
    """Forward until `stop`, or raise as soon as the connection, and the lock with it, is lost."""
    async with asyncio.TaskGroup() as group:
        watch = group.create_task(_watch(connection))
        await _forward(store, connection, client, stop)
        watch.cancel()


async def _watch(connection: psycopg.AsyncConnection[TupleRow]) -> None:
    while True:
        await asyncio.sleep(WATCH_SECONDS)
        async with asyncio.timeout(WATCH_SECONDS):
            await connection.execute("SELECT 1")


async def _forward(
    store: EventStore,
    connection: psycopg.AsyncConnection[TupleRow],
    client: Client,
    stop: asyncio.Event,
) -> None:
    position = await _checkpoint(connection)
    async for _ in store.wakeups():
        while not stop.is_set():
            batch = await store.read(after=position, limit=BATCH)
            if not batch:
                break
            await _forward_batch(batch, connection, client)
            position = batch[-1].position
            await _move_checkpoint(connection, position)
        if stop.is_set():
            return


async def _forward_batch(
    batch: Sequence[RecordedEvent], connection: psycopg.AsyncConnection[TupleRow], client: Client
) -> None:
    """Forward all of a batch: orders side by side, the events of one order one after another."""
    streams: defaultdict[object, list[RecordedEvent]] = defaultdict(list)
    for recorded in batch:
        if recorded.stored.topic in TOPICS:
            streams[recorded.stored.originator_id].append(recorded)
    places = asyncio.Semaphore(CONCURRENCY)

    async def forward_stream(events: Sequence[RecordedEvent]) -> None:
        async with places:
            for recorded in events:
                await _forward_or_park(recorded, connection, client)

    async with asyncio.TaskGroup() as group:
        for events in streams.values():
            group.create_task(forward_stream(events))


async def _forward_or_park(
    recorded: RecordedEvent, connection: psycopg.AsyncConnection[TupleRow], client: Client
) -> None:
    """Forward one event, for as long as Temporal takes; park it where the event itself is the trouble."""
    failures = 0
    while True:
        try:
            await forward(recorded, client)
        except RPCError as error:
            if error.status in UNFORWARDABLE:
                return await _park(recorded, connection, error)
            pause = pause_seconds(attempt=failures, longest=LONGEST_RETRY_SECONDS)
            log.warning(
                "subscriber.temporal_unavailable",
                position=recorded.position,
                topic=recorded.stored.topic,
                status=error.status.name,
                reason=error.message,
                retry_in=pause,
            )
            await asyncio.sleep(pause)
            failures += 1
        except Exception as error:  # noqa: BLE001  (whatever one event does must not stop the others)
            return await _park(recorded, connection, error)
        else:
            return None


async def forward(recorded: RecordedEvent, client: Client) -> None:
    """Start or signal what an event asks for. Done already, or nobody there to be signalled: also done.

    Raises:
        RPCError: Temporal could not, or would not.
    """
    fact = recorded.event
    match forwarding_of(fact):
        case StartWorkflow() as start:
            try:
                await client.start_workflow(
                    start.workflow,
                    start.input,
                    id=start.workflow_id,
                    task_queue=start.task_queue,
                    id_reuse_policy=WorkflowIDReusePolicy.REJECT_DUPLICATE,
                    memo={"correlationId": fact.correlation_id},
                    rpc_timeout=RPC_TIMEOUT,
                )
            except WorkflowAlreadyStartedError:
                outcome = "workflow.started_before"
            else:
                outcome = "workflow.started"
            workflow_id = start.workflow_id
        case SignalWorkflow() as signal:
            outcome, workflow_id = "workflow.signalled", signal.workflow_id
            try:
                handle = client.get_workflow_handle(workflow_id)
                await handle.signal(signal.signal, rpc_timeout=RPC_TIMEOUT)
            except RPCError as error:
                if error.status is not RPCStatusCode.NOT_FOUND or _namespace_is_missing(error):
                    raise
                outcome = "workflow.gone"
    log.info(
        outcome,
        workflow_id=workflow_id,
        topic=recorded.stored.topic,
        position=recorded.position,
        correlation_id=fact.correlation_id,
    )


def _namespace_is_missing(error: RPCError) -> bool:
    return any(detail.Is(NamespaceNotFoundFailure.DESCRIPTOR) for detail in error.grpc_status.details)


async def _park(
    recorded: RecordedEvent, connection: psycopg.AsyncConnection[TupleRow], error: Exception
) -> None:
    """Keep the event with its error in `parked_events`, where `projections status` shows it."""
    log.error("subscriber.parked", position=recorded.position, topic=recorded.stored.topic, error=repr(error))
    await connection.execute(
        """INSERT INTO parked_events
               (reader, position, originator_id, originator_version, topic, error)
           VALUES (%s, %s, %s, %s, %s, %s) ON CONFLICT (reader, position) DO NOTHING""",
        (
            READER,
            recorded.position,
            recorded.stored.originator_id,
            recorded.stored.originator_version,
            recorded.stored.topic,
            repr(error),
        ),
    )


async def _checkpoint(connection: psycopg.AsyncConnection[TupleRow]) -> int:
    await connection.execute("INSERT INTO checkpoints (name) VALUES (%s) ON CONFLICT DO NOTHING", (READER,))
    cursor = await connection.execute("SELECT position FROM checkpoints WHERE name = %s", (READER,))
    row = await cursor.fetchone()
    assert row is not None
    return int(row[0])


async def _move_checkpoint(connection: psycopg.AsyncConnection[TupleRow], position: int) -> None:
    await connection.execute(
        "UPDATE checkpoints SET position = %s, updated_at = now() WHERE name = %s", (position, READER)
    )
