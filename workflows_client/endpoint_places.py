"""Limits on concurrent webhook deliveries, in total and to one endpoint.

A worker has a limited number of slots for activities. A delivery to an endpoint that never answers takes its whole
deadline: without limits, one dead endpoint with a backlog would soon occupy all slots, and neither other webhooks nor
the reports of payments, which are activities too, would get through.

Whether an endpoint hangs is known only after a deadline. Until then it could take all places, so the share of one
endpoint shrinks with the number of free places: the first endpoints never take all, and an endpoint that holds none
always gets a first place.

A delivery that finds no free place does not wait here, which would occupy a slot. It is retried at its turn, depending
on how long deliveries to its endpoint take: the backlog of a working endpoint is delivered at its pace, and an endpoint
that hangs is tried rarely.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from uuid import UUID

DELIVERIES = 400
"""Places of a process."""
SUSPECTS = 200
"""Of these, places for endpoints that are failing."""
PER_ENDPOINT = 8
PER_SUSPECT = 2
SHARE = 32
"""An endpoint gets another place only while it holds fewer than one in so many of the free ones."""
FIRST_GUESS = 0.1
"""Seconds that a delivery is assumed to take, before the first has ended."""
REMEMBERED = 10_000
"""Endpoints whose pace is remembered."""
LATEST = 300.0
"""The most seconds until a delivery that found no place is retried."""


class EndpointBusy(Exception):
    """No place is free, for this endpoint or at all. `seconds`: when to retry."""

    def __init__(self, *, merchant_id: UUID, seconds: float) -> None:
        super().__init__(f"too many webhooks are under way, to merchant {merchant_id} or in all")
        self.merchant_id = merchant_id
        self.seconds = seconds


@dataclass
class _Endpoint:
    """
    Attributes:
        began: the start of each delivery that is under way.
        takes: seconds that a delivery takes, a moving average.
        last_turn: when the last of the waiting deliveries is to be retried.
    """

    began: dict[int, float] = field(default_factory=dict)
    takes: float = FIRST_GUESS
    last_turn: float = 0.0


class EndpointPlaces:
    """The places of one process. `clock`: seconds that only grow."""

    def __init__(
        self,
        *,
        deliveries: int = DELIVERIES,
        per_endpoint: int = PER_ENDPOINT,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._deliveries = deliveries
        self._per_endpoint = per_endpoint
        self._clock = clock
        self._numbers = count()
        self._endpoints: dict[UUID, _Endpoint] = {}
        self._taken = 0
        self._suspected = 0

    @contextmanager
    def place(self, *, merchant_id: UUID, suspect: bool, comes_again: bool = True) -> Iterator[None]:
        """Hold a place for one delivery.

        Args:
            suspect: whether the endpoint failed when it was last tried. It then gets fewer places, out of those that
                all failing endpoints share: however many fail, places are left for working ones.
            comes_again: whether a delivery that finds no place is given a turn to retry.

        Raises:
            EndpointBusy: none is free.
        """
        now = self._clock()
        endpoint = self._endpoint(merchant_id)
        free = self._deliveries - self._taken
        if suspect:
            free = min(free, SUSPECTS - self._suspected)
        most = min(PER_SUSPECT if suspect else self._per_endpoint, max(1, free // SHARE))
        if free <= 0 or len(endpoint.began) >= most:
            turn = _turn(endpoint, places=max(1, most), now=now) if comes_again else 0.0
            raise EndpointBusy(merchant_id=merchant_id, seconds=turn)
        number = next(self._numbers)
        endpoint.began[number] = now
        self._taken += 1
        self._suspected += suspect
        try:
            yield
        finally:
            took = self._clock() - endpoint.began.pop(number)
            endpoint.takes += (took - endpoint.takes) / 4
            self._taken -= 1
            self._suspected -= suspect

    def _endpoint(self, merchant_id: UUID) -> _Endpoint:
        if len(self._endpoints) >= REMEMBERED:
            self._endpoints = {id: each for id, each in self._endpoints.items() if each.began}
        return self._endpoints.setdefault(merchant_id, _Endpoint())


def _turn(endpoint: _Endpoint, *, places: int, now: float) -> float:
    """Seconds until the turn of one more delivery that found no place."""
    hanging_for = max((now - began for began in endpoint.began.values()), default=0.0)
    pace = max(endpoint.takes, hanging_for) / places
    endpoint.last_turn = min(max(endpoint.last_turn, now) + pace, now + LATEST)
    return endpoint.last_turn - now
