"""Histograms counted in plain numbers, and handed over to the Prometheus client periodically.

The client takes locks, and writes to memory-mapped files if processes share a port: a few microseconds per observation.
"""

from bisect import bisect_left
from collections.abc import Sequence

import prometheus_client


class Tally:
    """Observations since the last `hand_over`.

    Args:
        bounds: upper bounds of the histogram's buckets.
    """

    __slots__ = ("_bounds", "_counts", "_total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._begin()

    def _begin(self) -> None:
        self._counts = [0] * (len(self._bounds) + 1)
        self._total = 0.0

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._total += value

    def hand_over(self, histogram: "Histogram") -> int:
        """Add the observations to a histogram with the same buckets, and begin again. Returns how many there were."""
        count = sum(self._counts)
        histogram.add(self._counts, total=self._total)
        self._begin()
        return count


class Histogram(prometheus_client.Histogram):
    """A Prometheus histogram to which many observations can be added at once."""

    def add(self, counts: Sequence[int], *, total: float) -> None:
        """
        Args:
            counts: number of observations in each bucket.
            total: sum of the observed values.
        """
        for bucket, count in zip(self._buckets, counts, strict=True):
            if count:
                bucket.inc(count)
        self._sum.inc(total)
