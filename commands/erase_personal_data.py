"""Erases a customer's personal data: drops the encryption keys of it in the log, and erases its copies elsewhere.

The process may be killed after any step, and every step may be repeated:
1. Texts that contain the customer's email addresses are erased, while the addresses can still be decrypted.
2. Streams written before encryption keys existed get an empty key, so that later runs find them.
3. A stream's key is dropped, and the event that records this is appended to its order, in one transaction. The
   projections then show `[erased]`.
4. Copies made from the stream are erased. Copies made from now on contain `[erased]`.
5. The digests by which the customer's streams are found are removed. Until then, the next run processes them again.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Self
from uuid import UUID

from psycopg import AsyncConnection
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool

from payloops.commands.personal_copies import (
    Copies,
    count_copies,
    count_mentions,
    erase_copies,
    erase_mentions,
)
from payloops.commands.personal_keys import (
    Customer,
    HeldStream,
    drop_key,
    emails_in,
    find_again,
    forget_customer,
    streams_of_customer,
    streams_of_purchase,
)
from payloops.commands.refusals import OrderNotFound
from payloops.events.crash_points import crash_point
from payloops.events.errors import VersionConflict
from payloops.events.event_store import EventStore
from payloops.events.metadata import Metadata
from payloops.events.orders import Order, OrderCreated, PersonalDataErased
from payloops.events.personal_data import given_fields
from payloops.events.stream import Stream

TOGETHER = 50
"""Streams whose copies are erased in one transaction."""
TURNS = 8
"""Attempts to erase a stream to which events are appended meanwhile."""
ROUNDS = 5
"""How often the search for the customer's data is repeated, for data that was stored meanwhile."""
STATEMENT_TIMEOUT = "10min"
"""PostgreSQL's, for statements that search all texts of a merchant."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Holdings:
    """The personal data that is stored of a customer, or in one order.

    Attributes:
        emails: addresses of the customer that no other customer of the merchant has.
        copies: outside of the log.
    """

    merchant_id: UUID
    streams: list[HeldStream]
    emails: list[str] = field(repr=False)
    copies: Copies

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to erase."""
        return all(each.dropped for each in self.streams) and self.copies == Copies()


@dataclass(frozen=True, slots=True, kw_only=True)
class Erased:
    """The result of a step of an erasure.

    Attributes:
        streams: how many were erased.
        position: of the last event that was appended, 0 if none was.
    """

    streams: int = 0
    copies: Copies = field(default_factory=Copies)
    position: int = 0

    def __add__(self, other: Self) -> Self:
        return type(self)(
            streams=self.streams + other.streams,
            copies=self.copies + other.copies,
            position=max(self.position, other.position),
        )


async def find_holdings(pool: AsyncConnectionPool, whom: Customer | UUID) -> Holdings:
    """The personal data that is stored of a customer, or only in one order or checkout session.

    Raises:
        OrderNotFound: no such order.
    """
    async with _long_transaction(pool) as connection:
        merchant_id, streams, emails = await _find(connection, whom)
        ids = [each.stream_id for each in streams]
        copies = await count_copies(connection, merchant_id=merchant_id, stream_ids=ids)
        copies += await count_mentions(connection, merchant_id=merchant_id, emails=emails, beside=ids)
    return Holdings(merchant_id=merchant_id, streams=streams, emails=emails, copies=copies)


async def erase_personal_data(
    store: EventStore, whom: Customer | UUID, *, by: Metadata
) -> AsyncIterator[Erased]:
    """Erase personal data, a batch at a time. Nothing is undone: if it is interrupted, it is to be run again.

    Raises:
        OrderNotFound: no such order.
        VersionConflict: events kept being appended to a stream; to be run again.
    """
    for turn in range(ROUNDS):
        async with _long_transaction(store.pool) as connection:
            merchant_id, streams, emails = await _find(connection, whom)
            if turn and all(each.dropped for each in streams):
                return
            ids = [each.stream_id for each in streams]
            mentions = await erase_mentions(connection, merchant_id=merchant_id, emails=emails, beside=ids)
        crash_point("erasure.mentions_erased")
        yield Erased(copies=mentions)
        if isinstance(whom, Customer):
            async with store.pool.connection() as connection:
                await find_again(connection, [each for each in streams if each.plain], customer=whom)
        for place in range(0, len(streams), TOGETHER):
            yield await _erase_streams(store, merchant_id, streams[place : place + TOGETHER], by=by)


async def _erase_streams(
    store: EventStore, merchant_id: UUID, streams: Sequence[HeldStream], *, by: Metadata
) -> Erased:
    ids = [each.stream_id for each in streams]
    position = 0
    for each in streams:
        position = max(position, await _drop(store, each, by=by))
        crash_point("erasure.key_dropped")
    async with _long_transaction(store.pool) as connection:
        copies = await erase_copies(connection, merchant_id=merchant_id, stream_ids=ids)
    crash_point("erasure.copies_erased")
    await forget_customer(store.pool, stream_ids=ids)
    return Erased(streams=len(streams), copies=copies, position=position)


async def _drop(store: EventStore, stream: HeldStream, *, by: Metadata) -> int:
    """Drop a stream's key, and append the fact that records it; return its position, 0 if there is none."""
    for turn in range(1, TURNS + 1):
        aggregate = await store.load(Stream, stream.stream_id)
        if isinstance(aggregate, Order):
            erase(aggregate, by=by)
        facts = aggregate.collect_events() if aggregate is not None else []
        try:
            async with store.transaction() as connection:
                await drop_key(connection, stream)
                return await store.append_in(connection, facts) if facts else 0
        except VersionConflict:
            if turn == TURNS:
                raise
            await asyncio.sleep(random.uniform(0, 0.02) * 2**turn)  # noqa: S311  # jitter
    raise AssertionError("unreachable")


def erase(order: Order, *, by: Metadata) -> None:
    """Record the values of the order's personal fields from here on, unless it has none, or this was done before."""
    given = given_fields(vars(order), OrderCreated.PERSONAL)
    if not given or order.personal_data_erased:
        return
    read = {
        name: reading if name in given else getattr(order, name)
        for name, reading in OrderCreated.PERSONAL.items()
    }
    order.record(PersonalDataErased, by=by, status=order.status.value, **read)


async def _find(
    connection: AsyncConnection[TupleRow], whom: Customer | UUID
) -> tuple[UUID, list[HeldStream], list[str]]:
    """The merchant, the streams with the customer's data, and the customer's addresses."""
    if isinstance(whom, Customer):
        streams = await streams_of_customer(connection, whom)
        emails = [whom.email] if whom.email is not None else await emails_in(connection, streams)
        return whom.merchant_id, streams, emails
    streams = await streams_of_purchase(connection, stream_id=whom)
    if not streams:
        raise OrderNotFound(whom)
    return streams[0].merchant_id, streams, await emails_in(connection, streams)


@asynccontextmanager
async def _long_transaction(pool: AsyncConnectionPool) -> AsyncIterator[AsyncConnection[TupleRow]]:
    async with pool.connection() as connection, connection.transaction():
        await connection.execute("SELECT set_config('statement_timeout', %s, true)", (STATEMENT_TIMEOUT,))
        yield connection
