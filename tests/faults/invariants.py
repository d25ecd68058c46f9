"""What holds whatever went wrong: asked of the database, the sandbox's books, Redis, Temporal and the logs.

Each check returns what it found to be wrong, one line each. They are asked when everything has come to rest.
"""

import asyncio
import contextlib
import re
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, cast
from uuid import UUID

import orjson
import psycopg
from eventsourcing.domain import OriginatorVersionError
from eventsourcing.persistence import StoredEvent
from psycopg import sql
from redis.asyncio import Redis
from temporalio.client import WorkflowExecution, WorkflowExecutionStatus
from temporalio.service import RPCError

from faults.journal import TOPICS, Command
from faults.world import POISON, World
from payloops.cli.options import duration
from payloops.events.authenticity import content_hash, derive_mac_key, event_mac
from payloops.events.checkout_sessions import CheckoutOrderPlaced, CheckoutSession, SessionStatus
from payloops.events.encoding import decode
from payloops.events.merchants import Merchant
from payloops.events.orders import (
    Order,
    PaymentStatus,
    TransactionStatus,
    TransactionType,
)
from payloops.events.stream import StreamEvent
from payloops.events.timestamps import utc_now
from payloops.processors.sandbox import SandboxProcessor
from payloops.projections.orders import OrderRow, row_from_order
from payloops.projections.patches import columns_of
from payloops.projections.projection import all_projections
from payloops.projections.status import projections_status
from payloops.projections.verifying import verify
from payloops.reconcile.payments import reconcile
from payloops.sandbox.ledger import Charge
from payloops.workflows_client import payment_subscription, webhook_subscription
from payloops.workflows_client.forwardings import StartWorkflow

REST_SECONDS = 150.0
"""How long everything may take to come to rest: twice as long as Temporal takes to miss a killed worker."""
QUIET_SECONDS = 0.5
SHOWN = 5
"""Of findings of one kind."""

READERS = (payment_subscription.READER, webhook_subscription.READER)
UNDER_WAY = {PaymentStatus.PROCESSING, PaymentStatus.REQUIRES_ACTION}


@dataclass(frozen=True, slots=True)
class Logged:
    """An event as it is stored."""

    position: int
    stream: UUID
    version: int
    topic: str
    state: bytes
    content_hash: bytes
    mac: bytes
    merchant_id: UUID
    personal_key: bytes | None

    @property
    def stored(self) -> StoredEvent:
        return StoredEvent(self.stream, self.version, self.topic, self.state)

    @property
    def fact(self) -> StreamEvent:
        return decode(self.stored, personal_key=self.personal_key)

    @property
    def json(self) -> dict[str, Any]:
        return cast("dict[str, Any]", orjson.loads(self.state))


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What is left of a run, read once.

    Attributes:
        log: everything. events: what makes sense of it.
    """

    world: World
    log: Sequence[Logged]
    events: Sequence[Logged]
    orders: dict[str, Order]
    charges: Sequence[Charge]
    workflows: Sequence[WorkflowExecution]


async def come_to_rest(world: World) -> list[str]:
    """Wait until nothing is under way any more; what still is after all the time is wrong."""
    deadline = time.monotonic() + REST_SECONDS
    quiet_since: float | None = None
    moving: list[str] = []
    while time.monotonic() < deadline:
        try:
            moving = await _moving(world)
        except (psycopg.Error, OSError, RPCError, RuntimeError) as error:
            moving = [f"the servers cannot be asked: {error!r}"]
        if moving:
            quiet_since = None
        elif quiet_since is None:
            quiet_since = time.monotonic()
        elif time.monotonic() - quiet_since > QUIET_SECONDS:
            return []
        await asyncio.sleep(0.2)
    return [f"not at rest after {REST_SECONDS:.0f} s: {each}" for each in moving[:SHOWN]]


async def _moving(world: World) -> list[str]:
    """What is under way, one line each."""
    moving = [
        f"{each.name} is {each.lag_events} events behind"
        for each in await projections_status(world.store.pool)
        if each.lag_events
    ]
    async with world.store.pool.connection() as connection:
        cursor = await connection.execute(
            "SELECT id::text FROM webhook_events WHERE status NOT IN ('delivered', 'failed') LIMIT 20"
        )
        moving += [f"webhook {row[0]} is not delivered" for row in await cursor.fetchall()]
    for order in _fold(_sense(await _read_log(world))).values():
        if str(order.id) in world.open_orders:
            continue
        moving += [
            f"payment {p.attempt} of order {order.id} is {p.status}"
            for p in order.payments.values()
            if p.status in UNDER_WAY or p.capture_pending
        ]
        moving += [
            f"{t.type} {t.id} of order {order.id} is pending"
            for t in order.transactions.values()
            if t.status is TransactionStatus.PENDING
            and t.type in {TransactionType.REFUND, TransactionType.VOID}
        ]
    async for workflow in world.temporal.list_workflows("ExecutionStatus = 'Running'"):
        if not any(order_id in workflow.id for order_id in world.open_orders):
            moving.append(f"{workflow.id} is running")
    return moving


async def violations(world: World, *names: str) -> list[str]:
    """Everything that is wrong, with the name of the invariant before it; of all where none is named."""
    evidence = await gather_evidence(world)
    wrong = []
    for name in names or CHECKS:
        found = CHECKS[name](evidence)
        lines = list(found if isinstance(found, list) else await found)
        shown = lines[:SHOWN] + ([f"… and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else [])
        wrong += [f"{name}: {line}" for line in shown]
    return wrong


async def gather_evidence(world: World) -> Evidence:
    log = await _read_log(world)
    events = _sense(log)
    charges: list[Charge] = []
    async with world.store.pool.connection() as connection:
        cursor = await connection.execute("SELECT to_regclass('sandbox.charges')")
        row = await cursor.fetchone()
        if row is not None and row[0] is not None:
            names = [*Charge.__dataclass_fields__]
            cursor = await connection.execute(
                sql.SQL("SELECT {} FROM sandbox.charges").format(
                    sql.SQL(", ").join(map(sql.Identifier, names))
                )
            )
            charges = [Charge(**dict(zip(names, values, strict=True))) for values in await cursor.fetchall()]
    return Evidence(
        world=world,
        log=log,
        events=events,
        orders=_fold(events),
        charges=charges,
        workflows=await _workflows(world, events),
    )


LOG = """
    SELECT notification_id, originator_id, originator_version, topic, state, content_hash, mac, merchant_id,
           (SELECT key FROM personal_keys k WHERE k.originator_id = e.originator_id)
    FROM stored_events e ORDER BY notification_id
