"""A merchant catches up with what happened: in order, without gaps, and with nothing of anybody else's."""

import asyncio
from typing import Any

import pytest
from calling import Api, Merchant
from projecting import insert_raw
from signing import Labels, Processors, merchant_with_secrets, stripe_payment

from payloops.events.event_store import EventStore


async def caught_up(merchant: Merchant, *, limit: int, after: int = 0, **query: str) -> list[dict[str, Any]]:
    """All events, page by page."""
    events: list[dict[str, Any]] = []
    rest = "".join(f"&{name}={value}" for name, value in query.items())
    while True:
        page = await merchant.shop.get(f"/v1/events?after={after}&limit={limit}{rest}")
        assert page.status == 200, page.raw
        assert page.json["object"] == "list"
        assert len(page.json["data"]) <= limit
        events += page.json["data"]
        after = events[-1]["id"] if events else after
        if not page.json["hasMore"]:
            return events


async def test_the_events_of_all_orders_come_in_order_and_as_each_order_has_them(api: Api) -> None:
    merchant, other = await merchant_with_secrets(api), await merchant_with_secrets(api)
    order_ids = [await merchant.order() for _ in range(3)]
    await other.order()
    for order_id in order_ids:
        paid = await merchant.shop.post(f"/v1/orders/{order_id}/pay", {"processor": "stripe"})
        assert paid.status == 200
    event = stripe_payment("succeeded", Labels(merchant.id, order_ids[1]))
    assert (await Processors(api).stripe(event)).status == 200
    everything = await caught_up(merchant, limit=100)
    assert [each["type"] for each in everything] == [
        *["order.created"] * 3,
        *["payment.requested"] * 3,
        "order.processor_event_received",
        "payment.captured",
    ]
    assert await caught_up(merchant, limit=2) == everything
    positions = [each["id"] for each in everything]
    assert positions == sorted(set(positions))
    for order_id in order_ids:
        trail = (await merchant.shop.get(f"/v1/orders/{order_id}/events")).json
        shown = [
            {name: value for name, value in each.items() if name != "orderId"}
            for each in everything
            if each["orderId"] == order_id
        ]
        assert shown == trail
    assert await caught_up(merchant, limit=10, after=positions[-1]) == []
    assert await caught_up(merchant, limit=1, type="payment.requested") == everything[3:6]
    assert {each["type"] for each in await caught_up(other, limit=10)} == {"order.created"}


async def test_a_reader_that_follows_a_busy_merchant_misses_nothing(api: Api) -> None:
    merchant = await api.merchant()
    done = asyncio.Event()
    seen: list[dict[str, Any]] = []

    async def follow() -> None:
        while True:
            last = done.is_set()
            seen.extend(await caught_up(merchant, limit=7, after=seen[-1]["id"] if seen else 0))
            if last:
                return

    following = asyncio.create_task(follow())
    order_ids = await asyncio.gather(*(merchant.order() for _ in range(60)))
    done.set()
    await following
    assert sorted(each["orderId"] for each in seen) == sorted(order_ids)


async def test_a_query_that_does_not_fit_is_refused(subtests: pytest.Subtests, api: Api) -> None:
    merchant = await api.merchant(processors=False)
    for query, field in [
        ("after=-1", "after"),
        ("after=x", "after"),
        ("after=1_0", "after"),
        (f"after={10**18}", "after"),
        ("limit=0", "limit"),
        ("limit=101", "limit"),
        ("type=merchant.registered", "type"),
        ("type=order.%25", "type"),
        ("type=refund.processed", "type"),  # a webhook's; what it tells of is refund.succeeded
        ("before=5", "before"),
    ]:
        with subtests.test(query):
            assert (await merchant.shop.get(f"/v1/events?{query}")).fields == {field}
    assert (await merchant.shop.get(f"/v1/events?after={10**18 - 1}")).json["data"] == []
    assert (await api.anyone.get("/v1/events")).status == 401


async def test_an_event_that_was_altered_is_named_and_can_be_passed_over(api: Api, store: EventStore) -> None:
    """Left out, it would be missed; refused for good, all that comes after it would be."""
    merchant = await api.merchant()
    await merchant.order()
    altered = await insert_raw(store, merchant.id, topic="payment.requested", state=b"not as it was written")
    await merchant.order()
    before = await merchant.shop.get("/v1/events?limit=3")
    assert (before.status, len(before.json["data"]), before.json["hasMore"]) == (200, 1, True)
    after = before.json["data"][-1]["id"]
    there = await merchant.shop.get(f"/v1/events?after={after}")
    assert (there.status, there.code) == (503, "unavailable")
    assert there.json["message"] == (
        f"Event {altered} cannot be read; the events after it are listed with after={altered}"
    )
    assert len(await caught_up(merchant, limit=10, after=altered)) == 1
