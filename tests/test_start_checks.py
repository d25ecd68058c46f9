"""What processes say at start about the database. What they say about keys: `test_keys_rotate`."""

from psycopg_pool import AsyncConnectionPool
from structlog.testing import capture_logs

from payloops.daemons.start_checks import check_at_start
from payloops.settings import Settings
from payloops.wiring import make_cipher


async def test_settings_by_which_the_database_may_lose_what_it_confirmed_are_logged_at_start(
    settings: Settings, pool: AsyncConnectionPool
) -> None:
    """The servers of tests have all of them."""
    with capture_logs() as lines:
        await check_at_start(pool, cipher=make_cipher(settings))
    [line] = lines
    assert (line["event"], line["log_level"]) == ("database.not_durable", "error")
    assert line["settings"] == ["fsync", "full_page_writes", "synchronous_commit"]
