"""How far each projection has come: what `payloops projections status` shows."""

from dataclasses import dataclass

from psycopg_pool import AsyncConnectionPool

from payloops.projections.projector import ACTIVE_LOCK, PROJECTIONS


@dataclass(frozen=True, slots=True)
class ProjectionStatus:
    """The state of one projection.

    Attributes:
        position: the last event that is done. head: the newest event there is.
        lag_seconds: age of the oldest event that is not done, 0 where there is none.
        parked: events that could not be applied.
        active: whether a projector works on it now.
    """

    name: str
    position: int
    head: int
    lag_events: int
    lag_seconds: float
    parked: int
    active: bool


STATUS = """
    SELECT p.name, coalesce(c.position, 0), log.head, log.head - coalesce(c.position, 0),
           greatest(extract(epoch FROM clock_timestamp() - next.recorded_at), 0)::float8,
           (SELECT count(*) FROM parked_events WHERE reader = p.name),
           EXISTS (
               SELECT FROM pg_locks WHERE locktype = 'advisory' AND granted AND objsubid = 2
               AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
               AND classid::bigint = %(lock)s
               AND objid::bigint = hashtext(p.name)::bigint & 4294967295
           )
    FROM unnest(%(names)s::text[]) WITH ORDINALITY AS p (name, place)
    CROSS JOIN (SELECT coalesce(max(notification_id), 0) AS head FROM stored_events) log
    LEFT JOIN checkpoints c ON c.name = p.name
    LEFT JOIN LATERAL (
        SELECT recorded_at FROM stored_events WHERE notification_id > coalesce(c.position, 0)
        ORDER BY notification_id LIMIT 1
    ) next ON true
    ORDER BY p.place
"""


async def projections_status(pool: AsyncConnectionPool) -> list[ProjectionStatus]:
    """One entry for each projection that this version knows."""
    names = [projection.name for projection in PROJECTIONS]
    async with pool.connection() as connection:
        cursor = await connection.execute(STATUS, {"names": names, "lock": ACTIVE_LOCK})
        return [ProjectionStatus(*row) for row in await cursor.fetchall()]
