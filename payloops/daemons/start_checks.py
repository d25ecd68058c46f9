"""Finds out at start whether PostgreSQL keeps what it confirms and compares text rightly, and whether the keys fit."""

import psycopg
import structlog
from psycopg_pool import AsyncConnectionPool

from payloops.commands.cipher import REMEDY, Cipher
from payloops.commands.rotate_keys import OF_MERCHANTS, key_usage
from payloops.events.connections import one_line, wait_to_reconnect
from payloops.events.seals import AuditKeys, last_seal

UNSAFE_SETTINGS = """
    SELECT name FROM pg_settings
    WHERE name IN ('fsync', 'full_page_writes', 'synchronous_commit') AND setting = 'off' ORDER BY name
"""

FOLDS_CASE = "SELECT lower('IÉ') = 'ié'"
"""Not in the locale C, which knows no letters but those of ASCII, and not in Turkish, where I has another small one."""

LOCALE_REMEDY = (
    "move the data to a database in a locale such as C.UTF-8: until then, addresses and search terms in another case"
    " are not found, and what personal data was copied with them is not erased"
)

AUDIT_KEY_REMEDY = (
    "start all processes with the AUDIT_KEY of before, or with it in AUDIT_KEYS_OLDER: until then, events are written"
    " that `payloops audit verify` takes for inserted"
)

log = structlog.get_logger()


async def opens_nothing(pool: AsyncConnectionPool, cipher: Cipher) -> bool:
    """Whether something is stored encrypted for merchants, and the keys open none of it."""
    usage = await key_usage(pool, cipher=cipher, columns=OF_MERCHANTS)
    unknown = sum(each.unknown for each in usage)
    return unknown > 0 and unknown == sum(each.total for each in usage)


async def foreign_sealer(pool: AsyncConnectionPool, keys: AuditKeys) -> str | None:
    """The id of the key that signed the log's newest seal, if it is none of these."""
    async with pool.connection() as connection:
        seal = await last_seal(connection)
    return None if seal is None or seal.key_id in keys.public_keys else seal.key_id


async def check_at_start(pool: AsyncConnectionPool, *, cipher: Cipher, audit_keys: AuditKeys) -> None:
    """Log once which settings let PostgreSQL lose data, and what the keys do not fit, as soon as the database answers.

    None is a reason to stop: a database may hold what nobody would miss, and a key may be lost, in which case
    merchants replace what it sealed.
    """
    while True:
        try:
            unsafe = await _unsafe_settings(pool)
            folds_case = await _folds_case(pool)
            usage = await key_usage(pool, cipher=cipher, columns=OF_MERCHANTS)
            sealed_by = await foreign_sealer(pool, audit_keys)
        except (psycopg.Error, OSError) as error:
            log.warning("start.not_checked", error=one_line(error))
            await wait_to_reconnect()
            continue
        if unsafe:
            log.error("database.not_durable", settings=unsafe, remedy="switch them on in PostgreSQL")
        if not folds_case:
            log.error("database.locale", remedy=LOCALE_REMEDY)
        for each in usage:
            if each.unknown:
                log.error(
                    "encryption_key.wrong",
                    column=each.column,
                    unreadable=each.unknown,
                    of=each.total,
                    remedy=REMEDY,
                )
        if sealed_by is not None:
            log.error(
                "audit_key.wrong", key=audit_keys.present.id, sealed_by=sealed_by, remedy=AUDIT_KEY_REMEDY
            )
        return


async def _unsafe_settings(pool: AsyncConnectionPool) -> list[str]:
    """The settings by which PostgreSQL may lose in a crash what it confirmed as committed."""
    async with pool.connection() as connection:
        return [name for [name] in await (await connection.execute(UNSAFE_SETTINGS)).fetchall()]


async def _folds_case(pool: AsyncConnectionPool) -> bool:
    """Whether the database's locale has the small letters that texts are compared by."""
    async with pool.connection() as connection:
        [(folds,)] = await (await connection.execute(FOLDS_CASE)).fetchall()
    return bool(folds)
