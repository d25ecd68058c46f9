"""The schedule by which a webhook is delivered, what ends it, and that nobody waits for somebody else's endpoint."""

import asyncio
import contextlib
import dataclasses
import itertools
import json
import sys
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest
from foreign import ForeignWorkflow
from receiving import Endpoint, HeldBack, Received, receiving
from standardwebhooks import Webhook
from telling import BY, CIPHER, Shop, backend, caught_up, delivering, open_shop, subscribing
from temporalio.client import Client, WorkflowHandle, WorkflowHistory
from temporalio.exceptions import ApplicationError
from temporalio.testing import ActivityEnvironment, WorkflowEnvironment
from temporalio.worker import Replayer, Worker
from temporalio.worker.workflow_sandbox import SandboxedWorkflowRunner
from uuid_utils.compat import uuid7

from payloops.commands.queue_webhook import queue_webhook
from payloops.commands.record_webhook_attempt import INTERRUPTED
from payloops.commands.retry_webhook import WebhooksOff, retry_webhook
from payloops.commands.rotate_webhook_secret import rotate_webhook_secret
from payloops.commands.webhook_endpoints import find_webhook_endpoint
from payloops.embedded import EmbeddedServers
from payloops.events.event_store import EventStore
from payloops.events.timestamps import utc_now
from payloops.settings import Settings
from payloops.workflows_client import endpoint_places, interruptions
from payloops.workflows_client.activities import BackendActivities
from payloops.workflows_client.connection import connect
from payloops.workflows_client.endpoint_places import EndpointBusy, EndpointPlaces
from payloops.workflows_client.interruptions import BEAT_SECONDS
from payloops.workflows_client.webhook_delivery import WebhookDeliveryWorkflow

TEST_SERVER = str(Path(sys.executable).with_name("temporal-test-server"))
HISTORIES = Path(__file__).with_name("stored_histories")
PAYLOAD = {"type": "payment.captured"}
SCHEDULE = [
    timedelta(minutes=1),
    timedelta(minutes=5),
    timedelta(minutes=30),
    timedelta(hours=2),
    timedelta(hours=24),
]


@pytest.fixture
async def skipping() -> AsyncIterator[Client]:
    """A Temporal that skips time while nothing happens."""
    async with await WorkflowEnvironment.start_time_skipping(
        test_server_existing_path=TEST_SERVER
    ) as environment:
        yield environment.client


async def queue(shop: Shop) -> UUID:
    webhook_id: UUID = uuid7()
    await queue_webhook(
        shop.store.pool,
        webhook_id=webhook_id,
        merchant_id=shop.merchant_id,
        order_id=uuid7(),
        event_type="payment.captured",
        payload=PAYLOAD,
        source_position=None,
        at=utc_now(),
    )
    return webhook_id


async def start(
    client: Client, shop: Shop, webhook_id: UUID, *, url: str = "http://the.former.example", suffix: str = ""
) -> WorkflowHandle[Any, Any]:
    return await client.start_workflow(
        "WebhookDeliveryWorkflow",
        {
            "webhookEventId": str(webhook_id),
            "merchantId": str(shop.merchant_id),
            "webhookUrl": url,
            "payload": PAYLOAD,
        },
        id=f"webhook-{webhook_id}{suffix}",
        task_queue="backend-operations",
    )


async def pauses(handle: WorkflowHandle[Any, Any]) -> list[timedelta]:
    """Between the deliveries that a workflow had tried."""
    times: list[datetime] = [
        event.event_time.ToDatetime()
        for event in (await handle.fetch_history()).events
        if event.marker_recorded_event_attributes.marker_name == "core_local_activity"
    ]
    return [after - before for before, after in itertools.pairwise(times)]


# -- the schedule


