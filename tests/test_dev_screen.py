"""The screen of `payloops dev`: what it makes of the lines that its processes write."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from payloops.dev.log_tail import shortened
from payloops.embedded.processes import start_time


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
