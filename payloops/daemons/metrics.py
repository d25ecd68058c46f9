"""`GET /metrics`: what the service counts and its current state, in Prometheus' text format.

Modules count in metrics of their own, which are collected here. What is read from the database, and which dependencies
are reachable, is looked up when scraped, with a deadline, and cached for a few seconds. What cannot be determined at
the moment is left out.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager

import prometheus_client
import structlog
from aiohttp import web
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from psycopg_pool import AsyncConnectionPool

from payloops.commands.webhook_endpoints import count_switched_off
from payloops.commands.webhooks import pending_webhooks
from payloops.daemons.listening import bind
from payloops.daemons.probes import Probe, ask_all, within
from payloops.daemons.shared_metrics import counted
from payloops.events.background import in_background, shared
from payloops.events.event_store import EventStore
from payloops.http.answers import METRICS_TYPE
from payloops.http.connections import connection_factory
from payloops.projections.status import projections_status

SAMPLE_SECONDS = 1.0
"""Between two samples of gauges, such as lengths of queues."""
READ_SECONDS = 1.0
"""Timeout of a reader."""
PROBE_SECONDS = 0.8
"""How long a dependency may take to answer: less than the reader of the probes may."""
CACHE_SECONDS = 5.0
"""How long the metrics of a reader are cached."""

Sampler = Callable[[], None]
Reader = Callable[[], Awaitable[Iterable[Metric]]]

log = structlog.get_logger()

# The creation time of each series is of use only with OpenMetrics; here it would double the number of series.
prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]


class Metrics:
    """The metrics of a process, for scrapes. Created by `open_metrics`.

    Attributes:
        text: returns them in Prometheus' text format. Concurrent calls share one result.
    """

    def __init__(
        self,
        *,
        samplers: Sequence[Sampler],
        readers: Mapping[str, Reader],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Args:
            samplers: update gauges to the current state of this process.
            readers: read metrics from outside, by a name for the log. If one raises, its metrics are left out.
        """
        self._samplers = samplers
        self._cached = [_CachedMetrics(name, reader, clock=clock) for name, reader in readers.items()]
        self.text = shared(self._collect, name="metrics")

    def sample(self) -> None:
        for sampler in self._samplers:
            sampler()

    async def _collect(self) -> bytes:
        self.sample()
        await asyncio.gather(*(each.refresh() for each in self._cached))
        registry = CollectorRegistry()
        for each in self._cached:
            registry.register(each)
        return await asyncio.to_thread(lambda: generate_latest(counted()) + generate_latest(registry))


class _CachedMetrics(Collector):
    """The metrics of a reader, cached for some seconds."""

    def __init__(self, name: str, reader: Reader, *, clock: Callable[[], float]) -> None:
        self._name = name
        self._reader = reader
        self._clock = clock
        self._due = clock()
        self._metrics: Sequence[Metric] = ()

    async def refresh(self) -> None:
        if self._clock() < self._due:
            return
        try:
            self._metrics = tuple(await within(self._reader(), seconds=READ_SECONDS))
        except Exception as error:  # noqa: BLE001  # one failing reader must not affect the others
            log.warning("metrics.not_read", reader=self._name, error=type(error).__name__)
            self._metrics = ()
        self._due = self._clock() + CACHE_SECONDS

    def collect(self) -> Iterable[Metric]:
        return self._metrics


@asynccontextmanager
async def open_metrics(
    *, samplers: Sequence[Sampler] = (), readers: Mapping[str, Reader] | None = None
) -> AsyncIterator[Metrics]:
    """The metrics of this process, sampled while the context lasts."""
    metrics = Metrics(samplers=samplers, readers=readers or {})
    try:
        async with in_background(_keep_sampling(metrics), name="metrics sampling"):
            yield metrics
    finally:
        metrics.sample()  # hands over what was counted since the last sample


async def _keep_sampling(metrics: Metrics) -> None:
    while True:
        metrics.sample()
        await asyncio.sleep(SAMPLE_SECONDS)


@asynccontextmanager
async def serving_metrics(
    *, host: str, port: int | None, samplers: Sequence[Sampler] = ()
) -> AsyncIterator[None]:
    """Serve `/metrics` and `/health` in a process without an API.

    Args:
        port: if None, nothing is served.

    Raises:
        PortTaken: see there.
    """
    if port is None:
        yield
        return
    async with open_metrics(samplers=samplers) as metrics:

        async def answer_metrics(_: web.Request) -> web.Response:
            return web.Response(body=await metrics.text(), content_type=METRICS_TYPE)

        async def answer_health(_: web.Request) -> web.Response:
            return web.json_response({"status": "ok"})

        app = web.Application()
        app.add_routes([web.get("/metrics", answer_metrics), web.get("/health", answer_health)])
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        with bind(host, port, setting="METRICS_PORT") as listener:
            await runner.setup()
            assert runner.server is not None
            loop = asyncio.get_running_loop()
            server = await loop.create_server(connection_factory(runner.server), sock=listener)
            log.info("metrics.listening", port=listener.getsockname()[1])
            try:
                yield
            finally:
                server.close()
                await runner.cleanup()


def state_readers(store: EventStore, *, probes: Mapping[str, Probe]) -> dict[str, Reader]:
    """Readers of metrics about the state of the database, and about which dependencies can be reached."""
    return {
        "readers of the log": lambda: _log_metrics(store.pool),
        "webhooks": lambda: _webhook_metrics(store.pool),
        "dependencies": lambda: _dependency_metrics(probes),
    }


async def _log_metrics(pool: AsyncConnectionPool) -> list[Metric]:
    found = await projections_status(pool)
    head = GaugeMetricFamily("payloops_log_position", "Position of the newest event")
    position = _of_readers("position", "Position of the last event processed")
    lag_events = _of_readers("lag_events", "Events not processed yet")
    lag_seconds = _of_readers("lag_seconds", "Age of the oldest event not processed yet")
    parked = _of_readers("parked_events", "Events that could not be applied or forwarded")
    active = _of_readers("active", "Whether a process is active for this reader")
    for each in found:
        position.add_metric([each.name], each.position)
        lag_events.add_metric([each.name], each.lag_events)
        lag_seconds.add_metric([each.name], each.lag_seconds)
        parked.add_metric([each.name], each.parked)
        active.add_metric([each.name], each.active)
    head.add_metric([], max(each.head for each in found))
    return [head, position, lag_events, lag_seconds, parked, active]


def _of_readers(name: str, description: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"payloops_reader_{name}", description, labels=["reader"])


async def _webhook_metrics(pool: AsyncConnectionPool) -> list[Metric]:
    pending, oldest_seconds = await pending_webhooks(pool)
    return [
        GaugeMetricFamily("payloops_webhooks_pending", "Webhooks waiting to be delivered", value=pending),
        GaugeMetricFamily(
            "payloops_webhooks_pending_oldest_seconds", "Age of the oldest of them", value=oldest_seconds
        ),
        GaugeMetricFamily(
            "payloops_webhook_endpoints_switched_off",
            "Merchants' webhook endpoints that are switched off",
            value=await count_switched_off(pool),
        ),
    ]


async def _dependency_metrics(probes: Mapping[str, Probe]) -> list[Metric]:
    up = GaugeMetricFamily("payloops_dependency_up", "Whether the dependency answers", labels=["dependency"])
    for name, trouble in (await ask_all(probes, seconds=PROBE_SECONDS)).items():
        up.add_metric([name], trouble is None)
    return [up]
