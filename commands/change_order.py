"""Changing an order: load, decide, append, for the merchant whose order it is."""

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

TURNS = 6
"""How often the change of a busy order is tried, five decisions each time."""


async def change_order(
    store: EventStore,
    *,
    order_id: UUID,
    merchant_id: UUID | None,
    decide: Callable[[Order], R],
    receipt: Callable[[Order, R], Receipt] | None = None,
) -> tuple[Order, R]:
    """`EventStore.change` of one merchant's order; `merchant_id` None where a processor speaks, not a merchant.

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


async def insist(change: Callable[[], Awaitable[R]]) -> R:
    """Change an order that others keep changing, for whom it is worth more than being told to ask again.

    Raises:
        VersionConflict: after 6 tries. Besides: as `change`.
    """
    for turn in range(1, TURNS + 1):
        try:
            return await change()
        except VersionConflict:
            if turn == TURNS:
                raise
            await asyncio.sleep(random.uniform(0, 0.05) * turn)  # noqa: S311  # jitter
    raise AssertionError("unreachable")


async def load_order(store: EventStore, *, order_id: UUID) -> Order:
    """An order as it is.

    Raises:
        OrderNotFound: no such order.
    """
    order = await store.load(Order, order_id)
    if order is None:
        raise OrderNotFound(order_id)
    return order
