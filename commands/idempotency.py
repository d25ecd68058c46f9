"""Idempotency keys: a request sent twice is executed once and answered twice.

A request reserves its key with a short lease, as its `owner`. The answer is stored in the transaction that appends
the request's events, and only if the key still belongs to that owner: a request whose lease ran out and whose key was
taken over appends nothing. If a process dies before the append, the lease runs out and the key can be taken over; if
it dies after the append, the answer is stored.
"""

from dataclasses import dataclass
from uuid import UUID, uuid4

from prometheus_client import Counter
from psycopg_pool import AsyncConnectionPool

from payloops.events.appender import Receipt
from payloops.events.crash_points import crash_point

LEASE_SECONDS = 20
"""More than a request may take up to its append."""
KEPT_HOURS = 24

RESERVE = """
    WITH reserved AS (
        INSERT INTO idempotency_keys AS k (merchant_id, key, fingerprint, owner, lease_expires_at)
        SELECT %(merchant_id)s, %(key)s, %(fingerprint)s, %(owner)s, now() + make_interval(secs => %(lease)s)
        -- A reservation lost in a crash of the server is only made again: its commit need not wait for the disk.
        FROM (SELECT set_config('synchronous_commit', 'off', true)) AS hurried
        ON CONFLICT (merchant_id, key) DO UPDATE
        SET fingerprint = excluded.fingerprint, owner = excluded.owner, created_at = now(),
            lease_expires_at = excluded.lease_expires_at, response_status = NULL, response_body = NULL
        WHERE k.created_at < now() - make_interval(hours => %(kept)s)
           OR (k.response_status IS NULL AND k.lease_expires_at < now() AND k.fingerprint = excluded.fingerprint)
        RETURNING owner
    )
    SELECT owner, NULL::bytea, NULL::int, NULL::bytea, NULL::float8 FROM reserved
    UNION ALL
    -- Retry after as long as the first request has taken so far: most end in an instant, a dead one with its lease.
    SELECT NULL, fingerprint, response_status, response_body,
           extract(epoch FROM least(lease_expires_at - now(), now() - created_at))::float8
    FROM idempotency_keys
    WHERE merchant_id = %(merchant_id)s AND key = %(key)s AND NOT EXISTS (SELECT FROM reserved)
"""
AMEND = "UPDATE idempotency_keys SET response_body = %s WHERE merchant_id = %s AND key = %s AND owner = %s"
RELEASE = """
    DELETE FROM idempotency_keys
    WHERE merchant_id = %s AND key = %s AND owner = %s AND response_status IS NULL
"""
DELETE_BATCH = 1_000
DELETE_OLD = """
    DELETE FROM idempotency_keys WHERE ctid = ANY (ARRAY (
        SELECT ctid FROM idempotency_keys WHERE created_at < now() - make_interval(hours => %s)
        ORDER BY created_at LIMIT %s FOR UPDATE SKIP LOCKED
    ))
"""

KEYED = Counter(
    "payloops_idempotent_requests",
    "Requests with an idempotency key: first, replayed, in_progress, or mismatch",
    ["outcome"],
)


class IdempotencyInProgress(Exception):
    """The first request with this key is still under way, or died less than a lease ago.

    Attributes:
        seconds: until the client should retry.
    """

    def __init__(self, *, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds


class IdempotencyMismatch(Exception):
    """The key was used for another request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """The answer that was given to the first request with this key."""

    status: int
    body: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Reserved:
    """The key is reserved for this request."""

    merchant_id: UUID
    key: str
    owner: UUID

    def receipt(self, status: int, body: bytes) -> Receipt:
        """The answer, to be stored by the append of the events that it reports."""
        return Receipt(merchant_id=self.merchant_id, key=self.key, owner=self.owner, status=status, body=body)

    async def amend(self, pool: AsyncConnectionPool, body: bytes) -> None:
        """Replace the stored answer by the one given after `Prefer: wait`."""
        async with pool.connection() as connection:
            await connection.execute(AMEND, (body, self.merchant_id, self.key, self.owner))

    async def release(self, pool: AsyncConnectionPool) -> bool:
        """Give the key up, unless an answer is stored.

        Returns:
            Whether it was still reserved: then nothing was done, and an append that is under way will be dropped.
        """
        async with pool.connection() as connection:
            released = await connection.execute(RELEASE, (self.merchant_id, self.key, self.owner))
        return released.rowcount == 1


async def reserve(
    pool: AsyncConnectionPool, *, merchant_id: UUID, key: str, fingerprint: bytes
) -> Reserved | Replay:
    """Reserve the key for this request, or find the answer to the first.

    Args:
        fingerprint: digest of method, path, query and body.

    Raises:
        IdempotencyMismatch, IdempotencyInProgress.
    """
    owner = uuid4()
    async with pool.connection() as connection:
        cursor = await connection.execute(
            RESERVE,
            {
                "merchant_id": merchant_id,
                "key": key,
                "fingerprint": fingerprint,
                "owner": owner,
                "lease": LEASE_SECONDS,
                "kept": KEPT_HOURS,
            },
        )
        row = await cursor.fetchone()
    mine, stored_fingerprint, status, body, seconds = row or (None, fingerprint, None, None, 0)
    if mine is not None:
        crash_point("idempotency.reserved")
        KEYED.labels("first").inc()
        return Reserved(merchant_id=merchant_id, key=key, owner=owner)
    if bytes(stored_fingerprint) != fingerprint:
        KEYED.labels("mismatch").inc()
        raise IdempotencyMismatch
    if status is None:  # where there is no row: reserved by another request in the same instant
        KEYED.labels("in_progress").inc()
        raise IdempotencyInProgress(seconds=seconds)
    KEYED.labels("replayed").inc()
    return Replay(status=status, body=bytes(body))


async def delete_expired(pool: AsyncConnectionPool) -> int:
    """Delete expired keys, a batch at a time; return how many."""
    deleted = 0
    while True:
        async with pool.connection() as connection:
            cursor = await connection.execute(DELETE_OLD, (KEPT_HOURS, DELETE_BATCH))
        deleted += cursor.rowcount
        if cursor.rowcount < DELETE_BATCH:
            return deleted
