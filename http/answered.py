"""What was answered, and how long it took, for the metrics.

The library takes locks, and writes to mapped files where processes share: a few microseconds for each number. So
answers are counted here, in plain numbers, and handed over by `hand_over` once in a while.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable

import prometheus_client

NO_ROUTE = "none"
"""In place of a route, where there is none."""
BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class _Durations(prometheus_client.Histogram):
    """A histogram that takes many observations at once."""

    def add(self, counts: Iterable[int], *, seconds: float) -> None:
        """
        Args:
            counts: how many came to each of `BOUNDS`, and beyond the last.
            seconds: all of them together.
        """
        for bucket, count in zip(self._buckets, counts, strict=True):
            if count:
                bucket.inc(count)
        self._sum.inc(seconds)


REQUESTS = prometheus_client.Counter(
    "payloops_http_requests", "Requests answered", ["method", "route", "status"]
)
REQUEST_SECONDS = _Durations(
    "payloops_http_request_duration_seconds",
    "From a request's head to its answer, waiting that the client asked for included",
    ["method", "route"],
    buckets=BOUNDS,
)

_answers: Counter[tuple[str, str, int]] = Counter()
_durations: dict[tuple[str, str], "_Tally"] = {}


class _Tally:
    __slots__ = ("counts", "seconds")

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS) + 1)
        self.seconds = 0.0


def count_answer(method: str, route: str, status: int, *, seconds: float | None = None) -> None:
    """One more was answered. `seconds`: that it took; None: that says nothing."""
    _answers[method, route, status] += 1
    if seconds is None:
        return
    tally = _durations.get((method, route))
    if tally is None:
        tally = _durations[method, route] = _Tally()
    tally.counts[bisect_left(BOUNDS, seconds)] += 1
    tally.seconds += seconds


def hand_over() -> None:
    """Give what was counted since the last time to the library."""
    for labels, count in _answers.items():
        REQUESTS.labels(*labels).inc(count)
    _answers.clear()
    for (method, route), tally in _durations.items():
        REQUEST_SECONDS.labels(method, route).add(tally.counts, seconds=tally.seconds)
    _durations.clear()
