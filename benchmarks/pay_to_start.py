"""How long from `pay` until the payment's workflow has started, and until the answer that it was captured.

Against a running service on this machine, whose clock its Temporal shares:

    payloops dev                          # in another terminal
    python benchmarks/pay_to_start.py     # --data-dir as there, if one was given
"""

import argparse
import asyncio
import time
from pathlib import Path
from typing import Any

from temporalio.client import Client as Temporal

from payloops.client import Client
from payloops.demo_merchant import read_demo_merchant
from payloops.dev_environment import read_environment
from payloops.workflows_client.connection import connect

ORDER = {"amount": 4_999, "currency": "USD"}


async def main(*, data_dir: Path, payments: int) -> None:
    merchant, environment = read_demo_merchant(data_dir=data_dir), read_environment(data_dir=data_dir)
    if merchant is None:
        raise SystemExit(f"no service has run on {data_dir}: start `payloops dev` first")
    temporal = await connect(
        address=environment["TEMPORAL_ADDRESS"],
        namespace=environment["TEMPORAL_NAMESPACE"],
        codec_key=environment["TEMPORAL_CODEC_KEY"],
    )
    starts, ends = [], []
    async with Client(url=merchant.url, headers={"X-API-Key": merchant.api_key}) as api:
        for _ in range(payments):
            start, end = await one_payment(api, temporal)
            starts.append(start)
            ends.append(end)
            await asyncio.sleep(0.1)
    print(f"{payments} payments, one after another, milliseconds from sending `pay`:")
    for name, values in (("to the workflow's start", starts), ("to the answer `captured`", ends)):
        print(f"  {name:26} {summary(values)}")


async def one_payment(api: Client, temporal: Temporal) -> tuple[float, float]:
    """Seconds from sending `pay` to the start of its workflow, and to the answer that waited for the end."""
    order: dict[str, Any] = (await api.post("/v1/orders", body=ORDER)).body
    sent = time.time()
    paid = await api.post(f"/v1/orders/{order['id']}/pay", headers={"Prefer": "wait=10"})
    answered = time.time()
    if paid.body["status"] != "captured":
        raise SystemExit(f"the payment is {paid.body['status']}: are subscriber and worker running?")
    workflow = await temporal.get_workflow_handle(paid.body["workflowId"]).describe()
    return workflow.start_time.timestamp() - sent, answered - sent


def summary(values: list[float]) -> str:
    ordered = sorted(value * 1000 for value in values)
    at = {name: ordered[min(len(ordered) - 1, int(len(ordered) * share))] for name, share in SHARES.items()}
    return "  ".join(f"{name} {value:6.1f}" for name, value in at.items())


SHARES = {"p50": 0.5, "p95": 0.95, "p99": 0.99, "max": 1.0}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-dir", type=Path, default=Path(".payloops"))
    parser.add_argument("--payments", type=int, default=200)
    given = parser.parse_args()
    asyncio.run(main(data_dir=given.data_dir, payments=given.payments))
