"""Authenticating a merchant: by email and password to get a token, and by that token afterwards."""

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from psycopg.rows import class_row
from psycopg_pool import AsyncConnectionPool

from payloops.commands.hashing import Hasher
from payloops.commands.merchants import MerchantRow
from payloops.commands.tokens import InvalidToken, Tokens
from payloops.events.columns import uuids
from payloops.events.connections import Pool
from payloops.events.gathering import LOOKUPS
from payloops.events.lookups import Lookup

# Planned once: see `GET` in projections/orders.py.
VERSIONS = """
    SELECT m.id, m.token_version
    FROM unnest((SELECT $1::uuid[])) AS wanted (id) JOIN merchants m ON m.id = wanted.id
"""


class InvalidCredentials(Exception):
    """Email or password is wrong; which of them is not said."""

    def __init__(self) -> None:
        super().__init__("Invalid email or password")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Account:
    id: UUID
    name: str
    email: str
    webhook_url: str | None
    token_version: int
    created_at: datetime
    updated_at: datetime
    password_hash: str


async def log_in(pool: AsyncConnectionPool, *, email: str, password: str, passwords: Hasher) -> MerchantRow:
    """The merchant with this email and password.

    An unknown email costs as much time as a wrong password, so that neither answer nor clock tells which
    addresses have accounts.

    Raises:
        InvalidCredentials: see there.
        HashingOverloaded: too many passwords wait to be checked.
    """
    async with pool.connection() as connection, connection.cursor(row_factory=class_row(_Account)) as cursor:
        await cursor.execute(
            "SELECT id, name, email, webhook_url, token_version, created_at, updated_at, password_hash"
            " FROM merchants WHERE lower(email) = lower(%s)",
            (email,),
        )
        account = await cursor.fetchone()
    # The connection is back in the pool: hashing takes long.
    right = await passwords.matches(password, account.password_hash if account else None)
    if account is None or not right:
        raise InvalidCredentials
    return MerchantRow(
        id=account.id,
        name=account.name,
        email=account.email,
        webhook_url=account.webhook_url,
        token_version=account.token_version,
        created_at=account.created_at,
        updated_at=account.updated_at,
    )


class TokenGate:
    """Tells whom a dashboard token stands for, for one process; of those that come at the same time, by one query."""

    def __init__(self, pool: Pool, *, tokens: Tokens) -> None:
        self._tokens = tokens
        self._versions = Lookup[UUID, int](pool, VERSIONS, column=uuids, read=dict, most=LOOKUPS)

    async def authenticate(self, token: str) -> UUID:
        """The merchant that it stands for.

        Raises:
            InvalidToken: forged, expired, for somebody else, or from before the password was changed.
        """
        claims = self._tokens.read(token)
        if await self._versions.find(claims.subject) != claims.token_version:
            raise InvalidToken("The token no longer counts")
        return claims.subject
