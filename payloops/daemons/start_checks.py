"""Finds out at start whether PostgreSQL keeps what it confirms, and whether the encryption keys open what is stored."""

import psycopg
import structlog
from psycopg_pool import AsyncConnectionPool

from payloops.commands.cipher import REMEDY, Cipher
from payloops.commands.rotate_keys import OF_MERCHANTS, key_usage
from payloops.events.connections import command_pool, wait_to_reconnect
from payloops.settings import KeySettings
from payloops.wiring import make_cipher

UNSAFE_SETTINGS = """
    SELECT name FROM pg_settings
    WHERE name IN ('fsync', 'full_page_writes', 'synchronous_commit') AND setting = 'off' ORDER BY name
"""

log = structlog.get_logger()


async def opens_nothing(settings: KeySettings) -> bool:
    """Whether something is stored encrypted for merchants, and the keys open none of it."""
    url = settings.database_url.get_secret_value()
    async with command_pool(url, application_name="payloops keys") as pool:
        usage = await key_usage(pool, cipher=make_cipher(settings), columns=OF_MERCHANTS)
    unknown = sum(each.unknown for each in usage)
    return unknown > 0 and unknown == sum(each.total for each in usage)


async def check_at_start(pool: AsyncConnectionPool, *, cipher: Cipher) -> None:
    """Log once which settings let PostgreSQL lose data, and what the keys do not open, as soon as the database answers.

    Neither is a reason to stop: a database may hold what nobody would miss, and a key may be lost, in which case
    merchants replace what it sealed.
    """
    while True:
        try:
            unsafe = await _unsafe_settings(pool)
            usage = await key_usage(pool, cipher=cipher, columns=OF_MERCHANTS)
        except psycopg.Error as error:
            log.warning("start.not_checked", error=type(error).__name__)
            await wait_to_reconnect()
            continue
        if unsafe:
            log.error("database.not_durable", settings=unsafe, remedy="switch them on in PostgreSQL")
        for each in usage:
            if each.unknown:
                log.error(
                    "encryption_key.wrong",
                    column=each.column,
                    unreadable=each.unknown,
                    of=each.total,
                    remedy=REMEDY,
                )
        return


async def _unsafe_settings(pool: AsyncConnectionPool) -> list[str]:
    """The settings by which PostgreSQL may lose in a crash what it confirmed as committed."""
    async with pool.connection() as connection:
        return [name for [name] in await (await connection.execute(UNSAFE_SETTINGS)).fetchall()]
