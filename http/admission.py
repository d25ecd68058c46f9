"""Admission control: how many requests a process works on at a time. Any more are refused at once, with 503."""

import collections
import time
from collections.abc import Callable, Hashable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Literal, NoReturn

import structlog
from prometheus_client import Counter, Gauge

from payloops.http.problems import BUSY, Problem

Kind = Literal["work", "wait", "stream"]

SHARES: dict[Kind, int] = {"work": 1, "wait": 32, "stream": 32}
"""Limits of each kind, as multiples of `LEAST`: `wait` is for requests that wait for a payment's outcome
(`Prefer: wait`), `stream` for those that follow a payment's events."""

LEAST = 96
"""The limit on requests at work never falls below this, however slow the process is, unless `MAX_IN_FLIGHT` does."""
STALL_SECONDS = 0.1
"""As long as few requests are refused, the limit is what the process completes in this time, so that a short
stall of the disk or the database delays requests instead of refusing them."""
QUEUED_SECONDS = 0.0125
"""The same in an overload: each request admitted waits for all admitted before it. A request that changes
something counts twice: for its authentication, and for the rest."""
OVERLOADED_SHARE = 0.1
"""It is an overload if at least this share of the requests was refused, and otherwise a stall that is over."""
DECAY = 0.8
"""From one sample to the next, the rate falls to this share of itself at most, so that a short stall changes little."""
MOST_ARRIVING = 256 * 2**20
"""Bytes of large bodies that are arriving. These count as no work, so slow senders could otherwise take all memory. Of
small ones a connection holds no more than of a head, and whoever sends the large ones cannot have them refused."""
SAMPLE_SECONDS = 0.5
"""Between two samples of the rate, at least."""

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
    """503 `unavailable`: the request was refused, nothing was done. It is not logged, to keep refusals cheap."""

    def __init__(self) -> None:
        super().__init__(503, "unavailable", BUSY)


class Admission:
    """Counts the requests that a process works on. A request whose body is still arriving does not count.

    Attributes:
        announced: requests that have arrived, but do not count as work yet.
        arriving: bytes held of large bodies that are still arriving.
    """

    def __init__(self, *, limit: int, clock: Callable[[], float] = time.monotonic) -> None:
        """
        Args:
            limit: the upper bound on requests at work, whatever the rate (`MAX_IN_FLIGHT`).
        """
        self._least, self._most = min(LEAST, limit), limit
        self._places = {kind: _Places(self, self._least * share) for kind, share in SHARES.items()}
        self._work = self._places["work"]
        self._waiting: collections.Counter[Hashable] = collections.Counter()
        self._shed = 0
        self._refused = 0
        self._clock = clock
        self._sampled_at = clock()
        self._rate = 0.0
        self.announced = 0
        self.arriving = 0

    @property
    def limit(self) -> int:
        """The current limit on requests at work."""
        return self._work.limit

    @property
    def full(self) -> bool:
        """Whether the requests at work and those announced have reached the limit."""
        return self._work.taken + self.announced >= self._work.limit

    def admit(self, kind: Kind) -> AbstractContextManager[None]:
        """Count a request as long as the context lasts. Entering it raises `Shed` if the limit is reached."""
        return self._places[kind]

    def may_wait(self, account: Hashable) -> bool:
        """Whether one more request of an account may wait for a payment's outcome.

        Only while it has fewer waiting than there are places left. So there are places for others, however many an
        account asks for.
        """
        places = self._places["wait"]
        return self._waiting[account] < places.limit - places.taken

    @contextmanager
    def admit_waiting(self, account: Hashable) -> Iterator[None]:
        """Count a request that waits as long as the context lasts."""
        with self.admit("wait"):
            self._waiting[account] += 1
            try:
                yield
            finally:
                self._waiting[account] -= 1
                if not self._waiting[account]:
                    del self._waiting[account]

    def hold(self, size: int) -> None:
        """Count bytes of a body that have arrived, until they are released.

        Raises:
            Shed: there are too many of all bodies together.
        """
        self.arriving += size
        if self.arriving > MOST_ARRIVING:
            self.refuse()

    def release(self, size: int) -> None:
        """Count these bytes no more: the body is here, or given up."""
        self.arriving -= size

    def refuse(self) -> NoReturn:
        """Refuse a request.

        Raises:
            Shed: always.
        """
        self.count_refused()
        raise Shed

    def count_refused(self) -> None:
        """Count a request that was refused, here or from its raw bytes."""
        self._shed += 1
        self._refused += 1

    def sample(self) -> None:
        """Update the metrics, log how many requests were refused, and adjust the limit. Called periodically."""
        self._adjust_limit()
        if self._shed:
            SHED.inc(self._shed)
            log.warning("http.shed", requests=self._shed)
            self._shed = 0
        for kind, places in self._places.items():
            AT_WORK.labels(LABELS[kind]).set(places.taken)

    def _adjust_limit(self) -> None:
        now = self._clock()
        seconds = now - self._sampled_at
        if seconds < SAMPLE_SECONDS:
            return
        left, refused = self._work.left, self._refused
        self._work.left, self._refused, self._sampled_at = 0, 0, now
        # If no request was refused, all that came were answered: that does not show how many could have been.
        share = refused / (left + refused) if refused else 0.0
        self._rate = max(left / seconds, self._rate * max(DECAY, 1.0 - share))
        limit = int(self._rate * (QUEUED_SECONDS if share >= OVERLOADED_SHARE else STALL_SECONDS))
        self._work.limit = max(self._least, min(limit, self._most))


class _Places:
    """The requests of one kind: each counts from entering the context to leaving it."""

    __slots__ = ("_admission", "left", "limit", "taken")

    def __init__(self, admission: Admission, limit: int) -> None:
        self._admission = admission
        self.limit = limit
        self.taken = 0
        self.left = 0

    def __enter__(self) -> None:
        if self.taken >= self.limit:
            self._admission.refuse()
        self.taken += 1

    def __exit__(self, *_: object) -> None:
        self.taken -= 1
        self.left += 1
