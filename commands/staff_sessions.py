"""Browser sessions of support staff, and the table `ended_staff_sessions`.

A session is a signed token in a cookie. It ends when the token expires, when the member is removed from the staff, or
on signing out. The table holds the ids of tokens that were signed out of until they would have expired, so that a
copy of the cookie is useless afterwards.
"""

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from psycopg_pool import AsyncConnectionPool

from payloops.commands.log_in_staff import member_of
from payloops.commands.staff import StaffRow
from payloops.commands.tokens import InvalidToken, Tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class StaffSession:
    """The session of a signed-in member of the staff.

    Attributes:
        form_token: contained in the forms of its pages, and unknown to pages of other sites.
    """

    id: UUID
    member: StaffRow
    expires_at: datetime
    form_token: str


ENDED = "SELECT EXISTS (SELECT FROM ended_staff_sessions WHERE id = %s)"
END = "INSERT INTO ended_staff_sessions (id, expires_at) VALUES (%s, %s) ON CONFLICT DO NOTHING"
DELETE_OLD = "DELETE FROM ended_staff_sessions WHERE expires_at < %s"


async def find_staff_session(pool: AsyncConnectionPool, *, token: str, tokens: Tokens) -> StaffSession:
    """The session of a cookie's token.

    Args:
        tokens: of sessions: tokens of the API have another audience.

    Raises:
        InvalidToken: it is forged, expired, signed out of, no session's, or of a member who was removed.
    """
    claims = tokens.read(token)
    member = await member_of(pool, claims=claims)
    async with pool.connection() as connection:
        row = await (await connection.execute(ENDED, (claims.id,))).fetchone()
    assert row is not None
    if row[0]:
        raise InvalidToken("The session was signed out of")
    return StaffSession(
        id=claims.id,
        member=member,
        expires_at=claims.expires_at,
        form_token=tokens.form_token(claims.id),
    )


async def end_staff_session(pool: AsyncConnectionPool, *, session: StaffSession) -> None:
    """Sign out: from now on its token is invalid, also in copies of the cookie."""
    async with pool.connection() as connection:
        await connection.execute(END, (session.id, session.expires_at))


async def forget_ended_staff_sessions(pool: AsyncConnectionPool, *, now: datetime) -> int:
    """Delete the ids of ended sessions that would have expired by now; return how many."""
    async with pool.connection() as connection:
        return (await connection.execute(DELETE_OLD, (now,))).rowcount
