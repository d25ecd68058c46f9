"""The state of the service itself: `/health`, `/ready` and `/metrics`."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Literal, TypeVar

from payloops.events.background import shared
from payloops.http.fields import Timestamp
from payloops.http.routing import AnswerModel, Call, route
from payloops.http.services import Probe

PROBE_SECONDS = 2.0
METRICS_TYPE = "text/plain; version=0.0.4"
"""Prometheus' text format: https://prometheus.io/docs/instrumenting/exposition_formats/."""

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
    troubles = await call.services.dependencies()
    up = all(trouble is None for trouble in troubles.values())
    stopping = call.services.stopping.is_set()
    if stopping or not up:
        call.status = 503
    return ReadinessAnswer(
        status="stopping" if stopping else "ready" if up else "unavailable",
        dependencies={name: "up" if trouble is None else "down" for name, trouble in troubles.items()},
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


def dependencies(probes: Mapping[str, Probe]) -> Callable[[], Awaitable[Mapping[str, Exception | None]]]:
    """A function that returns why each dependency does not answer; None if it does.

    Calls at the same time share one look: anybody may ask, without limit, and must not take all connections by it.
    """
    return shared(lambda: ask_all(probes, seconds=PROBE_SECONDS), name="readiness")


async def ask_all(probes: Mapping[str, Probe], *, seconds: float) -> dict[str, Exception | None]:
    """Why each dependency does not answer within this time; None if it does."""
    troubles = await asyncio.gather(*(_trouble(probe, seconds) for probe in probes.values()))
    return dict(zip(probes, troubles, strict=True))


async def _trouble(probe: Probe, seconds: float) -> Exception | None:
    try:
        await within(probe(), seconds=seconds)
    except Exception as error:  # noqa: BLE001  # any exception means that it is down
        return error
    return None


_abandoned: set[asyncio.Future[Any]] = set()
"""Cancelled tasks that have not ended yet; kept here so that they are not garbage-collected."""


async def within(awaitable: Awaitable[T], *, seconds: float) -> T:
    """As `asyncio.wait_for`, but without waiting for the cancelled task to end.

    If the database hangs, psycopg takes ten seconds to react to a cancellation.

    Raises:
        TimeoutError.
    """
    task = asyncio.ensure_future(awaitable)
    try:
        done, _ = await asyncio.wait({task}, timeout=seconds)
        if not done:
            raise TimeoutError
        return task.result()
    finally:
        if task.cancel():
            _abandoned.add(task)
            task.add_done_callback(_forget)


def _forget(task: asyncio.Future[Any]) -> None:
    _abandoned.discard(task)
    if not task.cancelled():
        task.exception()  # marks it as retrieved: asyncio would log it otherwise
