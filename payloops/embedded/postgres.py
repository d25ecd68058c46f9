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
from payloops.embedded.errors import PortTakenError, StartError
from payloops.embedded.files import remove_tree, write_private
from payloops.embedded.processes import Child, Identity, run_to_end

PART = "PostgreSQL"
USER = DATABASE = "payloops"
SHARED = Path("/var/lib/payloops")
"""What `nobody` must reach, where it is not allowed to look into root's directories."""

MEMORY = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
BUFFERS = min(MEMORY // 8, 512 * 2**20)
"""Bytes. With 128 MB and more orders than these hold, whoever writes first has to make room."""

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
"""Lists read few rows each, here and there: to have one read by another process takes longer than to read it."""
NOT_DURABLE = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}


class Postgres:
    """`prepare`, then `launch` on a port, then `wait_ready`; `stop` at any time."""

    part = PART

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
        self._making: Child | None = None

    @property
    def url(self) -> str:
        return f"postgresql://{USER}:{self._password}@127.0.0.1:{self.port}/{DATABASE}"

    def prepare(self) -> None:
        """Choose programs and user, and begin to make the cluster where there is none."""
        self._bin = find_postgres()
        self._choose_identity()
        if not (self._cluster / "PG_VERSION").exists():
            self._begin_making()
            return
        self._password = self._password_file.read_text(encoding="ascii").strip()
        self._check_version()
        self._clear_stale_pid_file()

    def launch(self, *, port: int, deadline: float) -> None:
        """Start the server, once the cluster is made. Port: a free one of 127.0.0.1."""
        if self._making is not None:
            self._finish_making(deadline=deadline)
        self.port = port
        version = int((self._cluster / "PG_VERSION").read_text(encoding="ascii"))
        settings = {
            **TUNING,
            **(FROM_18 if version >= 18 else {}),  # noqa: PLR2004
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
        """Return when our own server answers. Raises StartError, PortTakenError."""
        assert self.child is not None
        while not self._says_ready(self.child.pid):
            self._fail_if_ended()
            if time.monotonic() > deadline:
                raise StartError(part=PART, why=f"not ready in time; see {self._log}")
            time.sleep(0.01)
        try:
            self._make_database()
        except psycopg.Error as error:
            self._fail_if_ended()
            raise StartError(part=PART, why=f"it runs, but refuses us: {error}") from error

    def stop(self) -> bool:
        """Whether it went by itself. Fast shutdown: clients are cut off, everything committed is kept."""
        if self._making is not None:
            self._making.kill()
            self._making = None
        if self.child is None:
            return True
        self.child.send(signal.SIGINT)
        went = self.child.wait(seconds=10)
        if not went:  # an immediate shutdown takes its children along, which SIGKILL would not
            went = self.child.stop(signal.SIGQUIT, seconds=5)
        self.child = None
        return went

    def kill(self) -> None:
        """The end of a cluster that nobody will open again."""
        if self._making is not None:
            self._making.kill()
            self._making = None
        if self.child is not None:
            self.child.stop(signal.SIGQUIT, seconds=5)
            self.child = None

    def remove(self) -> None:
        """Delete the cluster, wherever it is. Only while stopped."""
        _remove_cluster(self._link)

    def _choose_identity(self) -> None:
        """PostgreSQL refuses to run as root. Two ways around: a user namespace in which we are nobody, and
        nobody itself, which needs programs and data where it can reach them. The owner of an existing cluster
        decides.
        """
        self._cluster = self._link
        if os.geteuid() != 0:
            return
        owner = self._link.stat().st_uid if self._link.exists() else None
        if owner in (None, 0):
            tried = run_to_end(part=PART, command=[self._bin / "postgres", "--version"], identity="namespace")
            if tried.returncode == 0:
                self._identity = "namespace"
                return
            uid, gid = _nobody()
        else:
            uid, gid = owner or 0, self._link.stat().st_gid
        self._identity = (uid, gid)
        self._bin = _reachable_programs(self._bin)
        tried = run_to_end(part=PART, command=[self._bin / "postgres", "--version"], identity=self._identity)
        if tried.returncode != 0:
            raise StartError(part=PART, why=f"cannot run as another user than root: {tried.stderr}")
        if owner is None or owner == 0:
            self._move_out(uid=uid, gid=gid)
        self._cluster = self._link.resolve()

    def _move_out(self, *, uid: int, gid: int) -> None:
        """Put the cluster where nobody reaches it, a link in its place."""
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

    def _begin_making(self) -> None:
        self._password = secrets.token_urlsafe(24)
        new = self._new_cluster()
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(mode=0o700)
        given = new.with_suffix(".password")
        write_private(given, self._password)
        if not isinstance(self._identity, str):
            os.chown(new, *self._identity)
            os.chown(given, *self._identity)
        self._making = Child(
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
        """The provider that sorts alike everywhere came with PostgreSQL 17."""
        shown = run_to_end(
            part=PART, command=[self._bin / "postgres", "--version"], identity=self._identity
        ).stdout
        version = re.search(r"\) (\d+)", shown)
        if version is None or int(version[1]) >= 17:  # noqa: PLR2004
            return ["--locale-provider=builtin", "--locale=C.UTF-8"]
        return ["--locale=C.UTF-8" if sys.platform == "linux" else "--locale=C"]

    def _finish_making(self, *, deadline: float) -> None:
        assert self._making is not None
        if not self._making.wait(seconds=max(0.0, deadline - time.monotonic())):
            self._making.kill()
            raise StartError(part=PART, why=f"initdb did not end in time; see {self._log}")
        new = self._new_cluster()
        new.with_suffix(".password").unlink()
        if self._making.exit_status() != 0:
            raise StartError(part=PART, why=f"initdb: {_complaint(self._making.said())}")
        self._making = None
        write_private(self._password_file, self._password)
        if self._cluster.exists():  # a half-made one
            shutil.rmtree(self._cluster)
        new.rename(self._cluster)

    def _new_cluster(self) -> Path:
        return self._cluster.with_name("postgres.new")

    def _check_version(self) -> None:
        made_by = (self._cluster / "PG_VERSION").read_text(encoding="ascii").strip()
        shown = run_to_end(part=PART, command=[self._bin / "postgres", "--version"], identity=self._identity)
        version = re.search(r"\) (\d+)", shown.stdout)
        if version and version[1] != made_by:
            raise StartError(
                part=PART,
                why=f"{self._link} was made by version {made_by} and the server is {version[1]}: "
                "point PAYLOOPS_POSTGRES_BIN to the older one, or drop the data with --fresh",
            )

    def _clear_stale_pid_file(self) -> None:
        """A number in it that another process has meanwhile would keep PostgreSQL from starting."""
        path = self._cluster / "postmaster.pid"
        try:
            pid = int(path.read_text(encoding="utf-8").split("\n", 1)[0])
        except (FileNotFoundError, ValueError):
            return
        if _serves(pid, self._cluster):
            raise StartError(part=PART, why=f"process {pid} still serves {self._link}")
        path.unlink(missing_ok=True)

    def _says_ready(self, pid: int) -> bool:
        try:
            lines = (self._cluster / "postmaster.pid").read_text(encoding="utf-8").split("\n")
        except FileNotFoundError:
            return False
        return len(lines) > 7 and lines[0] == str(pid) and lines[7].strip() == "ready"  # noqa: PLR2004

    def _make_database(self) -> None:
        """Make the database at the first start. SCRAM has proved both sides; the directory makes it plain."""
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
                raise StartError(part=PART, why=f"port {self.port} answers for another server: {serves}")
            if not connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [DATABASE]).fetchone():
                connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(DATABASE)))

    def _fail_if_ended(self) -> None:
        assert self.child is not None
        if self.child.exit_status() is None:
            return
        said = self.child.said()
        if "could not bind" in said:
            raise PortTakenError(part=PART, why=f"port {self.port} is taken by another program")
        raise StartError(part=PART, why=_complaint(said) or f"it ended; see {self._log}")


