"""Runs PostgreSQL on loopback TCP, with a generated password."""

import contextlib
import hashlib
import os
import pwd
import re
import secrets
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psycopg
from psycopg import sql

from payloops.embedded.binaries import find_postgres
from payloops.embedded.errors import NotStarted, PortLost
from payloops.embedded.processes import Child, Identity, run_to_end
from payloops.files import remove_tree, write_private

PART = "PostgreSQL"
USER = DATABASE = "payloops"
SHARED = Path("/var/lib/payloops")
"""For files that `nobody` must be able to read, while it may not read root's directories."""

MEMORY = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
BUFFERS = min(MEMORY // 8, 512 * 2**20)
"""Bytes. With PostgreSQL's default of 128 MB, and more orders than that holds, writers would have to evict pages."""

TUNING = {
    "shared_buffers": f"{BUFFERS // 2**20}MB",
    "max_connections": "200",
    "max_wal_size": "1GB",
    "random_page_cost": "1.1",
    "jit": "off",
    "log_checkpoints": "off",
    "timezone": "UTC",
    "log_timezone": "UTC",
}
FROM_18 = {"io_method": "sync"}
"""Our lists read few, scattered rows, for which handing reads to an I/O worker takes longer than reading."""
TAKES_CONNECTIONS = {"ready", "standby"}
"""States in the pid file."""
NOT_DURABLE = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}


