"""The position and lag of each reader of the log."""

from dataclasses import dataclass

from psycopg_pool import AsyncConnectionPool

from payloops.projections.projection import all_projections


@dataclass(frozen=True, slots=True)
class ProjectionStatus:
    """The state of one reader of the log: a projection or a subscriber.

    Attributes:
        position: of the last event that it has processed. head: of the newest event.
        lag_seconds: age of the oldest event that it has not processed, 0 if there is none.
        parked: number of its parked events.
        active: whether a process is working on it now.
    """

    name: str
    position: int
    head: int
    lag_events: int
    lag_seconds: float
    parked: int
    active: bool


# An active process holds the advisory lock of its name, taken with one bigint key (objsubid 1), in this database.
STATUS = """
    SELECT r.name, coalesce(c.position, 0), log.head, log.head - coalesce(c.position, 0),
           greatest(extract(epoch FROM clock_timestamp() - next.recorded_at), 0)::float8,
           (SELECT count(*) FROM parked_events WHERE reader = r.name),
           EXISTS (
               SELECT FROM pg_locks l JOIN pg_database d ON d.oid = l.database AND d.datname = current_database()
               WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1
                 AND (l.classid::bigint << 32) | l.objid::bigint IN (
                     hashtextextended('payloops.projector.' || r.name, 0),
                     hashtextextended('payloops.subscriber.' || r.name, 0))
           )
    FROM (SELECT unnest(%(projections)s::text[]) UNION SELECT name FROM checkpoints) AS r (name)
    CROSS JOIN (SELECT coalesce(max(notification_id), 0) AS head FROM stored_events) log
    LEFT JOIN checkpoints c ON c.name = r.name
    LEFT JOIN LATERAL (
        SELECT recorded_at FROM stored_events WHERE notification_id > coalesce(c.position, 0)
        ORDER BY notification_id LIMIT 1
    ) next ON true
    ORDER BY r.name <> ALL (%(projections)s::text[]), r.name
"""


async def projections_status(pool: AsyncConnectionPool) -> list[ProjectionStatus]:
    """One entry for each projection of this version, then one for every other reader with a checkpoint."""
    names = [projection.name for projection in all_projections()]
    async with pool.connection() as connection:
        cursor = await connection.execute(STATUS, {"projections": names})
        return [ProjectionStatus(*row) for row in await cursor.fetchall()]