def _remove_cluster(link: Path) -> None:
    if link.is_symlink() and link.readlink().is_relative_to(SHARED):
        shutil.rmtree(link.readlink().parent, ignore_errors=True)
    remove_tree(link)


def _complaint(said: str) -> str:
    """The line that says why, out of what a PostgreSQL program wrote."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    for mark in ("FATAL:", "PANIC:", "error:", "ERROR:", "cannot run"):
        for line in lines:
            if mark in line:
                return line[line.index(mark) :]
    return lines[-1] if lines else ""


def _clean_environment() -> dict[str, str]:
    """Without the caller's PGDATA, PGPORT and the like, and with messages we can read."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "LC_", "LANG"))}
    return {**kept, "LC_ALL": "C"}


def _serves(pid: int, cluster: Path) -> bool:
    """Whether a process is the server of this cluster: a postmaster works in its data directory."""
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
    """The same programs where any user may run them: in place, or a copy, made once per version.

    Nothing of root's is opened up for that.
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
        with contextlib.suppress(OSError):  # another start was quicker
            new.rename(copy)
        shutil.rmtree(new, ignore_errors=True)
    return copy / package.name / directory.relative_to(package)


def _make_shared(place: Path) -> None:
    for each in (SHARED, place):
        each.mkdir(exist_ok=True, parents=True)
        if each.stat().st_uid != 0:
            raise StartError(part=PART, why=f"{each} belongs to another user")
        each.chmod(0o755)
