"""Seals: signed Merkle roots over ranges of the log, each chained to the one before.

A seal states which events were at which positions when it was made. It is signed with Ed25519, with a key derived from
AUDIT_KEY, so that anybody with the public key can verify it without the secret. The leaves are stored beside the root:
they show which event of a range was changed, and they prove single events.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import cast

import psycopg
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from psycopg.rows import TupleRow

from payloops.events.authenticity import derive_mac_key
from payloops.events.merkle import HASH_BYTES
from payloops.events.timestamps import timestamp_text

NO_SEAL = bytes(HASH_BYTES)
"""The first seal's `previous`."""
KEY_ID_DIGITS = 16

INSERT = """
    WITH sealed AS (
        INSERT INTO seals (number, first_position, last_position, root, previous, sealed_at, key_id, signature, leaves)
        VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s)
    )
    INSERT INTO checkpoints (name, position) VALUES ('seals', %s)
    ON CONFLICT (name) DO UPDATE SET position = excluded.position, updated_at = clock_timestamp()
"""
COLUMNS = "number, first_position, last_position, root, previous, sealed_at, key_id, signature"
LAST = f"SELECT {COLUMNS} FROM seals ORDER BY number DESC LIMIT 1"  # noqa: S608  # the columns above
READ = f"SELECT {COLUMNS}, leaves FROM seals WHERE number > %s ORDER BY number LIMIT %s"  # noqa: S608
ENDING_AT = f"SELECT {COLUMNS} FROM seals WHERE last_position = %s"  # noqa: S608
CHECKPOINT = "SELECT position FROM checkpoints WHERE name = 'seals'"
OF_POSITION = f"""
    SELECT {COLUMNS}, leaves FROM seals
    WHERE last_position >= %(position)s AND first_position <= %(position)s
    ORDER BY last_position LIMIT 1
"""  # noqa: S608


@dataclass(frozen=True, slots=True)
class Seal:
    """
    Attributes:
        number: 1, 2, 3 …
        first_position, last_position: of its range, both inclusive.
        root: Merkle root over `row_leaf` of its rows.
        previous: hash of the previous seal.
        key_id: `AuditKey.id` of the key that signed it.
    """

    number: int
    first_position: int
    last_position: int
    root: bytes
    previous: bytes
    sealed_at: datetime
    key_id: str
    signature: bytes

    @property
    def statement(self) -> bytes:
        """The signed text. Plain text, so that other tools can verify it, too."""
        return (
            f"payloops seal\nnumber: {self.number}\nevents: {self.first_position} to {self.last_position}\n"
            f"root: {self.root.hex()}\nprevious: {self.previous.hex()}\n"
            f"sealed at: {timestamp_text(self.sealed_at)}\nkey: {self.key_id}\n"
        ).encode()

    @property
    def hash(self) -> bytes:
        """The next seal's `previous`: covers this seal and, by the chain, all earlier ones."""
        return hashlib.sha256(self.statement).digest()


@dataclass(frozen=True, slots=True)
class SealedRange:
    """A seal with the leaf hashes of its range, in order."""

    seal: Seal
    leaves: list[bytes]

    def covers(self, position: int) -> bool:
        return self.seal.first_position <= position <= self.seal.last_position


class AuditKey:
    """The keys derived from one AUDIT_KEY: the one for MACs, and the key pair for seals."""

    def __init__(self, audit_key: str) -> None:
        kdf = HKDF(algorithm=SHA256(), length=32, salt=None, info=b"payloops seals")
        self._private = Ed25519PrivateKey.from_private_bytes(kdf.derive(audit_key.encode()))
        self.mac_key = derive_mac_key(audit_key)
        self.public = self._private.public_key().public_bytes_raw()
        self.id = key_id(self.public)

    def sign(self, statement: bytes) -> bytes:
        """The signature by Ed25519: `is_signed` verifies it."""
        return self._private.sign(statement)


