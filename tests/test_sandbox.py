"""The sandbox processor: what each token does, and that no trouble on the way charges twice or lies.

Temporal, PostgreSQL and the sandbox are real; the backend's activities are recorded by a worker of the test.
"""

import asyncio
import contextlib
import sys
import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from temporalio import activity
from temporalio.client import Client, WorkflowFailureError, WorkflowHandle
from temporalio.testing import WorkflowEnvironment
from temporalio.worker import Worker

from payloops.embedded import EmbeddedServers
from payloops.events.event_store import EventStore
from payloops.http.processor_payloads import reference
from payloops.sandbox import ledger, workflows
from payloops.sandbox.activities import SLOW_SECONDS, SandboxActivities
from payloops.sandbox.messages import ChargeAnswer, ChargeRequest
from payloops.sandbox.worker import sandbox_worker
from payloops.workflows_client.connection import connect

AMOUNT = 5_000
SECONDS = 90
"""That a test waits for what has to come."""
TEST_SERVER = str(Path(sys.executable).with_name("temporal-test-server"))
SECRET = "sk_test_of_a_merchant"


@dataclass
class Backend:
    """Keeps what the workflows report; `config` is what getProcessorConfig answers."""

    config: dict[str, Any] | None = field(
        default_factory=lambda: {"testMode": True, "credentials": {"secretKey": SECRET}}
    )
    orders: list[dict[str, Any]] = field(default_factory=list)
    refunds: list[dict[str, Any]] = field(default_factory=list)
    refuse_reports: int = 0

    def activities(self) -> list[Any]:
        @activity.defn(name="getProcessorConfig")
        async def config(request: dict[str, Any]) -> dict[str, Any] | None:
            return None if self.config is None else request | self.config

        @activity.defn(name="updateOrderStatus")
        async def order(report: dict[str, Any]) -> None:
            if self.refuse_reports > 0:
                self.refuse_reports -= 1
                raise ConnectionError("the backend is down")
            self.orders.append(report)

        @activity.defn(name="updateRefundStatus")
        async def refund(report: dict[str, Any]) -> None:
            self.refunds.append(report)

        return [config, order, refund]

    def statuses(self, order_id: str) -> list[str]:
        return [report["status"] for report in self.orders if report["orderId"] == order_id]


@dataclass
class Shop:
    """A running sandbox for one processor, and a merchant's way of starting things there."""

    client: Client
    pool: ledger.Pool
    backend: Backend
    processor: str = "stripe"
    environment: WorkflowEnvironment | None = None

    async def pay(
        self, *, order_id: str | None = None, attempt: int = 1, **fields: Any
    ) -> WorkflowHandle[Any, Any]:
        order_id = order_id or str(uuid.uuid4())
        token = fields.pop("token", None)
        if token is not None:
            fields["paymentMethod"] = {"type": "card", "token": token}
        payment = {"orderId": order_id, "merchantId": "m", "amount": AMOUNT, "currency": "USD", **fields}
        id = f"payment-{order_id}" if attempt == 1 else f"payment-{order_id}-{attempt}"
        return await self._start("PaymentWorkflow", id, payment)

    async def operate(self, workflow: str, order_id: str, *, suffix: str = "", amount: int = AMOUNT) -> str:
        charge = await self.charge(order_id)
        id = f"{workflow.lower().removesuffix('workflow')}-{order_id}{suffix}"
        operation = {
            "orderId": order_id,
            "merchantId": "m",
            "processorOrderId": charge.processor_order_id,
            "amount": amount,
            "currency": "USD",
        }
        return await (await self._start(workflow, id, operation)).result()

    async def refund(self, order_id: str, *, amount: int, refund_id: str | None = None) -> str:
        charge = await self.charge(order_id)
        refund_id = refund_id or str(uuid.uuid4())
        refund = {
            "refundId": refund_id,
            "orderId": order_id,
            "merchantId": "m",
            "transactionId": str(uuid.uuid4()),
            "processorOrderId": charge.processor_order_id,
            "amount": amount,
            "currency": "USD",
        }
        return await (await self._start("RefundWorkflow", f"refund-{refund_id}", refund)).result()

    async def charge(self, order_id: str, *, attempt: int = 1) -> ledger.Charge:
        charge = await ledger.find_charge(self.pool, order_id=order_id, attempt=attempt)
        assert charge is not None
        return charge

    async def reported(self, order_id: str, status: str) -> dict[str, Any]:
        """Wait until a status was reported, and return the report."""
        async with asyncio.timeout(SECONDS):
            while True:
                for report in self.backend.orders:
                    if (report["orderId"], report["status"]) == (order_id, status):
                        return report
                await asyncio.sleep(0.02)

    async def _start(self, workflow: str, id: str, argument: dict[str, Any]) -> WorkflowHandle[Any, str]:
        queue = f"{self.processor}-payments"
        return await self.client.start_workflow(workflow, argument, id=id, task_queue=queue)


