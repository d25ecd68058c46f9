"""Subscribers: each tails the log, and starts and signals Temporal workflows for certain events.

A subscriber moves its checkpoint only after an event was forwarded, so each event is forwarded at least once, whatever
is killed. Workflow ids are derived from events, so forwarding one twice has no effect. Which workflow an event starts
or signals is defined by the subscription: `payment_subscription.py`, `webhook_subscription.py`.

Any number of replicas may run. The active one holds an advisory lock on a connection of its own, on which it also moves
the checkpoint: without the connection it is neither active nor able to move the checkpoint. (Connection poolers in
transaction mode do not preserve such locks: give it the database's own address.)
"""

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta

import psycopg
import structlog
from prometheus_client import Counter
from psycopg.rows import TupleRow
from temporalio.api.errordetails.v1 import NamespaceNotFoundFailure
from temporalio.client import Client
from temporalio.common import WorkflowIDReusePolicy
from temporalio.exceptions import WorkflowAlreadyStartedError
from temporalio.service import RPCError, RPCStatusCode

from payloops.events.connections import connect, is_about_data, one_line, try_lock
from payloops.events.crash_points import crash_point
from payloops.events.errors import StreamUnreadable
from payloops.events.event_store import EventStore, RecordedEvent
from payloops.events.pauses import pause_seconds, sleep_unless_stopped
from payloops.projections.batches import PARK
from payloops.workflows_client.forwardings import Forwarding, SignalWorkflow, StartWorkflow

BATCH = 500
CONCURRENCY = 32
TAKEOVER_SECONDS = 1.0
WATCH_SECONDS = 2.0
RPC_TIMEOUT = timedelta(seconds=5)
LONGEST_RETRY_SECONDS = 3.0
SETTLED_SECONDS = 10.0
"""If an interruption comes after so long without one, retries begin with a short pause again."""
STOP_SECONDS = 5.0

GONE = "workflow.gone"
"""The outcome of a signal to a workflow that has ended."""

UNFORWARDABLE = RPCStatusCode.INVALID_ARGUMENT
"""Temporal's answer to a request that can never succeed. After any other error it is retried."""

FORWARDED = Counter(
    "payloops_workflow_forwardings",
    "Starts and signals of workflows: started, started_before, signalled, or gone",
    ["subscription", "target", "outcome"],
)
UNAVAILABLE = Counter(
    "payloops_workflow_forwardings_failed", "Attempts that Temporal did not accept", ["subscription"]
)
PARKED = Counter("payloops_subscriber_parked", "Events that could not be forwarded", ["subscription"])

log = structlog.get_logger(__name__)


async def _never(_: RecordedEvent) -> bool:
    return False


@dataclass(frozen=True, slots=True, kw_only=True)
class Subscription:
    """What a subscriber forwards.

    Attributes:
        name: of its checkpoint and lock, and of the reader in `parked_events`.
        topics: of the events to forward; all others are passed over.
        plan: the workflow to start or signal for an event, None if there is none. It may first write what the workflow
            reads, and must be repeatable. If it raises, the event is parked, unless the database is the cause: then it
            is called again.
        strands: whether something is left undone if the workflow that the event signals is gone. The event is then
            parked, so that somebody sees it.
    """

    name: str
    topics: frozenset[str]
    plan: Callable[[RecordedEvent], Awaitable[Forwarding | None]]
    strands: Callable[[RecordedEvent], Awaitable[bool]] = _never


class WorkflowGone(Exception):
    """A workflow ended before it received a signal that still matters."""

    def __init__(self, workflow_id: str) -> None:
        super().__init__(
            f"{workflow_id} has ended, and its payment is still open: ask the processor (payloops reconcile)"
        )


async def run_subscriber(
    *,
    subscription: Subscription,
    store: EventStore,
    database_url: str,
    client: Client,
    stop: asyncio.Event,
) -> None:
    """Forward, or stand by while another replica does, until `stop` is set; the current batch is finished first.

    Failures of the database or of Temporal are logged and retried.
    """
    serving = asyncio.create_task(_serve(subscription, store, database_url, client, stop))
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


async def _serve(
    subscription: Subscription, store: EventStore, database_url: str, client: Client, stop: asyncio.Event
) -> None:
    failures = 0
    while not stop.is_set():
        began = time.monotonic()
        try:
            async with _leadership(subscription.name, database_url, stop) as connection:
                if connection is not None:
                    await _lead(
                        _Leader(
                            subscription=subscription,
                            store=store,
                            connection=connection,
                            client=client,
                            stop=stop,
                        )
                    )
        except* _Stopped:
            log.info("subscriber.stopped_before_temporal_was_back", subscription=subscription.name)
        except* (psycopg.Error, OSError, TimeoutError) as errors:
            failures = 0 if time.monotonic() - began > SETTLED_SECONDS else failures
            pause = pause_seconds(attempt=failures, longest=LONGEST_RETRY_SECONDS)
            log.warning(
                "subscriber.interrupted",
                subscription=subscription.name,
                errors=[one_line(error) for error in errors.exceptions],
                retry_in=pause,
            )
            await sleep_unless_stopped(pause, stop=stop)
            failures += 1


