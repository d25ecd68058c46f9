"""Orders that live through everything, and projectors to watch: for the tests of projections."""

import asyncio
import random
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from typing import cast, get_args
from uuid import UUID

import orjson
import psycopg
import pytest
from psycopg.rows import TupleRow
from uuid_utils.compat import uuid7

from payloops.commands.cancel_order import cancel
from payloops.commands.capture_payment import request_capture
from payloops.commands.erase_personal_data import erase
from payloops.commands.pay_order import request_payment
from payloops.commands.payment_outcomes import (
    report_action_required,
    report_authorized,
    report_cancelled,
    report_captured,
    report_failed,
    report_processing,
)
from payloops.commands.receive_processor_event import Outcome, ProcessorEvent, receive
from payloops.commands.refund_outcomes import fail_refund, succeed_refund
from payloops.commands.refund_payment import request_refund
from payloops.commands.refusals import (
    CaptureExceedsAuthorized,
    ContradictsRecord,
    InvalidStatus,
    NotResolvable,
    RefundExceedsCaptured,
)
from payloops.commands.resolve_order import RECENT, Shows, Sighting, resolve
from payloops.commands.route_payment import Route
from payloops.events.connections import connect
from payloops.events.errors import StoreUnavailable
from payloops.events.event_store import EventStore
from payloops.events.metadata import Metadata
from payloops.events.orders import (
    NO_REASON,
    NO_REFERENCES,
    Failure,
    Order,
    Payment,
    PaymentStatus,
    References,
    TransactionType,
)
from payloops.events.stream import StreamEvent
from payloops.events.timestamps import utc_now
from payloops.projections import own_writes
from payloops.projections.batches import project_batch
from payloops.projections.orders import CHECKPOINT
from payloops.projections.orders import PROJECTION as ORDERS
from payloops.projections.projection import all_projections
from payloops.projections.projector import run_projections

DEADLINE = 60.0
"""Seconds that a test waits for what has to come."""
REFUSALS = (InvalidStatus, CaptureExceedsAuthorized, RefundExceedsCaptured, ContradictsRecord, NotResolvable)


def new_order(merchant_id: UUID, *, at: datetime | None = None, **details: object) -> Order:
    by = Metadata(at=at or utc_now(), actor="system", correlation_id="test")
    given = {
        "external_id": "A-1",
        "amount": 1_000,
        "currency": "USD",
        "customer_id": None,
        "customer_email": None,
        "description": None,
        "metadata": {},
        "return_url": None,
        "cancel_url": None,
    }
    return Order.create(id=uuid7(), merchant_id=str(merchant_id), by=by, **{**given, **details})


def random_order(
    chance: random.Random,
    merchant_id: UUID,
    *,
    at: datetime | None = None,
    pace: timedelta = timedelta(milliseconds=1),
) -> Order:
    """An order after random commands and reports of its processor; what is refused is left out.

    Args:
        at: when it was created.
        pace: up to four times this lies between a step and the next.
    """
    order = new_order(
        merchant_id,
        at=at,
        external_id=f"order-{chance.randrange(1_000)}",
        currency=chance.choice(["USD", "INR"]),
        customer_email=chance.choice([None, "zoë@example.com"]),
        description=chance.choice([None, 'Ein "Tisch" \\ 机 \n']),
        metadata=chance.choice([{}, {"b": 1, "a": [1.50, None, {"ü": "\\u0041"}]}]),
    )
    if chance.random() < 0.05:
        _capture_twice(order)
    for step in range(chance.randrange(20)):
        by = Metadata(
            at=order.modified_on + chance.randrange(5) * pace,
            actor="system",
            correlation_id=f"step-{step}",
        )
        try:
            _step(chance, order, by)
        except REFUSALS:
            continue
    return order


def _capture_twice(order: Order) -> None:
    """Two attempts are reported as captured, without references: there may be one charge."""
    by = Metadata(at=order.modified_on, actor="system", correlation_id="twice")
    for n in (1, 2):
        route = Route(processor="stripe", reason="test")
        request_payment(order, route=route, payment_method=None, capture="automatic", by=by)
        if n == 1:
            report_failed(order, order.payments[n], references=NO_REFERENCES, failure=NO_REASON, by=by)
    for payment in order.payments.values():
        report_captured(order, payment, references=NO_REFERENCES, by=by)


