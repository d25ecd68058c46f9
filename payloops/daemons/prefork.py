"""Several processes that serve the API, each replaced when it dies."""

import contextlib
import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable

import structlog
from prometheus_client import Counter

from payloops.daemons.restarts import Restarts
from payloops.daemons.shared_metrics import release_slot, use_slot

PR_SET_PDEATHSIG = 1
POLL_SECONDS = 0.5
"""Between two looks at whether a worker is due to start again."""
WATCHED = {signal.SIGTERM, signal.SIGINT, signal.SIGCHLD}

DEATHS = Counter("payloops_api_workers_died", "Processes of the API that died and were replaced")

log = structlog.get_logger()


def keep_running(serve: Callable[[int], None], *, processes: int, finish_seconds: float) -> None:
    """Keep workers running until SIGTERM or SIGINT; then pass SIGTERM on, and wait for them to finish.

    Args:
        serve: what a worker does until SIGTERM, by its number, from 1.
        finish_seconds: how long the workers have to finish before they are killed.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, WATCHED)
    workers = [_Worker(serve, number=number) for number in range(1, processes + 1)]
    received = 0
    while received not in (signal.SIGTERM, signal.SIGINT):
        for worker in workers:
            worker.start_if_due(now=time.monotonic())
        info = signal.sigtimedwait(WATCHED, POLL_SECONDS)
        received = info.si_signo if info is not None else 0
        _reap(workers)
    log.info("api.stopping", workers=processes)
    for worker in workers:
        worker.send(signal.SIGTERM)
    deadline = time.monotonic() + finish_seconds
    while any(worker.pid is not None for worker in workers) and time.monotonic() < deadline:
        signal.sigtimedwait(WATCHED, POLL_SECONDS)
        _reap(workers, expected=True)
    for worker in workers:
        worker.send(signal.SIGKILL)
    log.info("api.stopped", workers=processes)


class _Worker:
    """One of the processes, as seen by the one that keeps them running."""

    def __init__(self, serve: Callable[[int], None], *, number: int) -> None:
        self._serve = serve
        self._number = number
        self._restarts = Restarts()
        self.pid: int | None = None

    def start_if_due(self, *, now: float) -> None:
        if self.pid is not None or not self._restarts.is_due(now=now):
            return
        self._restarts.began(now=now)
        parent = os.getpid()
        try:
            self.pid = os.fork()
        except OSError as error:  # no memory, or too many processes: the other workers go on
            log.error("api.worker_not_started", error=str(error), again_in=self._restarts.died(now=now))
            return
        if self.pid == 0:
            status = 1
            try:
                _die_with(parent)
                use_slot(self._number)
                signal.pthread_sigmask(signal.SIG_UNBLOCK, WATCHED)
                self._serve(self._number)
                status = 0
            except BaseException:
                log.exception("api.worker_failed")
            finally:
                os._exit(status)

    def died(self, *, status: int, now: float) -> None:
        release_slot(self._number)
        DEATHS.inc()
        pause = self._restarts.died(now=now)
        log.error("api.worker_died", pid=self.pid, status=os.waitstatus_to_exitcode(status), again_in=pause)
        self.pid = None

    def send(self, number: signal.Signals) -> None:
        if self.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)


def _die_with(parent: int) -> None:
    """On Linux, have the kernel send this process SIGTERM when the parent dies, for whatever reason."""
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGTERM)


def _reap(workers: list[_Worker], *, expected: bool = False) -> None:
    """Collect the exit statuses of workers that have ended. `expected`: they were told to stop."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        for worker in workers:
            if worker.pid == pid:
                if expected:
                    worker.pid = None
                else:
                    worker.died(status=status, now=time.monotonic())
