"""How long a payment takes on its way: from `pay` to its workflow's start, to captured, to the merchant's webhook.

Starts the whole service (`payloops dev`) on a data directory of its own, and pays orders at a steady rate, whatever
becomes of those before: 1, 20 and 100 a second. The sandbox's processor answers at once, so that what is measured is
the service, its Temporal and its workers, all on this machine. Meanwhile the lag of the log's readers is sampled.

    make bench ARGS=pipeline                    # about three minutes
    python benchmarks/pipeline.py --rates 50 --seconds 60
"""

import argparse
import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Iterator
from collections.abc import Set as AbstractSet
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import aiohttp
import figures
from aiohttp import web
from process_usage import children, cpu_seconds, run
from temporalio.client import Client as Temporal

from payloops.commands.workflow_ids import payment_workflow_id
from payloops.dev.client import Client
from payloops.dev.demo_merchant import DemoMerchant, read_demo_merchant
from payloops.dev.environment import read_environment
from payloops.embedded.locks import choosing_ports, free_ports
from payloops.events.pools import Pool, connection_pool
from payloops.projections.status import projections_status
from payloops.workflows_client.connection import connect

ORDER = {"amount": 4_999, "currency": "USD"}
START_SECONDS = 60.0
REST_SECONDS = 60.0
"""For which payments may still be on their way after the last one was sent."""
SAMPLES_A_SECOND = 10
AT_ONCE = 32
"""Requests that make the orders of a rate."""
CAPTURED_AT = """
    SELECT originator_id, extract(epoch FROM recorded_at)::float8 FROM stored_events
    WHERE originator_id = ANY(%s) AND topic = 'payment.captured'
"""
STAGES = ("answer to `pay`", "workflow started", "captured", "webhook delivered")


@contextmanager
def service() -> Iterator[tuple[DemoMerchant, dict[str, str], int]]:
    """The whole service: its merchant, its environment, and its process id."""
    folder = Path(tempfile.mkdtemp(prefix="payloops-bench-"))
    with choosing_ports():
        [port] = free_ports(wanted=[None])
    log = folder / "dev.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "payloops", "dev", "--stop-with-parent"),
                *("--data-dir", str(folder / "data"), "--port", str(port)),
            ],
            env={**os.environ, "RATE_LIMITS": "false", "LOG_LEVEL": "warning"},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            deadline = time.monotonic() + START_SECONDS
            while "is ready" not in log.read_text():
                if process.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit(f"payloops dev did not start:\n{log.read_text()}")
                time.sleep(0.1)
            merchant = read_demo_merchant(data_dir=folder / "data")
            assert merchant is not None
            yield merchant, read_environment(data_dir=folder / "data"), process.pid
        finally:
            process.terminate()
            process.wait(timeout=30)
            shutil.rmtree(folder, ignore_errors=True)


@dataclass
class Receiver:
    """The merchant's endpoint: when it was told of an order's capture."""

    captured: dict[str, float] = field(default_factory=dict)
    _heard: asyncio.Event = field(default_factory=asyncio.Event)

    async def heard_of(self, orders: AbstractSet[str], *, seconds: float) -> None:
        """Wait until it was told of all these, so many seconds at the most."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not orders <= self.captured.keys():
                    self._heard.clear()
                    await self._heard.wait()

    async def hear(self, request: web.Request) -> web.Response:
        now = time.time()
        told = await request.json()
        if told["type"] == "payment.captured":
            self.captured.setdefault(told["orderId"], now)
            self._heard.set()
        return web.Response()


@asynccontextmanager
async def receiving(merchant: DemoMerchant) -> AsyncIterator[Receiver]:
    """An endpoint that the merchant's webhooks are sent to."""
    receiver = Receiver()
    app = web.Application()
    app.router.add_post("/webhooks", receiver.hear)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    async with Client(url=merchant.url) as client:
        signed_in = await client.post(
            "/api/auth/login", body={"email": merchant.email, "password": merchant.password}
        )
    async with (
        aiohttp.ClientSession(headers={"Authorization": f"Bearer {signed_in.body['token']}"}) as session,
        session.put(
            f"{merchant.url}/api/merchants/me", json={"webhookUrl": f"http://{host}:{port}/webhooks"}
        ) as answer,
    ):
        answer.raise_for_status()
    try:
        yield receiver
    finally:
        await runner.cleanup()


