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


def _forward_sdk_logs() -> None:
    """Make the SDK's core log through Python: by default it writes coloured lines of another format to stdout.

    Only for processes that end by `exit_now`, because the core's thread may call Python at any time.
    """
    logs = LoggingConfig(
        filter=TelemetryFilter(core_level="WARN", other_level="ERROR"),
        forwarding=LogForwardingConfig(logging.getLogger(TEMPORAL_CORE)),
    )
    Runtime.set_default(Runtime(telemetry=TelemetryConfig(logging=logs)), error_if_already_set=False)


async def connect_unless_stopped(settings: Settings, *, stop: asyncio.Event) -> Client | None:
    """Connect, and keep trying while Temporal is down; None if `stop` was set first."""
    _forward_sdk_logs()
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
