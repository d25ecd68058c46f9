"""Keeping the processes of `payloops dev` running: started again when they die, and never left behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from payloops.dev.parts import Part, stop_parts
from payloops.embedded.processes import Child, start_time


def test_a_part_that_dies_is_started_again_after_growing_pauses(tmp_path: Path) -> None:
    started: list[float] = []
    part = Part(
        name="worker",
        arguments=["no-such-command"],
        environment=dict(os.environ),
        log=tmp_path / "log",
        started=lambda _: started.append(time.monotonic()),
    )
    part.start()
    said: list[str] = []
    died_at: list[float] = []
    deadline = time.monotonic() + 120
    while len(said) < 3:
        now = time.monotonic()
        assert now < deadline
        died = part.watch()
        if died is not None:
            said.append(died.partition(" (log")[0])
            died_at.append(now)
        time.sleep(0.01)
    assert said == [
        f"worker ended with status 2; starting it again in {pause} s" for pause in ("0.5", "1", "2")
    ]
    assert started[1] - died_at[0] >= 0.5
    assert started[2] - died_at[1] >= 1


def test_a_part_that_does_not_stop_in_time_is_killed(tmp_path: Path) -> None:
    log = tmp_path / "log"
    deaf = (
        "import signal as s, time; s.signal(s.SIGTERM, s.SIG_IGN); print('deaf', flush=True); time.sleep(600)"
    )
    part = Part(name="worker", arguments=[], environment={}, log=log, started=lambda _: None)
    child = Child(name="worker", command=[sys.executable, "-c", deaf], log=log, death_signal=signal.SIGKILL)
    part.child = child
    deadline = time.monotonic() + 120
    while "deaf" not in log.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    stop_parts([part], seconds=0.1)
    assert child.exit_status() == -signal.SIGKILL


PARENT = """
import os, sys, time
from pathlib import Path
from payloops.dev.parts import Part

part = Part(
    name="worker", arguments=["worker"], environment=dict(os.environ), log=Path(sys.argv[1]),
    started=lambda child: print(child.pid, flush=True),
)
part.start()
time.sleep(600)
"""


def test_a_part_does_not_outlive_a_parent_that_was_killed_however_busy_it_is(tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "DATABASE_URL": "postgresql://nobody@127.0.0.1:1/none",
        "REDIS_URL": "redis://127.0.0.1:1",
        "TEMPORAL_ADDRESS": "127.0.0.1:1",
        "JWT_SECRET": "j" * 32,
        "ENCRYPTION_KEY": "e" * 32,
        "AUDIT_KEY": "a" * 32,
    }
    log = tmp_path / "worker.log"
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, str(log)], env=environment, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        deadline = time.monotonic() + 120
        while "temporal.unavailable" not in log.read_text() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert "temporal.unavailable" in log.read_text()
        os.kill(pid, signal.SIGSTOP)  # so busy that it takes no notice of anything else
        parent.kill()
    try:
        deadline = time.monotonic() + 60
        while start_time(pid) is not None and time.monotonic() < deadline:
            time.sleep(0.02)
        assert start_time(pid) is None
    finally:
        if start_time(pid) is not None:
            os.kill(pid, signal.SIGKILL)
