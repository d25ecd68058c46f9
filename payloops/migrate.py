"""Bring a database's schema up to date with the migrations of this version (`payloops migrate`)."""

import re
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine
from sqlalchemy.pool import NullPool

import payloops.migrations


def migrate(*, database_url: str) -> list[str]:
    """Apply what is missing and return the revisions applied, oldest first.

    Each migration is one transaction, and migrators queue on an advisory lock, so that it may be run by
    several processes at once and again after it was killed.
    """
    config = _config(database_url)
    before = current_revision(database_url=database_url)
    command.upgrade(config, "head")
    script = ScriptDirectory.from_config(config)
    applied = [r.revision for r in script.iterate_revisions("head", before or "base")]
    return list(reversed(applied))


def current_revision(*, database_url: str) -> str | None:
    """The newest migration the database has, None where it has none yet."""
    engine = create_engine(_sqlalchemy_url(database_url), poolclass=NullPool)
    try:
        with engine.connect() as connection:
            return MigrationContext.configure(connection).get_current_revision()
    finally:
        engine.dispose()


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
