"""The event store keeps its promises when many write at once."""

import asyncio
from uuid import UUID

import pytest
from uuid_utils.compat import uuid7

from payloops.commands.create_order import create_order
from payloops.events.event_store import EventStore
from payloops.events.metadata import Metadata


async def test_an_appended_event_is_read_back_as_it_was(
    store: EventStore, merchant_id: UUID, by: Metadata
) -> None:
    order = await create_order(
        store, order_id=uuid7(), merchant_id=merchant_id, amount=100, currency="USD", by=by
    )
    [recorded] = await store.read(after=0, limit=10)
    assert recorded.position == 1
    assert recorded.event.originator_id == order.id
