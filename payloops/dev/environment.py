"""Settings that `payloops dev` keeps in its data directory, for its next run and for other commands."""

import json
import secrets
import shlex
from collections.abc import Mapping
from pathlib import Path

from payloops.files import write_private

SECRETS_FILE = "secrets.json"
ENVIRONMENT_FILE = "environment"
SECRETS = ("JWT_SECRET", "ENCRYPTION_KEY", "AUDIT_KEY", "TEMPORAL_CODEC_KEY")
WRITTEN = (
    *("DATABASE_URL", "REDIS_URL", "TEMPORAL_ADDRESS", "TEMPORAL_NAMESPACE", "ENVIRONMENT", "PORT"),
    *SECRETS,
)


def load_or_create_secrets(*, data_dir: Path) -> dict[str, str]:
    """The secrets of this data directory, generated once, so that tokens and credentials stay valid after a restart."""
    path = data_dir / SECRETS_FILE
    try:
        kept: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        kept = {}
    missing = {name: secrets.token_urlsafe(32) for name in SECRETS if name not in kept}
    if missing:
        kept |= missing
        write_private(path, json.dumps(kept, indent=2))
    return kept


def write_environment(environment: Mapping[str, str], *, data_dir: Path) -> None:
    """Write the file that other commands read, and that a shell can source."""
    lines = [f"export {name}={shlex.quote(environment[name])}\n" for name in WRITTEN if name in environment]
    write_private(data_dir / ENVIRONMENT_FILE, "".join(lines))


def read_environment(*, data_dir: Path) -> dict[str, str]:
    """Read that file; empty if there is none that we may read."""
    try:
        text = (data_dir / ENVIRONMENT_FILE).read_text(encoding="utf-8")
    except OSError:
        return {}
    pairs = (shlex.split(line)[1].partition("=") for line in text.splitlines())
    return {name: value for name, _, value in pairs}
