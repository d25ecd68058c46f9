"""Whom a process turns away because it has too much to do: at once, with 503, before anything is done."""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Literal, NoReturn

import structlog
from prometheus_client import Counter, Gauge

from payloops.http.problems import BUSY, Problem

Kind = Literal["work", "wait", "stream"]

SHARES: dict[Kind, int] = {"work": 1, "wait": 32, "stream": 32}
"""So many times more requests may wait for a payment's end (`Prefer: wait`), and follow one, than may be at work."""

LEAST = 96
"""Requests at work that there is room for, however slow the process is, unless fewer are allowed."""
STALL = 0.1
"""Seconds: there is room for as many as leave a place in that time, as long as nobody is turned away: a disk or a
database that stands still for a moment makes them late, not refused."""
WAITED = 0.025
"""The same once somebody was: more arrive than are answered, and then each has to wait for all who have a place. Who
changes something has one twice: while it is asked who sends it, and for the rest."""
SLOWING = 0.8
"""What is left of a former rate at least, a sample later, where fewer are answered: a short stall changes little."""
SAMPLED = 0.5
"""Seconds from which on a rate means something."""

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

    def __init__(self, *, limit: int, clock: Callable[[], float] = time.monotonic) -> None:
        """
        Args:
            limit: the most requests at work at a time; those that wait for a payment's end, and those that follow one,
                have limits of their own.
        """
        self._least, self._most = min(LEAST, limit), limit
        self._places = {kind: _Places(self, self._least * share) for kind, share in SHARES.items()}
        self._work = self._places["work"]
        self._shed = 0
        self._turned_away = 0
        self._clock = clock
        self._sampled_at = clock()
        self._rate = 0.0
        self.announced = 0

    @property
    def room(self) -> int:
        """For so many requests at work, those that are included."""
        return self._work.limit

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
        self._shed += 1
        self._turned_away += 1

    def sample(self) -> None:
        """Tell how many requests there are and how many were turned away; make room for as many as are answered."""
        self._make_room()
        if self._shed:
            SHED.inc(self._shed)
            log.warning("http.shed", requests=self._shed)
            self._shed = 0
        for kind, places in self._places.items():
            AT_WORK.labels(LABELS[kind]).set(places.taken)

    def _make_room(self) -> None:
        now = self._clock()
        seconds = now - self._sampled_at
        if seconds < SAMPLED:
            return
        left, turned_away = self._work.left, self._turned_away
        self._work.left, self._turned_away, self._sampled_at = 0, 0, now
        # Where nobody was turned away, all were answered who came: more could have been.
        kept = max(SLOWING, left / (left + turned_away)) if turned_away else 1.0
        self._rate = max(left / seconds, self._rate * kept)
        room = int(self._rate * (WAITED if turned_away else STALL))
        self._work.limit = max(self._least, min(room, self._most))


class _Places:
    """A place for each request that enters, until it exits: all count in one."""

    __slots__ = ("_admission", "left", "limit", "taken")

    def __init__(self, admission: Admission, limit: int) -> None:
        self._admission = admission
        self.limit = limit
        self.taken = 0
        self.left = 0

    def __enter__(self) -> None:
        if self.taken >= self.limit:
            self._admission.turn_away()
        self.taken += 1

    def __exit__(self, *_: object) -> None:
        self.taken -= 1
        self.left += 1