class Postgres:
    """Call `prepare`, then `launch` on a port, then `wait_ready`; `stop` at any time."""

    def __init__(self, *, data_dir: Path, durable: bool) -> None:
        self.child: Child | None = None
        self.port = 0
        self._durable = durable
        self._link = data_dir / "postgres"
        self._log = data_dir / "logs/postgres.log"
        self._password_file = data_dir / "postgres.password"
        self._password = ""
        self._bin = Path()
        self._cluster = Path()
        self._identity: Identity = "same"
        self._initdb: Child | None = None

    @property
    def url(self) -> str:
        return f"postgresql://{USER}:{self._password}@127.0.0.1:{self.port}/{DATABASE}"

    def prepare(self) -> None:
        """Choose the programs and the user to run as, and start initdb if there is no cluster yet."""
        self._bin = find_postgres()
        self._choose_identity()
        if not (self._cluster / "PG_VERSION").exists():
            self._start_initdb()
            return
        self._password = self._password_file.read_text(encoding="ascii").strip()
        self._check_version()
        self._clear_stale_pid_file()

    def launch(self, *, port: int, deadline: float) -> None:
        """Wait for initdb, and start the server.

        Args:
            port: a free one of 127.0.0.1.
            deadline: for initdb.
        """
        if self._initdb is not None:
            self._finish_initdb(deadline=deadline)
        self.port = port
        settings = {
            **TUNING,
            **(FROM_18 if self._cluster_version() >= 18 else {}),  # noqa: PLR2004
            **({} if self._durable else NOT_DURABLE),
            "listen_addresses": "127.0.0.1",
            "port": str(port),
            "unix_socket_directories": "",
            "logging_collector": "off",
        }
        self.child = Child(
            name=PART,
            command=[
                self._bin / "postgres",
                "-D",
                self._cluster,
                *(part for name, value in settings.items() for part in ("-c", f"{name}={value}")),
            ],
            log=self._log,
            death_signal=signal.SIGINT,  # its fast shutdown: nothing to recover at the next start
            identity=self._identity,
            environment=_clean_environment(),
            cwd=Path("/"),
        )

    def wait_ready(self, *, deadline: float) -> None:
        """Wait until this server answers, and create the database.

        Raises:
            NotStarted, PortLost.
        """
        assert self.child is not None
        while not self._is_ready(self.child.pid):
            self._fail_if_ended()
            if time.monotonic() > deadline:
                raise NotStarted(part=PART, why=f"not ready in time; see {self._log}")
            time.sleep(0.01)
        try:
            self._create_database()
        except psycopg.Error as error:
            self._fail_if_ended()
            raise NotStarted(part=PART, why=f"it runs, but refuses us: {error}") from error

    def stop(self) -> None:
        """Shut down in fast mode: clients are disconnected, what is committed is kept."""
        self._kill_initdb()
        if self.child is None:
            return
        self.child.send(signal.SIGINT)
        if not self.child.wait(seconds=10):
            # Immediate mode also ends its child processes, which SIGKILL would not.
            self.child.stop(signal.SIGQUIT, seconds=5)
        self.child = None

    def kill(self) -> None:
        """Shut down in immediate mode, for a cluster that is not used again."""
        self._kill_initdb()
        if self.child is not None:
            self.child.stop(signal.SIGQUIT, seconds=5)
            self.child = None

    def _kill_initdb(self) -> None:
        if self._initdb is not None:
            self._initdb.kill()
            self._initdb = None

    def remove(self) -> None:
        """Delete the cluster, wherever it is. Only while stopped."""
        _remove_cluster(self._link)

    def _choose_identity(self) -> None:
        """Choose the user to run as, because PostgreSQL refuses to run as root.

        There are two ways: a user namespace in which root is nobody, or the user nobody itself, who needs programs and
        data in directories that it can read. An existing cluster's owner decides which.
        """
        self._cluster = self._link
        if os.geteuid() != 0:
            return
        owner = self._link.stat().st_uid if self._link.exists() else None
        if owner in (None, 0):
            if self._print_version("namespace").returncode == 0:
                self._identity = "namespace"
                return
            uid, gid = _nobody()
        else:
            uid, gid = owner or 0, self._link.stat().st_gid
        self._identity = (uid, gid)
        self._bin = _reachable_programs(self._bin)
        tried = self._print_version(self._identity)
        if tried.returncode != 0:
            raise NotStarted(part=PART, why=f"cannot run as another user than root: {tried.stderr}")
        if owner is None or owner == 0:
            self._move_out(uid=uid, gid=gid)
        self._cluster = self._link.resolve()

    def _move_out(self, *, uid: int, gid: int) -> None:
        """Move the cluster to where the user nobody can read it, and put a symbolic link in its place."""
        place = SHARED / hashlib.sha256(str(self._link).encode()).hexdigest()[:16]
        _make_shared(place)
        cluster = place / "postgres"
        if self._link.is_symlink():
            self._link.unlink()
        elif self._link.exists():
            shutil.rmtree(cluster, ignore_errors=True)
            shutil.move(self._link, cluster)
            for folder, _, files in os.walk(cluster):
                for path in (folder, *(os.path.join(folder, file) for file in files)):  # noqa: PTH118
                    os.chown(path, uid, gid, follow_symlinks=False)
        self._link.symlink_to(cluster)

    def _start_initdb(self) -> None:
        self._password = secrets.token_urlsafe(24)
        new = self._new_cluster()
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(mode=0o700)
        given = new.with_suffix(".password")
        write_private(given, self._password)
        if not isinstance(self._identity, str):
            os.chown(new, *self._identity)
            os.chown(given, *self._identity)
        self._initdb = Child(
            name="initdb",
            command=[
                self._bin / "initdb",
                f"--pgdata={new}",
                f"--username={USER}",
                f"--pwfile={given}",
                "--auth=scram-sha-256",
                "--encoding=UTF8",
                *self._locale(),
                "--no-instructions",
                *([] if self._durable else ["--no-sync"]),
            ],
            log=self._log,
            death_signal=signal.SIGKILL,
            identity=self._identity,
            environment=_clean_environment(),
            cwd=Path("/"),
        )

    def _locale(self) -> list[str]:
        """Locale options for initdb. From PostgreSQL 17 on, a builtin provider sorts the same on all systems."""
        version = self._program_version()
        if version is None or version >= 17:  # noqa: PLR2004
            return ["--locale-provider=builtin", "--locale=C.UTF-8"]
        return ["--locale=C.UTF-8" if sys.platform == "linux" else "--locale=C"]

    def _finish_initdb(self, *, deadline: float) -> None:
        assert self._initdb is not None
        if not self._initdb.wait(seconds=max(0.0, deadline - time.monotonic())):
            self._initdb.kill()
            raise NotStarted(part=PART, why=f"initdb did not end in time; see {self._log}")
        new = self._new_cluster()
        new.with_suffix(".password").unlink()
        if self._initdb.exit_status() != 0:
            raise NotStarted(part=PART, why=f"initdb: {_error_line(self._initdb.output())}")
        self._initdb = None
        write_private(self._password_file, self._password)
        if self._cluster.exists():  # an incomplete one
            shutil.rmtree(self._cluster)
        new.rename(self._cluster)

    def _new_cluster(self) -> Path:
        return self._cluster.with_name("postgres.new")

    def _check_version(self) -> None:
        made_by, version = self._cluster_version(), self._program_version()
        if version not in (None, made_by):
            raise NotStarted(
                part=PART,
                why=f"{self._link} was made by version {made_by} and the server is {version}: "
                "point PAYLOOPS_POSTGRES_BIN to the older one, or drop the data with --fresh",
            )

    def _cluster_version(self) -> int:
        """The major version that made the cluster."""
        return int((self._cluster / "PG_VERSION").read_text(encoding="ascii"))

    def _program_version(self) -> int | None:
        """The major version of the programs; None if it cannot be read from what they print."""
        printed = self._print_version(self._identity)
        version = re.search(r"\) (\d+)", printed.stdout)
        return None if version is None else int(version[1])

    def _print_version(self, identity: Identity) -> "subprocess.CompletedProcess[str]":
        return run_to_end(part=PART, command=[self._bin / "postgres", "--version"], identity=identity)

    def _clear_stale_pid_file(self) -> None:
        """Remove the pid file of a killed server: if another process has the pid now, PostgreSQL would not start."""
        path = self._cluster / "postmaster.pid"
        try:
            pid = int(path.read_text(encoding="utf-8").split("\n", 1)[0])
        except (FileNotFoundError, ValueError):
            return
        if _serves(pid, self._cluster):
            raise NotStarted(part=PART, why=f"process {pid} still serves {self._link}")
        path.unlink(missing_ok=True)

    def _is_ready(self, pid: int) -> bool:
        """Whether the pid file, which the server writes, belongs to this process and says that it takes connections."""
        try:
            lines = (self._cluster / "postmaster.pid").read_text(encoding="utf-8").split("\n")
        except FileNotFoundError:
            return False
        return len(lines) > 7 and lines[0] == str(pid) and lines[7].strip() in TAKES_CONNECTIONS  # noqa: PLR2004

    def _create_database(self) -> None:
        """Create the database if it does not exist, after checking that this port belongs to this cluster's server."""
        with psycopg.connect(
            host="127.0.0.1",
            port=self.port,
            user=USER,
            password=self._password,
            dbname="postgres",
            connect_timeout=10,
            autocommit=True,
        ) as connection:
            serves = connection.execute("SELECT current_setting('data_directory')").fetchone()
            if serves is None or Path(serves[0]).resolve() != self._cluster.resolve():
                raise NotStarted(part=PART, why=f"port {self.port} answers for another server: {serves}")
            if not connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [DATABASE]).fetchone():
                connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(DATABASE)))

    def _fail_if_ended(self) -> None:
        assert self.child is not None
        if self.child.exit_status() is None:
            return
        output = self.child.output()
        if "could not bind" in output:
            raise PortLost(part=PART, why=f"port {self.port} is taken by another program")
        raise NotStarted(part=PART, why=_error_line(output) or f"it ended; see {self._log}")