"""


async def _read_log(world: World) -> list[Logged]:
    async with world.store.pool.connection() as connection:
        return [Logged(*row) for row in await (await connection.execute(LOG)).fetchall()]


def _sense(log: Sequence[Logged]) -> list[Logged]:
    """Without the events that a case made up, of which nobody can make sense."""
    return [event for event in log if event.json["correlation_id"] != POISON]


def _fold(events: Sequence[Logged]) -> dict[str, Order]:
    orders: dict[str, Order] = {}
    for event in events:
        key = str(event.stream)
        if event.topic != "order.created" and key not in orders:
            continue  # a merchant's
        with contextlib.suppress(OriginatorVersionError):  # `check_log` tells of it
            orders[key] = cast("Order", event.fact.mutate(cast("Any", orders.get(key))))
    return orders


async def _workflows(world: World, events: Sequence[Logged]) -> list[WorkflowExecution]:
    """All executions of the namespace. Visibility comes a little late: waited for, for as many as there should be."""
    expected = len(_expected_workflows(world, events))
    deadline = time.monotonic() + 10
    while True:
        found = [each async for each in world.temporal.list_workflows("")]
        running = [e for e in found if e.status is WorkflowExecutionStatus.RUNNING]
        if (len(found) >= expected and not running) or time.monotonic() > deadline:
            return found
        await asyncio.sleep(0.2)


def check_log(evidence: Evidence) -> list[str]:
    """Positions 1..n and every stream's versions 1..n, without gaps; content as its hash says."""
    wrong = [
        f"position {event.position} stands where {place} should"
        for place, event in enumerate(evidence.log, start=1)
        if event.position != place
    ]
    versions: defaultdict[UUID, int] = defaultdict(int)
    mac_key = derive_mac_key(evidence.world.settings.audit_key.get_secret_value())
    for event in evidence.log:
        versions[event.stream] += 1
        if event.version != versions[event.stream]:
            wrong.append(f"version {event.version} of {event.stream} follows {versions[event.stream] - 1}")
        if content_hash(event.stored) != event.content_hash:
            wrong.append(f"event {event.position} is not what its hash says")
        if event_mac(mac_key, content_hash=event.content_hash, merchant_id=event.merchant_id) != event.mac:
            wrong.append(f"event {event.position} is not authentic")
    return wrong


