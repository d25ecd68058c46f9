"""The operator removes somebody from the support staff."""

from datetime import datetime

from psycopg_pool import AsyncConnectionPool

from payloops.commands.staff import StaffNotFound


async def remove_staff(pool: AsyncConnectionPool, *, email: str, at: datetime) -> None:
    """Remove a member: their password and tokens are invalid from now on. What they viewed stays on record.

    Raises:
        StaffNotFound: nobody has this address.
    """
    async with pool.connection() as connection:
        cursor = await connection.execute(
            "UPDATE staff SET removed_at = %s WHERE lower(email) = lower(%s) AND removed_at IS NULL",
            (at, email),
        )
    if cursor.rowcount == 0:
        raise StaffNotFound
