"""Whom a process turns away because it has too much to do: at once, with 503, before anything is done."""

from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import Counter, Gauge

from payloops.http.problems import BUSY, Problem

WAITING_SHARE = 4
"""So many times more requests may wait for a payment's end (`Prefer: wait`) than may be at work."""

AT_WORK = Gauge(
    "payloops_http_requests_in_flight",
    "Requests that are worked on, and such that wait for a payment's end",
    ["kind"],
    multiprocess_mode="livesum",
)
SHED = Counter("payloops_http_requests_shed", "Requests turned away because too many were in flight")


class Admission:
    """Counts the requests that a process works on. A body that is still arriving is no work."""

    def __init__(self, *, limit: int) -> None:
        """
        Args:
            limit: requests at a time; those that wait for a payment's end have a limit of their own.
        """
        self._limits = {False: limit, True: limit * WAITING_SHARE}
        self._at_work = {False: 0, True: 0}

    @contextmanager
    def admit(self, *, waits: bool = False) -> Iterator[None]:
        """Work on a request.

        Raises:
            Problem: 503 unavailable; nothing was done.
        """
        if self._at_work[waits] >= self._limits[waits]:
            SHED.inc()
            raise Problem(503, "unavailable", BUSY)
        self._at_work[waits] += 1
        try:
            yield
        finally:
            self._at_work[waits] -= 1

    def sample(self) -> None:
        """Tell how many requests there are."""
        AT_WORK.labels("working").set(self._at_work[False])
        AT_WORK.labels("waiting").set(self._at_work[True])
