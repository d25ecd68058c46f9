"""The service itself: is it up, and is it ready."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Literal

import structlog

from payloops.http.fields import Timestamp
from payloops.http.routing import AnswerModel, Call, route

PROBE_SECONDS = 2.0

log = structlog.get_logger()


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
    "GET", "/health", auth=None, query=None, answers=HealthAnswer, sheds=False, summary="Is the process up"
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
    summary="Can requests be sent here: 503 while a dependency is down or the process is ending",
)
async def ready(call: Call[None]) -> ReadinessAnswer:
    probes = call.services.probes
    up = await asyncio.gather(*(_answers(name, probe) for name, probe in probes.items()))
    stopping = call.services.stopping.is_set()
    if stopping or not all(up):
        call.status = 503
    return ReadinessAnswer(
        status="stopping" if stopping else "ready" if all(up) else "unavailable",
        dependencies={name: "up" if answers else "down" for name, answers in zip(probes, up, strict=True)},
        timestamp=call.by.at,
        correlation_id=call.by.correlation_id,
    )


async def _answers(name: str, probe: Callable[[], Awaitable[object]]) -> bool:
    try:
        async with asyncio.timeout(PROBE_SECONDS):
            await probe()
    except Exception as error:  # noqa: BLE001  # whatever it is, the dependency does not answer
        log.warning("ready.dependency_down", dependency=name, error=type(error).__name__)
        return False
    return True
