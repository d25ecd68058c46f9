"""Metadata of those who act on an order without a request of their own."""

from dataclasses import replace

from payloops.events.metadata import Metadata
from payloops.events.orders import Order


def in_the_name_of(order: Order, by: Metadata) -> Metadata:
    """`by`, under the correlation id of the order's own creation where it has none."""
    return by if by.correlation_id else replace(by, correlation_id=order.correlation_id)
