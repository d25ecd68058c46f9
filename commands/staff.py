"""Support staff, and the table `staff`: people who can see every merchant's orders and change nothing."""

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from psycopg.rows import class_row
from psycopg_pool import AsyncConnectionPool


class StaffNotFound(Exception):
    """No member of the staff has this email address."""

    def __init__(self) -> None:
        super().__init__("nobody on the staff has this email address")


@dataclass(frozen=True, slots=True, kw_only=True)
class StaffRow:
    """A member of the staff, without the password's hash."""

    id: UUID
    name: str
    email: str
    created_at: datetime
    removed_at: datetime | None

    @property
    def token_version(self) -> int:
        """Always 1: a member who is removed and added again gets another id."""
        return 1


async def find_staff(pool: AsyncConnectionPool, *, staff_id: UUID) -> StaffRow | None:
    """A member; None if there is none, or they were removed."""
    async with pool.connection() as connection, connection.cursor(row_factory=class_row(StaffRow)) as cursor:
        await cursor.execute(
            "SELECT id, name, email, created_at, removed_at FROM staff WHERE id = %s AND removed_at IS NULL",
            (staff_id,),
        )
        return await cursor.fetchone()


async def list_staff(pool: AsyncConnectionPool) -> list[StaffRow]:
    """All present and former members, in the order in which they were added."""
    async with pool.connection() as connection, connection.cursor(row_factory=class_row(StaffRow)) as cursor:
        await cursor.execute("SELECT id, name, email, created_at, removed_at FROM staff ORDER BY id")
        return await cursor.fetchall()
