"""The operator adds somebody to the support staff."""

from datetime import datetime

from psycopg.errors import UniqueViolation
from psycopg_pool import AsyncConnectionPool
from uuid_utils.compat import uuid7

from payloops.commands.hashing import Hasher
from payloops.commands.staff import StaffRow


class StaffEmailTaken(Exception):
    """A member of the staff has this email address already; case is ignored."""

    def __init__(self) -> None:
        super().__init__("somebody on the staff has this email address already")


async def add_staff(
    pool: AsyncConnectionPool, *, name: str, email: str, password: str, passwords: Hasher, at: datetime
) -> StaffRow:
    """Add a member, who can log in from now on.

    Args:
        password: at most 72 bytes of UTF-8; kept as a bcrypt hash only.

    Raises:
        StaffEmailTaken: see there.
    """
    row = StaffRow(id=uuid7(), name=name, email=email, created_at=at, removed_at=None)
    password_hash = await passwords.hash(password)
    try:
        async with pool.connection() as connection:
            await connection.execute(
                "INSERT INTO staff (id, name, email, password_hash, created_at) VALUES (%s, %s, %s, %s, %s)",
                (row.id, name, email, password_hash, at),
            )
    except UniqueViolation:
        raise StaffEmailTaken from None
    return row
