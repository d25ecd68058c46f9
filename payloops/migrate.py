"""`payloops migrate`: brings a database's schema up to date with this version's migrations."""

import re
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.util import CommandError

import payloops.migrations


class LaterSchemaError(Exception):
    """The database has migrations of a later version, which this one does not know."""


def migrate(*, database_url: str) -> list[str]:
    """Apply missing migrations. Returns the revisions applied, oldest first.

    Each migration is one transaction, and an advisory lock serializes processes that migrate. So several may run at the
    same time, and a killed one may be run again.

    Raises:
        LaterSchemaError: see there.
    """
    config = _config(database_url)
    applied: list[str] = []
    config.attributes["applied"] = applied
    try:
        command.upgrade(config, "head")
    except CommandError as error:  # the only reason for it, as our own revisions are consistent
        raise LaterSchemaError(f"the database was migrated by a later version: {error}") from error
    return applied


def _folder() -> Path:
    assert payloops.migrations.__file__ is not None
    return Path(payloops.migrations.__file__).parent


def _config(database_url: str) -> Config:
    config = Config()
    config.set_main_option("script_location", str(_folder()).replace("%", "%%"))
    config.set_main_option("sqlalchemy.url", _sqlalchemy_url(database_url).replace("%", "%%"))
    return config


def _sqlalchemy_url(database_url: str) -> str:
    return re.sub(r"^postgres(ql)?(\+psycopg)?://", "postgresql+psycopg://", database_url)
