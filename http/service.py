"""The state of the service itself: `/health`, `/ready` and `/metrics`."""

import asyncio
from collections.abc import Awaitable, Mapping
from typing import Any, Literal, TypeVar

import structlog

from payloops.http.fields import Timestamp
from payloops.http.routing import AnswerModel, Call, route
from payloops.http.services import Probe

PROBE_SECONDS = 2.0
METRICS_TYPE = "text/plain; version=0.0.4"
"""Of Prometheus' text format: https://prometheus.io/docs/instrumenting/exposition_formats/."""

log = structlog.get_logger()

T = TypeVar("T")


class HealthAnswer(AnswerModel):
    status: Literal["ok"] = "ok"
    timestamp: Timestamp
    correlation_id: str


class ReadinessAnswer(AnswerModel):
    status: Literal["ready", "unavailable", "stopping"]
    dependencies: dict[str, Literal["up", "down"]]
    timestamp: Timestamp
    correlation_id: str


@route(
    "GET",
    "/health",
    auth=None,
    query=None,
    answers=HealthAnswer,
    sheds=False,
    summary="Check that the process is alive",
)
async def health(call: Call[None]) -> HealthAnswer:
    return HealthAnswer(timestamp=call.by.at, correlation_id=call.by.correlation_id)


@route(
    "GET",
    "/ready",
    auth=None,
    query=None,
    answers=ReadinessAnswer,
    also=(503,),
    sheds=False,
    summary="Check that requests can be sent here: 503 while a dependency is down or the process is shutting down",
)
async def ready(call: Call[None]) -> ReadinessAnswer:
    up = await ask_all(call.services.probes, seconds=PROBE_SECONDS)
    stopping = call.services.stopping.is_set()
    if stopping or not all(up.values()):
        call.status = 503
    return ReadinessAnswer(
        status="stopping" if stopping else "ready" if all(up.values()) else "unavailable",
        dependencies={name: "up" if answers else "down" for name, answers in up.items()},
        timestamp=call.by.at,
        correlation_id=call.by.correlation_id,
    )


@route(
    "GET",
    "/metrics",
    auth=None,
    query=None,
    answers=str,
    media=(METRICS_TYPE,),
    sheds=False,
    summary="Get the service's metrics for Prometheus",
)
async def read_metrics(call: Call[None]) -> bytes:
    return await call.services.metrics()


async def ask_all(probes: Mapping[str, Probe], *, seconds: float) -> dict[str, bool]:
    """Whether each dependency answers, within this time."""
    answers = await asyncio.gather(*(_answers(name, probe, seconds) for name, probe in probes.items()))
    return dict(zip(probes, answers, strict=True))


async def _answers(name: str, probe: Probe, seconds: float) -> bool:
    try:
        await within(probe(), seconds=seconds)
    except Exception as error:  # noqa: BLE001  # whatever it is, the dependency does not answer
        log.warning("ready.dependency_down", dependency=name, error=type(error).__name__)
        return False
    return True


_left: set[asyncio.Future[Any]] = set()
"""Questions that nobody waits for any more."""


async def within(question: Awaitable[T], *, seconds: float) -> T:
    """What is answered in this time.

    A question that takes longer is cancelled, and its end not waited for: where the database hangs, psycopg takes ten
    seconds to let go of it.

    Raises:
        TimeoutError: nothing is.
    """
    asked = asyncio.ensure_future(question)
    try:
        done, _ = await asyncio.wait({asked}, timeout=seconds)
        if not done:
            raise TimeoutError
        return asked.result()
    finally:
        if asked.cancel():
            _left.add(asked)
            asked.add_done_callback(_forget)


def _forget(asked: asyncio.Future[Any]) -> None:
    _left.discard(asked)
    if not asked.cancelled():
        asked.exception()  # nobody else looks
