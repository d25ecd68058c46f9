"""`payloops migrate`: brings a database's schema up to date with this version's migrations."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.util import CommandError

import payloops.migrations


class SchemaAhead(Exception):
    """The database has migrations of a later version, which this one does not know."""


def migrate(*, database_url: str) -> list[str]:
    """Apply missing migrations. Returns the revisions applied, oldest first.

    Each migration is one transaction, and an advisory lock serializes processes that migrate. So several may run at the
    same time, and a killed one may be run again.

    Raises:
        SchemaAhead: see there.
    """
    folder = Path(payloops.migrations.__path__[0])
    applied: list[str] = []
    config = Config(attributes={"database_url": database_url, "applied": applied})
    config.set_main_option("script_location", str(folder).replace("%", "%%"))
    try:
        command.upgrade(config, "head")
    except CommandError as error:  # the only reason for it, as our own revisions are consistent
        raise SchemaAhead(f"the database was migrated by a later version: {error}") from error
    return applied