async def test_a_dead_endpoint_is_tried_six_times_in_26_hours(
    store: EventStore, skipping: Client, shop: Shop, endpoint: Endpoint
) -> None:
    endpoint.answer = lambda _: 500
    webhook_id = await queue(shop)
    async with delivering(store, skipping):
        handle = await start(skipping, shop, webhook_id)
        result = await handle.result()
    assert result == {
        "success": False,
        "statusCode": 500,
        "attempts": 6,
        "errorMessage": "Answered 500",
    }
    for pause, planned in zip(await pauses(handle), SCHEDULE, strict=True):
        assert planned <= pause < planned + timedelta(seconds=30)
    webhook = await shop.webhook(webhook_id)
    assert (webhook.status, webhook.attempts, webhook.error) == ("failed", 6, "Answered 500")
    attempts = await shop.attempts(webhook_id)
    assert [each.number for each in attempts] == [1, 2, 3, 4, 5, 6]
    assert {(each.url, each.attempt.status_code, each.attempt.answer) for each in attempts} == {
        (endpoint.url, 500, "thanks")
    }
    assert len({each.headers["X-PayLoops-Signature"] for each in endpoint.received}) == 6
    assert {each.headers["webhook-id"] for each in endpoint.received} == {str(webhook_id)}


async def test_it_ends_with_the_first_success(
    store: EventStore, skipping: Client, shop: Shop, endpoint: Endpoint
) -> None:
    answers = iter([500, 302, 204])
    endpoint.answer = lambda _: next(answers)
    webhook_id = await queue(shop)
    async with delivering(store, skipping):
        result = await (await start(skipping, shop, webhook_id)).result()
    assert (result["success"], result["attempts"]) == (True, 3)
    webhook = await shop.webhook(webhook_id)
    assert (webhook.status, webhook.attempts, webhook.error) == ("delivered", 3, None)
    assert webhook.delivered_at == (await shop.attempts(webhook_id))[-1].attempt.attempted_at


async def test_after_the_end_a_retry_begins_the_schedule_anew(
    store: EventStore, skipping: Client, shop: Shop, endpoint: Endpoint
) -> None:
    endpoint.answer = lambda _: 500
    webhook_id = await queue(shop)
    async with delivering(store, skipping):
        await (await start(skipping, shop, webhook_id)).result()
        await retry_webhook(store, webhook_id=webhook_id, merchant_id=shop.merchant_id, by=BY)
        assert (await shop.webhook(webhook_id)).status == "pending"
        handle = await start(skipping, shop, webhook_id, suffix="-1")
        assert (await handle.result())["attempts"] == 12
        assert len(await pauses(handle)) == 5
    assert (await shop.webhook(webhook_id)).status == "failed"


