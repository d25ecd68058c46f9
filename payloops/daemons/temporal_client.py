"""Creating the Temporal client of a process from its settings."""

import asyncio
import logging

import structlog
from pydantic import SecretStr
from temporalio.client import Client
from temporalio.runtime import LogForwardingConfig, LoggingConfig, Runtime, TelemetryConfig, TelemetryFilter
from temporalio.service import TLSConfig

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


def _tls(settings: Settings) -> TLSConfig | None:
    """None: not encrypted."""
    authority, name = settings.temporal_tls_server_ca_cert_path, settings.temporal_tls_server_name
    certificate, key = settings.temporal_tls_client_cert_path, settings.temporal_tls_client_key_path
    wanted = any(each is not None for each in (authority, name, certificate, settings.temporal_api_key))
    if not (wanted if settings.temporal_tls is None else settings.temporal_tls):
        return None
    return TLSConfig(
        server_root_ca_cert=None if authority is None else authority.read_bytes(),
        domain=name,
        client_cert=None if certificate is None else certificate.read_bytes(),
        client_private_key=None if key is None else key.read_bytes(),
    )


def _revealed(secret: SecretStr | None) -> str | None:
    return None if secret is None else secret.get_secret_value()


async def unconnected_client(settings: Settings) -> Client:
    """A client that connects when it is used."""
    return await Client.connect(
        settings.temporal_address,
        namespace=settings.temporal_namespace,
        tls=_tls(settings) or False,
        api_key=_revealed(settings.temporal_api_key),
        lazy=True,
    )


async def connect_unless_stopped(settings: Settings, *, stop: asyncio.Event) -> Client | None:
    """Connect, and keep trying while Temporal is down; None if `stop` was set first."""
    _forward_sdk_logs()
    if settings.temporal_codec_key is None:
        log.warning(
            "temporal.histories_readable",
            remedy="set TEMPORAL_CODEC_KEY here and for every worker: processors' credentials are in histories",
        )
    connecting = asyncio.create_task(
        connect_when_up(
            address=settings.temporal_address,
            namespace=settings.temporal_namespace,
            codec_key=_revealed(settings.temporal_codec_key),
            tls=_tls(settings),
            api_key=_revealed(settings.temporal_api_key),
        )
    )
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait({connecting, stopping}, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if connecting.done():
        return connecting.result()
    connecting.cancel()
    return None
