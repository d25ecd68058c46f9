"""What the service counts: right over all processes, of nobody, and never in the way."""

import asyncio
import fcntl
import os
import re
import signal
import socket
from pathlib import Path

import aiohttp
import pytest
from calling import Api, Caller, running_api
from processes import process, run_command
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample
from pydantic import SecretStr
from reserving import reserved_port
from serving import call_often, caller, server
from signing import Labels, Processors, merchant_with_secrets, stripe_payment
from uuid_utils.compat import uuid7

from payloops.daemons import metrics
from payloops.daemons.metrics import CACHE_SECONDS, Metrics, serving_metrics
from payloops.http.app import ROUTES
from payloops.settings import Settings

OPERATING = (Path(__file__).resolve().parent.parent / "docs/operating.md").read_text()
SECONDS = 60


@pytest.fixture
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever is asked has time to answer."""
    for name in ("READ_SECONDS", "PROBE_SECONDS"):
        monkeypatch.setattr(metrics, name, 20.0)


class Scrape:
    """The answer to one, parsed."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.families = [each for each in text_string_to_metric_families(text) if each.name.startswith("pay")]

    def value(self, name: str, **labels: str) -> float:
        """The sum of the samples that have these labels, 0 where there are none."""
        return sum(sample.value for sample in self.samples(name) if labels.items() <= sample.labels.items())

    def samples(self, name: str) -> list[Sample]:
        return [
            sample for each in self.families for sample in each.samples if sample.name == f"payloops_{name}"
        ]


async def scrape(anyone: Caller) -> Scrape:
    answer = await anyone.get("/metrics")
    assert (answer.status, answer.headers["Content-Type"]) == (200, "text/plain; version=0.0.4")
    return Scrape(answer.raw.decode())


async def test_what_happened_is_counted_once(api: Api) -> None:
    merchant = await merchant_with_secrets(api)
    before = await scrape(api.anyone)
    order = await merchant.order()
    for _ in range(2):
        assert (await merchant.shop.post(f"/v1/orders/{order}/pay", key="once")).status == 200
    assert (await merchant.shop.get("/nowhere/at/all")).status == 404
    for kind in ("succeeded", "of_a_kind_to_come"):
        event = stripe_payment(kind, Labels(merchant.id, str(uuid7())))
        assert (await Processors(api).stripe(event)).status == 200
    after = await scrape(api.anyone)

    def more(name: str, **labels: str) -> float:
        return after.value(name, **labels) - before.value(name, **labels)

    pay = {"method": "POST", "route": "/v1/orders/{id}/pay"}
    assert more("http_requests_total", **pay, status="200") == 2
    assert more("http_request_duration_seconds_count", **pay) == 2
    assert more("http_requests_total", method="GET", route="none", status="404") == 1
    assert more("idempotent_requests_total", outcome="first") == 1
    assert more("idempotent_requests_total", outcome="replayed") == 1
    assert more("appends_total", outcome="appended") == 2
    assert more("append_batch_events_sum") == 2
    assert more("pool_requests_total") > 0
    told = {"processor": "stripe", "type": "payment_intent.succeeded", "effect": "unknown_order"}
    assert more("processor_events_total", **told) == 1
    assert more("processor_events_total", processor="stripe", type="other", effect="unhandled") == 1


@pytest.mark.usefixtures("unhurried")
async def test_how_it_stands_is_told(api: Api) -> None:
    merchant = await api.merchant()
    await merchant.order()
    told = await scrape(api.anyone)
    events = told.value("log_position")
    assert events > 0
    assert told.value("reader_lag_events", reader="orders") == events  # nobody projects here
    assert told.value("reader_lag_seconds", reader="orders") > 0
    assert told.value("reader_active", reader="orders") == 0
    assert [sample.value for sample in told.samples("webhooks_pending")] == [0]
    assert [sample.value for sample in told.samples("webhook_endpoints_switched_off")] == [0]
    assert {sample.labels["dependency"]: sample.value for sample in told.samples("dependency_up")} == {
        "postgres": 1,
        "redis": 1,
        "temporal": 1,
    }


@pytest.mark.usefixtures("unhurried")
async def test_while_the_database_is_away_what_stands_in_it_is_left_out(settings: Settings) -> None:
    url = SecretStr("postgresql://a:b@127.0.0.1:1/c")
    away = settings.model_copy(update={"database_url": url, "database_patience": 0.5})
    async with running_api(away) as api:
        told = await scrape(api.anyone)
    assert told.value("dependency_up", dependency="postgres") == 0
    assert told.value("dependency_up", dependency="redis") == 1
    assert not {each.name for each in told.families} & {
        *("payloops_log_position", "payloops_reader_position", "payloops_webhooks_pending")
    }


async def test_a_reading_is_remembered_and_forgotten_when_it_cannot_be_renewed() -> None:
    now, answers = 0.0, iter([1.0, 2.0])

    async def reader() -> list[Metric]:
        return [GaugeMetricFamily("payloops_reading", "", value=next(answers))]  # then it raises

    metrics = Metrics(samplers=[], readers={"reader": reader}, clock=lambda: now)

    async def told() -> list[float]:
        return [sample.value for sample in Scrape((await metrics.text()).decode()).samples("reading")]

    assert await told() == [1.0]
    now += CACHE_SECONDS / 2
    assert await told() == [1.0]
    now += CACHE_SECONDS
    assert await told() == [2.0]
    now += CACHE_SECONDS
    assert await told() == []