@pytest.fixture(scope="module")
def temporal_namespace(namespaces: Iterator[str]) -> str:
    """One for all of these tests: orders of their own keep them apart."""
    return next(namespaces)


@pytest.fixture
def temporal_address(servers: EmbeddedServers) -> str:
    return servers.temporal_address


@pytest.fixture
async def pool(store: EventStore) -> ledger.Pool:
    """Connections to a database with open books."""
    await ledger.create_schema(store.pool)
    return store.pool


@pytest.fixture
async def shop(pool: ledger.Pool, temporal_address: str, temporal_namespace: str) -> AsyncIterator[Shop]:
    client = await connect(address=temporal_address, namespace=temporal_namespace, codec_key=None)
    async with open_shop(client, pool) as shop:
        yield shop


@contextlib.asynccontextmanager
async def open_shop(
    client: Client, pool: ledger.Pool, *, slow_seconds: float = 0.5, **changed: Any
) -> AsyncIterator[Shop]:
    """Serve both queues. `changed`: the sandbox's activities that behave differently, by method name."""
    backend = Backend()
    sandbox = SandboxActivities(pool=pool, processor="stripe", slow_seconds=slow_seconds)
    served = [changed.get(method.__name__, method) for method in sandbox.all()]
    async with (
        Worker(client, task_queue="stripe-payments", workflows=workflows.WORKFLOWS, activities=served),
        Worker(client, task_queue="backend-operations", activities=backend.activities()),
    ):
        yield Shop(client=client, pool=pool, backend=backend)


@contextlib.asynccontextmanager
async def open_skipping_shop(pool: ledger.Pool, **changed: Any) -> AsyncIterator[Shop]:
    """A shop whose Temporal skips time while nothing happens."""
    async with (
        await WorkflowEnvironment.start_time_skipping(test_server_existing_path=TEST_SERVER) as environment,
        open_shop(environment.client, pool, **changed) as shop,
    ):
        shop.environment = environment
        yield shop


@pytest.fixture
async def skipping_shop(pool: ledger.Pool) -> AsyncIterator[Shop]:
    async with open_skipping_shop(pool) as shop:
        yield shop


def order_of(handle: WorkflowHandle[Any, Any]) -> str:
    return handle.id.removeprefix("payment-")


@pytest.mark.parametrize("token", [None, "tok_visa"])
async def test_a_payment_is_captured(shop: Shop, token: str | None) -> None:
    handle = await shop.pay(token=token)
    assert await handle.result() == "captured"
    charge = await shop.charge(order_of(handle))
    assert (charge.status, charge.amount_captured) == ("captured", AMOUNT)
    assert shop.backend.orders == [
        {
            "orderId": order_of(handle),
            "status": "captured",
            "processorOrderId": charge.processor_order_id,
            "processorTransactionId": charge.processor_transaction_id,
        }
    ]
    assert charge.processor_order_id.startswith("sb_order_")
    assert charge.processor_transaction_id.startswith("sb_txn_")


def test_ids_of_the_sandbox_are_told_as_they_are() -> None:
    made = [ledger.new_id("order") for _ in range(50_000)]
    assert [reference(each) for each in made] == made


async def test_declined_is_failed_with_the_processors_code(shop: Shop) -> None:
    handle = await shop.pay(token="tok_chargeDeclined")
    assert await handle.result() == "failed"
    (report,) = shop.backend.orders
    assert (report["status"], report["errorCode"]) == ("failed", "card_declined")
    assert report["errorMessage"]