def _step(chance: random.Random, order: Order, by: Metadata) -> None:  # noqa: C901  # one per command
    references = References(
        order_id=chance.choice([None, "pi_1", "pi_2"]),
        transaction_id=chance.choice([None, "ch_1", "ch_2"]),
    )
    failure = Failure(chance.choice([None, "card_declined"]), chance.choice([None, "Your card was declined"]))
    payment = chance.choice([*order.payments.values(), order.payment])
    refunds = [t.id for t in order.transactions.values() if t.type is TransactionType.REFUND]
    match chance.randrange(16 if payment else 1):
        case 0:
            request_payment(
                order,
                route=Route(processor=chance.choice(["stripe", "razorpay"]), reason="test"),
                payment_method=None,
                capture=chance.choice(["automatic", "manual"]),
                by=by,
            )
        case 1 if payment:
            report_processing(order, payment, processor_order_id=references.order_id, by=by)
        case 2 if payment:
            report_action_required(
                order,
                payment,
                processor_order_id=references.order_id,
                redirect_url="https://3ds",
                by=by,
            )
        case 3 if payment:
            report_authorized(order, payment, references=references, by=by)
        case 4 | 5 if payment:
            report_captured(order, payment, references=references, by=by)
        case 6 if payment:
            report_failed(order, payment, references=references, failure=failure, by=by)
        case 7 if payment:
            report_cancelled(order, payment, processor_transaction_id=references.transaction_id, by=by)
        case 8:
            request_capture(order, amount=chance.choice([None, 400, 1_000]), by=by)
        case 9 if chance.random() < 0.4:  # or nothing would ever live long
            cancel(order, by=by)
        case 10:
            request_refund(
                order, amount=chance.choice([None, 100, 300]), reason=chance.choice([None, "late"]), by=by
            )
        case 11 if refunds:
            refund = order.transactions[chance.choice(refunds)]
            if chance.random() < 0.6:
                succeed_refund(order, refund.id, processor_transaction_id=references.transaction_id, by=by)
            else:
                fail_refund(order, refund.id, processor_transaction_id=None, failure=failure, by=by)
        case 12 | 13 if payment:
            _tell(chance, order, payment, references, by)
        case 14:
            erase(order, by=by)
        case 15 if payment:
            _look_up(chance, order, payment, by)


def _look_up(chance: random.Random, order: Order, payment: Payment, by: Metadata) -> None:
    """Somebody looks it up in the dashboard."""
    refunds = [t.id for t in order.transactions.values() if t.type is TransactionType.REFUND]
    captured = [each for each in order.payments.values() if each.status is PaymentStatus.CAPTURED]
    shows: Shows = "one_charge" if len(captured) > 1 else chance.choice(get_args(Shows))
    is_refund = shows.startswith("refund")
    seen = Sighting(
        shows=shows,
        attempt=None if is_refund else payment.attempt,
        refund_id=chance.choice([*refunds, "none"]) if is_refund else None,
        reference=None if is_refund else chance.choice(["pi_1", "pi_3"]),
        note="seen",
    )
    resolve(order, seen, by=replace(by, at=by.at + RECENT))


def _tell(
    chance: random.Random, order: Order, payment: Payment, references: References, by: Metadata
) -> None:
    """An event of the processor arrives."""
    outcome = chance.choice(get_args(Outcome))
    money = outcome in {"captured", "refunded", "refund_failed"}
    receive(
        order,
        ProcessorEvent(
            processor=payment.processor,
            event_id=f"evt_{chance.randrange(1_000)}",
            type=outcome,
            order_id=order.id,
            attempt=chance.choice([None, payment.attempt]),
            outcome=outcome,
            amount=chance.choice([100, 1_000]) if money else None,
            currency=order.currency if money else None,
            refund_reference=f"re_{chance.randrange(3)}" if outcome.startswith("refund") else None,
            references=references,
        ),
        by=by,
    )


def recorded(order: Order) -> list[StreamEvent]:
    """The events decided on and not yet appended."""
    return order.collect_events()


async def _appended(store: EventStore, events: list[StreamEvent]) -> int:
    """Append, again where the store was too busy: nothing is there then."""
    async with asyncio.timeout(DEADLINE):
        while True:
            try:
                return await store.append(events)
            except StoreUnavailable:
                await asyncio.sleep(0.1)


async def append(store: EventStore, *orders: Order) -> int:
    """Append what the orders recorded; the position of the last event."""
    positions = await asyncio.gather(*(_appended(store, recorded(order)) for order in orders))
    return max(positions)


async def append_interleaved(store: EventStore, chance: random.Random, orders: list[Order]) -> int:
    """Append event by event, the orders in turns, each in its own order."""
    waiting = [recorded(order) for order in orders]
    position = 0
    while waiting:
        turn = chance.sample(waiting, k=min(len(waiting), 50))
        position = max(await asyncio.gather(*(_appended(store, [events.pop(0)]) for events in turn)))
        waiting = [events for events in waiting if events]
    return position


async def project_all(database_url: str, *, limit: int = 1_000) -> None:
    """Bring the projection up to date, in this task."""
    async with await connect(database_url, application_name="test") as connection:
        while await project_batch(connection, ORDERS, limit=limit):
            pass


