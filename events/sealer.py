"""The sealer: seals new events in the log, in the background.

One sealer is active at a time: it holds an advisory lock, which ends with its connection; others stand by. A range is
read in batches, so that memory stays bounded however many events there are to seal.
"""

import asyncio

import psycopg
import structlog
from psycopg.rows import TupleRow

from payloops.events.connections import connect, one_line, try_lock
from payloops.events.log_rows import COLUMNS, Fault, LogRow, fault_of, row_leaf
from payloops.events.merkle import merkle_root
from payloops.events.pauses import pause_seconds, sleep_unless_stopped
from payloops.events.seals import (
    AuditKeys,
    Seal,
    insert_seal,
    is_signed,
    last_seal,
    make_seal,
    sealer_checkpoint,
)
from payloops.events.timestamps import utc_now

EVERY_SECONDS = 1.0
"""Pause between seals, and so the usual maximum age of an event that is not sealed."""
RANGE_EVENTS = 10_000
"""Maximum number of events that a seal covers."""
BATCH_EVENTS = 1_000
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 10.0
"""Seconds to wait after an error of the database: at first, and at most."""
BATCH_TIMEOUT = "60s"

LOCK = "payloops.projector.seals"
NEXT = f"SELECT {COLUMNS} FROM stored_events WHERE notification_id > %s ORDER BY notification_id LIMIT %s"  # noqa: S608

log = structlog.get_logger()


class ChainBroken(Exception):
    """The newest seal's key is unknown, or its signature wrong, or it is not the newest that was made: no seal may be
    chained to it.
    """


async def run_sealer(
    *, database_url: str, keys: AuditKeys, stop: asyncio.Event, every_seconds: float = EVERY_SECONDS
) -> None:
    """Seal until `stop` is set. During an outage of the database, keep trying."""
    failures = 0
    while not stop.is_set():
        try:
            async with await connect(database_url, application_name="payloops sealer") as connection:
                await connection.execute(f"SET statement_timeout = '{BATCH_TIMEOUT}'")
                active = False
                while not stop.is_set():
                    if not active and await try_lock(connection, LOCK):
                        active = True
                        log.info("sealer.active")
                    if active:
                        while not stop.is_set() and await seal_next(connection, keys=keys) == RANGE_EVENTS:
                            pass
                    failures = 0
                    await sleep_unless_stopped(every_seconds, stop=stop)
        except (psycopg.Error, OSError, ChainBroken) as error:
            pause = pause_seconds(attempt=failures, first=FIRST_PAUSE, longest=LONGEST_PAUSE)
            failures += 1
            known = isinstance(error, ChainBroken)
            (log.error if known else log.warning)(
                "sealer.chain_broken" if known else "sealer.reconnecting",
                error=str(error) if known else one_line(error),
                pause_seconds=pause,
            )
            await sleep_unless_stopped(pause, stop=stop)


async def seal_next(
    connection: psycopg.AsyncConnection[TupleRow], *, keys: AuditKeys, limit: int = RANGE_EVENTS
) -> int:
    """Seal the next events of the log, at most `limit`. Returns how many were sealed.

    Missing events, and events that the service did not write, are logged, and the log is sealed as it is: a difference
    found later is a later change.

    Raises:
        ChainBroken: see there.
    """
    made, before = await sealer_checkpoint(connection), await last_seal(connection)
    _check_signature(before, keys)
    sealed = before.last_position if before is not None else 0
    if made > sealed:  # sealed anew, events that were changed since would look as if they had always been so
        raise ChainBroken(f"seals up to {made} were made, and those after {sealed} are gone")
    first, leaves = await _read_range(connection, after=sealed, keys=keys, limit=limit)
    if not leaves:
        return 0
    if first != sealed + 1:
        log.error("audit.events_missing", first=sealed + 1, last=first - 1)
    seal = make_seal(
        after=before,
        first=first,
        last=first + len(leaves) - 1,
        root=merkle_root(leaves),
        sealed_at=utc_now(),
        key=keys.present,
    )
    await insert_seal(connection, seal, leaves)
    # Position and hash are an anchor for `payloops audit verify`, if logs are kept outside the database.
    log.info(
        "audit.sealed",
        seal=seal.number,
        events=len(leaves),
        position=seal.last_position,
        root=seal.root.hex(),
        hash=seal.hash.hex(),
    )
    return len(leaves)


async def _read_range(
    connection: psycopg.AsyncConnection[TupleRow], *, after: int, keys: AuditKeys, limit: int
) -> tuple[int, list[bytes]]:
    """The position of the first event after `after`, and the leaves from there up to the first gap."""
    first = 0
    leaves: list[bytes] = []
    while len(leaves) < limit:
        cursor = await connection.execute(NEXT, (after, min(BATCH_EVENTS, limit - len(leaves))))
        rows = [LogRow(*values) for values in await cursor.fetchall()]
        for row in rows:
            if leaves and row.position != after + 1:
                return first, leaves
            first = first or row.position
            after = row.position
            fault = fault_of(row, mac_keys=keys.mac_keys)
            if fault not in (None, Fault.NO_MAC):
                log.error("audit.event_not_authentic", position=row.position, fault=str(fault))
            leaves.append(row_leaf(row))
        if len(rows) < BATCH_EVENTS:
            break
        await asyncio.sleep(0)  # hashing blocks the event loop
    return first, leaves


def _check_signature(seal: Seal | None, keys: AuditKeys) -> None:
    if seal is None:
        return
    public = keys.public_keys.get(seal.key_id)
    if public is None:
        raise ChainBroken(
            f"seal {seal.number} names the key {seal.key_id}, which is neither AUDIT_KEY nor of AUDIT_KEYS_OLDER"
        )
    if not is_signed(seal.statement, signature=seal.signature, public=public):
        raise ChainBroken(f"the signature of seal {seal.number} is wrong")
