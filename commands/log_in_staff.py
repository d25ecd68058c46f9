"""Authenticating support staff: by email and password to get a token, and by that token afterwards."""

from psycopg_pool import AsyncConnectionPool

from payloops.commands.hashing import Hasher
from payloops.commands.log_in import check_password
from payloops.commands.staff import StaffRow, find_staff
from payloops.commands.tokens import InvalidToken, TokenClaims, Tokens

MEMBER = """
    SELECT id, name, email, created_at, removed_at, password_hash
    FROM staff WHERE lower(email) = lower(%s) AND removed_at IS NULL
"""


async def log_in_staff(
    pool: AsyncConnectionPool, *, email: str, password: str, passwords: Hasher
) -> StaffRow:
    """The member with this email and password. Raises what `check_password` does."""
    member = await check_password(pool, MEMBER, email=email, password=password, passwords=passwords)
    return StaffRow(**member)


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
