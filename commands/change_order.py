"""Changing an order: load it, decide, append the facts. Every command about an order goes through here."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import TypeVar
from uuid import UUID

from payloops.commands.refusals import OrderNotFound
from payloops.events.appender import Receipt
from payloops.events.errors import StreamNotFound, VersionConflict
from payloops.events.event_store import EventStore
from payloops.events.orders import Order

R = TypeVar("R")

ATTEMPTS = 6
"""Of `retry_on_conflict`, each of which decides up to five times."""


async def change_order(
    store: EventStore,
    *,
    order_id: UUID,
    merchant_id: UUID | None,
    decide: Callable[[Order], R],
    receipt: Callable[[Order, R], Receipt] | None = None,
) -> tuple[Order, R]:
    """`EventStore.change` for an order.

    Args:
        merchant_id: whose order it must be; None for what a processor reports.

    Raises:
        OrderNotFound: no such order, or another merchant's.
    """

    def decide_for_owner(order: Order) -> R:
        if merchant_id is not None and order.merchant_id != str(merchant_id):
            raise OrderNotFound(order_id)
        return decide(order)

    try:
        return await store.change(Order, order_id, decide_for_owner, receipt=receipt)
    except StreamNotFound:
        raise OrderNotFound(order_id) from None


def receipt_of_order(
    receipt: Callable[[Order], Receipt] | None,
) -> Callable[[Order, object], Receipt] | None:
    """A receipt that is made of the order alone, as `change_order` takes it."""
    return None if receipt is None else lambda order, _: receipt(order)


async def retry_on_conflict(change: Callable[[], Awaitable[R]]) -> R:
    """Change an order that other processes keep changing, for callers that cannot be asked to try again.

    Raises:
        VersionConflict: after 6 attempts. Otherwise as `change`.
    """
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return await change()
        except VersionConflict:
            if attempt == ATTEMPTS:
                raise
            await asyncio.sleep(random.uniform(0, 0.05) * attempt)  # noqa: S311  # jitter
    raise AssertionError("unreachable")


async def load_order(store: EventStore, *, order_id: UUID) -> Order:
    """The order as of now.

    Raises:
        OrderNotFound: no such order.
    """
    order = await store.load(Order, order_id)
    if order is None:
        raise OrderNotFound(order_id)
    return order
