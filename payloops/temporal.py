"""Creating the Temporal client of a process from its settings."""

import asyncio
import logging

import structlog
from temporalio.client import Client
from temporalio.runtime import LogForwardingConfig, LoggingConfig, Runtime, TelemetryConfig, TelemetryFilter

from payloops.logs import TEMPORAL_CORE
from payloops.settings import Settings
from payloops.workflows_client.connection import connect_when_up

log = structlog.get_logger()


def _log_as_we_do() -> None:
    """Have the SDK's core log through Python: by itself it writes lines of its own form, and colours, to stdout.

    For processes that end by `leave`: its thread may touch Python at any time.
    """
    logs = LoggingConfig(
        filter=TelemetryFilter(core_level="WARN", other_level="ERROR"),
        forwarding=LogForwardingConfig(logging.getLogger(TEMPORAL_CORE)),
    )
    Runtime.set_default(Runtime(telemetry=TelemetryConfig(logging=logs)), error_if_already_set=False)


async def connect_unless_stopped(settings: Settings, *, stop: asyncio.Event) -> Client | None:
    """Connect, however long Temporal takes to come up; None where `stop` was set first."""
    _log_as_we_do()
    key = settings.temporal_codec_key
    if key is None:
        log.warning(
            "temporal.histories_readable",
            remedy="set TEMPORAL_CODEC_KEY here and for every worker: processors' credentials are in histories",
        )
    connecting = asyncio.create_task(
        connect_when_up(
            address=settings.temporal_address,
            namespace=settings.temporal_namespace,
            codec_key=None if key is None else key.get_secret_value(),
        )
    )
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait({connecting, stopping}, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if connecting.done():
        return connecting.result()
    connecting.cancel()
    return None
