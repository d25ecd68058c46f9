"""What the log says of servers that the API needs, when they go and when they are back."""

from pathlib import Path

from projecting import eventually
from redis.asyncio import Redis
from structlog.testing import capture_logs

from payloops.daemons.outages import log_outages
from payloops.daemons.probes import dependencies
from payloops.embedded import EmbeddedServers
from payloops.events.background import in_background


async def test_a_server_that_is_away_is_logged_once_and_once_when_it_is_back(tmp_path: Path) -> None:
    asked = 0

    async def counted() -> None:
        nonlocal asked
        asked += 1

    async def asked_again() -> bool:
        return asked > before + 3

    with EmbeddedServers(data_dir=tmp_path, parts=["valkey"], ephemeral=True) as servers:
        redis: Redis = Redis.from_url(servers.redis_url)
        servers.stop_part("valkey")
        ready = dependencies({"redis": redis.ping, "another": counted})
        with capture_logs() as lines:
            async with in_background(log_outages(ready, every_seconds=0.01), name="outages"):
                before = asked
                await eventually(asked_again)
                servers.start_part("valkey")
                before = asked
                await eventually(asked_again)
        await redis.aclose()
    down, up = lines
    assert (down["event"], down["log_level"], down["dependency"]) == ("dependency.down", "warning", "redis")
    assert down["error"].startswith("ConnectionError: ")
    assert up == {"event": "dependency.up", "log_level": "info", "dependency": "redis"}
