"""The activities that workflows call on `backend-operations`: each parses its argument, an object, and calls a command.

Activities run at least once, so the commands that they call have no effect the second time. What can never succeed (a
malformed argument, an order that does not exist) fails without a retry and shows in the workflow; everything else is
retried by Temporal.
"""

import hashlib
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any, TypeVar
from uuid import UUID, uuid5

import orjson
import structlog
from pydantic import ValidationError
from temporalio import activity
from temporalio.exceptions import ApplicationError, ApplicationErrorCategory

from payloops.commands.begin_webhook_attempt import begin_webhook_attempt
from payloops.commands.change_order import load_order
from payloops.commands.cipher import Cipher
from payloops.commands.client_secrets import ClientSecrets
from payloops.commands.credentials import get_processor_credentials
from payloops.commands.fail_webhook import fail_webhook
from payloops.commands.queue_webhook import queue_webhook
from payloops.commands.record_webhook_attempt import (
    judge_endpoint,
    record_webhook_attempt,
)
from payloops.commands.refusals import ContradictsRecord, OrderNotFound, UnknownAttempt, UnknownRefund
from payloops.commands.update_order_status import update_order_status
from payloops.commands.update_refund_status import update_refund_status
from payloops.commands.webhook_endpoints import WebhookEndpoint, find_webhook_endpoint
from payloops.commands.webhook_secrets import get_webhook_secret
from payloops.commands.webhooks import (
    RecordedAttempt,
    Webhook,
    WebhookNotFound,
    find_attempt,
    find_webhook,
)
from payloops.commands.workflow_ids import attempt_of, number_of, operation_of
from payloops.events.crash_points import crash_point
from payloops.events.event_store import EventStore
from payloops.events.metadata import Metadata
from payloops.events.orders import Failure, Order, References
from payloops.events.timestamps import timestamp_text, utc_now
from payloops.projections.orders import row_from_order
from payloops.workflows_client.activity_inputs import (
    DeliveryInput,
    FailedWebhookInput,
    Input,
    MerchantInput,
    NewWebhookInput,
    OrderInput,
    OrderStatusInput,
    ProcessorConfigInput,
    RefundStatusInput,
    WebhookInput,
)
from payloops.workflows_client.endpoint_places import EndpointBusy, EndpointPlaces
from payloops.workflows_client.interruptions import under_way
from payloops.workflows_client.order_json import order_json
from payloops.workflows_client.webhook_delivery import NO_ENDPOINT, SUPERSEDED
from payloops.workflows_client.webhook_sender import Sender

REFUSALS = (OrderNotFound, UnknownAttempt, UnknownRefund, ContradictsRecord, WebhookNotFound)
GRACE_SECONDS = 5.0
QUEUED_BY_WORKFLOWS = UUID("3f0c7d6e-52a4-5e0b-9d0e-6f6b8f2f4c11")
"""Namespace of the ids of webhooks that workflows queue."""


log = structlog.get_logger(__name__)

I = TypeVar("I", bound=Input)  # noqa: E741


