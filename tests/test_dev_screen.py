"""The screen of `payloops dev`: what it makes of the lines that its processes write."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from payloops.dev.log_tail import LogTail, shortened
from payloops.dev.parts import Part, stop_parts
from payloops.embedded.processes import Child, start_time


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        (
            "2026-11-23T16:44:05.123456Z [warning  ] temporal.unavailable         address=h:1 process=worker",
            "16:44:05 worker     temporal.unavailable address=h:1",
        ),
        (
            "2026-11-23T16:44:05.123456Z [warning  ] error connecting in 'payloops api': refused process=worker",
            "16:44:05 worker     error connecting in 'payloops api': refused",
        ),
        (
            "2026-11-23 16:44:05 [error    ] connect to host=db failed    process=worker reason='no such host'",
            "16:44:05 worker     connect to host=db failed reason=no such host",
        ),
        (
            "2026-11-23T16:44:05Z [error    ] Task exception was never retrieved",
            "16:44:05 worker     Task exception was never retrieved",
        ),
        ("Traceback (most recent call last):", "worker     Traceback (most recent call last):"),
    ],
)
def test_a_line_is_shown_whole(line: str, shown: str) -> None:
    assert shortened(line, name="worker") == shown


def test_a_request_is_shown_in_short() -> None:
    line = (
        "2026-11-23T16:44:05Z [info     ] http.request                   correlation_id=1 method=GET"
        " milliseconds=4.4 process=api remote=127.0.0.1 route=/health status=200"
    )
    assert shortened(line, name="api") == "16:44:05 api        GET /health → 200 in 4.4 ms"


WARNING = "2026-11-23T16:44:05Z [warning  ] temporal.unavailable\n"
INFO = "2026-11-23T16:44:05Z [info     ] worker.started\n"
SHOWN = ("16:44:05 worker     temporal.unavailable", "yellow")


def test_what_matters_in_a_log_is_shown_whole_and_once(tmp_path: Path) -> None:
    log = tmp_path / "log"
    tail = LogTail(name="worker", path=log, chatty=False)
    assert tail.lines() == []  # it does not exist yet

    def written(text: str) -> list[tuple[str, str]]:
        with log.open("a") as file:
            file.write(text)
        return tail.lines()

    assert written(f"{INFO}of no interest\n{WARNING}Trace") == [SHOWN]
    assert written("back: of the warning\n") == [("worker     Traceback: of the warning", "")]
    assert written(INFO) == []
    with log.open("a") as file:
        file.write(WARNING)  # the last before it died
    tail.from_offset(log.stat().st_size)
    assert written(WARNING + "half a l") == [SHOWN, SHOWN]
    log.write_text(WARNING)
    tail.from_offset(0)
    assert tail.lines() == [SHOWN]


def test_a_part_that_dies_is_started_again_after_growing_pauses(tmp_path: Path) -> None:
    started: list[float] = []
    part = Part(
        name="worker",
        arguments=["no-such-command"],
        environment=dict(os.environ),
        log=tmp_path / "log",
        chatty=False,
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
    part = Part(name="worker", arguments=[], environment={}, log=log, chatty=False, started=lambda _: None)
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
    name="worker", arguments=["worker"], environment=dict(os.environ), log=Path(sys.argv[1]), chatty=False,
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