async def test_a_schedule_gives_way_to_the_one_after_it(
    store: EventStore,
    skipping: Client,
    shop: Shop,
    endpoint: Endpoint,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It sends nothing more, and its end does not call the later one failed, nor is it a failure for the log."""
    endpoint.answer = lambda _: 500
    webhook_id = await queue(shop)
    await retry_webhook(store, webhook_id=webhook_id, merchant_id=shop.merchant_id, by=BY)
    async with delivering(store, skipping):
        result = await (await start(skipping, shop, webhook_id)).result()
    assert result["errorMessage"] == "The merchant had the delivery begin anew"
    assert "Superseded" not in caplog.text
    assert endpoint.received == []
    assert (await shop.webhook(webhook_id)).status == "pending"


async def test_each_attempt_goes_where_the_merchant_wants_it_then_under_the_secret_of_then(
    store: EventStore, skipping: Client, shop: Shop, endpoint: Endpoint
) -> None:
    async with receiving() as second:
        webhook_id = await queue(shop)
        before = (await shop.secret()).secret

        async def moves(_: Received) -> int:
            await shop.listen_at(second.url)
            await rotate_webhook_secret(store, merchant_id=shop.merchant_id, cipher=CIPHER, by=BY)
            return 500

        endpoint.answer = moves
        async with delivering(store, skipping):
            result = await (await start(skipping, shop, webhook_id)).result()
        assert result["success"]
        assert (len(endpoint.received), len(second.received)) == (1, 1)
        now = (await shop.secret()).secret
        assert now != before
        for secret in (now, before):
            [received] = second.received
            assert Webhook(secret).verify(received.body, dict(received.headers)) == PAYLOAD


async def test_without_a_url_it_ends(
    store: EventStore, skipping: Client, shop: Shop, endpoint: Endpoint
) -> None:
    webhook_id = await queue(shop)
    await shop.listen_at(None)
    async with delivering(store, skipping):
        handle = await start(skipping, shop, webhook_id)
        result = await handle.result()
    assert not result["success"]
    assert await pauses(handle) == []
    webhook = await shop.webhook(webhook_id)
    assert (webhook.status, webhook.attempts, webhook.error) == ("failed", 0, result["errorMessage"])


# -- the same again, whenever a workflow is replayed


async def test_a_delivery_does_the_same_when_it_is_replayed_in_the_sandbox(
    store: EventStore, skipping: Client, shop: Shop, endpoint: Endpoint
) -> None:
    """Workers run it without the SDK's sandbox, which would refuse what differs from one run to the next."""
    answers = iter([500, 204])
    endpoint.answer = lambda _: next(answers)
    webhook_id = await queue(shop)
    async with delivering(store, skipping):
        handle = await start(skipping, shop, webhook_id)
        await handle.result()
    replayer = Replayer(workflows=[WebhookDeliveryWorkflow], workflow_runner=SandboxedWorkflowRunner())
    await replayer.replay_workflow(await handle.fetch_history())


@pytest.mark.parametrize(
    ("version", "events"),
    [
        ("looked_up_by_an_activity", 11),
        ("looked_up_by_an_activity", None),
        ("looked_up_locally", 8),
        ("looked_up_locally", None),
    ],
)
async def test_a_delivery_that_an_earlier_version_began_goes_on(version: str, events: int | None) -> None:
    """From its first attempt, and from its end: each looked the endpoint up before it called `deliverWebhook`."""
    stored = json.loads((HISTORIES / f"webhook_{version}.json").read_text())
    history = WorkflowHistory.from_json("webhook-1", {"events": stored["events"][:events]})
    await Replayer(workflows=[WebhookDeliveryWorkflow]).replay_workflow(history)


# -- endpoints that are of no more use


async def test_410_switches_the_endpoint_off_and_setting_the_url_on_again(
    store: EventStore, skipping: Client, shop: Shop, endpoint: Endpoint
) -> None:
    endpoint.answer = lambda _: 410
    webhook_id, waiting = await queue(shop), await queue(shop)
    async with delivering(store, skipping):
        result = await (await start(skipping, shop, webhook_id)).result()
        assert (result["statusCode"], result["attempts"]) == (410, 1)
        off = await find_webhook_endpoint(store.pool, merchant_id=shop.merchant_id)
        assert off is not None
        assert (off.url, off.url_in_use, off.off_reason) == (
            endpoint.url,
            None,
            "The endpoint answered 410 Gone",
        )
        await (await start(skipping, shop, waiting)).result()
        assert len(endpoint.received) == 1
        with pytest.raises(WebhooksOff, match="410"):
            await retry_webhook(store, webhook_id=webhook_id, merchant_id=shop.merchant_id, by=BY)

        await shop.listen_at(endpoint.url)
        on = await find_webhook_endpoint(store.pool, merchant_id=shop.merchant_id)
        assert on is not None
        assert (on.url_in_use, on.failing_since, on.off_at) == (endpoint.url, None, None)
        endpoint.answer = lambda _: 200
        await retry_webhook(store, webhook_id=webhook_id, merchant_id=shop.merchant_id, by=BY)
        assert (await (await start(skipping, shop, webhook_id, suffix="-1")).result())["success"]
    topics = [each.stored.topic for each in await store.read(after=0, limit=100)]
    assert topics.count("webhooks.switched_off") == topics.count("webhooks.switched_on") == 1


async def test_while_it_is_off_nothing_is_queued(
    store: EventStore, settings: Settings, servers: EmbeddedServers, temporal_namespace: str, shop: Shop
) -> None:
    async with receiving(lambda _: 410) as gone:
        await shop.listen_at(gone.url)
        client = await connect(address=servers.temporal_address, namespace=temporal_namespace, codec_key=None)
        async with subscribing(store, settings, client), delivering(store, client):
            await shop.paid()
            await caught_up(store)
            [(webhook_id, _)] = await shop.queued()
            await shop.becomes(webhook_id, "failed")
            await shop.paid()
            await caught_up(store)
            assert len(await shop.queued()) == 1


@dataclasses.dataclass
class Calls:
    """Deliveries without a workflow, at whatever time it is."""

    activities: BackendActivities
    shop: Shop
    url: str
    local: bool = False
    turn: int = 0

    async def deliver(
        self, webhook_id: UUID, *, activity_id: str | None = None, run_id: str = "run"
    ) -> dict[str, Any]:
        self.turn += 1
        environment = ActivityEnvironment()
        environment.info = dataclasses.replace(
            environment.info,
            workflow_id=f"webhook-{webhook_id}",
            workflow_run_id=run_id,
            activity_id=activity_id or str(self.turn),
            is_local=self.local,
        )
        given = {"webhookEventId": str(webhook_id), "webhookUrl": self.url, "payload": PAYLOAD}
        result: dict[str, Any] = await environment.run(self.activities.deliver_webhook, given)
        return result

    async def is_off(self) -> bool:
        endpoint = await find_webhook_endpoint(self.shop.store.pool, merchant_id=self.shop.merchant_id)
        assert endpoint is not None
        return endpoint.off_at is not None


@pytest.mark.parametrize(("recovers", "off"), [(False, True), (True, False)])
async def test_five_days_of_failures_switch_the_endpoint_off(
    store: EventStore, shop: Shop, endpoint: Endpoint, recovers: bool, off: bool
) -> None:
    began = utc_now()
    now = began
    async with backend(store, now=lambda: now) as activities:
        calls = Calls(activities, shop, endpoint.url)
        for hours in (0, 24, 48, 72, 96, 119):
            now = began + timedelta(hours=hours)

            def answer(_: Received, hours: int = hours) -> int:
                return 200 if recovers and hours == 72 else 500

            endpoint.answer = answer
            await calls.deliver(await queue(shop))
            assert not await calls.is_off()
        now = began + timedelta(hours=120)
        await calls.deliver(await queue(shop))
        assert await calls.is_off() is off
        count = len(endpoint.received)
        result = await calls.deliver(await queue(shop))
        assert len(endpoint.received) == (count if off else count + 1)
        assert ("switched off" in result["errorMessage"]) is off


async def test_failures_at_a_former_url_say_nothing_of_the_present_one(
    store: EventStore, shop: Shop, endpoint: Endpoint
) -> None:
    await shop.listen_at("https://moved.example/hooks")
    endpoint.answer = lambda _: 410
    async with backend(store) as activities:
        calls = Calls(activities, shop, endpoint.url)
        await calls.deliver(await queue(shop))
        assert not await calls.is_off()


async def test_an_activity_that_runs_again_sends_nothing_again(
    store: EventStore, shop: Shop, endpoint: Endpoint
) -> None:
    """Its worker died after the attempt was kept: Temporal calls it once more."""
    endpoint.answer = lambda _: 500
    async with backend(store) as activities:
        calls = Calls(activities, shop, endpoint.url)
        webhook_id = await queue(shop)
        first = await calls.deliver(webhook_id, activity_id="7")
        assert await calls.deliver(webhook_id, activity_id="7") == first
        assert len(endpoint.received) == 1
        assert (await calls.deliver(webhook_id, activity_id="8"))["attempts"] == 2
        # The next run of the same workflow counts its activities anew.
        assert (await calls.deliver(webhook_id, activity_id="7", run_id="next"))["attempts"] == 3


async def test_an_endpoint_that_is_gone_is_switched_off_also_where_that_was_the_last_thing_to_do(
    store: EventStore, shop: Shop, endpoint: Endpoint
) -> None:
    """The attempt was kept, and what follows from it was not: Temporal calls once more."""
    endpoint.answer = lambda _: 410
    async with backend(store) as activities, store.pool.connection() as connection:
        calls = Calls(activities, shop, endpoint.url)
        webhook_id = await queue(shop)
        await connection.execute("ALTER TABLE merchants ADD CONSTRAINT never CHECK (webhook_off_at IS NULL)")
        with pytest.raises(psycopg.errors.CheckViolation):
            await calls.deliver(webhook_id, activity_id="7")
        await connection.execute("ALTER TABLE merchants DROP CONSTRAINT never")
        assert not await calls.is_off()
        await calls.deliver(webhook_id, activity_id="7")
        assert await calls.is_off()
        assert len(endpoint.received) == 1
        assert await calls.deliver(webhook_id, activity_id="8") == {
            "success": False,
            "attempts": 1,
            "errorMessage": "The endpoint is switched off: The endpoint answered 410 Gone",
        }
        assert len(endpoint.received) == 1
        await Calls(activities, shop, f"{endpoint.url}/elsewhere").deliver(webhook_id, activity_id="9")
        assert len(endpoint.received) == 2


async def test_an_attempt_is_known_before_its_first_byte_also_where_nobody_saw_its_end(
    store: EventStore, shop: Shop, endpoint: Endpoint
) -> None:
    endpoint.answer = answer = HeldBack()
    async with backend(store) as activities:
        calls = Calls(activities, shop, endpoint.url)
        webhook_id = await queue(shop)
        interrupted = asyncio.create_task(calls.deliver(webhook_id, activity_id="7"))
        await endpoint.has(1)
        interrupted.cancel()
        await asyncio.wait([interrupted])
        answer.give()
        assert (await calls.deliver(webhook_id, activity_id="7"))["attempts"] == 2
        await calls.deliver(webhook_id, activity_id="8")
    attempts = await shop.attempts(webhook_id)
    assert [(each.number, each.attempt.status_code, each.attempt.error) for each in attempts] == [
        (1, None, INTERRUPTED),
        (2, 200, None),
    ]


async def test_two_runs_of_one_attempt_at_once_have_one_result(
    store: EventStore, shop: Shop, endpoint: Endpoint
) -> None:
    """Temporal took the first for dead, and it was not. Both were sent, and both are on record."""
    endpoint.answer = answer = HeldBack()
    async with backend(store) as activities:
        calls = Calls(activities, shop, endpoint.url)
        webhook_id = await queue(shop)
        runs = []
        for count in (1, 2):
            runs.append(asyncio.create_task(calls.deliver(webhook_id, activity_id="7")))
            await endpoint.has(count)
        answer.give()
        first, second = await asyncio.gather(*runs)
        assert first == second == await calls.deliver(webhook_id, activity_id="7")
    assert (first["success"], first["attempts"]) == (True, 2)
    assert [each.attempt.error for each in await shop.attempts(webhook_id)] == [INTERRUPTED, None]
    assert len(endpoint.received) == 2


async def test_a_worker_that_stops_in_the_middle_leaves_the_delivery_to_another(
    store: EventStore, servers: EmbeddedServers, temporal_namespace: str, shop: Shop, endpoint: Endpoint
) -> None:
    client = await connect(address=servers.temporal_address, namespace=temporal_namespace, codec_key=None)
    endpoint.answer = answer = HeldBack()
    webhook_id = await queue(shop)
    async with delivering(store, client, deadline=30, sending_grace=0.2):
        handle = await start(client, shop, webhook_id)
        await endpoint.has(1)
    answer.give()
    async with delivering(store, client):
        async with asyncio.timeout(60):
            result = await handle.result()
    assert (result["success"], result["attempts"]) == (True, 2)  # the first was interrupted
    assert len(endpoint.received) == 2  # at least once: nobody knows what became of the first


# -- nobody waits for somebody else's endpoint


def hold(stack: contextlib.ExitStack, places: EndpointPlaces, merchant_id: UUID, *, suspect: bool) -> int:
    """Take all the places that one endpoint gets; how many these are."""
    for count in itertools.count():
        try:
            stack.enter_context(places.place(merchant_id=merchant_id, suspect=suspect))
        except EndpointBusy:
            return count
    raise AssertionError("unreachable")


def test_one_endpoint_gets_a_few_places_and_gives_them_back() -> None:
    places, one = EndpointPlaces(), uuid7()
    for _ in range(2):
        with contextlib.ExitStack() as stack:
            assert hold(stack, places, one, suspect=False) == 8
            assert hold(stack, places, uuid7(), suspect=True) == 2


def test_however_many_endpoints_hang_there_is_a_place_for_another() -> None:
    with contextlib.ExitStack() as stack:
        places = EndpointPlaces()
        held = [hold(stack, places, uuid7(), suspect=False) for _ in range(100)]
        assert (held[0], held[-1]) == (8, 1)
        assert sum(held) < 400
        assert hold(stack, places, uuid7(), suspect=False) >= 1


def test_all_that_fail_together_leave_places_to_those_that_work() -> None:
    places = EndpointPlaces()
    for _ in range(2):
        with contextlib.ExitStack() as stack:
            assert sum(hold(stack, places, uuid7(), suspect=True) for _ in range(300)) == 200
            assert hold(stack, places, uuid7(), suspect=False) >= 4


def test_of_many_endpoints_those_are_remembered_to_which_something_is_under_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(endpoint_places, "REMEMBERED", 10)
    places, one = EndpointPlaces(), uuid7()
    with contextlib.ExitStack() as stack:
        assert hold(stack, places, one, suspect=False) == 8
        for _ in range(100):
            with places.place(merchant_id=uuid7(), suspect=False):
                pass
        assert len(places._endpoints) <= 10
        assert hold(stack, places, one, suspect=False) == 0


def test_who_finds_no_place_comes_again_at_its_turn() -> None:
    """Twenty come at once to an endpoint that takes half a second, eight at a time."""
    now = 100.0
    places, one = EndpointPlaces(clock=lambda: now), uuid7()

    def turn() -> float:
        with pytest.raises(EndpointBusy) as busy, places.place(merchant_id=one, suspect=False):
            pass
        return busy.value.seconds

    for _ in range(20):
        with contextlib.ExitStack() as stack:
            hold(stack, places, one, suspect=False)
            now += 0.5
    with contextlib.ExitStack() as stack:
        hold(stack, places, one, suspect=False)
        turns = [turn() for _ in range(12)]
        for number, seconds in enumerate(turns, 2):  # the first turn is of who found the last place taken
            assert seconds == pytest.approx(number * 0.5 / 8, rel=0.1)
        with pytest.raises(EndpointBusy) as busy:  # a local activity takes nobody's turn
            stack.enter_context(places.place(merchant_id=one, suspect=False, comes_again=False))
        assert busy.value.seconds == 0
        assert turn() == pytest.approx(14 * 0.5 / 8, rel=0.1)
        now += 20  # it hangs: nobody is to come soon, and none later than in five minutes
        turns = [turn() for _ in range(1_000)]
        assert turns[0] > 2
        assert max(turns) == turns[-1] == 300
    now += 400
    with contextlib.ExitStack() as stack:
        assert hold(stack, places, one, suspect=False) == 8


@pytest.mark.parametrize("local", [False, True])
async def test_without_a_place_the_delivery_comes_again_later(
    store: EventStore, shop: Shop, endpoint: Endpoint, *, local: bool
) -> None:
    """A local activity is scheduled instead, at once, and is then given a turn."""
    async with backend(store, places=EndpointPlaces(per_endpoint=0)) as activities:
        with pytest.raises(ApplicationError) as busy:
            await Calls(activities, shop, endpoint.url, local=local).deliver(await queue(shop))
    assert busy.value.type == "EndpointBusy"
    assert not busy.value.non_retryable
    assert busy.value.next_retry_delay is not None
    assert (busy.value.next_retry_delay > timedelta(0)) is not local
    assert endpoint.received == []


async def test_an_attempt_that_takes_long_is_not_taken_for_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interruptions, "BEAT_SECONDS", 0.01)
    beaten = asyncio.Event()
    environment = ActivityEnvironment()
    environment.on_heartbeat = lambda *_: beaten.set()

    async def send() -> None:
        async with interruptions.under_way(grace=0), asyncio.timeout(60):
            await beaten.wait()

    await environment.run(send)