TO_RETRY = "SELECT position FROM parked_events WHERE reader = %s AND retry ORDER BY position LIMIT %s"
# Not where it was parked again.
RETRIED = "DELETE FROM parked_events WHERE reader = %s AND position = %s AND retry"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Leader:
    """The replica that forwards. `connection` holds the lock."""

    subscription: Subscription
    store: EventStore
    connection: psycopg.AsyncConnection[TupleRow]
    client: Client
    stop: asyncio.Event


class _Stopped(Exception):
    """Asked to stop while an event waited for Temporal."""


@asynccontextmanager
async def _leadership(
    name: str, database_url: str, stop: asyncio.Event
) -> AsyncIterator[psycopg.AsyncConnection[TupleRow] | None]:
    """Wait for the lock; the connection that holds it, None where `stop` came first."""
    async with await connect(database_url, application_name="payloops subscriber") as connection:
        # A machine that vanished must not keep the lock for as long as TCP would wait for it.
        await connection.execute(
            "SELECT set_config('tcp_keepalives_idle', '5', false),"
            " set_config('tcp_keepalives_interval', '2', false), set_config('tcp_keepalives_count', '3', false)"
        )
        while not await try_lock(connection, f"payloops.subscriber.{name}"):
            await sleep_unless_stopped(TAKEOVER_SECONDS, stop=stop)
            if stop.is_set():
                yield None
                return
        log.info("subscriber.leading", subscription=name)
        yield connection


async def _lead(leader: _Leader) -> None:
    """Forward until `stop`, or raise as soon as the connection, and the lock with it, is lost."""
    async with asyncio.TaskGroup() as group:
        watch = group.create_task(_watch(leader.connection))
        await _forward_log(leader)
        watch.cancel()


async def _watch(connection: psycopg.AsyncConnection[TupleRow]) -> None:
    while True:
        await asyncio.sleep(WATCH_SECONDS)
        async with asyncio.timeout(WATCH_SECONDS):
            await connection.execute("SELECT 1")


async def _forward_log(leader: _Leader) -> None:
    position = await _checkpoint(leader.connection, leader.subscription.name)
    async for _ in leader.store.wakeups():
        await _retry_parked(leader)
        while not leader.stop.is_set():
            batch = await leader.store.read(after=position, limit=BATCH)
            if not batch:
                break
            await _forward_batch(leader, batch)
            position = batch[-1].position
            await _move_checkpoint(leader.connection, leader.subscription.name, position)
        if leader.stop.is_set():
            return


async def _retry_parked(leader: _Leader) -> None:
    """Forward again the parked events that are marked for a retry; what fails again stays parked."""
    reader = leader.subscription.name
    found = await (await leader.connection.execute(TO_RETRY, (reader, BATCH))).fetchall()
    for (position,) in found:
        if leader.stop.is_set():
            return
        for recorded in await leader.store.read(after=position - 1, limit=1):
            await _forward_or_park(leader, recorded)
        await leader.connection.execute(RETRIED, (reader, position))


async def _forward_batch(leader: _Leader, batch: Sequence[RecordedEvent]) -> None:
    """Forward a batch: streams concurrently, the events of one stream in order."""
    streams: defaultdict[object, list[RecordedEvent]] = defaultdict(list)
    for recorded in batch:
        if recorded.stored.topic in leader.subscription.topics:
            streams[recorded.stored.originator_id].append(recorded)
    places = asyncio.Semaphore(CONCURRENCY)

    async def forward_stream(events: Sequence[RecordedEvent]) -> None:
        async with places:
            for recorded in events:
                await _forward_or_park(leader, recorded)

    async with asyncio.TaskGroup() as group:
        for events in streams.values():
            group.create_task(forward_stream(events))


async def _forward_or_park(leader: _Leader, recorded: RecordedEvent) -> None:
    """Forward one event, however long Temporal is unavailable; park it if the event itself is the cause.

    Raises:
        _Stopped: asked to stop before Temporal answered.
        psycopg.Error, OSError: the database failed.
    """
    try:
        correlation_id = recorded.event.correlation_id
        forwarding = await leader.subscription.plan(recorded)
    except Exception as error:  # whatever is wrong with one event must not stop the others
        if isinstance(error, psycopg.Error | OSError) and not is_about_data(error):
            raise
        await _park(leader, recorded, error)
        return
    if forwarding is None:
        return
    try:
        outcome = await _forward_until_answered(leader, recorded, forwarding, correlation_id=correlation_id)
    except RPCError as error:
        await _park(leader, recorded, error)
        return
    crash_point("subscriber.forwarded")
    FORWARDED.labels(leader.subscription.name, forwarding.target, outcome.removeprefix("workflow.")).inc()
    left = await _left_undone(leader, recorded, forwarding) if outcome == GONE else None
    if left is not None:
        await _park(leader, recorded, left)
        return
    log.info(
        outcome,
        workflow_id=forwarding.workflow_id,
        position=recorded.position,
        correlation_id=correlation_id,
    )


