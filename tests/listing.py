"""Every list of the service, as it is asked for, and how PostgreSQL finds its rows."""

from collections.abc import Awaitable, Callable, Collection, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import combinations
from typing import Any, ClassVar
from uuid import UUID

import psycopg
from psycopg import sql
from psycopg.rows import tuple_row

from payloops.commands.processor_events import list_processor_events, processor_events_of_order
from payloops.commands.staff_views import list_staff_views
from payloops.commands.webhooks import (
    WebhookStatus,
    list_attempts,
    list_attempts_of,
    list_webhooks,
    list_webhooks_of_order,
    pending_webhooks,
)
from payloops.events.event_store import EventStore
from payloops.events.orders import References
from payloops.processors.port import Processor, ProcessorUnreachable
from payloops.projections import order_search, staff_orders
from payloops.projections.order_events import merchant_events, order_events
from payloops.projections.order_list import list_orders
from payloops.projections.payments import find_order_by_reference
from payloops.projections.staff_orders import StaffSearch
from payloops.projections.stats import figures_by_day, payment_figures
from payloops.projections.transactions import list_transactions
from payloops.reconcile.payments import reconcile

GROWING = {
    *("stored_events", "personal_keys", "seals", "idempotency_keys", "client_secrets"),
    *("orders", "transactions", "payments", "daily_volume"),
    *("webhook_events", "webhook_attempts", "processor_events", "staff_views"),
}
"""Tables that grow with orders, or with how often they are looked at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What is asked for: there is an order, or there is none."""

    merchant_id: UUID
    order_id: UUID
    now: datetime
    status: str = "captured"
    text: str = "order-4123"
    email: str = "customer-7@example.com"
    reference: str = "ch_2"


Ask = Callable[[EventStore, Asked], Awaitable[Any]]
Value = Callable[[Asked], Any]


def lists() -> Iterator[tuple[str, Ask]]:
    """Each list with each combination of what it can be asked for, by name."""
    yield from _merchants_lists()
    yield from _dashboards_lists()
    yield from _staffs_lists()
    yield from _operators_lists()


def _merchants_lists() -> Iterator[tuple[str, Ask]]:
    def filters(asked: Asked) -> dict[str, Any]:
        return {
            "status": asked.status,
            "currency": "USD",
            "external_id": asked.text,
            "created_from": asked.now - timedelta(days=3),
            "created_to": asked.now,
        }

    for chosen in _subsets(["status", "currency", "external_id", "created_from", "created_to"]):

        async def orders(store: EventStore, asked: Asked, chosen: tuple[str, ...] = chosen) -> None:
            picked = {name: filters(asked)[name] for name in chosen}
            await list_orders(store, merchant_id=asked.merchant_id, limit=10, **picked)

        yield f"orders by {', '.join(chosen) or 'age'}", orders

    for direction in ("starting_after", "ending_before"):

        async def page(store: EventStore, asked: Asked, direction: str = direction) -> None:
            cursor: dict[str, Any] = {direction: asked.order_id}
            await list_orders(store, merchant_id=asked.merchant_id, limit=10, **cursor)

        yield f"orders {direction}", page
    yield (
        "an order's transactions",
        lambda s, a: list_transactions(s, order_id=a.order_id, merchant_id=a.merchant_id),
    )
    yield "an order's events", lambda s, a: order_events(s, order_id=a.order_id, merchant_id=a.merchant_id)
    yield (
        "an order by reference",
        lambda s, a: find_order_by_reference(
            s, merchant_id=a.merchant_id, references=References(a.reference)
        ),
    )
    for topic in (None, "refund.reversed"):

        async def events(store: EventStore, asked: Asked, topic: str | None = topic) -> None:
            await merchant_events(store, merchant_id=asked.merchant_id, after=0, limit=100, type=topic)

        yield f"events of {topic or 'all types'}", events


def _dashboards_lists() -> Iterator[tuple[str, Ask]]:
    for chosen in _subsets(["status", "processor", "currency", "text", "created_from", "created_to"]):

        async def orders(store: EventStore, asked: Asked, chosen: tuple[str, ...] = chosen) -> None:
            filters = {
                "status": asked.status,
                "processor": "stripe",
                "currency": "USD",
                "text": asked.text,
                "created_from": asked.now - timedelta(days=3),
                "created_to": asked.now,
            }
            picked: dict[str, Any] = {name: filters[name] for name in chosen}
            await order_search.search_orders(store, merchant_id=asked.merchant_id, page=3, limit=20, **picked)

        yield f"dashboard's orders by {', '.join(chosen) or 'age'}", orders
    for currency in (None, "USD"):

        async def figures(store: EventStore, asked: Asked, currency: str | None = currency) -> None:
            await payment_figures(
                store,
                merchant_id=asked.merchant_id,
                begin=asked.now - timedelta(days=3),
                end=asked.now,
                currency=currency,
            )

        yield f"figures in {currency or 'each currency'}", figures
    statuses: tuple[WebhookStatus | None, ...] = (None, "failed")
    for status in statuses:

        async def webhooks(store: EventStore, asked: Asked, status: WebhookStatus | None = status) -> None:
            await list_webhooks(store.pool, merchant_id=asked.merchant_id, page=3, limit=20, status=status)

        yield f"webhooks, {status or 'all'}", webhooks
    yield "a webhook's attempts", lambda s, a: list_attempts(s.pool, webhook_id=a.order_id)
    yield "webhooks that are pending", lambda s, _: pending_webhooks(s.pool)


