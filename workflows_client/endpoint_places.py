"""How many webhooks are under way at once, in all and to one merchant's endpoint.

A worker has a number of slots for activities. An endpoint that never answers holds each delivery for its whole
deadline: were there no bounds, one dead endpoint with a backlog would soon hold them all, and nobody else's
webhooks, nor the reports of payments that come the same way, would get through.

That an endpoint hangs is known only after its deadline. Until then many new ones could hold all places, so what
one may hold shrinks with what is free: those that come first never take all, and there is a first place for
whoever holds none.

Who finds no place is not kept waiting here, which would take a slot: it comes again, later and later.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID

DELIVERIES = 400
"""At once, in a process."""
SUSPECTS = 200
"""Of these, to endpoints that are failing."""
PER_ENDPOINT = 8
PER_SUSPECT = 2
SHARE = 32
"""An endpoint that holds places gets another only while it holds less than this part of those that are free."""


class EndpointBusy(Exception):
    """As many webhooks are under way as may be, to this endpoint or in all."""

    def __init__(self, *, merchant_id: UUID) -> None:
        super().__init__(f"too many webhooks are under way, to merchant {merchant_id} or in all")
        self.merchant_id = merchant_id


class EndpointPlaces:
    """The places of one process."""

    def __init__(
        self,
        *,
        deliveries: int = DELIVERIES,
        suspects: int = SUSPECTS,
        per_endpoint: int = PER_ENDPOINT,
        per_suspect: int = PER_SUSPECT,
    ) -> None:
        self._deliveries = deliveries
        self._suspects = suspects
        self._per_endpoint = per_endpoint
        self._per_suspect = per_suspect
        self._taken: Counter[UUID] = Counter()
        self._suspected: Counter[UUID] = Counter()

    @contextmanager
    def place(self, *, merchant_id: UUID, suspect: bool) -> Iterator[None]:
        """Hold a place for one delivery.

        Args:
            suspect: the endpoint failed when it was last tried: it gets fewer places, of which all that fail
                together have a part only. So however many fail, places are left for those that work.

        Raises:
            EndpointBusy: there is none.
        """
        free = self._deliveries - self._taken.total()
        if suspect:
            free = min(free, self._suspects - self._suspected.total())
        most = min(self._per_suspect if suspect else self._per_endpoint, max(1, free // SHARE))
        if free <= 0 or self._taken[merchant_id] >= most:
            raise EndpointBusy(merchant_id=merchant_id)
        held = [self._taken, self._suspected] if suspect else [self._taken]
        for each in held:
            each[merchant_id] += 1
        try:
            yield
        finally:
            for each in held:
                each[merchant_id] -= 1
                if not each[merchant_id]:
                    del each[merchant_id]
