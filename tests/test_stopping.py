"""Processes that are asked to stop."""

import os
import signal
import sys
from subprocess import PIPE, Popen

import pytest

STOPPING = """
import asyncio
from payloops.daemons.stopping import exit_now, stop_on_signals

async def run():
    stop = stop_on_signals()
    print("runs", flush=True)
    await stop.wait()
    print("stopped")

asyncio.run(run())
exit_now()
"""


@pytest.mark.parametrize("asked", [signal.SIGTERM, signal.SIGINT])
def test_a_process_that_is_asked_to_stop_ends_in_order_and_with_its_last_line_written(
    asked: signal.Signals,
) -> None:
    buffered = {**os.environ, "PYTHONUNBUFFERED": ""}
    with Popen([sys.executable, "-c", STOPPING], stdout=PIPE, env=buffered) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"runs\n"
        process.send_signal(asked)
        output, _ = process.communicate(timeout=60)
    assert (output, process.returncode) == (b"stopped\n", 0)
