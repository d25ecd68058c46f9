"""How commands end where something is not as it should be: they say so, and what to do, in a line."""

import asyncio
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest
from processes import begin_command, environment_of, run_command
from projecting import append, eventually, locked, one, project_everything, rows
from random_orders import new_order
from typer.main import get_command

from payloops.cli.app import app
from payloops.cli.options import duration
from payloops.daemons.schema_check import newest_migration
from payloops.dev.environment import write_environment
from payloops.embedded import EmbeddedServers
from payloops.events.event_store import EventStore
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


@pytest.mark.parametrize("command", [("keys", "status"), ("staff", "list"), ("audit", "key"), ("reconcile",)])
async def test_without_settings_it_is_said_where_else_they_are_looked_for(
    settings: Settings, tmp_path: Path, command: tuple[str, ...]
) -> None:
    running = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "payloops", *command),
        env={name: value for name, value in os.environ.items() if name not in environment_of(settings)},
        cwd=tmp_path,
        stderr=asyncio.subprocess.PIPE,
    )
    _, err = await running.communicate()
    assert running.returncode == 2
    said = err.decode()
    assert "payloops: DATABASE_URL: required" in said
    assert "a running `payloops dev` with its data in .payloops (--data-dir names another directory)" in said


async def test_no_key_of_the_service_here_is_taken_for_another_database(
    settings: Settings, tmp_path: Path
) -> None:
    """An erasure appends events: with another AUDIT_KEY they would look inserted by hand."""
    given = environment_of(settings)
    write_environment(given, data_dir=tmp_path)
    running = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "payloops", "privacy", "erase", "--order", ORDER, "--yes"),
        *("--data-dir", str(tmp_path)),
        env={name: value for name, value in os.environ.items() if name not in given}
        | {"DATABASE_URL": "postgresql://nobody@127.0.0.1:1/another"},
        stderr=asyncio.subprocess.PIPE,
    )
    _, err = await running.communicate()
    assert (running.returncode, err) == (2, b"payloops: AUDIT_KEY: required\n")


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


