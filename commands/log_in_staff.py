"""Authenticating support staff: by email and password to get a token, and by that token afterwards."""

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from psycopg.rows import class_row
from psycopg_pool import AsyncConnectionPool

from payloops.commands.hashing import Hasher
from payloops.commands.log_in import InvalidCredentials
from payloops.commands.staff import StaffRow, find_staff
from payloops.commands.tokens import InvalidToken, TokenClaims, Tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class _Member:
    id: UUID
    name: str
    email: str
    created_at: datetime
    password_hash: str


async def log_in_staff(
    pool: AsyncConnectionPool, *, email: str, password: str, passwords: Hasher
) -> StaffRow:
    """The member with this email and password. An unknown email costs as much time as a wrong password.

    Raises:
        InvalidCredentials: see there.
        HashingOverloaded: too many passwords wait to be checked.
    """
    async with pool.connection() as connection, connection.cursor(row_factory=class_row(_Member)) as cursor:
        await cursor.execute(
            "SELECT id, name, email, created_at, password_hash FROM staff"
            " WHERE lower(email) = lower(%s) AND removed_at IS NULL",
            (email,),
        )
        member = await cursor.fetchone()
    right = await passwords.matches(password, member.password_hash if member else None)
    if member is None or not right:
        raise InvalidCredentials
    return StaffRow(
        id=member.id, name=member.name, email=member.email, created_at=member.created_at, removed_at=None
    )


async def authenticate_staff_token(pool: AsyncConnectionPool, *, token: str, tokens: Tokens) -> StaffRow:
    """The member that a token stands for.

    Args:
        tokens: those of the staff: a merchant's are of another audience.

    Raises:
        InvalidToken: forged, expired, a merchant's, or of somebody who was removed.
    """
    return await member_of(pool, claims=tokens.read(token))


async def member_of(pool: AsyncConnectionPool, *, claims: TokenClaims) -> StaffRow:
    """The member that a token stands for, once it is known to be genuine.

    Raises:
        InvalidToken: of somebody who was removed.
    """
    member = await find_staff(pool, staff_id=claims.subject)
    if member is None or member.token_version != claims.token_version:
        raise InvalidToken("The token no longer counts")
    return member