async def test_a_second_attempt_is_another_charge(shop: Shop) -> None:
    order_id = str(uuid.uuid4())
    declined = await shop.pay(order_id=order_id, token="tok_chargeDeclined")
    assert await declined.result() == "failed"
    paid = await shop.pay(order_id=order_id, attempt=2)
    assert await paid.result() == "captured"
    assert (await shop.charge(order_id, attempt=1)).status == "declined"
    assert (await shop.charge(order_id, attempt=2)).status == "captured"


@pytest.mark.parametrize("fields", [{"token": "tok_authorize"}, {"capture": "manual"}])
async def test_authorized_then_captured(shop: Shop, fields: dict[str, Any]) -> None:
    handle = await shop.pay(**fields)
    assert await handle.result() == "authorized"
    assert (await shop.charge(order_of(handle))).amount_captured == 0
    assert await shop.operate("CaptureWorkflow", order_of(handle), amount=3_000) == "captured"
    assert (await shop.charge(order_of(handle))).amount_captured == 3_000
    assert shop.backend.statuses(order_of(handle)) == ["authorized", "captured"]


async def test_authorized_then_voided(shop: Shop) -> None:
    handle = await shop.pay(capture="manual")
    await handle.result()
    assert await shop.operate("VoidWorkflow", order_of(handle)) == "cancelled"
    assert (await shop.charge(order_of(handle))).status == "cancelled"
    assert shop.backend.statuses(order_of(handle)) == ["authorized", "cancelled"]


async def test_capturing_more_than_was_authorized_fails_and_can_be_asked_again(shop: Shop) -> None:
    handle = await shop.pay(capture="manual")
    await handle.result()
    order_id = order_of(handle)
    assert await shop.operate("CaptureWorkflow", order_id, amount=AMOUNT + 1) == "failed"
    assert shop.backend.orders[-1]["errorCode"] == "capture_exceeds_authorized"
    assert await shop.operate("CaptureWorkflow", order_id, suffix="-2") == "captured"


async def test_a_capture_of_what_is_captured_and_a_void_of_what_is_voided_report_what_is(shop: Shop) -> None:
    captured, voided = await shop.pay(), await shop.pay(capture="manual")
    assert (await captured.result(), await voided.result()) == ("captured", "authorized")
    assert await shop.operate("VoidWorkflow", order_of(captured)) == "captured"
    assert await shop.operate("VoidWorkflow", order_of(voided)) == "cancelled"
    assert await shop.operate("VoidWorkflow", order_of(voided), suffix="-2") == "cancelled"
    assert await shop.operate("CaptureWorkflow", order_of(voided)) == "cancelled"


async def test_an_action_is_required_and_its_success_captures(shop: Shop) -> None:
    handle = await shop.pay(token="tok_3ds")
    report = await shop.reported(order_of(handle), "requires_action")
    assert report["redirectUrl"].startswith("https://")
    assert report["clientSecret"]
    await handle.signal("completePayment", {"success": True, "processorTransactionId": "theirs_1"})
    assert await handle.result() == "captured"
    assert shop.backend.orders[-1]["processorTransactionId"] == "theirs_1"
    assert shop.backend.statuses(order_of(handle)) == ["requires_action", "captured"]


async def test_an_action_with_manual_capture_authorizes(shop: Shop) -> None:
    handle = await shop.pay(token="tok_3ds", capture="manual")
    await shop.reported(order_of(handle), "requires_action")
    await handle.signal("completePayment", {"success": True})
    assert await handle.result() == "authorized"


async def test_an_action_that_fails_fails_the_payment(shop: Shop) -> None:
    handle = await shop.pay(token="tok_3ds")
    await shop.reported(order_of(handle), "requires_action")
    await handle.signal("completePayment", {"success": False})
    assert await handle.result() == "failed"
    assert shop.backend.orders[-1]["errorCode"] == "authentication_failed"