async def test_an_attempt_that_waits_for_its_turn_is_missed_soon_after_its_worker_died(
    store: EventStore, servers: EmbeddedServers, temporal_namespace: str, shop: Shop
) -> None:
    client = await connect(address=servers.temporal_address, namespace=temporal_namespace, codec_key=None)
    async with delivering(store, client, places=EndpointPlaces(per_endpoint=0)):
        handle = await start(client, shop, await queue(shop))
        scheduled = await first_scheduled(handle)
        await handle.terminate()
    assert BEAT_SECONDS * 2 < scheduled.heartbeat_timeout.seconds <= 10


async def first_scheduled(handle: WorkflowHandle[Any, Any]) -> Any:
    """Wait until Temporal is to run an activity of a workflow."""
    async with asyncio.timeout(60):
        while True:
            for event in (await handle.fetch_history()).events:
                if event.HasField("activity_task_scheduled_event_attributes"):
                    return event.activity_task_scheduled_event_attributes
            await asyncio.sleep(0.05)


async def test_an_endpoint_that_failed_last_time_gets_fewer_places(
    store: EventStore, shop: Shop, endpoint: Endpoint
) -> None:
    endpoint.answer = lambda _: 500
    async with backend(store) as activities:
        calls = Calls(activities, shop, endpoint.url)
        await calls.deliver(await queue(shop))
        endpoint.answer = answer = HeldBack()
        sending = [asyncio.create_task(calls.deliver(await queue(shop))) for _ in range(2)]
        await endpoint.has(3)
        with pytest.raises(ApplicationError, match="too many webhooks"):
            await calls.deliver(await queue(shop))
        answer.give()
        assert [each["success"] for each in await asyncio.gather(*sending)] == [True, True]