async def project_everything(database_url: str) -> None:
    """Bring every projection up to date, in this task."""
    async with await connect(database_url, application_name="test") as connection:
        for projection in all_projections():
            await connection.execute(
                "INSERT INTO checkpoints (name, version) VALUES (%s, %s) ON CONFLICT DO NOTHING",
                (projection.name, projection.version),
            )
            while await project_batch(connection, projection):
                pass


async def eventually(look: Callable[[], Awaitable[bool]], *, within: float = DEADLINE) -> None:
    """Look until it is so."""
    deadline = time.monotonic() + within
    while not await look():
        assert time.monotonic() < deadline, f"not so after {within} s"
        await asyncio.sleep(0.01)


async def reached(store: EventStore, position: int, *, within: float = DEADLINE) -> None:
    """Wait until the projection has come to a position."""

    async def look() -> bool:
        return await checkpoint(store) >= position

    await eventually(look, within=within)


async def checkpoint(store: EventStore) -> int:
    position = await one(store, "SELECT position FROM checkpoints WHERE name = %s", CHECKPOINT)
    return cast("int | None", position) or 0


async def one(store: EventStore, query: str, *arguments: object) -> object:
    """The first column of a query's first row, seen by another connection than the projector's."""
    async with store.pool.connection() as connection:
        row = await (await connection.execute(query, arguments)).fetchone()
    return row[0] if row else None


async def rows(store: EventStore, query: str, *arguments: object) -> list[TupleRow]:
    async with store.pool.connection() as connection:
        return await (await connection.execute(query, arguments)).fetchall()


REQUESTED = {
    "timestamp": "2026-11-23T15:40:00Z",
    "merchant_id": "0192e4a0-0000-7000-8000-000000000000",
    "actor": "system",
    "correlation_id": "test",
    "causation_id": None,
    "status": "processing",
    "attempt": 1,
    "transaction_id": "0192e4a0-0000-7000-8000-000000000001",
    "processor": "stripe",
    "routing": "test",
    "capture": "manual",
    "amount": 1,
    "currency": "USD",
    "return_url": None,
    "payment_method": None,
}
"""A payment's request with all of its fields, so that what is wrong with it below is what is refused."""
POISON = {
    "no JSON": b"{",
    "a field missing": orjson.dumps({"timestamp": "2026-11-23T15:40:00Z", "status": "processing"}),
    "a number that no column holds": orjson.dumps({**REQUESTED, "attempt": 99_999_999_999_999}),
    "an id that is none": orjson.dumps({**REQUESTED, "transaction_id": "x"}),
    "a character that text cannot hold": orjson.dumps({**REQUESTED, "processor": "stri\0pe"}),
}


async def insert_raw(
    store: EventStore,
    merchant_id: UUID,
    *,
    topic: str,
    state: bytes,
    stream: UUID | None = None,
    version: int | None = None,
) -> int:
    """An event as no code of this version would write it; its position."""
    return cast(
        "int",
        await one(
            store,
            """
            INSERT INTO stored_events (originator_id, originator_version, topic, state, notification_id,
                                       merchant_id, content_hash)
            SELECT %s, coalesce(
                       %s, (SELECT max(originator_version) + 1 FROM stored_events WHERE originator_id = %s), 1
                   ), %s, %s, (SELECT coalesce(max(notification_id), 0) + 1 FROM stored_events), %s, ''
            RETURNING notification_id
            """,
            *(stream or uuid7(), version, stream, topic, state, merchant_id),
        ),
    )


@asynccontextmanager
async def projector(database_url: str) -> AsyncIterator[asyncio.Event]:
    """A projector in this process; setting the event stops it, and so does the end.

    Lists wait for it, however slow the machine makes it.
    """
    stop = asyncio.Event()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(own_writes, "WAIT_SECONDS", DEADLINE)
        task = asyncio.create_task(run_projections(database_url=database_url, stop=stop))
        try:
            yield stop
        finally:
            stop.set()
            await task


PROGRAM = """
import asyncio, sys
from payloops.projections.projector import run_projections
asyncio.run(run_projections(database_url=sys.argv[1], stop=asyncio.Event()))
"""


@asynccontextmanager
async def projector_process(database_url: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """A projector in a process of its own, killed with -9 at the end at the latest."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PROGRAM, database_url, stdout=asyncio.subprocess.DEVNULL
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


@asynccontextmanager
async def locked(database_url: str, table: str) -> AsyncIterator[psycopg.AsyncConnection[TupleRow]]:
    """Nobody can write to a table."""
    async with (
        await connect(database_url, application_name="test lock") as connection,
        connection.transaction(),
    ):
        await connection.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")
        yield connection
