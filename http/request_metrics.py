"""Metrics of requests and their durations, counted in plain numbers and handed over periodically."""

from collections import Counter

import prometheus_client

from payloops.events.tally import Histogram, Tally

NO_ROUTE = "none"
"""In place of a route, where there is none."""
BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


REQUESTS = prometheus_client.Counter(
    "payloops_http_requests", "Requests answered", ["method", "route", "status"]
)
REQUEST_SECONDS = Histogram(
    "payloops_http_request_duration_seconds",
    "From a request's head to its answer, waiting that the client asked for included",
    ["method", "route"],
    buckets=BOUNDS,
)

_answers: Counter[tuple[str, str, int]] = Counter()
"""Such as say nothing of durations."""
_durations: dict[tuple[str, str, int], Tally] = {}


def count_answer(method: str, route: str, status: int, *, seconds: float | None = None) -> None:
    """One more was answered. `seconds`: that it took; None: that says nothing."""
    if seconds is None:
        _answers[method, route, status] += 1
        return
    tally = _durations.get((method, route, status))
    if tally is None:
        tally = _durations[method, route, status] = Tally(BOUNDS)
    tally.observe(seconds)


def hand_over() -> None:
    """Give what was counted since the last time to the library."""
    for labels, count in _answers.items():
        REQUESTS.labels(*labels).inc(count)
    _answers.clear()
    for (method, route, status), tally in _durations.items():
        REQUESTS.labels(method, route, status).inc(tally.hand_over(REQUEST_SECONDS.labels(method, route)))
    _durations.clear()