def check_acknowledged(evidence: Evidence) -> list[str]:
    """Every acknowledged command is in the log once; one that was refused is not; any other once at most."""
    made: defaultdict[str, list[Logged]] = defaultdict(list)
    for event in evidence.events:
        state = event.json
        if state["actor"].startswith(("api_key:", "merchant:")):
            made[state["correlation_id"]].append(event)
    return [line for command in evidence.world.journal.commands for line in _of_command(command, made)]


def _of_command(command: Command, made: dict[str, list[Logged]]) -> list[str]:
    topics = TOPICS[command.kind]
    facts = [e for each in command.tries for e in made.get(each.correlation_id, []) if e.topic in topics]
    told = command.told()
    wrong = []
    if len(facts) > 1:
        wrong.append(f"done {len(facts)} times: {told}")
    # Who asks again to cancel is told yes, and nothing more happens.
    if command.acknowledged and not facts and command.kind != "cancel":
        wrong.append(f"acknowledged and not in the log: {told}")
    if command.refused and facts:
        wrong.append(f"refused and in the log: {told}")
    wrong += [
        f"answered {each.answer.status} ('nothing was done'), and in the log: {told}"
        for each in command.tries
        if each.answer is not None and each.refused and made.get(each.correlation_id)
    ]
    if command.acknowledged and facts and not _answers_the_facts(command, facts):
        wrong.append(f"the answer is not about what is in the log: {told}")
    return wrong


NAMING = {"create", "check out", "pay", "capture", "cancel", "refund"}
"""Kinds whose answers name the order, or the session, that they are about."""


def _answers_the_facts(command: Command, facts: Sequence[Logged]) -> bool:
    """Whether every answer of success names what is in the log."""
    for each in command.tries:
        if not each.acknowledged:
            continue
        assert each.answer is not None
        body = each.answer.json if each.answer.raw else {}
        if command.kind not in NAMING:
            continue
        named = body.get("orderId") or body.get("id")
        if named != str(facts[0].stream):
            return False
        if command.kind == "refund" and body["refundId"] != facts[0].json["refund_id"]:
            return False
    return True


def check_money(evidence: Evidence) -> list[str]:
    """At every version of every order: refunded ≤ captured ≤ authorized, by payment and by order."""
    wrong = []
    orders: dict[str, Order] = {}
    for event in evidence.events:
        key = str(event.stream)
        if event.topic != "order.created" and key not in orders:
            continue
        order = orders[key] = cast("Order", event.fact.mutate(cast("Any", orders.get(key))))
        wrong += [f"order {key} at version {event.version}: {line}" for line in _of_order(order)]
    return wrong


def _of_order(order: Order) -> list[str]:
    wrong = []
    if not 0 <= order.amount_refunded <= order.amount_captured:
        wrong.append(f"{order.amount_refunded} refunded of {order.amount_captured} captured")
    captured = _sum(order, TransactionType.CAPTURE)
    refunded = _sum(order, TransactionType.REFUND)
    if (captured, refunded) != (order.amount_captured, order.amount_refunded):
        wrong.append(
            f"transactions say {captured} captured and {refunded} refunded, the order"
            f" {order.amount_captured} and {order.amount_refunded}"
        )
    for capture in order.transactions.values():
        if capture.type is not TransactionType.CAPTURE or capture.status is not TransactionStatus.SUCCESS:
            continue
        authorized = order.payments[capture.attempt].amount
        if capture.amount > authorized:
            wrong.append(f"{capture.amount} captured of {authorized} authorized")
        given = sum(
            t.amount
            for t in order.transactions.values()
            if t.refunds == capture.id and t.status is not TransactionStatus.FAILED and not t.discovered
        )
        if given > capture.amount:
            wrong.append(f"refunds of {given} of a capture of {capture.amount}")
    return wrong


def _sum(order: Order, kind: TransactionType, *, attempt: int | None = None) -> int:
    return sum(
        t.amount
        for t in order.transactions.values()
        if t.type is kind and t.status is TransactionStatus.SUCCESS and attempt in (None, t.attempt)
    )


AGREES: dict[PaymentStatus, set[str | None]] = {
    PaymentStatus.AUTHORIZED: {"authorized"},
    PaymentStatus.CAPTURED: {"captured"},
    PaymentStatus.FAILED: {"declined", "cancelled", None},
    PaymentStatus.CANCELLED: {"cancelled", None},
    PaymentStatus.REQUIRES_ACTION: {"requires_action"},
    PaymentStatus.PROCESSING: {"requires_action", "authorized", "captured", "declined", "cancelled", None},
}
"""By our status of a payment, what the processor may say of its charge; None: it knows of none."""