async def test_endpoints_that_hang_delay_no_one_elses_webhooks(
    store: EventStore, settings: Settings, servers: EmbeddedServers, temporal_namespace: str
) -> None:
    """Ten merchants' endpoints never answer, with 200 webhooks between them, all queued before the others'."""
    client = await connect(address=servers.temporal_address, namespace=temporal_namespace, codec_key=None)

    answer = HeldBack()
    async with receiving(answer) as hanging, receiving() as working:
        dead = [await open_shop(store, url=f"{hanging.url}/{number}") for number in range(10)]
        alive = [await open_shop(store, url=f"{working.url}/{number}") for number in range(5)]
        async with subscribing(store, settings, client):
            for shop in dead:
                await asyncio.gather(*(shop.paid() for _ in range(20)))
            await caught_up(store)
            for shop in alive:
                await asyncio.gather(*(shop.paid() for _ in range(10)))
            await caught_up(store)
        # Thirty slots: without bounds, those that hang would hold them all, seven times over.
        places = EndpointPlaces(deliveries=24, per_endpoint=2)
        async with (
            delivering(store, client, deadline=55, places=places, slots=30),
            Worker(client, task_queue="stripe-payments", workflows=[ForeignWorkflow]),
        ):
            await working.has(50, seconds=50)
            await hanging.has(10)
            assert len(hanging.received) <= 24
            # A payment is reported by the same worker, and is not held up either.
            order_id = await alive[0].paid()
            await client.execute_workflow(
                "ForeignWorkflow",
                [["updateOrderStatus", {"orderId": str(order_id), "status": "captured"}]],
                id=f"payment-{order_id}",
                task_queue="stripe-payments",
                execution_timeout=timedelta(seconds=60),
            )
            answer.give()
