"""What holds for the commands that need the database: where it is not as it should be, they say so and what to do."""

import asyncio
from collections.abc import Sequence

import psycopg
from processes import run_command

from payloops.embedded import EmbeddedServers
from payloops.events.event_store import EventStore
from payloops.schema import newest_migration
from payloops.settings import Settings

ORDER = "019ab3c8-8f4c-7cc1-b7c1-1f0a5d9e2b64"
COMMANDS = (
    ("audit", "order", ORDER),
    ("keys", "status"),
    ("privacy", "show", "--order", ORDER),
    ("projections", "rebuild"),
    ("projections", "status"),
    ("reconcile", "--sandbox"),
    ("staff", "list"),
)


async def complaints(
    settings: Settings, *, database_url: str, commands: Sequence[tuple[str, ...]] = COMMANDS
) -> dict[tuple[str, ...], list[str]]:
    """What each command says on a database, ending with 1 and printing nothing."""
    wrong = Settings.model_validate({**settings.model_dump(), "database_url": database_url})
    places = asyncio.Semaphore(4)
    said: dict[tuple[str, ...], list[str]] = {}

    async def run(command: tuple[str, ...]) -> None:
        async with places:
            status, out, err = await run_command(wrong, *command)
        assert (status, out) == (1, ""), (command, err)
        said[command] = err.splitlines()

    async with asyncio.TaskGroup() as group:
        for command in commands:
            group.create_task(run(command))
    return said


async def test_a_database_without_our_schema_is_told_from_one_that_is_away(
    settings: Settings, servers: EmbeddedServers
) -> None:
    said = await complaints(settings, database_url=servers.database_url)
    expected = "payloops: the database does not have the schema of this version: run `payloops migrate`"
    assert [lines[-1] for lines in said.values()] == [expected] * len(COMMANDS)


async def test_migrators_at_once_say_what_each_of_them_applied(
    settings: Settings, servers: EmbeddedServers
) -> None:
    with psycopg.connect(servers.database_url, autocommit=True) as connection:
        connection.execute("CREATE DATABASE to_migrate")
    url = f"{servers.database_url.rpartition('/')[0]}/to_migrate"
    own = Settings.model_validate({**settings.model_dump(), "database_url": url})
    ends = await asyncio.gather(*(run_command(own, "migrate") for _ in range(3)))
    assert all((status, err) == (0, "") for status, _, err in ends)
    applied = sorted(line for _, out, _ in ends for line in out.splitlines() if line != "nothing to apply")
    assert applied == [f"applied {number:04}" for number in range(1, int(newest_migration()) + 1)]


async def test_a_database_of_a_later_version_is_said_to_be_in_one_line(
    settings: Settings, store: EventStore
) -> None:
    async with store.pool.connection() as connection:
        await connection.execute("UPDATE alembic_version SET version_num = '9999'")
    status, out, err = await run_command(settings, "migrate")
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert err.startswith("payloops: the database was migrated by a later version: ")


async def test_a_database_that_is_away_is_said_to_be_and_why(settings: Settings) -> None:
    said = await complaints(
        settings, database_url="postgresql://nobody@127.0.0.1:1/none", commands=[*COMMANDS, ("migrate",)]
    )
    for command, lines in said.items():
        assert lines[0].startswith("payloops: the database does not answer: connection failed: "), command
        assert all(line.startswith("payloops: ") for line in lines), command
