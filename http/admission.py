"""Whom a process turns away because it has too much to do: at once, with 503, before anything is done."""

from contextlib import AbstractContextManager
from typing import Literal, NoReturn

import structlog
from prometheus_client import Counter, Gauge

from payloops.http.problems import BUSY, Problem

Kind = Literal["work", "wait", "stream"]

SHARES: dict[Kind, int] = {"work": 1, "wait": 32, "stream": 32}
"""So many times more requests may wait for a payment's end (`Prefer: wait`), and follow one, than may be at work."""

LABELS: dict[Kind, str] = {"work": "working", "wait": "waiting", "stream": "following"}
AT_WORK = Gauge(
    "payloops_http_requests_in_flight",
    "Requests that are worked on, and such that wait for a payment's end, or follow one",
    ["kind"],
    multiprocess_mode="livesum",
)
SHED = Counter("payloops_http_requests_shed", "Requests turned away because too many were in flight")

log = structlog.get_logger()


class Shed(Problem):
    """Turned away: 503 unavailable; nothing was done. Costs as little as can be, and so has no line in the log."""

    def __init__(self) -> None:
        super().__init__(503, "unavailable", BUSY)


class Admission:
    """Counts the requests that a process works on. A body that is still arriving is no work.

    Attributes:
        announced: requests that have arrived, and have not asked for their place yet.
    """

    def __init__(self, *, limit: int) -> None:
        """
        Args:
            limit: requests at work at a time; those that wait for a payment's end, and those that follow one, have
                limits of their own.
        """
        self._places = {kind: _Places(self, limit * share) for kind, share in SHARES.items()}
        self._work = self._places["work"]
        self._shed = 0
        self.announced = 0

    @property
    def full(self) -> bool:
        """Whether nobody can be taken in for work, once all who are announced have been."""
        return self._work.taken + self.announced >= self._work.limit

    def admit(self, kind: Kind) -> AbstractContextManager[None]:
        """Work on a request, in this context. It raises `Shed` where there is no room."""
        return self._places[kind]

    def turn_away(self) -> NoReturn:
        """
        Raises:
            Shed: see there.
        """
        self.count_turned_away()
        raise Shed

    def count_turned_away(self) -> None:
        """One more was, here or before there was a request to be asked for."""
        SHED.inc()
        self._shed += 1

    def sample(self) -> None:
        """Tell how many requests there are, and how many were turned away since the last time."""
        if self._shed:
            log.warning("http.shed", requests=self._shed)
            self._shed = 0
        for kind, places in self._places.items():
            AT_WORK.labels(LABELS[kind]).set(places.taken)


class _Places:
    """A place for each request that enters, until it exits: all count in one."""

    __slots__ = ("_admission", "limit", "taken")

    def __init__(self, admission: Admission, limit: int) -> None:
        self._admission = admission
        self.limit = limit
        self.taken = 0

    def __enter__(self) -> None:
        if self.taken >= self.limit:
            self._admission.turn_away()
        self.taken += 1

    def __exit__(self, *_: object) -> None:
        self.taken -= 1