class BackendActivities:
    """The activities, over the store."""

    def __init__(
        self,
        *,
        store: EventStore,
        cipher: Cipher,
        client_secrets: ClientSecrets,
        sender: Sender,
        places: EndpointPlaces | None = None,
        grace: float = GRACE_SECONDS,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        """
        Args:
            sender: sends webhooks.
            places: limit how many are sent at a time.
            grace: seconds for those that are being sent when the worker is asked to stop.
            now: the clock.
        """
        self._store = store
        self._cipher = cipher
        self._client_secrets = client_secrets
        self._sender = sender
        self._places = places or EndpointPlaces()
        self._grace = grace
        self._now = now

    def all(self) -> list[Callable[..., Any]]:
        return [
            self.get_processor_config,
            self.update_order_status,
            self.update_refund_status,
            self.get_order,
            self.get_merchant_webhook_url,
            self.create_webhook_event,
            self.deliver_webhook,
            self.attempt_delivery,
            self.fail_webhook,
        ]

    @activity.defn(name="getProcessorConfig")
    async def get_processor_config(self, given: Any) -> dict[str, Any] | None:
        """The merchant's credentials at a processor; Temporal's copy is encrypted if TEMPORAL_CODEC_KEY is set."""
        request = _parsed(ProcessorConfigInput, given)
        config = await get_processor_credentials(
            self._store.pool,
            merchant_id=request.merchant_id,
            processor=request.processor,
            cipher=self._cipher,
        )
        if config is None:
            return None
        return {
            "merchantId": str(config.merchant_id),
            "processor": config.processor,
            "testMode": config.test_mode,
            "credentials": config.credentials,
        }

    @activity.defn(name="updateOrderStatus")
    async def update_order_status(self, given: Any) -> None:
        report = _parsed(OrderStatusInput, given)
        workflow_id, order_id = _workflow_id(), str(report.order_id)
        crash_point("order_status.reported")
        with _refusals_are_final():
            await update_order_status(
                self._store,
                **report.model_dump(include={"order_id", "status", "redirect_url", "client_secret"}),
                references=References.of(report),
                failure=Failure.of(report),
                attempt=attempt_of(workflow_id, order_id=order_id),
                operation=operation_of(workflow_id, order_id=order_id),
                client_secrets=self._client_secrets,
                by=self._by(),
            )
        crash_point("order_status.recorded")

    @activity.defn(name="updateRefundStatus")
    async def update_refund_status(self, given: Any) -> None:
        report = _parsed(RefundStatusInput, given)
        crash_point("refund_status.reported")
        with _refusals_are_final():
            await update_refund_status(
                self._store,
                order_id=report.order_id,
                refund_id=str(report.refund_id),
                succeeded=report.status == "success",
                processor_transaction_id=report.processor_transaction_id,
                failure=Failure.of(report),
                by=self._by(),
            )
        crash_point("refund_status.recorded")

    @activity.defn(name="getOrder")
    async def get_order(self, given: Any) -> dict[str, Any] | None:
        order = await self._store.load(Order, _parsed(OrderInput, given).order_id)
        return None if order is None else order_json(row_from_order(order))

    @activity.defn(name="getMerchantWebhookUrl")
    async def get_merchant_webhook_url(self, given: Any) -> dict[str, str | None]:
        """The URL that webhooks are sent to, None if none are sent, and the secret that signs them."""
        request = _parsed(MerchantInput, given)
        endpoint = await find_webhook_endpoint(self._store.pool, merchant_id=request.merchant_id)
        if endpoint is None:
            return {"url": None, "secret": None}
        secret, *_ = await self._secrets(request.merchant_id)
        return {"url": endpoint.url_in_use, "secret": secret}

    @activity.defn(name="createWebhookEvent")
    async def create_webhook_event(self, given: Any) -> str:
        """Queue a webhook of a workflow about the merchant's own order; `deliverWebhook` sends it.

        Its id is derived from the workflow's id and the content, so that a repeated call queues nothing new.
        """
        request = _parsed(NewWebhookInput, given)
        with _refusals_are_final():
            await load_order(self._store, order_id=request.order_id, merchant_id=request.merchant_id)
        content = orjson.dumps(request.model_dump(mode="json"), option=orjson.OPT_SORT_KEYS)
        webhook_id = uuid5(QUEUED_BY_WORKFLOWS, f"{_workflow_id()} {hashlib.sha256(content).hexdigest()}")
        await queue_webhook(
            self._store.pool,
            webhook_id=webhook_id,
            merchant_id=request.merchant_id,
            order_id=request.order_id,
            event_type=request.event_type,
            payload=request.payload,
            source_position=None,
            at=self._now(),
        )
        return str(webhook_id)

    @activity.defn(name="deliverWebhook")
    async def deliver_webhook(self, given: Any) -> dict[str, Any]:
        """Send a webhook once, unless it was delivered before; return the result.

        Raises:
            ApplicationError: without a retry: SUPERSEDED, if a later workflow delivers it, InvalidInput or
                WebhookNotFound. With a retry: EndpointBusy.
        """
        request = _parsed(DeliveryInput, given)
        webhook = await self._load_webhook(request.webhook_event_id)
        made = await self._earlier_result(webhook)
        if made is not None:
            return made
        endpoint = await find_webhook_endpoint(self._store.pool, merchant_id=webhook.merchant_id)
        if endpoint is not None and endpoint.off_at is not None and endpoint.url == request.webhook_url:
            why = f"The endpoint is switched off: {endpoint.off_reason}"
            return {"success": False, "attempts": webhook.attempts, "errorMessage": why}
        return await self._send(webhook, endpoint, url=request.webhook_url, secret=request.webhook_secret)

    @activity.defn(name="attemptDelivery")
    async def attempt_delivery(self, given: Any) -> dict[str, Any]:
        """As `deliverWebhook`, for `WebhookDeliveryWorkflow`: to the merchant's present URL.

        A member `over` in the result means that there will be no further attempt.
        """
        request = _parsed(WebhookInput, given)
        webhook = await self._load_webhook(request.webhook_event_id)
        made = await self._earlier_result(webhook)
        if made is not None:
            return made
        endpoint = await find_webhook_endpoint(self._store.pool, merchant_id=webhook.merchant_id)
        if endpoint is None or endpoint.url_in_use is None:
            return {
                "success": False,
                "attempts": webhook.attempts,
                "errorMessage": NO_ENDPOINT,
                "over": True,
            }
        return await self._send(webhook, endpoint, url=endpoint.url_in_use, secret=None)

    async def _load_webhook(self, webhook_id: UUID) -> Webhook:
        """The webhook that this workflow is to deliver.

        Raises:
            ApplicationError: see `deliver_webhook`.
        """
        with _refusals_are_final():
            webhook = await find_webhook(self._store.pool, webhook_id=webhook_id, merchant_id=None)
        _refuse_superseded(webhook)
        return webhook

    async def _earlier_result(self, webhook: Webhook) -> dict[str, Any] | None:
        """The result if no attempt is needed: this one was made before, or the webhook was delivered."""
        before = await find_attempt(self._store.pool, key=_activity_key())
        if before is not None:  # the worker died after recording it, or its result was lost
            await judge_endpoint(self._store, merchant_id=webhook.merchant_id, recorded=before, by=self._by())
            return _delivery_result(before)
        if webhook.status == "delivered":
            return {
                "success": True,
                "attempts": webhook.attempts,
                "deliveredAt": webhook.delivered_at and timestamp_text(webhook.delivered_at),
            }
        return None

    async def _send(
        self, webhook: Webhook, endpoint: WebhookEndpoint | None, *, url: str, secret: str | None
    ) -> dict[str, Any]:
        """Send it once. `secret`: one to sign with, beside the merchant's own."""
        key = _activity_key()
        with self._place(webhook, endpoint):
            secrets = await self._secrets_with(secret, webhook.merchant_id, endpoint)
            number = await begin_webhook_attempt(
                self._store.pool, webhook=webhook, key=key, url=url, at=self._now()
            )
            async with under_way(grace=self._grace):
                attempt = await self._sender.send(
                    webhook_id=str(webhook.id),
                    url=url,
                    secrets=secrets,
                    turn=number,
                    payload=webhook.payload,
                )
        crash_point("webhook.sent")
        recorded = await record_webhook_attempt(
            self._store, webhook=webhook, key=key, url=url, attempt=attempt, by=self._by()
        )
        crash_point("webhook.recorded")
        log.info(
            "webhook.delivered" if attempt.delivered else "webhook.not_delivered",
            webhook_id=str(webhook.id),
            merchant_id=str(webhook.merchant_id),
            order_id=str(webhook.order_id),
            attempt=recorded.number,
            status=attempt.status_code,
            error=attempt.error,
            milliseconds=attempt.duration_ms,
        )
        return _delivery_result(recorded)

    @activity.defn(name="failWebhook")
    async def fail_webhook(self, given: Any) -> None:
        """Record that the retry schedule of `WebhookDeliveryWorkflow` is over."""
        request = _parsed(FailedWebhookInput, given)
        await fail_webhook(
            self._store.pool,
            webhook_id=request.webhook_event_id,
            retries=retries_of(_workflow_id(), webhook_id=request.webhook_event_id) or 0,
            error=request.error_message,
        )

    @contextmanager
    def _place(self, webhook: Webhook, endpoint: WebhookEndpoint | None) -> Iterator[None]:
        """Hold a place to send from. If none is free, Temporal retries the activity when it is this delivery's turn.

        A local activity gets no turn: its workflow has Temporal schedule the activity instead, at once.
        """
        suspect = endpoint is not None and endpoint.failing_since is not None
        comes_again = not activity.info().is_local
        try:
            with self._places.place(
                merchant_id=webhook.merchant_id, suspect=suspect, comes_again=comes_again
            ):
                yield
        except EndpointBusy as busy:
            seconds = busy.seconds * random.uniform(0.8, 1.2)  # noqa: S311  # jitter
            raise ApplicationError(
                str(busy),
                type="EndpointBusy",
                next_retry_delay=timedelta(seconds=seconds),
                category=ApplicationErrorCategory.BENIGN,  # expected, so not logged as an error
            ) from None

    async def _secrets_with(
        self, given: str | None, merchant_id: UUID, endpoint: WebhookEndpoint | None
    ) -> Sequence[str]:
        """The secrets to sign with: one that the caller gives, then the merchant's own as of now."""
        own = [] if endpoint is None else await self._secrets(merchant_id)
        return own if given is None or given in own else [given, *own]

    async def _secrets(self, merchant_id: UUID) -> list[str]:
        """The current secret, then the previous one, as long as it is valid."""
        found = await get_webhook_secret(
            self._store.pool, merchant_id=merchant_id, cipher=self._cipher, now=self._now()
        )
        return [found.secret] if found.previous_secret is None else [found.secret, found.previous_secret]

    def _by(self) -> Metadata:
        """The workflow as actor. Without a correlation id, so that the one of the causing request is used."""
        return Metadata(at=self._now(), actor=f"workflow:{_workflow_id()}", correlation_id="")


def retries_of(workflow_id: str, *, webhook_id: UUID) -> int | None:
    """Which workflow of a webhook this is: 0 for the first, n for the merchant's nth retry; None if it is another."""
    return number_of(workflow_id, first=f"webhook-{webhook_id}", unnumbered=0)


def _refuse_superseded(webhook: Webhook) -> None:
    retries = retries_of(_workflow_id(), webhook_id=webhook.id)
    if retries is not None and retries < webhook.retries:
        raise ApplicationError(
            f"webhook {webhook.id} is delivered by a later workflow",
            type=SUPERSEDED,
            non_retryable=True,
            category=ApplicationErrorCategory.BENIGN,  # expected, so not logged as an error
        )


def _delivery_result(recorded: RecordedAttempt) -> dict[str, Any]:
    attempt = recorded.attempt
    given = {
        "success": attempt.delivered,
        "attempts": recorded.number,
        "statusCode": attempt.status_code,
        "deliveredAt": timestamp_text(attempt.attempted_at) if attempt.delivered else None,
        "errorMessage": attempt.error,
    }
    return {name: value for name, value in given.items() if value is not None}


def _activity_key() -> str:
    """Identifies this activity, also when Temporal runs it again."""
    info = activity.info()
    return f"{info.workflow_id}/{info.workflow_run_id}/{info.activity_id}"


def _workflow_id() -> str:
    return activity.info().workflow_id or ""


def _parsed(model: type[I], given: Any) -> I:
    try:
        return model.model_validate(given)
    except ValidationError as error:
        wrong = [(".".join(map(str, each["loc"])) or "argument", each["msg"]) for each in error.errors()]
        raise refused("InvalidInput", "; ".join(f"{field}: {why}" for field, why in wrong)) from None


@contextmanager
def _refusals_are_final() -> Iterator[None]:
    try:
        yield
    except REFUSALS as refusal:
        raise refused(type(refusal).__name__, str(refusal)) from refusal


def refused(type: str, why: str) -> ApplicationError:
    """What can never succeed, and is logged by this in a line, instead of by the worker with a traceback."""
    info = activity.info()
    log.warning(
        "activity.refused",
        activity=info.activity_type,
        workflow_id=info.workflow_id,
        type=type,
        error=why,
    )
    return ApplicationError(why, type=type, non_retryable=True, category=ApplicationErrorCategory.BENIGN)
