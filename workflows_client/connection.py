"""Connecting to Temporal: with a deadline for a single try, or patiently where the process cannot do without."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

import structlog
from temporalio.api.workflowservice.v1 import DescribeNamespaceRequest
from temporalio.client import Client
from temporalio.converter import (
    BinaryNullPayloadConverter,
    CompositePayloadConverter,
    DataConverter,
    DefaultPayloadConverter,
)
from temporalio.service import GrpcCompression, RPCError, TLSConfig
from temporalio.worker import PollerBehaviorSimpleMaximum, UnsandboxedWorkflowRunner, Worker

from payloops.events.pauses import pause_seconds, sleep_unless_stopped
from payloops.workflows_client.codec import EncryptionCodec

CONNECT_SECONDS = 10.0
POLLS = PollerBehaviorSimpleMaximum(maximum=20)
"""Of a worker, for workflow tasks and for activities. A task that comes while nobody asks for one is written to
Temporal's database first, and read from there: under load that takes longer than the task."""
RUNNER = UnsandboxedWorkflowRunner()
"""Of a worker's workflows. The SDK's sandbox imports their module anew for each of them, which takes longer than all
that they do. That they would run in it, and do the same whenever they are replayed, is tested."""

log = structlog.get_logger(__name__)


class TemporalUnavailable(Exception):
    """Temporal did not answer in time, or does not know the namespace."""

    def __init__(self, *, address: str, namespace: str, reason: str) -> None:
        super().__init__(f"Temporal at {address} (namespace {namespace!r}) is not available: {reason}")
        self.address = address
        self.namespace = namespace
        self.reason = reason


class JsonPayloadConverter(CompositePayloadConverter):
    """The SDK's converters, but None is written as JSON's null.

    By default it is an empty payload, `binary/null`, which a worker in TypeScript reads as `undefined`.
    """

    def __init__(self) -> None:
        converters = DefaultPayloadConverter.default_encoding_payload_converters
        super().__init__(*sorted(converters, key=lambda each: isinstance(each, BinaryNullPayloadConverter)))


PLAIN = DataConverter(payload_converter_class=JsonPayloadConverter)


def data_converter(*, codec_key: str | None) -> DataConverter:
    """Plain JSON, as the platform's other workers speak it; encrypted where a codec key is set."""
    return PLAIN if codec_key is None else replace(PLAIN, payload_codec=EncryptionCodec(secret=codec_key))


async def connect(
    *,
    address: str,
    namespace: str,
    codec_key: str | None,
    tls: TLSConfig | None = None,
    api_key: str | None = None,
    deadline_seconds: float = CONNECT_SECONDS,
) -> Client:
    """Connect to a Temporal that knows the namespace.

    Args:
        codec_key: see `data_converter`.
        tls: None for a connection that is not encrypted.
        api_key: sent with every call, if any.

    Raises:
        TemporalUnavailable: it did not answer within the deadline, or has no such namespace.
    """
    try:
        async with asyncio.timeout(deadline_seconds):
            client = await Client.connect(
                address,
                namespace=namespace,
                tls=tls or False,
                api_key=api_key,
                grpc_compression=GrpcCompression.NONE,  # small messages, over a short way
                data_converter=data_converter(codec_key=codec_key),
                connect_timeout=timedelta(seconds=deadline_seconds),
            )
            await client.workflow_service.describe_namespace(DescribeNamespaceRequest(namespace=namespace))
            return client
    except TimeoutError as error:
        reason = f"no answer in {deadline_seconds:g} s"
        raise TemporalUnavailable(address=address, namespace=namespace, reason=reason) from error
    except (RPCError, RuntimeError) as error:  # RuntimeError: what the SDK raises where nothing listens
        raise TemporalUnavailable(address=address, namespace=namespace, reason=str(error)) from error


async def connect_when_up(
    *, address: str, namespace: str, codec_key: str | None, tls: TLSConfig | None, api_key: str | None
) -> Client:
    """Connect, however long it takes Temporal to come up. Returns only with a client that works."""
    attempt = 0
    while True:
        try:
            client = await connect(
                address=address, namespace=namespace, codec_key=codec_key, tls=tls, api_key=api_key
            )
        except TemporalUnavailable as error:
            pause = pause_seconds(attempt=attempt)
            log.warning(
                "temporal.unavailable", address=address, reason=error.reason, retry_in=round(pause, 2)
            )
            await asyncio.sleep(pause)
            attempt += 1
        else:
            log.info("temporal.connected", address=address, namespace=namespace)
            return client


async def keep_serving(make_worker: Callable[[], Worker], *, stop: asyncio.Event) -> None:
    """Run a worker until `stop` is set, then let what runs finish within the worker's grace.

    A worker whose polling ended for good (a namespace that was gone for a moment) is replaced by a new one.
    """
    failures = 0
    while not stop.is_set():
        worker = make_worker()
        try:
            async with worker:
                log.info("worker.serving", task_queue=worker.task_queue)
                await stop.wait()
        except (RPCError, RuntimeError) as error:  # what the SDK's core reports when a poll fails for good
            pause = pause_seconds(attempt=failures)
            log.warning("worker.restarting", task_queue=worker.task_queue, reason=str(error), retry_in=pause)
            await sleep_unless_stopped(pause, stop=stop)
            failures += 1