def check_ledger(evidence: Evidence) -> list[str]:
    """The sandbox's books and ours agree, payment by payment; nobody paid twice and kept paid."""
    wrong = []
    charges = {(each.order_id, each.attempt): each for each in evidence.charges}
    for key, order in evidence.orders.items():
        for attempt, payment in order.payments.items():
            charge = charges.pop((key, attempt), None)
            ours = (
                _sum(order, TransactionType.CAPTURE, attempt=attempt),
                _sum(order, TransactionType.REFUND, attempt=attempt),
            )
            theirs = (0, 0) if charge is None else (charge.amount_captured, charge.amount_refunded)
            if ours != theirs:
                wrong.append(
                    f"attempt {attempt} of order {key}: {ours} captured and refunded, there {theirs}"
                )
            status = None if charge is None else charge.status
            if status not in AGREES[payment.status]:
                wrong.append(f"attempt {attempt} of order {key} is {payment.status}, there {status}")
    wrong += [f"charged, and not asked for: attempt {n} of order {key}" for key, n in charges]
    kept: Counter[str] = Counter()
    for charge in evidence.charges:
        kept[charge.order_id] += charge.amount_captured - charge.amount_refunded
    wrong += [
        f"{amount} kept of order {key} of {evidence.orders[key].amount}"
        for key, amount in kept.items()
        if key in evidence.orders and amount > evidence.orders[key].amount
    ]
    return wrong


def check_checkouts(evidence: Evidence) -> list[str]:
    """A session places one order at the most, of its amount; where it is completed, there was money."""
    sessions: dict[UUID, CheckoutSession] = {}
    placed: defaultdict[UUID, list[str]] = defaultdict(list)
    for event in evidence.events:
        if event.topic.startswith("checkout_session."):
            fact = event.fact
            sessions[event.stream] = cast(
                "CheckoutSession", fact.mutate(cast("Any", sessions.get(event.stream)))
            )
            if isinstance(fact, CheckoutOrderPlaced):
                placed[event.stream].append(fact.order_id)
    wrong = [f"session {id} placed {len(orders)} orders" for id, orders in placed.items() if len(orders) > 1]
    times = Counter(order_id for orders in placed.values() for order_id in orders)
    wrong += [f"order {id} was placed {count} times" for id, count in times.items() if count > 1]
    for id, session in sessions.items():
        order = evidence.orders.get(session.order_id or "")
        if session.order_id is not None and order is None:
            wrong.append(f"session {id} placed an order that there is not: {session.order_id}")
        elif order is not None and (order.amount, order.currency) != (session.amount, session.currency):
            wrong.append(f"session {id} is of {session.amount}, its order of {order.amount}")
        if session.status is SessionStatus.COMPLETED and (order is None or not _had_money(order)):
            wrong.append(f"session {id} is completed, and nothing was paid")
    return wrong


def _had_money(order: Order) -> bool:
    return any(
        t.status is TransactionStatus.SUCCESS
        and t.type in {TransactionType.AUTHORIZATION, TransactionType.CAPTURE}
        for t in order.transactions.values()
    )


def _expected_workflows(world: World, events: Sequence[Logged]) -> dict[str, str]:
    """Of every workflow that the log calls for: its id, and its kind."""
    expected = {}
    for event in events:
        if event.topic not in payment_subscription.TOPICS:
            continue
        forwarding = payment_subscription.forwarding_of(event.fact)
        if isinstance(forwarding, StartWorkflow):
            expected[forwarding.workflow_id] = forwarding.workflow
    return expected


def check_workflows(evidence: Evidence) -> list[str]:
    """One workflow for each trigger, one run of each, and none that failed or does not end."""
    expected = _expected_workflows(evidence.world, evidence.events)
    runs = Counter(each.id for each in evidence.workflows)
    kinds = {each.id: each.workflow_type for each in evidence.workflows}
    wrong = [f"{id} has {runs[id]} runs" for id in expected if runs[id] != 1]
    wrong += [f"{id} is a {kinds[id]}" for id, kind in expected.items() if id in kinds and kinds[id] != kind]
    wrong += [
        f"nothing called for {id}"
        for id in runs
        if id not in expected and kinds[id] != "WebhookDeliveryWorkflow"
    ]
    wrong += [f"{id} has {count} runs" for id, count in runs.items() if id not in expected and count != 1]
    for each in evidence.workflows:
        if each.status is WorkflowExecutionStatus.COMPLETED:
            continue
        open_order = any(order_id in each.id for order_id in evidence.world.open_orders)
        if each.status is WorkflowExecutionStatus.RUNNING and open_order:
            continue
        wrong.append(f"{each.id} is {each.status.name if each.status else 'nowhere'}")
    return wrong


