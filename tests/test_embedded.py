"""The embedded servers: they start for anybody, keep what they were told, and never stay behind."""

import contextlib
import ctypes
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
import redis

from payloops.embedded import EmbeddedServers, NotStarted
from payloops.embedded.processes import Launched, end_leftovers, start_time

ROOT = Path(__file__).resolve().parents[1]
HOLDER = """
import sys, time
from pathlib import Path
from payloops.embedded import EmbeddedServers, NotStarted
try:
    with EmbeddedServers(data_dir=Path(sys.argv[1]), parts=sys.argv[2].split(",")) as servers:
        print(servers.database_url, flush=True)
        sys.stdin.read()
except NotStarted as error:
    sys.exit(str(error))
"""
CLONE_NEWUSER = 0x10000000
NOBODY = 65534


@pytest.fixture
def data_dir() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="payloops-test-"))
    yield path / "data"
    assert processes_of(path) == []
    link = path / "data/postgres"
    if link.is_symlink():
        shutil.rmtree(link.readlink().parent)
    shutil.rmtree(path)


def processes_of(path: Path) -> list[str]:
    """Processes that work in the directory or name it."""
    found = []
    cluster = (path / "data/postgres").resolve()
    for each in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            line = (each / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            works_in = (each / "cwd").readlink()
            if works_in.is_relative_to(path) or works_in == cluster or (line and str(path) in line):
                found.append(f"{each.name} {line}")
    return found


@contextlib.contextmanager
def holder(data_dir: Path, *, parts: str = "postgres,valkey,temporal") -> Iterator[subprocess.Popen[str]]:
    """Another process that runs servers until its stdin closes."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(data_dir), parts],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    ) as process:
        try:
            yield process
        finally:
            assert process.stdin is not None
            process.stdin.close()
            process.wait(60)


def test_servers_answer_keep_their_data_and_leave_no_process(data_dir: Path) -> None:
    with EmbeddedServers(data_dir=data_dir, temporal_namespaces=["loop", "second"]) as servers:
        first_ports = (servers.postgres.port, servers.temporal.port)
        with psycopg.connect(servers.database_url) as connection:
            assert connection.execute("SHOW fsync").fetchone() == ("on",)
            assert connection.execute("SHOW server_encoding").fetchone() == ("UTF8",)
            connection.execute("CREATE TABLE kept (word text)")
            connection.execute("INSERT INTO kept VALUES ('stays')")
        with redis.Redis.from_url(servers.redis_url) as client:
            client.set("kept", "stays")
        assert (data_dir / "postgres.password").stat().st_mode & 0o777 == 0o600
    assert processes_of(data_dir) == []

    with EmbeddedServers(data_dir=data_dir, temporal_namespaces=["loop", "third"]) as servers:
        assert (servers.postgres.port, servers.temporal.port) == first_ports
        with psycopg.connect(servers.database_url) as connection:
            assert connection.execute("SELECT word FROM kept").fetchone() == ("stays",)
        with redis.Redis.from_url(servers.redis_url) as client:
            assert client.get("kept") == b"stays"


def test_a_wrong_password_is_refused(data_dir: Path) -> None:
    with EmbeddedServers(data_dir=data_dir, parts=["postgres"], ephemeral=True) as servers:
        url = f"postgresql://payloops:wrong@127.0.0.1:{servers.postgres.port}/payloops"
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            psycopg.connect(url)
    assert not data_dir.exists()


def test_killing_the_supervisor_leaves_no_process_and_loses_nothing(data_dir: Path) -> None:
    with holder(data_dir) as process:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        with psycopg.connect(url) as connection:
            connection.execute("CREATE TABLE kept AS SELECT 'stays' AS word")
        process.send_signal(signal.SIGKILL)
        process.wait()
    # At once, while the old servers may still be ending.
    with EmbeddedServers(data_dir=data_dir) as servers, psycopg.connect(servers.database_url) as connection:
        assert connection.execute("SELECT word FROM kept").fetchone() == ("stays",)


def test_a_killed_supervisor_s_servers_end_without_a_next_start(data_dir: Path) -> None:
    with holder(data_dir) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert len(processes_of(data_dir)) > 3
        process.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 60
    while processes_of(data_dir) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert processes_of(data_dir) == []


def test_a_second_instance_is_refused_in_one_line(data_dir: Path) -> None:
    with holder(data_dir, parts="valkey") as process:
        assert process.stdout is not None
        process.stdout.readline()
        with pytest.raises(NotStarted) as refused:
            EmbeddedServers(data_dir=data_dir).start()
        message = str(refused.value)
        assert message == (
            f"data directory: {data_dir} is in use by another instance (process {process.pid}): end it, or choose"
            " another directory with --data-dir"
        )
        assert len(processes_of(data_dir)) == 2, "the refusal did not touch the first instance"


def test_a_data_directory_that_cannot_be_made_is_said_in_one_line(data_dir: Path) -> None:
    data_dir.write_text("a file")
    for path, why in ((data_dir, "File exists"), (data_dir / "below", "Not a directory")):
        with pytest.raises(NotStarted) as refused:
            EmbeddedServers(data_dir=path, parts=["valkey"]).start()
        assert str(refused.value) == f"data directory: {path}: {why}: choose another with --data-dir"
    data_dir.unlink()


def test_a_part_that_cannot_start_is_named_and_the_others_are_stopped(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PAYLOOPS_VALKEY_BIN", "/bin/false")
    with pytest.raises(NotStarted, match=r"^Valkey: [^\n]+$"):
        EmbeddedServers(data_dir=data_dir, parts=["postgres", "valkey"]).start()
    assert processes_of(data_dir) == []
    monkeypatch.setenv("PAYLOOPS_VALKEY_BIN", "/no/such/program")
    with pytest.raises(NotStarted, match="PAYLOOPS_VALKEY_BIN is /no/such/program"):
        EmbeddedServers(data_dir=data_dir).start()


def test_a_given_port_that_is_taken_fails_the_start(data_dir: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(NotStarted, match=f"postgres: port {port} is taken"):
            EmbeddedServers(data_dir=data_dir, parts=["postgres"], postgres_port=port).start()


def test_a_part_is_stopped_and_started_again_where_it_was(data_dir: Path) -> None:
    with EmbeddedServers(data_dir=data_dir, ephemeral=True) as servers:
        address = servers.temporal_address
        for part in ("postgres", "valkey", "temporal"):
            servers.stop_part(part)
            servers.start_part(part)
        assert servers.temporal_address == address
        assert servers.temporal.child is not None
        servers.temporal.child.kill()
        assert servers.ended() == ["temporal"]


def test_a_long_path_gets_a_short_socket(data_dir: Path) -> None:
    deep = data_dir / ("a" * 60) / ("b" * 60)
    with EmbeddedServers(data_dir=deep, parts=["valkey"], ephemeral=True) as servers:
        assert len(servers.redis_url) < 100
        with redis.Redis.from_url(servers.redis_url) as client:
            assert client.ping()
        path = Path(servers.redis_url.removeprefix("unix://").partition("?")[0])
    assert not path.parent.exists()


def test_a_directory_of_somebody_else_is_left_alone(data_dir: Path) -> None:
    data_dir.mkdir()
    (data_dir / "logs").mkdir()
    with pytest.raises(NotStarted, match="contains other files"):
        EmbeddedServers(data_dir=data_dir, fresh=True).start()
    assert (data_dir / "logs").exists()


def test_a_process_that_only_has_an_old_one_s_id_is_not_ended(tmp_path: Path) -> None:
    recorded = tmp_path / "processes.json"
    started = start_time(os.getppid())
    assert started is not None
    old = Launched(name="Temporal", pid=os.getppid(), started=started + "0")
    recorded.write_text(json.dumps([{"name": old.name, "pid": old.pid, "started": old.started}]))
    assert end_leftovers(recorded) == []
    assert start_time(os.getppid()) == started


@pytest.mark.skipif(os.geteuid() != 0, reason="only root needs another user for PostgreSQL")
def test_root_where_user_namespaces_are_forbidden(data_dir: Path) -> None:
    """PostgreSQL runs as nobody then, on a cluster made in a namespace too; and stays with nobody."""
    with EmbeddedServers(data_dir=data_dir, parts=["postgres"]) as servers:
        with psycopg.connect(servers.database_url) as connection:
            connection.execute("CREATE TABLE kept AS SELECT 'stays' AS word")
        assert servers.postgres.child is not None
    script = (
        "import sys, psycopg; from pathlib import Path; from payloops.embedded import EmbeddedServers\n"
        "with EmbeddedServers(data_dir=Path(sys.argv[1]), parts=['postgres']) as servers:\n"
        "    with psycopg.connect(servers.database_url) as connection:\n"
        "        print(connection.execute('SELECT word FROM kept').fetchone()[0])\n"
    )
    shown = run_without_namespaces([sys.executable, "-c", script, str(data_dir)])
    assert shown == "stays\n"
    assert (data_dir / "postgres").stat().st_uid == NOBODY
    with EmbeddedServers(data_dir=data_dir, parts=["postgres"]) as servers:
        assert servers.postgres.child is not None
        assert Path(f"/proc/{servers.postgres.child.pid}").stat().st_uid == NOBODY


def run_without_namespaces(command: list[str]) -> str:
    """Run as root of a user namespace that has all users, and may not make another: as containers are."""
    ready, enter = os.pipe(), os.pipe()
    output = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            if ctypes.CDLL(None).unshare(CLONE_NEWUSER) != 0:
                os._exit(99)
            os.write(ready[1], b"x")
            os.read(enter[0], 1)
            os.setgid(0)
            os.setuid(0)
            Path("/proc/sys/user/max_user_namespaces").write_text("0")
            os.dup2(output[1], 1)
            os.chdir(ROOT)
            os.execv(command[0], command)
        finally:
            os._exit(98)
    os.close(ready[1])
    os.close(output[1])
    if os.read(ready[0], 1):
        for name in ("uid_map", "gid_map"):
            Path(f"/proc/{child}/{name}").write_text("0 0 70000")
    os.write(enter[1], b"x")
    with os.fdopen(output[0]) as file:
        shown = file.read()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    for descriptor in (ready[0], *enter):
        os.close(descriptor)
    if status == 99:
        pytest.skip("no user namespaces on this machine at all")
    assert status == 0, shown
    return shown


@pytest.mark.skipif(os.geteuid() != 0, reason="every other test is run by an ordinary user then")
def test_an_ordinary_user() -> None:
    python = next(
        (each for each in (sys.executable, "/usr/bin/python3") if runs_for_nobody(each)),
        None,
    )
    if python is None:
        pytest.skip("nobody may not run any Python of this version here")
    home = Path(tempfile.mkdtemp(prefix="payloops-test-"))
    try:
        os.chown(home, NOBODY, NOBODY)
        shown = subprocess.run(
            [python, "-c", HOLDER, str(home / "data"), "postgres,valkey,temporal"],
            user=NOBODY,
            group=NOBODY,
            extra_groups=[],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            cwd=home,
            env=environment_of_nobody(home),
        )
        assert shown.returncode == 0, shown.stderr
        assert shown.stdout.startswith("postgresql://payloops:")
        assert (home / "data/postgres").stat().st_uid == NOBODY
        assert processes_of(home) == []
    finally:
        shutil.rmtree(home)


def environment_of_nobody(home: Path) -> dict[str, str]:
    return {
        "HOME": str(home),
        "PATH": "/usr/bin:/bin",
        "PYTHONPATH": f"{sysconfig.get_path('purelib')}:{ROOT}",
        "PAYLOOPS_TEMPORAL_BIN": str(Path(sysconfig.get_path("scripts")) / "temporal"),
    }


def runs_for_nobody(python: str) -> bool:
    try:
        tried = subprocess.run(
            [
                python,
                "-c",
                f"import sys, payloops.embedded\nassert sys.version_info[:2] == {sys.version_info[:2]}",
            ],
            user=NOBODY,
            group=NOBODY,
            extra_groups=[],
            capture_output=True,
            check=False,
            cwd="/",
            env=environment_of_nobody(Path("/")),
        )
    except OSError:
        return False
    return tried.returncode == 0
