"""Encryption keys of customers' personal data, and the table `personal_keys`, which finds the streams of a customer."""

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from eventsourcing.persistence import StoredEvent
from psycopg import AsyncConnection
from psycopg.rows import TupleRow, class_row
from psycopg_pool import AsyncConnectionPool

from payloops.events.encoding import open_state
from payloops.events.personal_data import ERASED, customer_digest, email_digest

WITH_HELD = """
    WITH held AS MATERIALIZED (
        SELECT key = '' AS erased FROM personal_keys WHERE originator_id = %(order_id)s FOR SHARE
    )
"""
"""Begins a statement that copies data of an order elsewhere: it locks the order's key. If `(SELECT erased FROM held)`
is true, the data must not be copied. Dropping the key waits until the copy is made, which is then found and erased."""
BY_CUSTOMER = """
    SELECT k.originator_id AS stream_id, k.merchant_id, e.topic, k.key = '' AS dropped, e.mac IS NULL AS plain
    FROM personal_keys k
    JOIN stored_events e ON e.originator_id = k.originator_id AND e.originator_version = 1
    WHERE k.merchant_id = %(merchant_id)s AND (k.customer_digest = %(customer)s OR k.email_digest = %(email)s)
    ORDER BY k.originator_id
"""
# Versions without keys wrote no MACs either.
PLAIN_BY_CUSTOMER = """
    SELECT originator_id AS stream_id, merchant_id, topic, false AS dropped, true AS plain FROM stored_events e
    WHERE merchant_id = %(merchant_id)s AND originator_version = 1 AND mac IS NULL
      AND NOT EXISTS (SELECT FROM personal_keys k WHERE k.originator_id = e.originator_id)
      AND (convert_from(state, 'UTF8')::json ->> 'customer_id' = %(customer_id)s
           OR lower(convert_from(state, 'UTF8')::json ->> 'customer_email') = %(email_text)s)
    ORDER BY originator_id
"""
# An order that was placed by a checkout session names it as its cause.
BY_STREAM = """
    WITH facts AS (
        SELECT topic, convert_from(state, 'UTF8')::json AS state FROM stored_events
        WHERE originator_id = %(stream_id)s AND topic IN ('order.created', 'checkout_session.order_placed')
    )
    SELECT e.originator_id AS stream_id, e.merchant_id, e.topic, coalesce(k.key = '', false) AS dropped,
           e.mac IS NULL AS plain
    FROM stored_events e LEFT JOIN personal_keys k ON k.originator_id = e.originator_id
    WHERE e.originator_version = 1 AND e.topic IN ('order.created', 'checkout_session.created')
      AND e.originator_id IN (
        SELECT %(stream_id)s
        UNION SELECT (state ->> 'order_id')::uuid FROM facts WHERE topic = 'checkout_session.order_placed'
        UNION SELECT split_part(state ->> 'causation_id', ':', 1)::uuid FROM facts
              WHERE topic = 'order.created' AND state ->> 'causation_id' IS NOT NULL
    )
    ORDER BY e.originator_id
"""
FIND_AGAIN = """
    INSERT INTO personal_keys (originator_id, merchant_id, key, customer_digest, email_digest)
    VALUES (%s, %s, '', %s, %s) ON CONFLICT DO NOTHING
"""
DROP = """
    INSERT INTO personal_keys (originator_id, merchant_id, key) VALUES (%s, %s, '')
    ON CONFLICT (originator_id) DO UPDATE SET key = ''
"""
FORGET = """
    UPDATE personal_keys SET customer_digest = NULL, email_digest = NULL
    WHERE originator_id = ANY(%s) AND (customer_digest IS NOT NULL OR email_digest IS NOT NULL)
"""
FIRST_EVENTS = """
    SELECT personal_key, originator_id, originator_version, topic, state FROM readable_events
    WHERE originator_id = ANY(%s) AND originator_version = 1
"""
HELD_ELSEWHERE = """
    SELECT EXISTS (
        SELECT FROM personal_keys
        WHERE merchant_id = %s AND email_digest = %s AND key <> '' AND originator_id <> ALL(%s)
    )
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Customer:
    """A customer of a merchant, identified by id or email.

    Attributes:
        customer_id: the merchant's own id of the customer.
        email: its case is ignored.
    """

    merchant_id: UUID
    customer_id: str | None = None
    email: str | None = None

    @property
    def customer_digest(self) -> bytes | None:
        return None if self.customer_id is None else customer_digest(str(self.merchant_id), self.customer_id)

    @property
    def email_digest(self) -> bytes | None:
        return None if self.email is None else email_digest(str(self.merchant_id), self.email)


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldStream:
    """A stream with personal data of a customer, which may be erased already.

    Attributes:
        topic: of its first event.
        dropped: whether its key was dropped; copies may still exist.
        plain: whether it was begun by a version that did not encrypt.
    """

    stream_id: UUID
    merchant_id: UUID
    topic: str
    dropped: bool
    plain: bool


async def streams_of_customer(connection: AsyncConnection[TupleRow], customer: Customer) -> list[HeldStream]:
    """All streams with data of a customer, including those whose erasure was interrupted.

    Streams of versions without keys are searched for in the merchant's whole log, which may take a while.
    """
    arguments = {
        "merchant_id": customer.merchant_id,
        "customer": customer.customer_digest,
        "email": customer.email_digest,
        "customer_id": customer.customer_id,
        "email_text": None if customer.email is None else customer.email.lower(),
    }
    found: list[HeldStream] = []
    async with connection.cursor(row_factory=class_row(HeldStream)) as cursor:
        for query in (BY_CUSTOMER, PLAIN_BY_CUSTOMER):
            found += await (await cursor.execute(query, arguments)).fetchall()
    return found


async def streams_of_purchase(connection: AsyncConnection[TupleRow], *, stream_id: UUID) -> list[HeldStream]:
    """An order and the checkout session that placed it, which have the same data, by the id of either.

    They are returned whether or not they have personal data. Empty if the id is of neither.
    """
    async with connection.cursor(row_factory=class_row(HeldStream)) as cursor:
        return await (await cursor.execute(BY_STREAM, {"stream_id": stream_id})).fetchall()


async def find_again(
    connection: AsyncConnection[TupleRow], streams: Sequence[HeldStream], *, customer: Customer
) -> None:
    """Give streams without a key a row with the customer's digests, so that an interrupted erasure finds them again."""
    async with connection.cursor() as cursor:
        await cursor.executemany(
            FIND_AGAIN,
            [
                (each.stream_id, each.merchant_id, customer.customer_digest, customer.email_digest)
                for each in streams
            ],
        )


