"""Stopping a process on signals, and ending it."""

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


def exit_now() -> NoReturn:
    """End the process with status 0, without Python's finalization; for when all work is done.

    During finalization, a thread of Temporal's SDK that still uses Python would sometimes abort the process, whose
    status would then be a failure: https://github.com/temporalio/sdk-python/issues/300
    """
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
