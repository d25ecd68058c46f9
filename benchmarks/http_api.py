"""Requests a second, and what one costs, beside a server of aiohttp alone that answers the same bytes.

A merchant has 50,000 orders. Requests come over 1, 16 and 64 connections to one process of the API and to two: in
turns, a second or two each, they are answered by the service and by `bare_server.py`, with the same status, headers
and body, on the same event loop. So whatever else happens on the machine happens to both. Where there is a goal, a
third takes its turn: the same bare server, but each answer waits for PostgreSQL to answer `SELECT 1`, by psycopg.

Driver, API, PostgreSQL and projector share the cores: requests a second are what all of them together need. CPU of
the API's processes by request is what the service adds to its framework, whoever else is busy: the goals are of it.

    make bench ARGS=http_api                                    # about nine minutes
    .venv/bin/python benchmarks/http_api.py --only create read  # as much as is named
"""

import argparse
import asyncio
import itertools
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import figures
import load
from measured_service import Merchant, Process, Service, measured_service, wait_until_answered
from process_usage import cpu_seconds, run

from payloops.embedded.locks import free_ports

ORDERS = 50_000
CONNECTIONS = (1, 16, 64)
WORKERS = (1, 2)
GOALS = {"create": 2.5, "read": 2.0}
"""Times the CPU of the bare server."""
READ_ORDERS = 5_000
"""Orders that are read, in turns."""
WARM_UP_SECONDS = 0.5
NEW_ORDER = {
    "amount": 4_999,
    "currency": "USD",
    "customerId": "customer-42",
    "customerEmail": "ada@example.com",
    "description": "Two tickets",
    "metadata": {"cart": "7"},
}
PAYMENT = {"paymentMethod": {"type": "card", "token": "tok_visa"}}
ENOUGH_UNPAID = 2_000
"""Orders for a round of payments."""
KEPT = 50_000
"""Created orders that are remembered, to be paid."""
MADE_BY_THE_FRAMEWORK = frozenset({"content-length", "date"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to measure, and for how long: each server answers `rounds` times for `seconds`."""

    orders: int
    names: tuple[str, ...]
    connections: tuple[int, ...]
    workers: tuple[int, ...]
    rounds: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """What is asked. `requests`: without an end, as long as there is something to ask for."""

    name: str
    method: str
    path: str
    requests: Callable[[], Iterator[bytes]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """Who is asked, and whose CPU is counted."""

    port: int
    pids: Mapping[str, list[int]]

    def cpu_seconds(self) -> dict[str, float]:
        return {name: sum(map(cpu_seconds, pids)) for name, pids in self.pids.items()}


@dataclass(slots=True)
class Rounds:
    """What the rounds of one server brought. `cpu`: microseconds by request, by process."""

    per_second: list[float] = field(default_factory=list)
    took: list[float] = field(default_factory=list)
    cpu: dict[str, list[float]] = field(default_factory=dict)

    def add(
        self, server: Server, requests: Iterator[bytes], *, connections: int, seconds: float
    ) -> load.Load:
        """One more of them."""
        before = server.cpu_seconds()
        done = load.closed(server.port, requests, connections=connections, seconds=seconds, keep=KEPT)
        if done.refusal is not None:
            raise SystemExit(f"refused, of {dict(done.statuses)}: {done.refusal.decode()}")
        used = {name: now - before[name] for name, now in server.cpu_seconds().items()} | {"driver": done.cpu}
        for name, each in used.items():
            self.cpu.setdefault(name, []).append(each / done.answers * 1e6)
        self.per_second.append(done.answers / done.seconds)
        self.took += done.took()
        return done

    def summary(self) -> dict[str, Any]:
        return {
            "requests_per_second": round(median(self.per_second)),
            "p50_ms": round(figures.percentile(self.took, 0.5), 2),
            "p99_ms": round(figures.percentile(self.took, 0.99), 2),
            "cpu_us_per_request": {name: round(median(each)) for name, each in self.cpu.items()},
        }


class Requests:
    """All that is asked in a merchant's name; orders that are created are there to be paid, once."""

    def __init__(self, merchant: Merchant, *, orders: list[str]) -> None:
        self._key = {"X-API-Key": merchant.api_key}
        self._token = {"Authorization": f"Bearer {merchant.token}"}
        self._orders = orders
        self.unpaid: list[str] = []
        self.endpoints = (
            self._endpoint("create", "POST", "/v1/orders", self._creations),
            self._endpoint("read", "GET", "/v1/orders/{id}", self._reads),
            self._endpoint("pay", "POST", "/v1/orders/{id}/pay", self._payments),
            self._endpoint("list", "GET", "/api/orders", self._dashboard("/api/orders")),
            self._endpoint("stats", "GET", "/api/dashboard/stats", self._dashboard("/api/dashboard/stats")),
        )

    def _endpoint(
        self, name: str, method: str, path: str, requests: Callable[[], Iterator[bytes]]
    ) -> Endpoint:
        return Endpoint(name=name, method=method, path=path, requests=requests)

    def _creations(self) -> Iterator[bytes]:
        return itertools.repeat(self._post("/v1/orders", NEW_ORDER))

    def _reads(self) -> Iterator[bytes]:
        paths = [f"/v1/orders/{order}" for order in self._orders]
        return itertools.cycle([load.request_bytes("GET", path, headers=self._key) for path in paths])

    def _payments(self) -> Iterator[bytes]:
        while self.unpaid:
            yield self._post(f"/v1/orders/{self.unpaid.pop()}/pay", PAYMENT)

    def _dashboard(self, path: str) -> Callable[[], Iterator[bytes]]:
        request = load.request_bytes("GET", path, headers=self._token)
        return lambda: itertools.repeat(request)

    def _post(self, path: str, body: Mapping[str, Any]) -> bytes:
        return load.request_bytes("POST", path, headers=self._key, body=json.dumps(body).encode())

    def make_unpaid(self, port: int) -> None:
        """Have enough orders there for a round of payments."""
        while len(self.unpaid) < ENOUGH_UNPAID:
            done = load.closed(port, self._creations(), connections=CONNECTIONS[-1], seconds=1, keep=KEPT)
            if done.refusal is not None:
                raise SystemExit(f"an order was refused: {done.refusal.decode()}")
            self.created(done.bodies)

    def created(self, bodies: list[bytes]) -> None:
        """Orders to be paid, as they were answered."""
        self.unpaid += [json.loads(body)["id"] for body in bodies]


async def answer_to(request: bytes, *, port: int) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    status, *lines = (await reader.readuntil(load.BLANK_LINE)).decode().split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines if line)
    body = await reader.readexactly(int(headers["Content-Length"]))
    writer.close()
    return int(status.split()[1]), headers, body


def answers_of(requests: Requests, *, port: int) -> list[dict[str, Any]]:
    """What the service answers at each endpoint, as the bare server takes it."""
    found = []
    for each in requests.endpoints:
        status, headers, body = asyncio.run(answer_to(next(each.requests()), port=port))
        if each.name == "create":
            requests.created([body])
        given = {name: value for name, value in headers.items() if name.lower() not in MADE_BY_THE_FRAMEWORK}
        answer = {"status": status, "headers": given, "body": body.decode()}
        found.append({"method": each.method, "path": each.path, **answer})
    return found


@contextmanager
def bare_server(
    service: Service, answers: list[dict[str, Any]], *, workers: int, asks: bool = False
) -> Iterator[Server]:
    """Aiohttp alone, in so many processes; or one that asks PostgreSQL before it answers."""
    [port] = free_ports(wanted=[None])
    with ExitStack() as stack:
        file = stack.enter_context(tempfile.NamedTemporaryFile("w", suffix=".json"))
        json.dump(answers, file)
        file.flush()
        asking = ("--ask", service.database_url) if asks else ()
        program = (str(Path(__file__).with_name("bare_server.py")), str(port), file.name, *asking)
        started: list[Process] = []
        for _ in range(workers):
            started.append(stack.enter_context(service.process(program, name="bare")))
            wait_until_answered(started[-1], port)
        yield Server(port=port, pids={"api": [each.pid for each in started]})


def measure(plan: Plan) -> list[dict[str, Any]]:
    found = []
    with measured_service() as service:
        merchant = service.merchant_with_orders(plan.orders)
        requests = Requests(merchant, orders=service.order_ids(merchant, limit=READ_ORDERS))
        for workers in plan.workers:
            with service.projector() as projector, service.api(workers=workers) as (api, port):
                pids = {"api": [api.pid], "postgres": [service.postmaster], "projector": [projector.pid]}
                answers = answers_of(requests, port=port)
                with (
                    bare_server(service, answers, workers=workers) as bare,
                    bare_server(service, answers, workers=workers, asks=True) as asking,
                ):
                    for endpoint, connections in itertools.product(requests.endpoints, plan.connections):
                        if endpoint.name not in plan.names:
                            continue
                        ours = Server(port=port, pids=pids)
                        compared = compare(
                            plan,
                            service,
                            requests,
                            endpoint,
                            connections=connections,
                            ours=ours,
                            bare=bare,
                            asking=asking if endpoint.name in GOALS else None,
                        )
                        row = {"endpoint": endpoint.name, "workers": workers, "connections": connections}
                        found.append(row | compared)
                        told = " ".join(f"{name} {value}," for name, value in row.items())
                        print(f"{told} ratio {compared['cpu_ratio']}", file=sys.stderr, flush=True)
    return found


def compare(
    plan: Plan,
    service: Service,
    requests: Requests,
    endpoint: Endpoint,
    *,
    connections: int,
    ours: Server,
    bare: Server,
    asking: Server | None,
) -> dict[str, Any]:
    service_rounds, bare_rounds, asking_rounds = Rounds(), Rounds(), Rounds()
    requests.make_unpaid(ours.port)
    Rounds().add(ours, endpoint.requests(), connections=connections, seconds=WARM_UP_SECONDS)
    for _ in range(plan.rounds):
        requests.make_unpaid(ours.port)
        service.wait_for_projections()
        same = itertools.cycle(list(itertools.islice(endpoint.requests(), 1)))
        bare_rounds.add(bare, same, connections=connections, seconds=plan.seconds)
        if asking is not None:
            asking_rounds.add(asking, same, connections=connections, seconds=plan.seconds)
        done = service_rounds.add(ours, endpoint.requests(), connections=connections, seconds=plan.seconds)
        if endpoint.name == "create":
            requests.created(done.bodies)
    return {
        "service": service_rounds.summary(),
        "bare": bare_rounds.summary(),
        "bare_that_asks": None if asking is None else asking_rounds.summary(),
        # Of two rounds in a row, and then the median: a neighbour that comes and goes is met by both.
        "cpu_ratio": _ratio(service_rounds.cpu["api"], bare_rounds.cpu["api"]),
        "rate_ratio": _ratio(bare_rounds.per_second, service_rounds.per_second),
        "goal": GOALS.get(endpoint.name),
    }


def _ratio(these: list[float], those: list[float]) -> float:
    return round(median(one / other for one, other in zip(these, those, strict=True)), 2)


def show(found: list[dict[str, Any]]) -> None:
    columns = (
        "",
        "conn.",
        "req/s",
        "bare",
        "p50 ms",
        "p99 ms",
        "CPU µs",
        "bare",
        "ratio",
        "asks",
        "PostgreSQL",
    )
    for workers in sorted({each["workers"] for each in found}):
        rows = [_row(each) for each in found if each["workers"] == workers]
        figures.show(f"HTTP, API processes: {workers}", rows, columns=columns)


def _row(found: dict[str, Any]) -> tuple[str, ...]:
    ours, bare, asking, goal = found["service"], found["bare"], found["bare_that_asks"], found["goal"]
    return (
        found["endpoint"],
        str(found["connections"]),
        f"{ours['requests_per_second']:,}",
        f"{bare['requests_per_second']:,}",
        f"{ours['p50_ms']:.1f}",
        f"{ours['p99_ms']:.1f}",
        str(ours["cpu_us_per_request"]["api"]),
        str(bare["cpu_us_per_request"]["api"]),
        f"{found['cpu_ratio']:.1f}" + (f" (≤ {goal:g})" if goal else ""),
        "" if asking is None else str(asking["cpu_us_per_request"]["api"]),
        str(ours["cpu_us_per_request"]["postgres"]),
    )


def main() -> None:
    names = ("create", "read", "pay", "list", "stats")
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="shorter runs: whether it works")
    parser.add_argument(
        "--only", nargs="+", choices=names, default=names, metavar="NAME", help="of: %(choices)s"
    )
    parser.add_argument("--orders", type=int, default=ORDERS, help="of the merchant; %(default)s")
    parser.add_argument("--rounds", type=int, default=3, help="of each server; %(default)s")
    parser.add_argument("--seconds", type=float, default=1.5, help="of a round; %(default)s")
    options = parser.parse_args()
    plan = Plan(
        orders=1_000 if options.quick else options.orders,
        names=tuple(options.only),
        connections=CONNECTIONS[1:2] if options.quick else CONNECTIONS,
        workers=WORKERS,
        rounds=1 if options.quick else options.rounds,
        seconds=0.5 if options.quick else options.seconds,
    )
    found = measure(plan)
    show(found)
    if not options.quick and plan.names == names:
        figures.keep("http_api", {"orders": plan.orders, "compared": found})


if __name__ == "__main__":
    run(main)
