"""Runs Valkey, a Redis-compatible server, on a Unix socket, with its append-only file on."""

import hashlib
import os
import signal
import socket
import stat
import time
from pathlib import Path

from payloops.embedded.binaries import find_valkey
from payloops.embedded.errors import NotStarted
from payloops.embedded.processes import Child, Server

PART = "Valkey"
LONGEST_SOCKET_PATH = 96  # bytes; the kernel takes 107, macOS 103


class Valkey(Server):
    """Call `prepare`, then `launch`, then `wait_ready`; `stop` at any time."""

    def __init__(self, *, data_dir: Path) -> None:
        super().__init__()
        self._folder = data_dir / "valkey"
        self._log = data_dir / "logs/valkey.log"
        self._run = data_dir / "run"
        self._socket = Path()
        self._program = Path()

    @property
    def url(self) -> str:
        return f"unix://{self._socket}?db=0"

    def prepare(self) -> None:
        self._program = find_valkey()
        self._folder.mkdir(mode=0o700, exist_ok=True)
        self._socket = _socket_path(self._run)

    def launch(self) -> None:
        settings = {
            "port": "0",
            "unixsocket": str(self._socket),
            "unixsocketperm": "700",
            "dir": str(self._folder),
            "appendonly": "yes",
            "save": "",
            "daemonize": "no",
        }
        self.child = Child(
            name=PART,
            command=[
                self._program,
                *(part for name, value in settings.items() for part in (f"--{name}", value)),
            ],
            log=self._log,
            death_signal=signal.SIGTERM,
            cwd=self._folder,
        )

    def wait_ready(self, *, deadline: float) -> None:
        """Wait until this server answers.

        Raises:
            NotStarted.
        """
        assert self.child is not None
        while True:
            if self.child.exit_status() is not None:
                lines = [line for line in self.child.output().splitlines() if line.strip()]
                raise NotStarted(part=PART, why=lines[-1] if lines else f"it ended; see {self._log}")
            pid = _serving_process(self._socket)
            if pid == self.child.pid:
                return
            if pid is not None:
                raise NotStarted(part=PART, why=f"{self._socket} answers for another server (process {pid})")
            if time.monotonic() > deadline:
                raise NotStarted(part=PART, why=f"not ready in time; see {self._log}")
            time.sleep(0.01)

    def remove_socket(self) -> None:
        if self._socket.name and self._socket.parent != self._run:
            self._socket.unlink(missing_ok=True)
            self._socket.parent.rmdir()


def _socket_path(run: Path) -> Path:
    """In the data directory, or if that path is too long for a socket, in a private directory in /tmp."""
    near = run / "valkey.sock"
    if len(os.fsencode(near)) <= LONGEST_SOCKET_PATH:
        return near
    mark = hashlib.sha256(os.fsencode(run)).hexdigest()[:12]
    folder = Path(f"/tmp/payloops-{os.geteuid()}-{mark}")  # noqa: S108 checked below
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise NotStarted(part=PART, why=f"{folder} is not ours alone")
    return folder / "valkey.sock"


def _serving_process(path: Path) -> int | None:
    """The process id of the server behind a socket; None if there is none, or it is still loading."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(2)
        try:
            connection.connect(str(path))
            connection.sendall(b"PING\r\nINFO server\r\nQUIT\r\n")
            answer = b""
            while part := connection.recv(65536):
                answer += part
        except OSError:
            return None
    if not answer.startswith(b"+PONG"):  # -LOADING
        return None
    for line in answer.split(b"\r\n"):
        if line.startswith(b"process_id:"):
            return int(line.removeprefix(b"process_id:"))
    return None
