"""Whom a process turns away because it has too much to do: at once, with 503, before anything is done."""

from collections.abc import Iterator
from contextlib import contextmanager

from payloops.http.problems import BUSY, Problem

WAITING_SHARE = 4
"""So many times more requests may wait for a payment's end (`Prefer: wait`) than may be at work."""


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
            raise Problem(503, "unavailable", BUSY)
        self._at_work[waits] += 1
        try:
            yield
        finally:
            self._at_work[waits] -= 1
