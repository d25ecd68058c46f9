"""Rows of `stored_events` exactly as stored, to verify them without decoding."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from uuid import UUID

import psycopg
from eventsourcing.persistence import StoredEvent
from psycopg.rows import TupleRow

from payloops.events.authenticity import content_hash, is_authentic
from payloops.events.merkle import leaf_hash

EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
"""PostgreSQL's."""
COLUMNS = """
    notification_id, originator_id, originator_version, topic, state, merchant_id,
    timestamptz_send(recorded_at), content_hash, mac
"""
"""Columns to select for `LogRow(*values)`. The time as bytes: a tampered one may be beyond what Python can hold."""


@dataclass(frozen=True, slots=True)
class LogRow:
    """
    Attributes:
        position: in the global order.
        recorded: microseconds since 2000, signed, 8 bytes, big endian.
        mac: None if written by a version before there were MACs.
    """

    position: int
    stream_id: UUID
    version: int
    topic: str
    state: bytes
    merchant_id: UUID
    recorded: bytes
    content_hash: bytes
    mac: bytes | None

    @property
    def recorded_at(self) -> datetime | None:
        """None if it is beyond what Python can hold."""
        try:
            return EPOCH + timedelta(microseconds=int.from_bytes(self.recorded, "big", signed=True))
        except OverflowError:
            return None


OF_STREAM = f"SELECT {COLUMNS} FROM stored_events WHERE originator_id = %s ORDER BY originator_version"  # noqa: S608


async def rows_of_stream(connection: psycopg.AsyncConnection[TupleRow], stream_id: UUID) -> list[LogRow]:
    """The rows of a stream, in order."""
    cursor = await connection.execute(OF_STREAM, (stream_id,))
    return [LogRow(*values) for values in await cursor.fetchall()]


class Fault(StrEnum):
    """What is wrong with a row, seen by itself."""

    CONTENT = "its content does not fit its content hash"
    MAC = "its MAC was made with neither AUDIT_KEY nor one of AUDIT_KEYS_OLDER"
    NO_MAC = "it has no MAC: it was written by a version before there were MACs, or by hand"


def recorded_bytes(moment: datetime) -> bytes:
    """The value of `LogRow.recorded` for a time."""
    return ((moment - EPOCH) // timedelta(microseconds=1)).to_bytes(8, "big", signed=True)


def fault_of(row: LogRow, *, mac_keys: Sequence[bytes]) -> Fault | None:
    """What is wrong with a row, seen by itself; None if the service wrote it like this.

    Args:
        mac_keys: of the current AUDIT_KEY and of older ones.
    """
    stored = StoredEvent(row.stream_id, row.version, row.topic, row.state)
    if content_hash(stored) != row.content_hash:
        return Fault.CONTENT
    if row.mac is None:
        return Fault.NO_MAC
    for key in mac_keys:
        if is_authentic(key, content_hash=row.content_hash, merchant_id=row.merchant_id, mac=row.mac):
            return None
    return Fault.MAC


def row_leaf(row: LogRow, *, position: int | None = None) -> bytes:
    """The row's leaf hash in a seal.

    Args:
        position: hash the row as if it were at this position.
    """
    mac = row.mac or b""
    return leaf_hash(
        b"".join(
            (
                (row.position if position is None else position).to_bytes(8, "big", signed=True),
                row.stream_id.bytes,
                row.version.to_bytes(8, "big", signed=True),
                row.merchant_id.bytes,
                row.recorded,
                len(row.content_hash).to_bytes(4, "big"),
                row.content_hash,
                len(mac).to_bytes(4, "big"),
                mac,
                row.topic.encode(),
            )
        )
    )
