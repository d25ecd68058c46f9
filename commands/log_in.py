"""Authenticating a merchant: by email and password to get a token, and by that token afterwards."""

from typing import Any, LiteralString
from uuid import UUID

from psycopg.rows import dict_row
from psycopg_pool import AsyncConnectionPool

from payloops.commands.hashing import Hasher
from payloops.commands.merchants import MerchantRow
from payloops.commands.tokens import InvalidToken, Tokens
from payloops.events.batch_loader import LOOKUPS
from payloops.events.columns import uuids
from payloops.events.lookups import Lookup
from payloops.events.pools import Pool

ACCOUNT = """
    SELECT id, name, email, webhook_url, token_version, created_at, updated_at, password_hash
    FROM merchants WHERE lower(email) = lower(%s)
"""

# Planned once: see `GET` in projections/orders.py.
VERSIONS = """
    SELECT m.id, m.token_version
    FROM unnest((SELECT $1::uuid[])) AS wanted (id) JOIN merchants m ON m.id = wanted.id
"""


class InvalidCredentials(Exception):
    """Email or password is wrong; the error does not say which."""

    def __init__(self) -> None:
        super().__init__("Invalid email or password")


async def log_in(pool: AsyncConnectionPool, *, email: str, password: str, passwords: Hasher) -> MerchantRow:
    """The merchant with this email and password. Raises what `check_password` does."""
    account = await check_password(pool, ACCOUNT, email=email, password=password, passwords=passwords)
    return MerchantRow(**account)


async def check_password(
    pool: AsyncConnectionPool, query: LiteralString, *, email: str, password: str, passwords: Hasher
) -> dict[str, Any]:
    """The row of whoever has this email and password, without the password's hash.

    An unknown email costs as much time as a wrong password, so that neither answer nor clock tells which
    addresses have accounts.

    Args:
        query: finds the row by email, with its `password_hash`.

    Raises:
        InvalidCredentials: see there.
        HashingOverloaded: too many passwords wait to be checked.
    """
    async with pool.connection() as connection, connection.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(query, (email,))
        row = await cursor.fetchone()
    # The connection is back in the pool: hashing takes long.
    right = await passwords.matches(password, row.pop("password_hash") if row else None)
    if row is None or not right:
        raise InvalidCredentials
    return row


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
