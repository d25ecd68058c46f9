"""A log to measure against: orders with payments and refunds, as the commands record them, in any number.

A few orders live through the real commands; all others are copies of these, with ids and times of their own,
written by COPY. `python benchmarks/filled_log.py DATABASE_URL --events 1000000` fills a migrated, empty database.
"""

import argparse
import asyncio
import heapq
import random
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import orjson
import psycopg
from eventsourcing.persistence import StoredEvent
from rich.progress import track
from uuid_utils.compat import uuid7

from payloops.commands.capture_payment import request_capture
from payloops.commands.pay_order import request_payment
from payloops.commands.payment_outcomes import report_authorized, report_captured, report_failed
from payloops.commands.refund_outcomes import succeed_refund
from payloops.commands.refund_payment import request_refund
from payloops.commands.route_payment import Route
from payloops.events.authenticity import content_hash
from payloops.events.encoding import encode, open_state
from payloops.events.metadata import Metadata
from payloops.events.orders import CaptureMethod, Failure, Order, OrderCreated, References
from payloops.events.personal_data import PersonalKey, new_key, seal
from payloops.events.stream import StreamEvent
from payloops.events.timestamps import timestamp_text

MERCHANTS = 20
CURRENCIES = ("USD", "USD", "EUR", "INR")
ORDERS_OF_A_CUSTOMER = 5
"""However many orders there are, so that finding those of one is the same question in any log."""
ORDER: dict[str, Any] = {
    "amount": 4_999,
    "currency": "USD",
    "customer_id": "cus_1",
    "customer_email": "customer@example.com",
    "description": "A table, and two chairs",
    "metadata": {"cart": "c-1"},
    "return_url": "https://shop.example.com/thanks",
    "cancel_url": None,
}
"""What orders are of, beside their external ids."""
END = datetime(2026, 11, 1, tzinfo=UTC)
"""Orders are of the days before."""
COLUMNS = (
    "originator_id, originator_version, topic, state, notification_id, merchant_id, content_hash, recorded_at"
)

COPY_KEYS = "COPY personal_keys (originator_id, merchant_id, key, customer_digest, email_digest) FROM STDIN"


@dataclass(frozen=True)
class Step:
    """An event of a life, before it is somebody's. `after`: since the order was created."""

    topic: str
    state: bytes
    after: timedelta


@dataclass(frozen=True)
class Life:
    """What an order may live through.

    Attributes:
        names: what each order has of its own in the states: ids, and last the currency.
        share: how many orders of a hundred live so.
    """

    steps: list[Step]
    names: list[bytes]
    share: int


def lives() -> list[Life]:
    """By the real commands: most orders are refunded, the others captured, declined first, or left alone."""
    return [
        _life(share=45, refunds=1),
        _life(share=10, refunds=1, capture="manual"),
        _life(share=5, refunds=2, declined=True),
        _life(share=10, refunds=0, declined=True),
        _life(share=20, refunds=0),
        _life(share=10, refunds=0, paid=False),
    ]


def _life(
    *,
    share: int,
    refunds: int,
    paid: bool = True,
    declined: bool = False,
    capture: CaptureMethod = "automatic",
) -> Life:
    minutes = iter(range(0, 1_000, 7))

    def by(actor: str) -> Metadata:
        at = END + timedelta(minutes=next(minutes))
        return Metadata(at=at, actor=actor, correlation_id=str(uuid7()), causation_id=None)

    order = Order.create(
        id=uuid7(),
        merchant_id=str(uuid7()),
        by=by(f"api_key:{uuid7()}"),
        external_id="EXTERNAL-ID",
        **ORDER,
    )
    if declined:
        _request(order, capture, by("api_key:1"))
        report_failed(
            order,
            order.payments[1],
            references=References("pi_1"),
            failure=Failure("card_declined", "Your card was declined."),
            by=by("workflow:1"),
        )
    if paid:
        _request(order, capture, by("api_key:1"))
        payment = order.payments[order.attempt]
        references = References("pi_2", "ch_2")
        if capture == "manual":
            report_authorized(order, payment, references=references, by=by("workflow:1"))
            request_capture(order, amount=None, by=by("api_key:1"))
        report_captured(order, payment, references=references, by=by("workflow:1"))
    for _ in range(refunds):
        refund = request_refund(order, amount=1_000, reason="damaged", by=by("api_key:1"))
        succeed_refund(order, refund.id, processor_transaction_id="re_1", by=by("workflow:1"))
    events = order.collect_events()
    ids = [
        str(order.id),
        order.merchant_id,
        *order.transactions,
        *{e.correlation_id for e in events},
        '"USD"',
    ]
    return Life(
        steps=[_step(event, after=event.timestamp - events[0].timestamp) for event in events],
        names=[each.encode() for each in ids],
        share=share,
    )


def _step(event: StreamEvent, *, after: timedelta) -> Step:
    stored, key = encode(event)
    state = open_state(stored, personal_key=key.key if key is not None else None)
    return Step(stored.topic, orjson.dumps(state), after)


def _request(order: Order, capture: CaptureMethod, by: Metadata) -> None:
    request_payment(
        order,
        route=Route(processor="stripe", reason="the only one that is enabled"),
        payment_method={"type": "card", "token": "tok_visa"},
        capture=capture,
        by=by,
    )