class Lag:
    """Samples how old the oldest event is that a reader of the log has not done."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self.seconds: dict[str, list[float]] = defaultdict(list)

    async def run(self) -> None:
        while True:
            for reader in await projections_status(self._pool):
                self.seconds[reader.name].append(reader.lag_seconds)
            await asyncio.sleep(1 / SAMPLES_A_SECOND)


class Payments:
    """Pays orders of one service."""

    def __init__(self, api: Client, temporal: Temporal, pool: Pool, receiver: Receiver) -> None:
        self._api = api
        self._temporal = temporal
        self._pool = pool
        self._receiver = receiver

    async def at(self, rate: float, *, seconds: float) -> dict[str, Any]:
        """Pay so many orders a second, wait for the end of all, and tell how long each stage took."""
        count = max(1, round(rate * seconds))
        orders = await _each(count, lambda _: self._create())
        lag = Lag(self._pool)
        sampling = asyncio.create_task(lag.run())
        sent: dict[str, float] = {}
        answered: dict[str, float] = {}
        refused = 0

        async def pay(order: str) -> None:
            nonlocal refused
            sent[order] = time.time()
            try:
                await self._api.post(f"/v1/orders/{order}/pay", body={})
            except Exception:  # noqa: BLE001  # counted: overload is a finding, too
                refused += 1
            else:
                answered[order] = time.time()

        began = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for number, order in enumerate(orders):
                await asyncio.sleep(began + number / rate - time.monotonic())
                group.create_task(pay(order))
        paid_for = time.monotonic() - began
        await self._receiver.heard_of(answered.keys(), seconds=REST_SECONDS)
        took = time.monotonic() - began
        sampling.cancel()
        await asyncio.gather(sampling, return_exceptions=True)
        reached = {
            "answer to `pay`": answered,
            "workflow started": await self._starts(answered),
            "captured": await self._captures(list(answered)),
            "webhook delivered": self._receiver.captured,
        }
        delivered = len(answered.keys() & self._receiver.captured.keys())
        return {
            "payments_per_second": rate,
            "payments": count,
            "refused": refused,
            "unfinished": len(answered) - delivered,
            "seconds_of_paying": round(paid_for, 1),
            "finished_per_second": round(delivered / took, 1),
            "ms_from_pay": {
                name: _quantiles([at[order] - sent[order] for order in answered if order in at])
                for name, at in reached.items()
            },
            "lag_ms": {name: _quantiles(samples) for name, samples in sorted(lag.seconds.items())},
        }

    async def _create(self) -> str:
        created = await self._api.post("/v1/orders", body=ORDER)
        order_id: str = created.body["id"]
        return order_id

    async def _starts(self, orders: Iterable[str]) -> dict[str, float]:
        """When the workflow of each was started, where it was."""
        ids = {payment_workflow_id(order_id=order, attempt=1): order for order in orders}
        starts: dict[str, float] = {}
        async for workflow in self._temporal.list_workflows(
            "WorkflowType = 'PaymentWorkflow'", page_size=1_000, rpc_timeout=timedelta(seconds=20)
        ):
            if workflow.id in ids:
                starts[ids[workflow.id]] = workflow.start_time.timestamp()
        return starts

    async def _captures(self, orders: list[str]) -> dict[str, float]:
        async with self._pool.connection() as connection:
            cursor = await connection.execute(CAPTURED_AT, ([UUID(order) for order in orders],))
            return {str(order): at for order, at in await cursor.fetchall()}


async def _each(count: int, call: Any) -> list[Any]:
    """The results of a call for each number, so many at a time."""
    limit = asyncio.Semaphore(AT_ONCE)

    async def one(number: int) -> Any:
        async with limit:
            return await call(number)

    return await asyncio.gather(*(one(number) for number in range(count)))


def _quantiles(seconds: list[float]) -> dict[str, float] | None:
    if not seconds:
        return None
    return {
        name: round(figures.percentile(seconds, share), 1) for name, share in (("p50", 0.5), ("p99", 0.99))
    }


def parts_cpu(pid: int) -> dict[str, float]:
    """Seconds of CPU of each part of the service, by its name."""
    used: dict[str, float] = defaultdict(float)
    for each in children(pid):
        try:
            command = Path(f"/proc/{each}/cmdline").read_text().split("\0")
        except OSError:
            continue
        name = command[command.index("payloops") + 1] if "payloops" in command else Path(command[0]).name
        used[name] += cpu_seconds(each)
    return used


async def measure(
    merchant: DemoMerchant, environment: dict[str, str], pid: int, *, rates: list[float], seconds: float
) -> dict[str, Any]:
    temporal = await connect(
        address=environment["TEMPORAL_ADDRESS"],
        namespace=environment["TEMPORAL_NAMESPACE"],
        codec_key=environment["TEMPORAL_CODEC_KEY"],
    )
    pool = connection_pool(environment["DATABASE_URL"], size=2, application_name="benchmark")
    await pool.open()
    found = []
    async with (
        receiving(merchant) as receiver,
        Client(url=merchant.url, headers={"X-API-Key": merchant.api_key}) as api,
    ):
        payments = Payments(api, temporal, pool, receiver)
        await payments.at(2, seconds=2)  # warms up
        for rate in rates:
            before, began = parts_cpu(pid), time.monotonic()
            reached = await payments.at(rate, seconds=seconds)
            took = time.monotonic() - began
            after = parts_cpu(pid)
            used = {name: after[name] - before.get(name, 0.0) for name in after}
            found.append(
                {
                    **reached,
                    "cores": {name: round(cpu / took, 2) for name, cpu in used.items()},
                    "cpu_ms_a_payment": {
                        name: round(cpu / reached["payments"] * 1_000, 1) for name, cpu in used.items()
                    },
                }
            )
            print(f"{rate:g} a second: {took:.0f} s until the last was delivered, or given up", flush=True)
    await pool.close()
    return {"seconds": seconds, "rates": found}


def show(found: dict[str, Any]) -> None:
    def told(each: dict[str, float] | None) -> str:
        return "-" if each is None else f"{each['p50']:,.0f}, {each['p99']:,.0f}"

    rates = found["rates"]
    columns = tuple(f"{each['payments_per_second']:g} a second" for each in rates)
    rows = [(f"to: {name}", *(told(each["ms_from_pay"][name]) for each in rates)) for name in STAGES]
    readers = sorted({name for each in rates for name in each["lag_ms"]})
    rows += [(f"lag of {name}", *(told(each["lag_ms"].get(name)) for each in rates)) for name in readers]
    figures.show("From sending `pay`, and lag: p50, p99 in ms", rows, columns=("", *columns))
    rows = [
        ("payments", *(f"{each['payments']:,}" for each in rates)),
        ("refused", *(f"{each['refused']:,}" for each in rates)),
        (f"not delivered {REST_SECONDS:g} s later", *(f"{each['unfinished']:,}" for each in rates)),
        ("delivered a second", *(f"{each['finished_per_second']:g}" for each in rates)),
    ]
    parts = sorted({name for each in rates for name in each["cores"]})
    rows += [(f"cores: {name}", *(f"{each['cores'].get(name, 0):.2f}" for each in rates)) for name in parts]
    figures.show("What became of them", rows, columns=("", *columns))
    rows = [(name, *(f"{each['cpu_ms_a_payment'].get(name, 0):.0f}" for each in rates)) for name in parts]
    figures.show(
        "CPU of a payment, ms, orders made and what runs without any included", rows, columns=("", *columns)
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--rates", type=float, nargs="*", default=[1.0, 20.0, 100.0], help="payments a second"
    )
    parser.add_argument("--seconds", type=float, default=30.0, help="of each rate")
    parser.add_argument("--quick", action="store_true", help="1 and 10 a second, for three seconds")
    options = parser.parse_args()
    rates, seconds = ([1.0, 10.0], 3.0) if options.quick else (options.rates, options.seconds)
    with service() as (merchant, environment, pid):
        found = asyncio.run(measure(merchant, environment, pid, rates=rates, seconds=seconds))
    show(found)
    if not options.quick:
        figures.keep("pipeline", found)


if __name__ == "__main__":
    run(main)