async def check_projections(evidence: Evidence) -> list[str]:
    """Every table that is folded from the log is what folding it from zero makes, and what the streams say."""
    verdicts = await verify(
        database_url=evidence.world.settings.database_url.get_secret_value(),
        projections=all_projections(),
        report=lambda *_: None,
        workers=1,
    )
    wrong = [
        f"{each.table}: {found.key} is {found.live}, not {found.rebuilt}"
        for each in verdicts
        for found in each.differences
    ]
    async with evidence.world.store.pool.connection() as connection:
        cursor = await connection.execute(
            sql.SQL("SELECT {} FROM orders o").format(columns_of(OrderRow, "o"))
        )
        rows = {str(row[0]): OrderRow(*row) for row in await cursor.fetchall()}
    wrong += [
        f"orders: {key} is not what its stream says"
        for key, order in evidence.orders.items()
        if key not in evidence.world.poisoned and rows.get(key) != row_from_order(order)
    ]
    return wrong


async def check_accounts(evidence: Evidence) -> list[str]:
    """What tables say of a merchant is what its stream says: both change in one transaction."""
    merchants: dict[UUID, Merchant] = {}
    for event in evidence.events:
        if event.topic.partition(".")[0] in ACCOUNT_FAMILIES:
            account = merchants.get(event.stream)
            merchants[event.stream] = cast("Merchant", event.fact.mutate(cast("Any", account)))
    wrong = []
    async with evidence.world.store.pool.connection() as connection:
        for id, name, url, keys, processors in await (await connection.execute(ACCOUNTS)).fetchall():
            account = merchants.pop(id, None)
            stream = None if account is None else _account(account)
            table = (name, url, set(keys), {processor: tuple(rest) for processor, *rest in processors})
            if stream != table:
                wrong.append(f"merchant {id} is {table}, and its stream says {stream}")
    return wrong + [f"merchant {id} has no row" for id in merchants]


ACCOUNT_FAMILIES = {"merchant", "api_key", "processor", "webhook_secret", "webhooks", "webhook"}
ACCOUNTS = """
    SELECT id, name, webhook_url,
           ARRAY(SELECT k.id::text FROM api_keys k WHERE k.merchant_id = m.id AND revoked_at IS NULL),
           coalesce((SELECT jsonb_agg(jsonb_build_array(processor, enabled, priority, test_mode))
                     FROM processor_configs c WHERE c.merchant_id = m.id), '[]')
    FROM merchants m
"""


def _account(account: Merchant) -> tuple[Any, ...]:
    processors = {name: (c.enabled, c.priority, c.test_mode) for name, c in account.processors.items()}
    return account.name, account.webhook_url, account.api_keys, processors


async def check_parked(evidence: Evidence) -> list[str]:
    """No reader gave an event up, but those that nobody can make sense of."""
    async with evidence.world.store.pool.connection() as connection:
        cursor = await connection.execute(
            "SELECT originator_id::text, reader, position, topic, error FROM parked_events"
        )
        parked = await cursor.fetchall()
    return [
        f"{reader} parked event {position} ({topic}): {error}"
        for stream, reader, position, topic, error in parked
        if stream not in evidence.world.poisoned
    ]


async def check_webhooks(evidence: Evidence) -> list[str]:
    """Where the merchant listens, each fact that calls for it was told, by one webhook, which arrived."""
    world = evidence.world
    async with world.store.pool.connection() as connection:
        cursor = await connection.execute("SELECT id::text FROM merchants WHERE webhook_url IS NOT NULL")
        listening = {row[0] for row in await cursor.fetchall()}
        cursor = await connection.execute("SELECT id::text, status, order_id::text FROM webhook_events")
        kept = {row[0]: row[1:] for row in await cursor.fetchall()}
    wrong = [f"{id} is {status}" for id, (status, _) in kept.items() if status != "delivered"]
    called_for: set[str] = set()
    for event in evidence.events:
        if event.topic not in webhook_subscription.TOPICS or event.json["merchant_id"] not in listening:
            continue
        fact = event.fact
        if webhook_subscription.event_type_of(fact) is not None:
            called_for.add(str(webhook_subscription.webhook_id_of(fact)))
    wrong += [f"{id} was never queued" for id in called_for - kept.keys()]
    wrong += [f"nothing called for {id}" for id in kept.keys() - called_for]
    if world.heard is not None:
        wrong += [f"{id} was never heard" for id in called_for - world.heard.keys()]
    return wrong