def _staffs_lists() -> Iterator[tuple[str, Ask]]:
    searches: dict[str, Value] = {
        "text": lambda a: a.text,
        "merchant_id": lambda a: a.merchant_id,
        "external_id": lambda a: a.text,
        "email": lambda a: a.email,
        "reference": lambda a: a.reference,
        "correlation_id": lambda a: str(a.order_id),
        "amount": lambda _: 4_999,
        "created_from": lambda a: a.now - timedelta(days=3),
    }
    for name, value in searches.items():

        async def orders(store: EventStore, asked: Asked, name: str = name, value: Value = value) -> None:
            search = StaffSearch(**{name: value(asked)})
            await staff_orders.search_all_orders(store, search, page=1, limit=20)

        yield f"staff's orders by {name}", orders
    yield (
        "staff's orders by id",
        lambda s, a: staff_orders.search_all_orders(s, StaffSearch(text=str(a.order_id)), page=1, limit=20),
    )
    told: dict[str, Value] = {
        "effect": lambda _: "unmatched",
        "order_id": lambda a: a.order_id,
        "merchant_id": lambda a: a.merchant_id,
    }
    for name, value in told.items():

        async def effects(store: EventStore, asked: Asked, name: str = name, value: Value = value) -> None:
            await list_processor_events(store.pool, **{name: value(asked)})

        yield f"processor events by {name}", effects
    yield "processor events of an order", lambda s, a: processor_events_of_order(s.pool, order_id=a.order_id)
    yield "webhooks of an order", lambda s, a: list_webhooks_of_order(s.pool, order_id=a.order_id)
    yield "attempts of webhooks", lambda s, a: list_attempts_of(s.pool, webhook_ids=[a.order_id])
    yield "views of an order", lambda s, a: list_staff_views(s.pool, limit=20, order_id=a.order_id)
    yield "views of a merchant", lambda s, a: list_staff_views(s.pool, limit=20, merchant_id=a.merchant_id)
    yield "views by a member", lambda s, _: list_staff_views(s.pool, limit=20, email="a@example.com")
    for merchant in (False, True):

        async def volume(store: EventStore, asked: Asked, merchant: bool = merchant) -> None:
            await figures_by_day(
                store,
                first=(asked.now - timedelta(days=3)).date(),
                last=asked.now.date(),
                merchant_id=asked.merchant_id if merchant else None,
            )

        yield f"volume of {'a merchant' if merchant else 'all'}", volume


def _subsets(names: list[str]) -> Iterator[tuple[str, ...]]:
    for count in range(len(names) + 1):
        yield from combinations(names, count)


def _operators_lists() -> Iterator[tuple[str, Ask]]:
    async def nobody(merchant_id: UUID, processor: str) -> Processor:
        raise ProcessorUnreachable(processor=processor, reason=f"{merchant_id} is not asked about")

    for since in (timedelta(0), timedelta(hours=24)):

        async def payments(store: EventStore, asked: Asked, since: timedelta = since) -> None:
            await reconcile(store, find=nobody, older_than=timedelta(minutes=10), since=since, now=asked.now)

        yield f"payments to reconcile since {since}", payments


class ExplainingCursor(psycopg.AsyncCursor[Any]):
    """Has each query explained before it runs it. `plans`: what was said."""

    plans: ClassVar[list[Any]] = []

    async def execute(self, query: Any, params: Any = None, **options: Any) -> Any:
        text = query.as_string(self.connection) if isinstance(query, sql.Composable) else query
        text = text.decode() if isinstance(text, bytes) else text
        if text.lstrip().startswith(("SELECT", "WITH")):
            async with psycopg.AsyncCursor(self.connection, row_factory=tuple_row) as other:
                await other.execute(f"EXPLAIN (FORMAT JSON) {text}", params, prepare=False)
                row = await other.fetchone()
                assert row is not None
                self.plans.append(row[0][0]["Plan"])
        return await super().execute(query, params, **options)


def read_whole(
    plan: dict[str, Any], *, tables: Collection[str] = GROWING, limited: bool = False
) -> Iterator[str]:
    """Of these tables, those that a plan reads from end to end: in sequence, or by an index of which it asks nothing.

    Where a limit ends it, an index may be read in its order.
    """
    kind, table = plan["Node Type"], plan.get("Relation Name")
    if table in tables and (
        kind == "Seq Scan"
        or (kind in {"Index Scan", "Index Only Scan"} and "Index Cond" not in plan and not limited)
    ):
        yield f"{kind} of {table}"
    # What sorts or counts reads everything below it, whatever the limit above.
    limited = kind == "Limit" or (limited and kind not in {"Sort", "Aggregate", "WindowAgg", "Hash"})
    for part in plan.get("Plans", ()):
        yield from read_whole(part, tables=tables, limited=limited)