async def _forward_until_answered(
    leader: _Leader, recorded: RecordedEvent, forwarding: Forwarding, *, correlation_id: str
) -> str:
    """As `forward`, again until Temporal is available.

    Raises:
        RPCError: Temporal will never accept it.
        _Stopped: asked to stop before Temporal answered.
    """
    failures = 0
    while True:
        try:
            return await forward(forwarding, client=leader.client, correlation_id=correlation_id)
        except (RPCError, RuntimeError) as error:  # RuntimeError: what the SDK raises without a connection
            if isinstance(error, RPCError) and error.status is UNFORWARDABLE:
                raise
            UNAVAILABLE.labels(leader.subscription.name).inc()
            pause = pause_seconds(attempt=failures, longest=LONGEST_RETRY_SECONDS)
            log.warning(
                "subscriber.temporal_unavailable",
                position=recorded.position,
                workflow_id=forwarding.workflow_id,
                reason=repr(error),
                retry_in=pause,
            )
            await sleep_unless_stopped(pause, stop=leader.stop)
            if leader.stop.is_set():
                raise _Stopped from error
            failures += 1


async def _left_undone(leader: _Leader, recorded: RecordedEvent, forwarding: Forwarding) -> Exception | None:
    """Why an event whose workflow is gone is parked; None if nothing is left undone."""
    try:
        strands = await leader.subscription.strands(recorded)
    except StreamUnreadable as unreadable:  # so whether something is left undone is not known
        return unreadable
    return WorkflowGone(forwarding.workflow_id) if strands else None


async def forward(forwarding: Forwarding, *, client: Client, correlation_id: str) -> str:
    """Start or signal a workflow; return the outcome. One that was started before, or is gone, is no error.

    Raises:
        RPCError, RuntimeError: Temporal is unavailable, or refused.
    """
    match forwarding:
        case StartWorkflow():
            return await _start(forwarding, client, correlation_id=correlation_id)
        case SignalWorkflow():
            return await _signal(forwarding, client)


async def _start(start: StartWorkflow, client: Client, *, correlation_id: str) -> str:
    try:
        await client.start_workflow(
            start.workflow,
            start.input,
            id=start.workflow_id,
            task_queue=start.task_queue,
            id_reuse_policy=WorkflowIDReusePolicy.REJECT_DUPLICATE,
            memo={"correlationId": correlation_id},
            start_signal=start.signal,
            rpc_timeout=RPC_TIMEOUT,
        )
    except WorkflowAlreadyStartedError:
        return "workflow.started_before"
    return "workflow.started"


async def _signal(signal: SignalWorkflow, client: Client) -> str:
    try:
        handle = client.get_workflow_handle(signal.workflow_id)
        arguments = [] if signal.argument is None else [signal.argument]
        await handle.signal(signal.signal, args=arguments, rpc_timeout=RPC_TIMEOUT)
    except RPCError as error:
        if error.status is not RPCStatusCode.NOT_FOUND or _namespace_is_missing(error):
            raise
        return GONE
    return "workflow.signalled"


def _namespace_is_missing(error: RPCError) -> bool:
    return any(detail.Is(NamespaceNotFoundFailure.DESCRIPTOR) for detail in error.grpc_status.details)


async def _park(leader: _Leader, recorded: RecordedEvent, error: Exception) -> None:
    """Keep the event with its error in `parked_events`, where `projections status` shows it."""
    reader, why = leader.subscription.name, one_line(error)
    PARKED.labels(reader).inc()
    log.error(
        "subscriber.parked",
        subscription=reader,
        position=recorded.position,
        stream_id=str(recorded.stored.originator_id),
        topic=recorded.stored.topic,
        error=why,
    )
    stored = recorded.stored
    await leader.connection.execute(
        PARK,
        (reader, recorded.position, stored.originator_id, stored.originator_version, stored.topic, why),
    )


async def _checkpoint(connection: psycopg.AsyncConnection[TupleRow], name: str) -> int:
    await connection.execute("INSERT INTO checkpoints (name) VALUES (%s) ON CONFLICT DO NOTHING", (name,))
    cursor = await connection.execute("SELECT position FROM checkpoints WHERE name = %s", (name,))
    row = await cursor.fetchone()
    assert row is not None
    return int(row[0])


async def _move_checkpoint(connection: psycopg.AsyncConnection[TupleRow], name: str, position: int) -> None:
    await connection.execute(
        "UPDATE checkpoints SET position = %s, updated_at = now() WHERE name = %s", (position, name)
    )
