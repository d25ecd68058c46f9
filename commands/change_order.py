"""Changing an order: load it, decide, append the facts. Every command about an order goes through here."""

from collections.abc import Callable
from typing import TypeVar
from uuid import UUID

from payloops.commands.refusals import InvalidStatus, OrderNotFound
from payloops.events.appender import Receipt
from payloops.events.errors import StreamNotFound
from payloops.events.event_store import EventStore
from payloops.events.orders import Order

R = TypeVar("R")

MAX_REQUESTS = 200
"""Requests of one kind (to pay, capture, cancel or refund) that an order takes: each request folds the order's whole
stream, so if all may fail and be made again, it must not grow without end."""


async def change_order(
    store: EventStore,
    *,
    order_id: UUID,
    merchant_id: UUID | None,
    decide: Callable[[Order], R],
    receipt: Callable[[R], Receipt] | None = None,
) -> R:
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


async def load_order(store: EventStore, *, order_id: UUID, merchant_id: UUID | None = None) -> Order:
    """The order as of now.

    Args:
        merchant_id: whose order it must be; None if that does not matter.

    Raises:
        OrderNotFound: no such order, or another merchant's.
    """
    order = await store.load(Order, order_id)
    if order is None or merchant_id not in (None, UUID(order.merchant_id)):
        raise OrderNotFound(order_id)
    return order


def refuse_endless(order: Order, *, requested: int, to: str, remedy: str) -> None:
    """Refuse one more request than an order takes.

    Args:
        requested: how many there were.
        to: what for: `pay`.
        remedy: what the merchant can do in its place.

    Raises:
        InvalidStatus: there were MAX_REQUESTS.
    """
    if requested >= MAX_REQUESTS:
        raise InvalidStatus(
            order.id,
            order.status,
            f"Order is {order.status}, and takes no more than {MAX_REQUESTS} requests to {to} it: {remedy}",
        )