async def drop_key(connection: AsyncConnection[TupleRow], stream: HeldStream) -> None:
    """Drop a stream's key, in a transaction. Waits for copies of its data that are just being made."""
    await connection.execute(DROP, (stream.stream_id, stream.merchant_id))


async def forget_customer(pool: AsyncConnectionPool, *, stream_ids: Sequence[UUID]) -> None:
    """Remove the digests by which a customer's streams are found: all of their data is erased."""
    async with pool.connection() as connection:
        await connection.execute(FORGET, (list(stream_ids),))


async def emails_in(connection: AsyncConnection[TupleRow], streams: Sequence[HeldStream]) -> list[str]:
    """The email addresses, in lower case, that these streams have and no other stream of the merchant has."""
    ids = [each.stream_id for each in streams]
    cursor = await connection.execute(FIRST_EVENTS, (ids,))
    emails = set()
    for personal_key, *event in await cursor.fetchall():
        email = open_state(StoredEvent(*event), personal_key=personal_key).get("customer_email")
        if email is not None and email != ERASED:
            emails.add(email.lower())
    alone = []
    for email in sorted(emails):
        digest = email_digest(str(streams[0].merchant_id), email)
        cursor = await connection.execute(HELD_ELSEWHERE, (streams[0].merchant_id, digest, ids))
        row = await cursor.fetchone()
        assert row is not None
        if not row[0]:
            alone.append(email)
    return alone