async def test_cancelling_while_the_customer_acts_cancels_at_the_processor(shop: Shop) -> None:
    handle = await shop.pay(token="tok_3ds")
    await shop.reported(order_of(handle), "requires_action")
    await handle.signal("cancelPayment")
    assert await handle.result() == "cancelled"
    assert (await shop.charge(order_of(handle))).status == "cancelled"
    assert shop.backend.statuses(order_of(handle)) == ["requires_action", "cancelled"]


async def test_an_action_that_nobody_ends_fails_after_fifteen_minutes(skipping_shop: Shop) -> None:
    shop = skipping_shop
    handle = await shop.pay(token="tok_3ds")
    assert await handle.result() == "failed"
    assert shop.backend.statuses(order_of(handle)) == ["requires_action", "failed"]
    assert (await shop.charge(order_of(handle))).status == "cancelled"  # it cannot be completed any more
    times = (await handle.fetch_history()).events
    waited = times[-1].event_time.ToDatetime() - times[0].event_time.ToDatetime()
    assert 900 <= waited.total_seconds() < 960


async def test_a_completion_after_fourteen_minutes_still_counts(skipping_shop: Shop) -> None:
    shop = skipping_shop
    handle = await shop.pay(token="tok_3ds")
    await shop.reported(order_of(handle), "requires_action")
    assert shop.environment is not None
    await shop.environment.sleep(14 * 60)
    await handle.signal("completePayment", {"success": True})
    assert await handle.result() == "captured"


async def test_a_slow_payment_takes_its_time(shop: Shop) -> None:
    assert SLOW_SECONDS == 5
    started = asyncio.get_running_loop().time()
    handle = await shop.pay(token="tok_slow")
    assert await handle.result() == "captured"
    assert asyncio.get_running_loop().time() - started >= 0.5


async def test_cancelling_while_the_charge_runs_takes_no_money(
    pool: ledger.Pool, temporal_address: str, temporal_namespace: str
) -> None:
    """The charge reaches the processor after the cancellation, and finds itself cancelled."""
    client = await connect(address=temporal_address, namespace=temporal_namespace, codec_key=None)
    asked, cancelled, arrived = asyncio.Event(), asyncio.Event(), asyncio.Event()

    @activity.defn(name="sandboxCharge")
    async def slow_to_arrive(request: ChargeRequest) -> ChargeAnswer:
        asked.set()
        await cancelled.wait()
        answer = await SandboxActivities(pool=pool, processor="stripe").charge(request)
        arrived.set()
        return answer

    async with open_shop(client, pool, charge=slow_to_arrive) as shop:
        handle = await shop.pay()
        await asyncio.wait_for(asked.wait(), SECONDS)
        await handle.signal("cancelPayment")
        assert await handle.result() == "cancelled"
        cancelled.set()
        await asyncio.wait_for(arrived.wait(), SECONDS)
        charge = await shop.charge(order_of(handle))
        assert (charge.status, charge.amount_captured) == ("cancelled", 0)
        assert shop.backend.statuses(order_of(handle)) == ["cancelled"]


async def test_cancelling_too_late_tells_the_truth(
    pool: ledger.Pool, temporal_address: str, temporal_namespace: str
) -> None:
    """The money was taken when the cancellation came, though its answer was not yet there."""
    client = await connect(address=temporal_address, namespace=temporal_namespace, codec_key=None)
    charged, cancelled = asyncio.Event(), asyncio.Event()

    @activity.defn(name="sandboxCharge")
    async def slow_to_answer(request: ChargeRequest) -> ChargeAnswer:
        answer = await SandboxActivities(pool=pool, processor="stripe").charge(request)
        charged.set()
        await cancelled.wait()
        return answer

    async with open_shop(client, pool, charge=slow_to_answer) as shop:
        handle = await shop.pay()
        await asyncio.wait_for(charged.wait(), SECONDS)
        await handle.signal("cancelPayment")
        cancelled.set()
        assert await handle.result() == "captured"
        assert shop.backend.statuses(order_of(handle)) == ["captured"]


async def test_a_lost_answer_charges_once(shop: Shop) -> None:
    handle = await shop.pay(token="tok_lost")
    assert await handle.result() == "captured"
    history = await handle.fetch_history()
    failures = [e for e in history.events if e.HasField("activity_task_started_event_attributes")]
    attempts = [e.activity_task_started_event_attributes.attempt for e in failures]
    assert 2 in attempts, "the answer was not lost"
    charge = await shop.charge(order_of(handle))
    assert charge.amount_captured == AMOUNT
    assert shop.backend.statuses(order_of(handle)) == ["captured"]


