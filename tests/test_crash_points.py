"""Points at which a process kills itself: where a test says so, and nowhere else."""

import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest

from payloops.events.crash_points import CrashPoint, NoSuchCrashPoint, crash_point, parse
from payloops.settings import InvalidSettings, Settings, read_settings

ROOT = Path(__file__).resolve().parent.parent
GIVEN: dict[str, Any] = {
    "database_url": "postgresql://localhost/payloops",
    "redis_url": "redis://localhost",
    "temporal_address": "localhost:7233",
    "jwt_secret": "s" * 32,
    "encryption_key": "k" * 32,
    "audit_key": "a" * 32,
}


def test_a_process_kills_itself_as_it_passes_its_point_for_the_nth_time() -> None:
    program = """
from payloops.events.crash_points import arm, crash_point
arm("append.committed", passings=3)
for passing in range(1, 5):
    crash_point("projector.moved")
    print(passing, flush=True)
    crash_point("append.committed")
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout.split()) == (-signal.SIGKILL, ["1", "2", "3"])


def test_without_being_told_a_process_passes_every_point() -> None:
    for point in get_args(CrashPoint):
        crash_point(point)


def test_production_refuses_to_start_with_a_crash_point() -> None:
    with pytest.raises(InvalidSettings, match="CRASH_AT: for tests, only with ENVIRONMENT=development"):
        read_settings(Settings, **GIVEN, crash_at="append.committed:1")
    assert read_settings(Settings, **GIVEN, crash_at="append.committed:1", environment="development").crash_at


@pytest.mark.parametrize(
    "text", ["append.committed", "append.committed:0", "append.committed:x", "other:1", ""]
)
def test_what_is_no_crash_point_is_refused_by_name(text: str) -> None:
    with pytest.raises(NoSuchCrashPoint, match=r"<point>:<n>, with one of .*append\.committed"):
        parse(text)
    with pytest.raises(InvalidSettings, match="CRASH_AT: write it as"):
        read_settings(Settings, **GIVEN, crash_at=text, environment="development")


def test_every_point_stands_in_the_code_once() -> None:
    layers = ("commands", "events", "http", "projections", "workflows_client", "payloops/sandbox")
    code = "".join(path.read_text() for layer in layers for path in (ROOT / layer).glob("*.py"))
    passed = re.findall(r'crash_point\("([a-z_.]+)"\)', code)
    assert sorted(passed) == sorted(get_args(CrashPoint))
