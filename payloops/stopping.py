"""How a process is told to stop, and how it ends."""

import asyncio
import logging
import os
import signal
import sys
from typing import NoReturn


def stop_on_signals() -> asyncio.Event:
    """An event that SIGTERM and SIGINT set, for the running loop."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for each in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(each, stop.set)
    return stop


def leave() -> NoReturn:
    """End the process, everything done, with status 0 and without Python's finalization.

    A thread of Temporal's SDK that still touches Python then aborts the process now and then, and its status
    says that it failed: https://github.com/temporalio/sdk-python/issues/300
    """
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
