"""`payloops demo`: takes an order from creation to a partial refund, over HTTP only, and shows each step."""

import asyncio
import json
import secrets
import time
from collections.abc import Callable

from rich.console import Console
from rich.table import Table

from payloops.dev.client import JSON, Answer, Client
from payloops.events.money import money_text

AMOUNT, REFUND = 4999, 1500  # minor units: 49.99 and 15.00
CURRENCY = "USD"
STEP_TIMEOUT = 30.0  # seconds, for a step that a workflow performs
POLL = 0.1


class DemoStuck(Exception):
    """A step did not finish in time, or failed."""


class Demo:
    """Walks through an order's life and reports each step to `show`."""

    def __init__(self, *, client: Client, show: Callable[[JSON], None]) -> None:
        self._client = client
        self._show = show
        self._run = secrets.token_hex(4)

    async def walk(self) -> JSON:
        """Perform all steps. Returns the order, its transactions and its events.

        Raises:
            ServiceAbsent, RequestRefused, DemoStuck.
        """
        order = await self._post(
            "An order is created",
            "/v1/orders",
            {
                "amount": AMOUNT,
                "currency": CURRENCY,
                "externalId": f"demo-{self._run}",
                "description": "Two coffees and a book",
                "metadata": {"from": "payloops demo"},
            },
            says=lambda body: f"{money_text(body['amount'], body['currency'])}, {body['status']}",
        )
        path = f"/v1/orders/{order['id']}"
        await self._post(
            "It is paid, to be captured later",
            f"{path}/pay",
            {"paymentMethod": {"type": "card", "token": "tok_visa"}, "capture": "manual"},
            says=lambda body: f"{body['status']} at {body['processor']}, by workflow {body['workflowId']}",
            prefer="wait=20",
        )
        await self._until(path, "The processor has authorized it", {"authorized"})
        await self._post(
            "It is captured", f"{path}/capture", {}, says=lambda body: f"asked for, order {body['status']}"
        )
        await self._until(path, "The money is captured", {"captured"})
        await self._post(
            "A part is refunded",
            f"{path}/refund",
            {"amount": REFUND, "reason": "One coffee was cold"},
            says=lambda body: f"{money_text(body['amount'], CURRENCY)}, {body['status']}",
        )
        order = await self._until(path, "The refund has gone through", {"partially_refunded"})
        transactions = await self._client.get(f"{path}/transactions")
        events = await self._client.get(f"{path}/events")
        return {"order": order, "transactions": transactions.body, "events": events.body}

    async def _post(
        self,
        title: str,
        path: str,
        body: JSON,
        *,
        says: Callable[[JSON], str],
        prefer: str | None = None,
    ) -> JSON:
        headers = {"Idempotency-Key": f"demo-{self._run}-{path.rpartition('/')[2]}"}
        if prefer:
            headers["Prefer"] = prefer
        answer = await self._client.post(path, body=body, headers=headers)
        self._report(title, f"POST {path}", answer, says(answer.body))
        answered: JSON = answer.body
        return answered

    async def _until(self, path: str, title: str, statuses: set[str]) -> JSON:
        """Poll the order until it has one of these statuses."""
        began = time.perf_counter()
        while True:
            answer = await self._client.get(path)
            order: JSON = answer.body
            if order["status"] in statuses:
                break
            waited = time.perf_counter() - began
            if order["status"] in {"failed", "cancelled"} or waited > STEP_TIMEOUT:
                error = order.get("lastError") or {}
                raise DemoStuck(
                    f"{title}: expected {' or '.join(sorted(statuses))}, but after {waited:.0f} s the order is "
                    f"{order['status']} {error.get('message', '')}".rstrip()
                )
            await asyncio.sleep(POLL)
        took = Answer(status=answer.status, body=order, milliseconds=(time.perf_counter() - began) * 1000)
        refunded = (
            f", {money_text(order['amountRefunded'], CURRENCY)} refunded" if order["amountRefunded"] else ""
        )
        self._report(
            title,
            f"GET {path}",
            took,
            f"{order['status']}, {money_text(order['amountCaptured'], CURRENCY)} captured{refunded}",
        )
        return order

    def _report(self, title: str, request: str, answer: Answer, says: str) -> None:
        self._show(
            {
                "step": title,
                "request": request,
                "status": answer.status,
                "milliseconds": round(answer.milliseconds, 1),
                "result": says,
            }
        )


async def run_demo(*, url: str, api_key: str, as_json: bool, console: Console) -> None:
    """Run the demo, and print each step.

    Raises:
        ServiceAbsent, RequestRefused, DemoStuck.
    """
    steps: list[JSON] = []

    def show(step: JSON) -> None:
        steps.append(step)
        if not as_json:
            console.print(
                f"[green]✓[/] [bold]{step['step']:<34}[/] {step['result']}\n"
                f"  [dim]{step['request']}  → {step['status']} in {step['milliseconds']:.0f} ms[/]",
                soft_wrap=True,
                highlight=False,
            )

    async with Client(url=url, headers={"X-API-Key": api_key}) as client:
        walked = await Demo(client=client, show=show).walk()
    if as_json:
        print(json.dumps({"url": url, "steps": steps, **walked}, indent=2))  # noqa: T201 the command's output
        return
    console.print()
    console.print(audit_trail(walked["order"], walked["events"]))


def audit_trail(order: JSON, events: list[JSON]) -> Table:
    table = Table(title=f"Audit trail of order {order['id']}", title_justify="left", show_edge=False)
    for heading in ("#", "When", "What", "Who"):
        table.add_column(heading, no_wrap=True)
    table.add_column("Details")
    for event in events:
        table.add_row(
            str(event["version"]),
            event["occurredAt"][11:23],
            event["type"],
            _who(event["actor"]),
            _details(event["data"], currency=order["currency"]),
        )
    return table


def _who(actor: str) -> str:
    """The kind of actor, and the last characters of its id, which are enough to distinguish them."""
    kind, _, name = actor.partition(":")
    return f"{kind} …{name[-6:]}" if name else kind


def _details(data: JSON, *, currency: str) -> str:
    amount = [money_text(data["amount"], currency)] if data.get("amount") is not None else []
    return ", ".join(amount + [data[name] for name in ("processor", "reason") if data.get(name) is not None])
