"""Metrics of requests and their durations, counted in plain numbers, and handed over to Prometheus periodically."""

from collections import Counter
from collections.abc import Iterable

import prometheus_client

from payloops.events.tally import Histogram, Tally

NO_ROUTE = "none"
"""The label of requests for which there is no route."""
BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


REQUESTS = prometheus_client.Counter(
    "payloops_http_requests", "Requests answered", ["method", "route", "status"]
)
REQUEST_SECONDS = Histogram(
    "payloops_http_request_duration_seconds",
    "From a request's head to its response, including a wait that the client requested",
    ["method", "route"],
    buckets=BOUNDS,
)

_answers: Counter[tuple[str, str, int]] = Counter()
"""Those counted without a duration."""
_durations: dict[tuple[str, str, int], Tally] = {}


def expect_errors(routes: Iterable[tuple[str, str]]) -> None:
    """Count from 0 the errors that alerts are about: Prometheus sees no increase in a count that begins with 1.

    Args:
        routes: method and path of each.
    """
    for method, route in routes:
        REQUESTS.labels(method, route, 500)


def count_answer(method: str, route: str, status: int, *, seconds: float | None = None) -> None:
    """Count a response. `seconds`: its duration; None if it should not be counted, as that of a stream."""
    if seconds is None:
        _answers[method, route, status] += 1
        return
    tally = _durations.get((method, route, status))
    if tally is None:
        tally = _durations[method, route, status] = Tally(BOUNDS)
    tally.observe(seconds)


def hand_over() -> None:
    """Add what was counted since the last call to Prometheus' metrics."""
    for labels, count in _answers.items():
        REQUESTS.labels(*labels).inc(count)
    _answers.clear()
    for (method, route, status), tally in _durations.items():
        REQUESTS.labels(method, route, status).inc(tally.hand_over(REQUEST_SECONDS.labels(method, route)))
    _durations.clear()
