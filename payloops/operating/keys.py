"""`payloops keys`: shows which encryption keys are in use, and rotates them. Needs only the database and the keys."""

from contextlib import AbstractAsyncContextManager
from dataclasses import asdict

from psycopg_pool import AsyncConnectionPool

from payloops.commands.rotate_keys import KeyUsage, key_usage, rotate_keys
from payloops.events.pools import command_pool
from payloops.printing import make_console, print_plain_json, print_rows
from payloops.progress import progress
from payloops.settings import KeySettings
from payloops.wiring import make_cipher

SHOWN = 20
"""Maximum number of unreadable values that are listed."""


def _pool(settings: KeySettings) -> AbstractAsyncContextManager[AsyncConnectionPool]:
    return command_pool(settings.database_url.get_secret_value(), application_name="payloops keys")


async def show_status(settings: KeySettings, *, as_json: bool) -> bool:
    """Print how many values each column has of which key. Returns whether all are of ENCRYPTION_KEY."""
    async with _pool(settings) as pool:
        usage = await key_usage(pool, cipher=make_cipher(settings))
    if as_json:
        print_plain_json({"columns": [asdict(each) for each in usage]})
    else:
        _print_usage(usage)
    return not any(each.left for each in usage)


async def rotate(settings: KeySettings, *, as_json: bool) -> bool:
    """Re-encrypt everything with ENCRYPTION_KEY. Returns whether nothing is left; progress goes to standard error.

    It may be interrupted and run again at any time, and run by several processes at once.
    """
    cipher = make_cipher(settings)
    rotated: dict[str, int] = {}
    unreadable: list[str] = []
    async with _pool(settings) as pool:
        before = await key_usage(pool, cipher=cipher)
        left = {each.column: each.left for each in before}
        done = dict.fromkeys(left, 0)
        with progress() as report:
            async for batch in rotate_keys(pool, cipher=cipher):
                rotated[batch.column] = rotated.get(batch.column, 0) + batch.rotated
                unreadable += batch.unreadable
                done[batch.column] += batch.rotated + len(batch.unreadable)
                report(batch.column, done[batch.column], max(left[batch.column], done[batch.column]))
        after = await key_usage(pool, cipher=cipher)
    all_done = not any(each.left for each in after)
    if as_json:
        print_plain_json(
            {
                "rotated": sum(rotated.values()),
                "unreadable": unreadable,
                "columns": [{**asdict(each), "rotated": rotated.get(each.column, 0)} for each in after],
            }
        )
        return all_done
    print(f"re-encrypted {sum(rotated.values())} values with ENCRYPTION_KEY")  # noqa: T201
    _print_usage(after)
    for identity in unreadable[:SHOWN]:
        print(f"no key opens what is sealed for {identity}")  # noqa: T201
    if len(unreadable) > SHOWN:
        print(f"… and {len(unreadable) - SHOWN} more")  # noqa: T201
    return all_done


def _print_usage(usage: list[KeyUsage]) -> None:
    cells = [(each.column, str(each.present), str(each.older), str(each.unknown)) for each in usage]
    print_rows(make_console(), "Column", "ENCRYPTION_KEY", "Older key", "Unknown", rows=cells)