async def test_when_every_answer_is_lost_the_processor_is_asked(pool: ledger.Pool) -> None:
    """Charged, but not one answer comes back: what is reported is what the books say."""
    sandbox = SandboxActivities(pool=pool, processor="stripe")

    @activity.defn(name="sandboxCharge")
    async def charge_and_lose(request: ChargeRequest) -> ChargeAnswer:
        await sandbox.charge(request)
        raise ConnectionResetError("lost")

    async with open_skipping_shop(pool, charge=charge_and_lose) as shop:
        handle = await shop.pay()
        assert await handle.result() == "captured"
        assert shop.backend.statuses(order_of(handle)) == ["captured"]


async def test_a_charge_that_never_arrived_is_failed_and_can_not_arrive_later(pool: ledger.Pool) -> None:
    @activity.defn(name="sandboxCharge")
    async def unreachable(request: ChargeRequest) -> ChargeAnswer:
        raise ConnectionRefusedError("no way there")

    async with open_skipping_shop(pool, charge=unreachable) as shop:
        handle = await shop.pay()
        assert await handle.result() == "failed"
        assert shop.backend.orders[-1]["errorCode"] == "payment_expired"
        late, made = await ledger.charge(
            pool,
            order_id=order_of(handle),
            attempt=1,
            processor="stripe",
            amount=AMOUNT,
            currency="USD",
            token=None,
            manual_capture=False,
        )
        assert (late.status, made) == ("cancelled", False)


async def test_an_unknown_outcome_is_not_reported_while_the_processor_cannot_be_asked(
    pool: ledger.Pool,
) -> None:
    @activity.defn(name="sandboxCharge")
    async def lost(request: ChargeRequest) -> ChargeAnswer:
        raise ConnectionResetError("lost")

    @activity.defn(name="sandboxFindCharge")
    async def cannot_be_asked(request: ChargeRequest) -> ChargeAnswer | None:
        raise ConnectionRefusedError("the processor is down")

    async with open_skipping_shop(pool, charge=lost, find_charge=cannot_be_asked) as shop:
        handle = await shop.pay()
        with pytest.raises(WorkflowFailureError):
            await handle.result()
        assert shop.backend.orders == []  # it stays processing


async def test_a_merchant_without_the_processor_is_not_charged(shop: Shop) -> None:
    shop.backend.config = None
    handle = await shop.pay()
    assert await handle.result() == "failed"
    assert shop.backend.orders[-1]["errorCode"] == "no_processor"
    assert await ledger.find_charge(shop.pool, order_id=order_of(handle), attempt=1) is None


async def test_a_backend_that_is_down_is_told_when_it_is_back(shop: Shop) -> None:
    shop.backend.refuse_reports = 3
    handle = await shop.pay()
    assert await handle.result() == "captured"
    assert shop.backend.statuses(order_of(handle)) == ["captured"]


async def test_refunds_up_to_what_was_captured(shop: Shop) -> None:
    handle = await shop.pay()
    await handle.result()
    order_id = order_of(handle)
    assert await shop.refund(order_id, amount=2_000) == "success"
    assert await shop.refund(order_id, amount=3_001) == "failed"
    assert shop.backend.refunds[-1]["errorCode"] == "refund_exceeds_captured"
    assert await shop.refund(order_id, amount=3_000) == "success"
    assert (await shop.charge(order_id)).amount_refunded == AMOUNT
    assert shop.backend.refunds[-1]["processorTransactionId"].startswith("sb_txn_")
    assert [report["status"] for report in shop.backend.refunds] == ["success", "failed", "success"]


async def test_concurrent_refunds_never_exceed_what_was_captured(shop: Shop) -> None:
    handle = await shop.pay()
    await handle.result()
    order_id = order_of(handle)
    ends = await asyncio.gather(*(shop.refund(order_id, amount=1_500) for _ in range(8)))
    assert sorted(ends) == ["failed"] * 5 + ["success"] * 3
    assert (await shop.charge(order_id)).amount_refunded == 4_500


