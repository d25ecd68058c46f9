"""Finds out at start whether the encryption keys open what is stored."""

import psycopg
import structlog
from psycopg_pool import AsyncConnectionPool

from payloops.commands.cipher import REMEDY, Cipher
from payloops.commands.rotate_keys import OF_MERCHANTS, key_usage
from payloops.events.connections import command_pool, wait_to_reconnect
from payloops.settings import KeySettings
from payloops.wiring import make_cipher

log = structlog.get_logger()


async def opens_nothing(settings: KeySettings) -> bool:
    """Whether something is stored encrypted for merchants, and the keys open none of it."""
    url = settings.database_url.get_secret_value()
    async with command_pool(url, application_name="payloops keys") as pool:
        usage = await key_usage(pool, cipher=make_cipher(settings), columns=OF_MERCHANTS)
    unknown = sum(each.unknown for each in usage)
    return unknown > 0 and unknown == sum(each.total for each in usage)


async def check_keys(pool: AsyncConnectionPool, *, cipher: Cipher) -> None:
    """Log once what the keys do not open, as soon as the database answers.

    It is no reason to stop: a key may be lost, and merchants then replace what it sealed.
    """
    while True:
        try:
            usage = await key_usage(pool, cipher=cipher, columns=OF_MERCHANTS)
        except psycopg.Error as error:
            log.warning("encryption_key.not_checked", error=type(error).__name__)
            await wait_to_reconnect()
            continue
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
