"""Re-encrypts every stored secret with the current ENCRYPTION_KEY, while the service runs.

Each value names the key that encrypted it, so the rows themselves show what is left: an interrupted rotation resumes
where it stopped, and a second run finds nothing to do. Each batch locks its rows, so that a value which a merchant
replaces at the same time is either re-encrypted before or found to use the current key already.
"""

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from psycopg import sql
from psycopg.rows import dict_row
from psycopg_pool import AsyncConnectionPool

from payloops.commands.cipher import MARK_BYTES, Cipher, SealBroken
from payloops.commands.client_secrets import client_secret_identity
from payloops.commands.credentials import credentials_identity, previous_webhook_secret_identity
from payloops.commands.webhook_secrets import webhook_secret_identity

BATCH = 100
"""Rows that are locked at a time, for some milliseconds."""


@dataclass(frozen=True, kw_only=True)
class SealedColumn:
    """Where sealed values are.

    Attributes:
        key: the primary key's columns, or others that are unique and indexed.
        identity: of the row that a value is sealed for; takes the key's columns by name.
    """

    table: str
    column: str
    key: tuple[str, ...]
    identity: Callable[..., str]

    @property
    def name(self) -> str:
        return f"{self.table}.{self.column}"


SEALED = (
    SealedColumn(
        table="processor_configs",
        column="credentials",
        key=("merchant_id", "processor"),
        identity=credentials_identity,
    ),
    SealedColumn(
        table="processor_configs",
        column="previous_webhook_secret",
        key=("merchant_id", "processor"),
        identity=previous_webhook_secret_identity,
    ),
    SealedColumn(
        table="client_secrets", column="secret", key=("order_id", "attempt"), identity=client_secret_identity
    ),
    SealedColumn(
        table="webhook_secrets", column="secret", key=("merchant_id",), identity=webhook_secret_identity
    ),
    SealedColumn(
        table="webhook_secrets",
        column="previous_secret",
        key=("merchant_id",),
        identity=webhook_secret_identity,
    ),
)

OF_MERCHANTS = tuple(each for each in SEALED if each.table != "client_secrets")
"""The columns with a few values for each merchant, and none for each payment."""

PATIENT = "SET LOCAL statement_timeout = '10min'"
"""For what reads a whole table and keeps nobody from it."""
COUNT = sql.SQL("""
    SELECT count(*) FILTER (WHERE {mark} = %(present)s),
           count(*) FILTER (WHERE {mark} <> %(present)s AND {mark} = ANY (%(known)s)),
           count(*) FILTER (WHERE {mark} <> ALL (%(known)s))
    FROM {table}
""")
FIND = sql.SQL(
    "SELECT {key} FROM {table} WHERE {mark} <> %(present)s AND {after} ORDER BY {key} LIMIT %(limit)s"
)
TAKE = sql.SQL(
    "SELECT {column} FROM {table} WHERE ({key}) = ({values}) AND {mark} <> %(present)s FOR NO KEY UPDATE"
)
PUT = sql.SQL("UPDATE {table} SET {column} = %(sealed)s WHERE ({key}) = ({values})")


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyUsage:
    """How many of a column's values the present key opens, how many an older one, and how many none."""

    column: str
    present: int
    older: int
    unknown: int = 0

    @property
    def left(self) -> int:
        """How many are not sealed with the present key."""
        return self.older + self.unknown

    @property
    def total(self) -> int:
        return self.present + self.left


@dataclass(frozen=True, slots=True, kw_only=True)
class RotatedBatch:
    """The result of a batch.

    Attributes:
        rotated: values sealed with the present key now.
        unreadable: identities of rows whose values no key opens; they are as they were.
    """

    column: str
    rotated: int
    unreadable: tuple[str, ...]


async def key_usage(
    pool: AsyncConnectionPool, *, cipher: Cipher, columns: Sequence[SealedColumn] = SEALED
) -> list[KeyUsage]:
    """What each key is still needed for."""
    found = []
    for each in columns:
        async with pool.connection() as connection, connection.transaction():
            await connection.execute(PATIENT)
            marks = {"present": cipher.mark, "known": cipher.marks}
            cursor = await connection.execute(COUNT.format(**_parts(each)), marks)
            row = await cursor.fetchone()
        assert row is not None
        found.append(KeyUsage(column=each.name, present=row[0], older=row[1], unknown=row[2]))
    return found


async def rotate_keys(pool: AsyncConnectionPool, *, cipher: Cipher) -> AsyncIterator[RotatedBatch]:
    """Re-encrypt every value of an older key with the present one, in small transactions; yields after each."""
    for each in SEALED:
        found = await _find(pool, each, cipher=cipher, after=None)
        while found:
            yield await _rotate(pool, each, found, cipher=cipher)
            found = await _find(pool, each, cipher=cipher, after=found[-1])


async def _find(
    pool: AsyncConnectionPool, sealed: SealedColumn, *, cipher: Cipher, after: dict[str, Any] | None
) -> list[dict[str, Any]]:
    """The next rows to re-encrypt, read without a lock, because finding them may take a while."""
    parts = _parts(sealed)
    later = sql.SQL("true") if after is None else sql.SQL("({key}) > ({values})").format(**parts)
    async with (
        pool.connection() as connection,
        connection.transaction(),
        connection.cursor(row_factory=dict_row) as cursor,
    ):
        await cursor.execute(PATIENT)
        arguments = {"present": cipher.mark, "limit": BATCH, **(after or {})}
        await cursor.execute(FIND.format(**parts, after=later), arguments)
        return await cursor.fetchall()


async def _rotate(
    pool: AsyncConnectionPool, sealed: SealedColumn, keys: list[dict[str, Any]], *, cipher: Cipher
) -> RotatedBatch:
    parts = _parts(sealed)
    rotated, unreadable = 0, []
    async with pool.connection() as connection, connection.transaction():
        for key in keys:
            cursor = await connection.execute(TAKE.format(**parts), {"present": cipher.mark, **key})
            row = await cursor.fetchone()
            if row is None:
                continue  # replaced or removed meanwhile
            identity = sealed.identity(**key)
            try:
                plain = cipher.open(bytes(row[0]), identity=identity)
            except SealBroken:
                unreadable.append(identity)
                continue
            value = cipher.seal(plain, identity=identity)
            await connection.execute(PUT.format(**parts), {"sealed": value, **key})
            rotated += 1
    return RotatedBatch(column=sealed.name, rotated=rotated, unreadable=tuple(unreadable))


def _parts(sealed: SealedColumn) -> dict[str, sql.Composable]:
    column = sql.Identifier(sealed.column)
    return {
        "table": sql.Identifier(sealed.table),
        "column": column,
        "key": sql.SQL(", ").join(map(sql.Identifier, sealed.key)),
        "values": sql.SQL(", ").join(map(sql.Placeholder, sealed.key)),
        "mark": sql.SQL("substring({} from 1 for {})").format(column, MARK_BYTES),
    }
