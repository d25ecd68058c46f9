"""A standby of an embedded PostgreSQL."""

import shutil
from pathlib import Path

from payloops.embedded import EmbeddedServers
from payloops.embedded.binaries import find_postgres
from payloops.embedded.processes import run_to_end

COPYING = "pg_basebackup"


def standby_of(primary: EmbeddedServers, *, data_dir: Path, ephemeral: bool) -> EmbeddedServers:
    """One that runs, answers reads, and can be promoted. `data_dir`: created."""
    data_dir.mkdir()
    (data_dir / "lock").touch()  # by which the servers know a directory of theirs
    command: list[str | Path] = [find_postgres() / COPYING, f"--dbname={primary.database_url}"]
    command += [f"--pgdata={data_dir / 'postgres'}", "--write-recovery-conf", "--checkpoint=fast"]
    copied = run_to_end(part=COPYING, command=command)
    assert copied.returncode == 0, copied.stderr
    shutil.copy(primary.data_dir / "postgres.password", data_dir)
    standby = EmbeddedServers(data_dir=data_dir, ephemeral=ephemeral, parts=["postgres"])
    standby.start()
    return standby
