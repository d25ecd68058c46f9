"""Whom a process turns away because it has too much to do: at once, with 503, before anything is done."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from prometheus_client import Counter, Gauge

from payloops.http.problems import BUSY, Problem

Kind = Literal["work", "wait", "stream"]

SHARES: dict[Kind, int] = {"work": 1, "wait": 4, "stream": 4}
"""So many times more requests may wait for a payment's end (`Prefer: wait`), and follow one, than may be at work."""

LABELS: dict[Kind, str] = {"work": "working", "wait": "waiting", "stream": "following"}
AT_WORK = Gauge(
    "payloops_http_requests_in_flight",
    "Requests that are worked on, and such that wait for a payment's end, or follow one",
    ["kind"],
    multiprocess_mode="livesum",
)
SHED = Counter("payloops_http_requests_shed", "Requests turned away because too many were in flight")


class Admission:
    """Counts the requests that a process works on. A body that is still arriving is no work."""

    def __init__(self, *, limit: int) -> None:
        """
        Args:
            limit: requests at work at a time; those that wait for a payment's end, and those that follow one, have
                limits of their own.
        """
        self._limits = {kind: limit * share for kind, share in SHARES.items()}
        self._present: dict[Kind, int] = dict.fromkeys(SHARES, 0)

    @contextmanager
    def admit(self, kind: Kind) -> Iterator[None]:
        """Work on a request.

        Raises:
            Problem: 503 unavailable; nothing was done.
        """
        if self._present[kind] >= self._limits[kind]:
            SHED.inc()
            raise Problem(503, "unavailable", BUSY)
        self._present[kind] += 1
        try:
            yield
        finally:
            self._present[kind] -= 1

    def sample(self) -> None:
        """Tell how many requests there are."""
        for kind, count in self._present.items():
            AT_WORK.labels(LABELS[kind]).set(count)