@dataclass(frozen=True, slots=True)
class AuditKeys:
    """The current key, which signs, and former ones, for verifying what was made with them."""

    present: AuditKey
    older: tuple[AuditKey, ...] = ()

    @classmethod
    def derive(cls, audit_key: str, *, older: Sequence[str] = ()) -> "AuditKeys":
        """The keys of AUDIT_KEY, and of those of AUDIT_KEYS_OLDER."""
        return cls(AuditKey(audit_key), tuple(AuditKey(each) for each in older))

    @property
    def mac_keys(self) -> tuple[bytes, ...]:
        return tuple(each.mac_key for each in (self.present, *self.older))

    @property
    def public_keys(self) -> dict[str, bytes]:
        """By id."""
        return {each.id: each.public for each in (self.present, *self.older)}


def key_id(public: bytes) -> str:
    """The id of a key in seals: the first hexadecimal digits of the public key's SHA-256."""
    return hashlib.sha256(public).hexdigest()[:KEY_ID_DIGITS]


def is_signed(statement: bytes, *, signature: bytes, public: bytes) -> bool:
    """Whether the signature of a statement is valid for a public key."""
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, statement)
    except (InvalidSignature, ValueError):
        return False
    return True


def make_seal(
    *, after: Seal | None, first: int, last: int, root: bytes, sealed_at: datetime, key: AuditKey
) -> Seal:
    """The next seal of the chain, signed."""
    unsigned = Seal(
        number=1 if after is None else after.number + 1,
        first_position=first,
        last_position=last,
        root=root,
        previous=NO_SEAL if after is None else after.hash,
        sealed_at=sealed_at,
        key_id=key.id,
        signature=b"",
    )
    return Seal(
        unsigned.number,
        first,
        last,
        root,
        unsigned.previous,
        sealed_at,
        key.id,
        key.sign(unsigned.statement),
    )


async def insert_seal(
    connection: psycopg.AsyncConnection[TupleRow], seal: Seal, leaves: Sequence[bytes]
) -> None:
    """Store a seal with its leaves, and move the sealer's checkpoint.

    Raises:
        psycopg.errors.UniqueViolation: another sealer was faster.
    """
    await connection.execute(
        INSERT,
        (
            seal.number,
            seal.first_position,
            seal.last_position,
            seal.root,
            seal.previous,
            seal.sealed_at,
            seal.key_id,
            seal.signature,
            b"".join(leaves),
            seal.last_position,
        ),
    )


async def seal_ending_at(connection: psycopg.AsyncConnection[TupleRow], position: int) -> Seal | None:
    """The seal whose range ends at a position; None if there is none."""
    row = await (await connection.execute(ENDING_AT, (position,))).fetchone()
    return None if row is None else Seal(*row)


async def sealer_checkpoint(connection: psycopg.AsyncConnection[TupleRow]) -> int:
    """The sealer's checkpoint: the last position it has sealed; 0 if it has none."""
    row = await (await connection.execute(CHECKPOINT)).fetchone()
    return 0 if row is None else cast("int", row[0])


async def last_seal(connection: psycopg.AsyncConnection[TupleRow]) -> Seal | None:
    """The newest seal; None if there is none."""
    row = await (await connection.execute(LAST)).fetchone()
    return None if row is None else Seal(*row)


async def seals_after(
    connection: psycopg.AsyncConnection[TupleRow], *, number: int, limit: int
) -> list[SealedRange]:
    """The seals after a number, with their leaves, in order."""
    cursor = await connection.execute(READ, (number, limit))
    return [_sealed_range(row) for row in await cursor.fetchall()]


async def seal_of(connection: psycopg.AsyncConnection[TupleRow], *, position: int) -> SealedRange | None:
    """The seal that covers a position; None if it is not sealed yet."""
    row = await (await connection.execute(OF_POSITION, {"position": position})).fetchone()
    return None if row is None else _sealed_range(row)


def _sealed_range(row: TupleRow) -> SealedRange:
    leaves = cast("bytes", row[8])
    return SealedRange(
        Seal(*row[:8]), [leaves[n : n + HASH_BYTES] for n in range(0, len(leaves), HASH_BYTES)]
    )
