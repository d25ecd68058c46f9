"""Which processor a payment goes to, and why."""

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID
from weakref import WeakKeyDictionary

from psycopg.rows import TupleRow

from payloops.commands.refusals import InvalidProcessor, NoProcessor
from payloops.events.columns import uuids
from payloops.events.event_store import EventStore
from payloops.events.lookups import Lookup

PREFERRED = {"INR": "razorpay"}
PREFERRED_ELSEWHERE = "stripe"
METHODS: dict[str, tuple[str, ...]] = {
    "card": ("stripe", "razorpay"),
    "upi": ("razorpay",),
    "netbanking": ("razorpay",),
    "wallet": ("stripe", "razorpay"),
}
"""The processors that support each payment method."""
ONLY_IN = {"upi": "INR", "netbanking": "INR"}
"""Payment methods that exist in one currency only."""


@dataclass(frozen=True, slots=True)
class EnabledProcessor:
    """A processor the merchant can be paid through; a lower priority number goes first."""

    processor: str
    priority: int
    test_mode: bool = False


@dataclass(frozen=True, slots=True)
class Route:
    """A processor, and the reason it was chosen, for the event."""

    processor: str
    reason: str


@dataclass(frozen=True, slots=True)
class WayToPay:
    """A payment method that a customer can choose, and its route. `test_mode`: whether test tokens work."""

    method: str
    route: Route
    test_mode: bool


def ways_to_pay(*, merchant_id: UUID, currency: str, enabled: Sequence[EnabledProcessor]) -> list[WayToPay]:
    """The payment methods that a customer can choose, each routed among the processors that support it."""
    ways = []
    for method, takers in METHODS.items():
        options = [option for option in enabled if option.processor in takers]
        if not options or ONLY_IN.get(method, currency) != currency:
            continue
        route = route_payment(merchant_id=merchant_id, currency=currency, wanted=None, enabled=options)
        [chosen] = [option for option in options if option.processor == route.processor]
        if len(options) < len(enabled):
            route = Route(route.processor, f"takes {method}, of those that do: {route.reason}")
        ways.append(WayToPay(method, route, chosen.test_mode))
    return ways


def route_payment(
    *, merchant_id: UUID, currency: str, wanted: str | None, enabled: Sequence[EnabledProcessor]
) -> Route:
    """The wanted processor, else the one preferred for the currency, else the first by priority.

    Raises:
        InvalidProcessor: the wanted processor is not enabled.
        NoProcessor: none is enabled.
    """
    names = {option.processor for option in enabled}
    if wanted is not None:
        if wanted not in names:
            raise InvalidProcessor(merchant_id, wanted)
        return Route(wanted, "named in the request")
    if not enabled:
        raise NoProcessor(merchant_id)
    preferred = PREFERRED.get(currency, PREFERRED_ELSEWHERE)
    if preferred in names:
        return Route(preferred, f"preferred for {currency}")
    first = min(enabled, key=lambda option: (option.priority, option.processor))
    return Route(
        first.processor, f"priority {first.priority}; {preferred}, preferred for {currency}, is not enabled"
    )


ENABLED = """
    SELECT c.merchant_id, c.processor, c.priority, c.test_mode
    FROM unnest((SELECT $1::uuid[])) AS wanted (id) JOIN processor_configs c ON c.merchant_id = wanted.id
    WHERE c.enabled
"""
MOST_LOOKED_UP = 100
"""Merchants whose processors are read by one query."""

_lookups: WeakKeyDictionary[EventStore, Lookup[UUID, list[EnabledProcessor]]] = WeakKeyDictionary()


async def enabled_processors(store: EventStore, *, merchant_id: UUID) -> list[EnabledProcessor]:
    """The merchant's enabled processors. Concurrent calls share a query."""
    lookup = _lookups.get(store)
    if lookup is None:
        lookup = Lookup(store.pool, ENABLED, column=uuids, read=_by_merchant, most=MOST_LOOKED_UP)
        _lookups[store] = lookup
    return await lookup.find(merchant_id) or []


def _by_merchant(rows: Sequence[TupleRow]) -> dict[UUID, list[EnabledProcessor]]:
    found: dict[UUID, list[EnabledProcessor]] = {}
    for merchant_id, *row in rows:
        found.setdefault(merchant_id, []).append(EnabledProcessor(*row))
    return found
