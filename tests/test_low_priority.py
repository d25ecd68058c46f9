"""What works in bulk gives way: itself, and the server's process behind its own connection alone.

By niceness, by short turns where Linux gives them (from 6.12 on), and where it weighs sessions against each other, as a
session: `/proc/PID/autogroup`.
"""

import ctypes
import os
import struct
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

from payloops.events.connections import connect
from payloops.projections.low_priority import NICENESS, SCHED_SETATTR, TIME_SLICE, lower_server_priority

PROGRAM = """
import os
from payloops.projections.low_priority import lower_priority
lower_priority()
print(os.nice(0), os.getsid(0) == os.getpid())
try:
    print(open("/proc/self/autogroup").read())
except OSError:
    print("no sessions are weighed here")
"""
SESSIONS_ARE_WEIGHED = Path("/proc/self/autogroup").exists()


def linux_gives_turns() -> bool:
    """Whether a process may say how long its turns are, and can be asked."""
    version = tuple(int(part) for part in os.uname().release.split(".")[:2])
    return sys.platform == "linux" and version >= (6, 12) and os.uname().machine in SCHED_SETATTR


def turn_of(pid: int) -> int:
    """Nanoseconds: sched_getattr(2), whose number is the next."""
    attributes = ctypes.create_string_buffer(56)
    assert ctypes.CDLL(None).syscall(SCHED_SETATTR[os.uname().machine] + 1, pid, attributes, 56, 0) == 0
    turn: int = struct.unpack_from("=Q", attributes, 24)[0]
    return turn


def session_niceness(pid: int) -> int:
    return int(Path(f"/proc/{pid}/autogroup").read_text().split()[-1])


def test_a_process_gives_way_in_a_session_of_its_own() -> None:
    said = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, timeout=30
    )
    niceness, own_session, *session = said.stdout.split()
    assert (int(niceness), own_session) == (min(19, os.nice(0) + NICENESS), "True")
    assert not SESSIONS_ARE_WEIGHED or session[1:] == ["nice", str(NICENESS)]


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc whose process it is")
async def test_the_server_gives_way_behind_that_connection_alone(database_url: str) -> None:
    async with (
        await connect(database_url, application_name="test") as bulk,
        await connect(database_url, application_name="test") as request,
    ):
        served = os.getpriority(os.PRIO_PROCESS, request.info.backend_pid)
        lower_server_priority(bulk)
        assert os.getpriority(os.PRIO_PROCESS, bulk.info.backend_pid) == max(served, NICENESS)
        assert os.getpriority(os.PRIO_PROCESS, request.info.backend_pid) == served


@pytest.mark.skipif(not linux_gives_turns(), reason="all turns are as long here")
async def test_the_turns_of_what_gives_way_are_short(database_url: str) -> None:
    program = (
        "import time; from payloops.projections.low_priority import lower_priority\n"
        "lower_priority(); print(); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-u", "-c", program], stdout=subprocess.PIPE) as worker:
        assert worker.stdout is not None
        worker.stdout.readline()
        turn = turn_of(worker.pid)
        worker.kill()
    assert turn == TIME_SLICE
    async with (
        await connect(database_url, application_name="test") as bulk,
        await connect(database_url, application_name="test") as request,
    ):
        lower_server_priority(bulk)
        assert turn_of(bulk.info.backend_pid) == TIME_SLICE
        assert turn_of(request.info.backend_pid) > TIME_SLICE


@pytest.mark.skipif(not SESSIONS_ARE_WEIGHED, reason="niceness alone counts here")
async def test_the_session_of_the_servers_process_gives_way_too(database_url: str) -> None:
    """PostgreSQL's processes each have one: niceness would count against nobody."""
    async with (
        await connect(database_url, application_name="test") as bulk,
        await connect(database_url, application_name="test") as request,
    ):
        lower_server_priority(bulk)
        assert session_niceness(bulk.info.backend_pid) == NICENESS
        assert session_niceness(request.info.backend_pid) == 0


@pytest.mark.skipif(not SESSIONS_ARE_WEIGHED, reason="niceness alone counts here")
async def test_two_give_way_at_once_where_the_kernel_weighs_one_after_the_other(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As for any user but root."""
    refused = iter([BlockingIOError, BlockingIOError])
    write = Path.write_text

    def one_at_a_time(path: Path, text: str, encoding: str | None = None) -> int:
        if error := next(refused, None):
            raise error
        return write(path, text, encoding=encoding)

    monkeypatch.setattr(Path, "write_text", one_at_a_time)
    async with await connect(database_url, application_name="test") as bulk:
        lower_server_priority(bulk)
        assert session_niceness(bulk.info.backend_pid) == NICENESS


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc whose process it is")
async def test_a_process_of_the_same_number_that_is_not_the_servers_is_left_alone(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the server is in a container, or on another machine."""
    stranger = subprocess.Popen(["/bin/cat"], stdin=subprocess.PIPE)
    try:
        before = os.getpriority(os.PRIO_PROCESS, stranger.pid)
        async with await connect(database_url, application_name="test") as connection:
            monkeypatch.setattr(psycopg.ConnectionInfo, "backend_pid", stranger.pid)
            lower_server_priority(connection)
        assert os.getpriority(os.PRIO_PROCESS, stranger.pid) == before
        assert Path(f"/proc/{stranger.pid}").exists()
    finally:
        stranger.communicate(timeout=10)