def events_per_order() -> float:
    """How many an order has on average."""
    return _mean_steps(lives())


def _mean_steps(kinds: Sequence[Life]) -> float:
    return sum(life.share * len(life.steps) for life in kinds) / sum(life.share for life in kinds)


def customers_of(orders: int) -> int:
    """How many customers have so many orders; each by turns."""
    return max(1, orders // ORDERS_OF_A_CUSTOMER)


def merchants(chance: random.Random) -> list[UUID]:
    return [UUID(int=chance.getrandbits(128), version=4) for _ in range(MERCHANTS)]


def rows(
    *,
    events: int,
    days: int,
    seed: int,
    keys: list[tuple[PersonalKey, UUID]],
    owners: Sequence[UUID] = (),
    after: int = 0,
) -> Iterator[tuple[Any, ...]]:
    """Rows of stored_events, in the order of the log; orders overlap. At the end, some may be under way.

    Args:
        keys: takes the keys to the personal data in them, and whose they are.
        owners: whose orders they are; without any: of merchants that nobody else knows.
        after: the position that they continue.
    """
    chance = random.Random(seed)
    owners = owners or merchants(chance)
    kinds = lives()
    shares = [life.share for life in kinds]
    orders = max(1, events / _mean_steps(kinds))
    between = timedelta(days=days) / orders
    customers = customers_of(round(orders))
    begun = END - timedelta(days=days)
    waiting: list[tuple[datetime, int, UUID, UUID, int, str, bytes]] = []
    number, position = 0, after
    while position < after + events:
        while not waiting or waiting[0][0] >= begun + number * between:
            at = begun + number * between
            life = chance.choices(kinds, shares)[0]
            order_id = uuid7(nanoseconds=int(at.timestamp() * 1e6) * 1_000)
            owner = owners[int(len(owners) * chance.random() ** 3)]
            own = [str(order_id), str(owner)]
            own += [str(UUID(int=chance.getrandbits(128), version=4)) for _ in life.names[3:]]
            own.append(f'"{chance.choice(CURRENCIES)}"')
            for version, step in enumerate(life.steps, 1):
                state = step.state
                for name, other in zip(life.names, own, strict=True):
                    state = state.replace(name, other.encode())
                when = at + step.after * (0.5 + chance.random() / 1_000 + version / 1_000)
                item = (when, number, order_id, owner, version, step.topic, state)
                heapq.heappush(waiting, item)
            number += 1
        when, order_number, order_id, owner, version, topic, state = heapq.heappop(waiting)
        changed = orjson.loads(state)
        changed["timestamp"] = timestamp_text(when)
        if version == 1:
            changed["external_id"] = f"order-{order_number}"
            changed["customer_email"] = f"customer-{order_number % customers}@example.com"
            keys.append((_sealed(changed, order_id=order_id), owner))
        stored = StoredEvent(order_id, version, topic, orjson.dumps(changed))
        position += 1
        yield (order_id, version, topic, stored.state, position, owner, content_hash(stored), when)


def _sealed(state: dict[str, Any], *, order_id: UUID) -> PersonalKey:
    key = new_key(
        stream_id=order_id,
        merchant_id=state["merchant_id"],
        customer_id=state["customer_id"],
        email=state["customer_email"],
    )
    given = {name: state[name] for name in OrderCreated.PERSONAL}
    seal(state, given, key=key.key, stream_id=order_id, version=1)
    return key


async def fill(
    database_url: str, *, events: int, days: int = 365, seed: int = 1, owners: Sequence[UUID] = ()
) -> None:
    """Write a log into a migrated database, behind what it has; nobody else may write meanwhile."""
    keys: list[tuple[PersonalKey, UUID]] = []
    after = await _head(database_url)
    async with (
        await psycopg.AsyncConnection.connect(database_url) as connection,
        connection.cursor() as cursor,
        cursor.copy(f"COPY stored_events ({COLUMNS}) FROM STDIN (FORMAT BINARY)".encode()) as copy,
    ):
        copy.set_types(["uuid", "int8", "text", "bytea", "int8", "uuid", "bytea", "timestamptz"])
        shown = track(
            rows(events=events, days=days, seed=seed, keys=keys, owners=owners, after=after),
            total=events,
            description="Filling the log",
            disable=not sys.stderr.isatty(),
        )
        for row in shown:
            await copy.write_row(row)
    async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as connection:
        async with connection.cursor() as cursor, cursor.copy(COPY_KEYS) as copy:
            for key, owner in keys:
                await copy.write_row((key.stream_id, owner, key.key, key.customer_digest, key.email_digest))
        await connection.execute("VACUUM (ANALYZE) stored_events, personal_keys")


async def _head(database_url: str) -> int:
    async with await psycopg.AsyncConnection.connect(database_url) as connection:
        row = await (
            await connection.execute("SELECT coalesce(max(notification_id), 0) FROM stored_events")
        ).fetchone()
    return 0 if row is None else int(row[0])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("database_url")
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--days", type=int, default=365, help="of the past, over which orders are spread")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    asyncio.run(fill(options.database_url, events=options.events, days=options.days, seed=options.seed))