async def test_a_refund_asked_twice_is_made_once(shop: Shop) -> None:
    handle = await shop.pay()
    await handle.result()
    charge = await shop.charge(order_of(handle))
    request: dict[str, Any] = {
        "kind": "refund",
        "request_id": str(uuid.uuid4()),
        "order_id": charge.order_id,
        "processor_order_id": charge.processor_order_id,
        "amount": 1_000,
        "currency": "USD",
    }
    answers = await asyncio.gather(*(ledger.operate(shop.pool, **request) for _ in range(4)))
    assert len({answer.processor_transaction_id for answer in answers}) == 1
    assert (await shop.charge(charge.order_id)).amount_refunded == 1_000
    with pytest.raises(ledger.IdempotencyKeyReused):
        await ledger.operate(shop.pool, **request | {"amount": 1_001})


async def test_concurrent_charges_of_one_attempt_are_one_charge(pool: ledger.Pool) -> None:
    request: dict[str, Any] = {
        "order_id": str(uuid.uuid4()),
        "attempt": 1,
        "processor": "razorpay",
        "amount": AMOUNT,
        "currency": "INR",
        "token": None,
        "manual_capture": False,
    }
    answers = await asyncio.gather(*(ledger.charge(pool, **request) for _ in range(8)))
    assert [made for _, made in answers].count(True) == 1
    assert len({charge.processor_order_id for charge, _ in answers}) == 1
    with pytest.raises(ledger.IdempotencyKeyReused):
        await ledger.charge(pool, **request | {"amount": 1})


async def test_an_operation_in_another_currency_or_of_another_order_is_refused(shop: Shop) -> None:
    handle = await shop.pay()
    await handle.result()
    charge = await shop.charge(order_of(handle))
    request: dict[str, Any] = {
        "kind": "refund",
        "order_id": charge.order_id,
        "processor_order_id": charge.processor_order_id,
        "amount": 1_000,
    }
    refused = await ledger.operate(shop.pool, **request, request_id=str(uuid.uuid4()), currency="EUR")
    assert refused.error_code == "currency_mismatch"
    with pytest.raises(ledger.NoSuchCharge):
        await ledger.operate(
            shop.pool, **request | {"order_id": "another"}, request_id=str(uuid.uuid4()), currency="USD"
        )


async def test_workers_that_start_together_open_the_books_once(pool: ledger.Pool) -> None:
    async with pool.connection() as connection:
        await connection.execute("DROP SCHEMA sandbox CASCADE")
    await asyncio.gather(*(ledger.create_schema(pool) for _ in range(4)))
    assert await ledger.find_charge(pool, order_id="none", attempt=1) is None


async def test_with_a_codec_key_a_workflows_history_holds_no_credentials(
    pool: ledger.Pool, temporal_address: str, temporal_namespace: str
) -> None:
    for codec_key, readable in [("a codec key of thirty-two characters", False), (None, True)]:
        client = await connect(address=temporal_address, namespace=temporal_namespace, codec_key=codec_key)
        async with open_shop(client, pool) as shop:
            handle = await shop.pay()
            assert await handle.result() == "captured"
            events = (await handle.fetch_history()).events
            assert any(SECRET.encode() in event.SerializeToString() for event in events) is readable


async def test_the_worker_of_each_processor_serves_its_queue(shop: Shop) -> None:
    """As `payloops worker --sandbox` runs it, here for razorpay."""
    async with sandbox_worker(client=shop.client, pool=shop.pool, processor="razorpay"):
        shop.processor = "razorpay"
        handle = await shop.pay(currency="INR")
        assert await handle.result() == "captured"
        assert (await shop.charge(order_of(handle))).processor == "razorpay"


@pytest.mark.parametrize(
    ("workflow_id", "attempt"), [("payment-o", 1), ("payment-o-2", 2), ("payment-o-13", 13)]
)
def test_the_attempt_is_read_from_the_workflow_id(workflow_id: str, attempt: int) -> None:
    assert workflows.attempt_of(workflow_id, order_id="o") == attempt