DUMP = """
    SELECT table_schema, table_name FROM information_schema.tables
    WHERE table_schema NOT IN ('pg_catalog', 'information_schema') AND table_type = 'BASE TABLE'
"""


async def check_secrets(evidence: Evidence) -> list[str]:
    """No secret and no card number stands in a log, a table, a key of Redis or anything that Temporal keeps."""
    world = evidence.world
    places: list[tuple[str, bytes]] = [
        (path.name, path.read_bytes())
        for path in [*world.folder.glob("*.log"), *(world.servers.data_dir / "logs").glob("*.log")]
    ]
    places += [
        (path.name, path.read_bytes()) for path in (world.servers.data_dir / "temporal").glob("temporal.db*")
    ]
    async with world.store.pool.connection() as connection:
        for schema, table in await (await connection.execute(DUMP)).fetchall():
            cursor = await connection.execute(
                sql.SQL("SELECT t::text FROM {}.{} t").format(sql.Identifier(schema), sql.Identifier(table))
            )
            places += [(table, row[0].encode()) for row in await cursor.fetchall()]
    async with Redis.from_url(world.settings.redis_url.get_secret_value()) as redis:
        async for key in redis.scan_iter():
            places.append(("a key of Redis", key + b" " + (await redis.dump(key) or b"")))
    wrong = []
    for what, secret in world.canaries.items():
        plain = secret.encode()
        written = (plain, plain.hex().encode())  # bytea is shown in hexadecimal
        wrong += [f"{what} stands in {place}" for place, text in places if any(w in text for w in written)]
    return sorted(set(wrong))


TROUBLE = re.compile(
    r"http\.internal_error|appender\.batch_failed|appender\.closed_unfinished|api\.worker_failed"
    r"|Traceback \(most recent call last\)|exception was never retrieved|was never awaited|PANIC"
)
RETRIED = "Completing activity as failed"
"""What Temporal's SDK says, with a trace, of an activity that is going to be tried again."""


def check_logs(evidence: Evidence) -> list[str]:
    """No process met what it did not expect."""
    wrong = []
    for path in sorted(evidence.world.folder.glob("*.log")):
        lines = path.read_text(errors="replace").splitlines()
        wrong += [
            f"{path.name}:{number}: {line[:200]}"
            for number, (before, line) in enumerate(pairwise(["", *lines]), start=1)
            if TROUBLE.search(line) and RETRIED not in before
        ]
    return wrong


async def check_reconciled(evidence: Evidence) -> list[str]:
    """`payloops reconcile` finds nothing to record and nothing to look at. It writes: asked last."""
    pool = evidence.world.store.pool

    async def find(_: UUID, __: str) -> SandboxProcessor:
        return SandboxProcessor(pool)

    if not evidence.charges:
        return []
    findings = await reconcile(
        evidence.world.store,
        find=find,
        older_than=duration("0s"),
        since=duration("7d"),
        now=utc_now(),
    )
    return [
        f"attempt {each.attempt} of order {each.order_id}: {each.outcome} ({each.detail})"
        for each in findings
        if each.outcome not in {"agrees", "waits"}
        and not (each.outcome == "unreadable" and each.order_id in evidence.world.poisoned)
    ]


CHECKS: dict[str, Callable[[Evidence], list[str] | Awaitable[list[str]]]] = {
    "log": check_log,
    "acknowledged": check_acknowledged,
    "money": check_money,
    "ledger": check_ledger,
    "checkouts": check_checkouts,
    "workflows": check_workflows,
    "projections": check_projections,
    "accounts": check_accounts,
    "parked": check_parked,
    "webhooks": check_webhooks,
    "secrets": check_secrets,
    "logs": check_logs,
    "answers": lambda evidence: evidence.world.journal.wrong,
    "processes": lambda evidence: evidence.world.wrong,
    "reconciled": check_reconciled,  # it writes: last
}