async def test_it_tells_of_nobody_and_of_nothing_that_clients_may_make_up(api: Api) -> None:
    merchant = await api.merchant()
    before = (await scrape(api.anyone)).samples(
        "http_requests_total"
    )  # also of routes that other tests have made
    order = await merchant.order(customerEmail="ada@example.com", externalId="made-up")
    await merchant.shop.get(f"/v1/orders/{order}?made=up")
    await api.anyone.call("GET", f"/made-up/{order}")
    await api.anyone.call("MADEUP", "/v1/orders")
    told = await scrape(api.anyone)
    assert "ada@example.com" not in told.text
    assert "made-up" not in told.text
    assert not re.search(r"[0-9a-f]{8}-[0-9a-f]{4}|MADEUP|sk_test_", told.text)
    routes = {sample.labels["route"] for sample in told.samples("http_requests_total")}
    others = {sample.labels["route"] for sample in before}
    assert routes <= {*(route.path for route in ROUTES), "none", *others}


async def test_the_readme_names_every_metric(api: Api) -> None:
    await api.anyone.get("/health")
    told = await scrape(api.anyone)
    names = {
        f"{each.name}_total" if each.type == "counter" else each.name
        for each in told.families
        if each.name != "payloops_reading"
    }
    assert {name for name in names if f"`{name.removeprefix('payloops_')}`" not in OPERATING} == set()


async def test_whichever_process_is_asked_answers_for_all_also_for_those_that_were_killed(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    left_behind, in_use = (directory(tmp_path / f"payloops-metrics-{name}") for name in ("old", "used"))
    with (in_use / "lock").open() as lock, server(settings, tmp_path / "log", workers=2) as running:
        fcntl.flock(lock, fcntl.LOCK_EX)
        url = await running.listening(workers=2)
        assert not left_behind.exists()
        assert in_use.exists()
        await call_often(url)
        await wait_for_health_requests(url, 40)
        os.kill(running.lines("api.listening")[0]["pid"], signal.SIGKILL)
        await running.listening(workers=3)
        assert await health_requests(url) == 40
        await call_often(url)
        await wait_for_health_requests(url, 80)
        async with caller(url) as anyone:
            told = await scrape(anyone)
        assert told.value("api_workers_died_total") == 1
        assert len(told.samples("append_queue_length")) == 1
        assert told.value("log_position") == 0
        running.process.send_signal(signal.SIGTERM)
        assert await running.ended() == 0
    assert [each for each in tmp_path.glob("payloops-metrics-*") if each != in_use] == []


def directory(path: Path) -> Path:
    """One that a process has made a while ago."""
    path.mkdir()
    (path / "lock").touch()
    os.utime(path, (0, 0))
    return path


async def wait_for_health_requests(url: str, number: int) -> None:
    """A process tells the others of what it has answered once a second."""
    async with asyncio.timeout(SECONDS):
        while (counted := await health_requests(url)) < number:
            await asyncio.sleep(0.1)
    assert counted == number


async def health_requests(url: str) -> float:
    async with caller(url) as anyone:
        return (await scrape(anyone)).value("http_requests_total", route="/health", status="200")


@pytest.mark.parametrize("command", ["projector", "subscriber", "worker"])
async def test_the_other_processes_answer_where_a_port_is_named(
    settings: Settings, temporal_namespace: str, command: str
) -> None:
    with reserved_port() as port:
        own = settings.model_copy(update={"metrics_port": port, "temporal_namespace": temporal_namespace})
        await answers_about_itself(own, command)


async def answers_about_itself(settings: Settings, command: str) -> None:
    async with (
        process(settings, command),
        aiohttp.ClientSession(f"http://127.0.0.1:{settings.metrics_port}") as session,
    ):
        anyone = Caller(session)
        async with asyncio.timeout(SECONDS):
            while True:
                try:
                    told = await scrape(anyone)
                    break
                except aiohttp.ClientConnectionError:
                    await asyncio.sleep(0.05)
        assert (await anyone.get("/health")).json == {"status": "ok"}
        assert told.text.count("python_info") > 0
        if command != "projector":
            assert told.samples("pool_connections")


async def test_their_connections_end_as_those_of_the_api_do() -> None:
    """aiohttp alone would neither answer this nor ever close the connection."""
    with reserved_port() as port:
        async with serving_metrics(host="127.0.0.1", port=port):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET http://xn--/metrics HTTP/1.1\r\nHost: x\r\n\r\n")
            async with asyncio.timeout(SECONDS):
                assert (await reader.read()).startswith(b"HTTP/1.1 400 ")
            writer.close()


async def test_a_port_for_metrics_that_is_taken_is_said_in_one_line(settings: Settings) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        own = settings.model_copy(update={"metrics_port": port})
        status, _, said = await run_command(own, "projector")
    why = f"127.0.0.1:{port}: Address already in use (HOST and METRICS_PORT say where)"
    assert (status, said) == (1, f"payloops: cannot listen on {why}\n")
