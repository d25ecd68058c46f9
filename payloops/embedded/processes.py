"""Child processes that end with this process, and ending those that an earlier run left behind."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from payloops.embedded import launch
from payloops.embedded.errors import NotStarted

Identity = Literal["same", "namespace"] | tuple[int, int]

LOG_LIMIT = 10 * 1024 * 1024  # bytes; a longer log is rotated at the next start
RUN_SECONDS = 30.0  # for a short program
LEFTOVERS_END_SECONDS = 5.0  # before they are killed; Temporal was seen to take 2.6
LEFTOVERS_KILLED_SECONDS = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Launched:
    """A process and its start time, which distinguishes it from a later process with the same id."""

    name: str
    pid: int
    started: str


class Child:
    """A program in a session of its own, which gets `death_signal` when this process ends, for whatever reason.

    The kernel sends that signal when the *thread* that started the child ends, so start it from a thread that lives as
    long as this process.
    """

    def __init__(
        self,
        *,
        name: str,
        command: Sequence[str | Path],
        log: Path,
        death_signal: signal.Signals,
        identity: Identity = "same",
        environment: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> None:
        self.name = name
        self.log = log
        self._alive: int | None = None
        reader: int | None = None
        if sys.platform != "linux":
            reader, self._alive = os.pipe()
        options = {"parent": os.getpid(), "signal": int(death_signal), "identity": identity, "alive": reader}
        rotate(log)
        with log.open("ab") as output:
            self.log_offset = output.tell()
            self._process = subprocess.Popen(  # noqa: S603 the programs are ours
                launch_command(options=options, command=command),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                env=dict(environment) if environment is not None else None,
                cwd=cwd,
                pass_fds=() if reader is None else (reader,),
            )
        if reader is not None:
            os.close(reader)
        self.launched = Launched(name=name, pid=self.pid, started=start_time(self.pid) or "")

    @property
    def pid(self) -> int:
        return self._process.pid

    def exit_status(self) -> int | None:
        """None while it runs; negative if a signal ended it."""
        return self._process.poll()

    def wait(self, *, seconds: float) -> bool:
        """Wait at most that long; returns whether it has ended."""
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        self._close()
        return True

    def send(self, number: signal.Signals) -> None:
        """Send a signal; does nothing if it has ended."""
        self._process.send_signal(number)

    def stop(self, number: signal.Signals, *, seconds: float) -> None:
        """Send it a signal to end; after that time kill it and its children."""
        self.send(number)
        if not self.wait(seconds=seconds):
            self.kill()

    def kill(self) -> None:
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)
            self._process.kill()
            self._process.wait(10)
        self._close()

    def output(self) -> str:
        """What it has written to its log, at most the last 20 kB."""
        with self.log.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(self.log_offset, size - 20_000))
            return file.read().decode(errors="replace")

    def _close(self) -> None:
        if self._alive is not None:
            os.close(self._alive)
            self._alive = None


class Server:
    """A server that runs as a child process, and ends at SIGTERM."""

    def __init__(self) -> None:
        self.child: Child | None = None

    def stop(self) -> None:
        """Shut down, so that nothing is lost; after ten seconds it is killed."""
        if self.child is not None:
            self.child.stop(signal.SIGTERM, seconds=10)
            self.child = None

    def kill(self) -> None:
        if self.child is not None:
            self.child.kill()
            self.child = None


def launch_command(*, options: Mapping[str, object], command: Sequence[str | Path]) -> list[str]:
    """The command that runs another by way of `launch`, which says what the options are."""
    return [sys.executable, "-I", "-S", str(launch.__file__), json.dumps(options), "--", *map(str, command)]


def run_to_end(
    *, part: str, command: Sequence[str | Path], identity: Identity = "same"
) -> subprocess.CompletedProcess[str]:
    """Run a short program with an identity, and capture its output.

    Raises:
        NotStarted: it did not end in time.
    """
    options = {"parent": os.getpid(), "signal": int(signal.SIGKILL), "identity": identity, "alive": None}
    if sys.platform != "linux":
        reader, writer = os.pipe()
        options["alive"] = reader
    else:
        reader = writer = -1
    try:
        return subprocess.run(  # noqa: S603 the programs are ours
            launch_command(options=options, command=command),
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=RUN_SECONDS,
            stdin=subprocess.DEVNULL,
            cwd="/",
            pass_fds=() if reader < 0 else (reader,),
        )
    except subprocess.TimeoutExpired:
        raise NotStarted(
            part=part, why=f"{Path(command[0]).name} did not end within {RUN_SECONDS:.0f} s"
        ) from None
    finally:
        for descriptor in (reader, writer):
            if descriptor >= 0:
                os.close(descriptor)


def rotate(log: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        if log.stat().st_size > LOG_LIMIT:
            log.replace(log.with_suffix(".1.log"))


def start_time(pid: int) -> str | None:
    """The start time of a process, as a text to compare; None if there is none, or only a zombie."""
    if sys.platform == "linux":
        try:
            fields = (
                Path(f"/proc/{pid}/stat")
                .read_text(encoding="utf-8", errors="replace")
                .rpartition(")")[2]
                .split()
            )
            boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        except (FileNotFoundError, ProcessLookupError):
            return None
        return None if fields[0] in "ZX" else f"{boot}:{fields[19]}"
    shown = subprocess.run(  # noqa: S603
        ["/bin/ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False
    )
    return shown.stdout.strip() or None


def is_running(launched: Launched) -> bool:
    return bool(launched.started) and start_time(launched.pid) == launched.started


def record(path: Path, children: Sequence[Child]) -> None:
    """Record the running processes, so that the next start can end those that are left behind."""
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps([asdict(each.launched) for each in children]), encoding="utf-8")
    fresh.replace(path)


def end_leftovers(path: Path) -> list[str]:
    """End the processes that a killed run left behind. Returns the names of those that had to be killed.

    They already have their death signal, so they get some time first.

    Raises:
        NotStarted: one cannot be ended.
    """
    try:
        recorded = [Launched(**each) for each in json.loads(path.read_text(encoding="utf-8"))]
    except (FileNotFoundError, ValueError, TypeError):
        return []
    left = _wait_for(recorded, seconds=LEFTOVERS_END_SECONDS)
    for each in left:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(each.pid, signal.SIGKILL)
    stuck = _wait_for(left, seconds=LEFTOVERS_KILLED_SECONDS)
    if stuck:
        first = stuck[0]
        raise NotStarted(part=first.name, why=f"process {first.pid} of an earlier run does not end")
    path.unlink(missing_ok=True)
    return [each.name for each in left]


def _wait_for(processes: Sequence[Launched], *, seconds: float) -> list[Launched]:
    """Wait at most that long for processes to end; returns those still running."""
    deadline = time.monotonic() + seconds
    while (left := [each for each in processes if is_running(each)]) and time.monotonic() < deadline:
        time.sleep(0.02)
    return left
