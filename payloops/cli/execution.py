"""How commands run: with which settings, and with errors reported in one line."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import typer

from payloops.control_characters import replaced

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from payloops.settings import DatabaseSettings, Settings

T = TypeVar("T")
S = TypeVar("S", bound="DatabaseSettings")
WRONG_SETTINGS = 2
INTERRUPTED, TERMINATED = 130, 143
"""Exit statuses after Ctrl-C and SIGTERM, as shells use them."""
DATABASE_DOWN = "the database does not answer"
HOW_TO_FIND_DEV = (
    "what is not in the environment is taken from a running `payloops dev` with its data in {}"
    " (--data-dir names another directory)"
)
HOW_TO_NAME_IT = (
    "set DATABASE_URL to its address; without it, the database of a running `payloops dev` is used"
)


def run_async(work: "Coroutine[Any, Any, T]", *, interrupted: str | None = None) -> "T":
    """Run work that needs the database; if the database fails, exit with a one-line message.

    Args:
        interrupted: the message if Ctrl-C, SIGTERM or the end of a worker process ends it: what was done, and how to go
            on.
    """
    import asyncio  # noqa: PLC0415
    import logging  # noqa: PLC0415
    from concurrent.futures import BrokenExecutor  # noqa: PLC0415

    import psycopg  # noqa: PLC0415

    from payloops.events.connections import SCHEMA_ERRORS, NoUsableConnection  # noqa: PLC0415

    logging.getLogger("psycopg").addHandler(logging.NullHandler())  # the error below says the same
    try:
        return asyncio.run(_cancelled_by_sigterm(work))
    except KeyboardInterrupt:
        _end_interrupted(interrupted, status=INTERRUPTED)
    except asyncio.CancelledError:
        _end_interrupted(interrupted, status=TERMINATED)
    except BrokenExecutor:
        fail(f"a worker process was killed: {interrupted}")
    except NoUsableConnection as error:
        fail(str(error))
    except (psycopg.OperationalError, psycopg.InterfaceError) as error:
        fail(f"{DATABASE_DOWN}: {error}\n{HOW_TO_NAME_IT}")
    except SCHEMA_ERRORS:
        fail("the database does not have the schema of this version: run `payloops migrate`")
    except psycopg.Error as error:
        fail(f"the database reports an error: {error.diag.message_primary or type(error).__name__}")


async def _cancelled_by_sigterm(work: "Coroutine[Any, Any, T]") -> "T":
    """Cancel the work on SIGTERM, as asyncio does on Ctrl-C, so that it can clean up."""
    import asyncio  # noqa: PLC0415
    import signal  # noqa: PLC0415

    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await work


def _end_interrupted(message: str | None, *, status: int) -> NoReturn:
    if message is None:
        raise typer.Exit(status)
    fail(f"interrupted: {message}", status=status)


def run_process(work: "Coroutine[Any, Any, None]") -> None:
    """Run a process of the service until it stops."""
    import asyncio  # noqa: PLC0415

    from payloops.daemons.listening import PortTaken  # noqa: PLC0415

    try:
        asyncio.run(work)
    except PortTaken as error:
        fail(str(error))


def database_url_of(data_dir: Path) -> str:
    """Read DATABASE_URL from the environment, or else from the data directory of a `payloops dev`."""
    from payloops.settings import DatabaseSettings  # noqa: PLC0415

    return settings_of(DatabaseSettings, data_dir).database_url.get_secret_value()


def settings_of_process() -> "Settings":
    """Read those of a process of the service from the environment, and prepare the crash that they ask for."""
    from payloops.events import crash_points  # noqa: PLC0415
    from payloops.settings import Settings  # noqa: PLC0415

    settings = read(Settings)
    if settings.crash_at is not None:
        point, passings = crash_points.parse(settings.crash_at)
        crash_points.arm(point, passings=passings)
    return settings


def settings_of(kind: "type[S]", data_dir: Path) -> "S":
    """Read them from the environment, and what is missing from the `payloops dev` of the data directory.

    Nothing is taken from there if DATABASE_URL names another database: events would be written to it with other keys.
    """
    from payloops.dev.environment import read_environment  # noqa: PLC0415

    kept = read_environment(data_dir=data_dir)
    given = os.environ.get("DATABASE_URL")
    if given and given != kept.get("DATABASE_URL"):
        return read(kind)
    of_dev = "" if kept else HOW_TO_FIND_DEV.format(data_dir)
    missing = {name.lower(): value for name, value in kept.items() if not os.environ.get(name)}
    return read(kind, hint=of_dev, **missing)


def read(kind: "type[S]", *, hint: str = "", **overrides: str) -> "S":
    """Read settings from the environment; warn of names that look misspelled, and exit if one is missing or wrong."""
    from payloops.settings import InvalidSettings, misspelled_settings, read_settings  # noqa: PLC0415

    for name, setting in misspelled_settings(os.environ).items():
        warn(f"{name} is not a setting, and is ignored: did you mean {setting}?")
    try:
        return read_settings(kind, **overrides)
    except InvalidSettings as error:
        fail(f"{error}\n{hint}", status=WRONG_SETTINGS)


def warn(message: str) -> None:
    """Print a message on standard error. Processors and clients may have written parts of it."""
    lines = [replaced(line.strip()) for line in message.splitlines() if line.strip()]
    sys.stderr.write("".join(f"payloops: {line}\n" for line in lines))


def fail(message: str, *, status: int = 1) -> NoReturn:
    """Print a message on standard error, and exit with this status."""
    warn(message)
    raise typer.Exit(status)