def _remove_cluster(link: Path) -> None:
    if link.is_symlink() and link.readlink().is_relative_to(SHARED):
        shutil.rmtree(link.readlink().parent, ignore_errors=True)
    remove_tree(link)


def _error_line(output: str) -> str:
    """The error in the output of a PostgreSQL program; if none is recognized, the last line."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    for mark in ("FATAL:", "PANIC:", "error:", "ERROR:", "cannot run"):
        for line in lines:
            if mark in line:
                return line[line.index(mark) :]
    return lines[-1] if lines else ""


def _clean_environment() -> dict[str, str]:
    """The environment without PGDATA, PGPORT and the like, and with English messages, which are parsed here."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "LC_", "LANG"))}
    return {**kept, "LC_ALL": "C"}


def _serves(pid: int, cluster: Path) -> bool:
    """Whether a process is the server of this cluster: its working directory is the data directory."""
    if sys.platform == "linux":
        try:
            return Path(f"/proc/{pid}/cwd").readlink() == cluster.resolve()
        except OSError:  # gone, or another user's
            return False
    shown = subprocess.run(  # noqa: S603
        ["/bin/ps", "-o", "command=", "-p", str(pid)], capture_output=True, text=True, check=False
    )
    return str(cluster) in shown.stdout


def _nobody() -> tuple[int, int]:
    try:
        found = pwd.getpwnam("nobody")
    except KeyError:
        return 65534, 65534
    return found.pw_uid, found.pw_gid


def _reachable_programs(directory: Path) -> Path:
    """The same programs in a directory that all users can read: in place, or a copy, made once per version.

    No permissions of root's own directories are changed for that.
    """
    if all(each.stat().st_mode & 0o001 for each in (directory, *directory.resolve().parents)):
        return directory
    package = directory.parents[1] if directory.parent.name == "pginstall" else directory.parent
    mark = hashlib.sha256(f"{directory}:{(directory / 'postgres').stat().st_mtime_ns}".encode()).hexdigest()[
        :16
    ]
    copy = SHARED / f"programs-{mark}"
    if not copy.exists():
        _make_shared(SHARED)
        new = SHARED / f"programs-{mark}.{os.getpid()}"
        shutil.rmtree(new, ignore_errors=True)
        shutil.copytree(package, new / package.name, symlinks=True)
        libraries = package.with_name(f"{package.name}.libs")  # the wheel's own, found by a relative path
        if libraries.exists():
            shutil.copytree(libraries, new / libraries.name, symlinks=True)
        new.chmod(0o755)
        with contextlib.suppress(OSError):  # another process was faster
            new.rename(copy)
        shutil.rmtree(new, ignore_errors=True)
    return copy / package.name / directory.relative_to(package)


def _make_shared(place: Path) -> None:
    for each in (SHARED, place):
        each.mkdir(exist_ok=True, parents=True)
        if each.stat().st_uid != 0:
            raise NotStarted(part=PART, why=f"{each} belongs to another user")
        each.chmod(0o755)
