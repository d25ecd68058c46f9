"""The state of the service itself: `/health`, `/ready` and `/metrics`."""

from typing import Literal

from payloops.http.answers import METRICS_TYPE
from payloops.http.fields import Timestamp
from payloops.http.routing import AnswerModel, Call, route


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