async def test_a_database_that_accepts_connections_and_says_nothing_is_away(settings: Settings) -> None:
    connections = []
    server = await asyncio.start_server(lambda *streams: connections.append(streams), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    said = await complaints(
        settings,
        database_url=f"postgresql://nobody@127.0.0.1:{port}/none",
        commands=[("migrate",), ("staff", "list")],
    )
    for _, writer in connections:
        writer.close()
    server.close()
    assert {lines[0] for lines in said.values()} == {
        "payloops: the database does not answer: connection timeout expired"
    }


INTERRUPTED_IMPORT = """
import os, signal, sys

class Interrupting:
    def find_spec(self, name, *_):
        if name == at:
            os.kill(os.getpid(), signal.SIGINT)

at, sys.argv[1:] = sys.argv[1], ["reconcile"]
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.meta_path.insert(0, Interrupting())
from payloops.__main__ import main
main()
"""


@pytest.mark.parametrize("module", ["payloops.cli", "typer", "payloops.reconcile"])
async def test_an_interrupted_import_ends_quietly(module: str, settings: Settings) -> None:
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", INTERRUPTED_IMPORT, module),
        env=os.environ | environment_of(settings),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    out, _ = await child.communicate()
    assert (child.returncode, out) == (130, b"")


@pytest.mark.parametrize(
    ("redirection", "said"),
    [
        ("> /dev/full", b"payloops: cannot write the output: No space left on device\n"),
        ("| true", b""),
        (">&-", b""),
    ],
)
async def test_output_that_cannot_be_written_is_no_traceback(redirection: str, said: bytes) -> None:
    child = await asyncio.create_subprocess_exec(
        *("bash", "-c", f'"$@" {redirection}; exit ${{PIPESTATUS[0]}}', "bash"),
        *(sys.executable, "-P", "-m", "payloops", "projections", "list", "--json"),
        stderr=asyncio.subprocess.PIPE,
    )
    _, err = await child.communicate()
    assert (err, child.returncode) == (said, 0 if redirection == ">&-" else 1)


@pytest.mark.parametrize(
    ("told", "table", "command", "goes_on"),
    [
        (signal.SIGINT, "orders", "projections verify", "run it again; it begins anew"),
        (signal.SIGTERM, "orders", "projections verify", "run it again; it begins anew"),
        (signal.SIGINT, "orders", "projections rebuild", "run it again to resume"),
        (signal.SIGTERM, "orders", "reconcile --sandbox", "run it again for the others"),
        (signal.SIGINT, "stored_events", "audit verify", "not all of the log was checked"),
        (signal.SIGINT, "processor_configs", "keys rotate", "run it again for the others"),
        (signal.SIGINT, "webhook_events", "privacy erase --yes --order", "run it again to erase the rest"),
    ],
)
async def test_an_interrupted_command_says_how_to_go_on_and_leaves_nothing_behind(
    store: EventStore,
    settings: Settings,
    database_url: str,
    merchant_id: UUID,
    told: signal.Signals,
    table: str,
    command: str,
    goes_on: str,
) -> None:
    order = new_order(merchant_id, customer_email="ada@example.com")
    await append(store, order)
    await project_everything(database_url)
    async with locked(database_url, table):
        of_whom = [str(order.id)] if command.endswith("--order") else []
        child = await begin_command(settings, *command.split(), *of_whom)

        async def waits() -> bool:
            return bool(
                await rows(store, "SELECT FROM pg_locks WHERE NOT granted AND relation = %s::regclass", table)
            )

        await eventually(waits)
        child.send_signal(told)
    _, err = await asyncio.wait_for(child.communicate(), 60)
    assert (child.returncode, err.count(b"\n")) == (128 + told, 1), err.decode()
    assert err.startswith(b"payloops: interrupted: ")
    assert err.endswith(f"{goes_on}\n".encode())
    assert await one(store, "SELECT count(*) FROM pg_namespace WHERE nspname = 'payloops_verify'") == 0


@pytest.mark.parametrize(
    ("command", "goes_on"),
    [
        ("rebuild", "the live tables are as they were, or rebuilt already; run it again to resume"),
        ("verify", "run it again; it begins anew"),
    ],
)
async def test_a_command_one_of_whose_processes_is_killed_says_how_to_go_on(
    store: EventStore, settings: Settings, database_url: str, merchant_id: UUID, command: str, goes_on: str
) -> None:
    await append(store, new_order(merchant_id))
    await project_everything(database_url)
    async with locked(database_url, "personal_keys"):
        child = await begin_command(settings, "projections", command, "--workers", "1")

        async def is_read() -> bool:
            return bool(
                await rows(
                    store, "SELECT FROM pg_locks WHERE NOT granted AND relation = 'personal_keys'::regclass"
                )
            )

        await eventually(is_read)
        children = Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text().split()
        [worker] = [pid for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        os.kill(int(worker), signal.SIGKILL)
        out, err = await asyncio.wait_for(child.communicate(), 60)
    assert (child.returncode, out) == (1, b"")
    assert err.decode().splitlines()[-1] == f"payloops: a worker process was killed: {goes_on}"


@pytest.mark.parametrize("url", ["ftp://x", "nowhere", "http://a..example", "http://["])
async def test_a_demonstration_at_what_is_no_url_says_so_in_one_line(url: str, settings: Settings) -> None:
    status, out, err = await run_command(settings, "demo", "--api-key", "sk_test_x", "--url", url)
    assert (status, out) == (1, "")
    assert err.startswith(f"payloops: no PayLoops service answers at {url} (")
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    "answer",
    [b"Content-Type: text/html\r\nContent-Length: 2\r\n\r\nhi", b"Content-Length: 2\r\n\r\n{}", b"\r\n"],
)
async def test_a_demonstration_at_another_program_says_so_in_one_line(
    answer: bytes, settings: Settings
) -> None:
    async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n" + answer)
        writer.close()

    async with await asyncio.start_server(respond, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        status, out, err = await run_command(settings, "demo", "--api-key", "sk_test_x", "--url", url)
    assert (status, out) == (1, "")
    assert err.startswith(f"payloops: no PayLoops service answers at {url} (")
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("option", ["--older-than", "--since"])
async def test_a_duration_that_is_none_is_refused_with_its_option(settings: Settings, option: str) -> None:
    status, out, err = await run_command(settings, "reconcile", option, "soon")
    assert (status, out) == (2, "")
    assert err == f"payloops: {option}: 'soon' is no duration: write 90s, 10m, 24h or 7d\n"


def test_durations() -> None:
    assert [duration(text) for text in ("90s", "10m", "24h", "7d")] == [
        timedelta(seconds=90),
        timedelta(minutes=10),
        timedelta(days=1),
        timedelta(days=7),
    ]
    for text in ("", "10", "m", "-1m", "1.5h", "1w"):
        with pytest.raises(ValueError, match="no duration"):
            duration(text)


async def test_retrying_parked_events_names_every_reader_where_it_knows_one_not(settings: Settings) -> None:
    readers = ["daily_volume", "orders", "webhooks"]
    status, out, err = await run_command(settings, "projections", "retry-parked", "orders", "webhook")
    assert (status, out) == (2, "")
    assert err == f"payloops: no projection or subscriber webhook; there are {', '.join(readers)}\n"
    status, out, _ = await run_command(settings, "projections", "retry-parked", "webhooks")
    assert (status, out) == (0, "webhooks: 0 applied, 0 parked still\n")
    status, out, _ = await run_command(settings, "projections", "retry-parked")
    assert (status, [line.split(":")[0] for line in out.splitlines()]) == (0, readers)


def test_help_is_wrapped_by_the_terminal_alone() -> None:
    def helps(command: Any) -> Iterator[str]:
        yield command.help
        for each in getattr(command, "commands", {}).values():
            yield from helps(each)

    texts = list(helps(get_command(app)))
    assert len(texts) > 30
    assert [text for text in texts if "\n" in text.replace("\n\n", "")] == []
