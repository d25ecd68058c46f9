"""The merchant's own account: profile and webhook secret. `/api/merchants/me`, by dashboard token."""

from ipaddress import ip_address
from typing import Annotated, Literal

from pydantic import HttpUrl

from payloops.commands.change_profile import UNCHANGED, change_profile
from payloops.commands.merchants import MerchantNotFound, find_merchant
from payloops.commands.public_addresses import is_allowed
from payloops.commands.rotate_webhook_secret import rotate_webhook_secret as rotate
from payloops.commands.webhook_endpoints import WebhookEndpoint, find_webhook_endpoint
from payloops.commands.webhook_secrets import get_webhook_secret
from payloops.http.accounts import MerchantAnswer, MerchantName
from payloops.http.fields import AbsentOnly, Timestamp, Url
from payloops.http.problems import FieldError, validation_error
from payloops.http.routing import AnswerModel, Call, Nothing, RequestModel, route


class ProfileChanges(RequestModel):
    """Absent fields are kept. A `webhookUrl` of null ends webhooks; `name` cannot be null."""

    name: Annotated[MerchantName | None, AbsentOnly()] = None
    webhook_url: Url | None = None


class WebhookSecretAnswer(AnswerModel):
    secret: str
    previous_secret: str | None
    previous_expires_at: Timestamp | None


class WebhookEndpointAnswer(AnswerModel):
    """Where webhooks are sent. `failingSince`: time of the first failed attempt since the last successful one.

    Once an endpoint has failed for five days, or answers 410, it is switched off: nothing more is sent, until
    `webhookUrl` is set again.
    """

    url: str | None
    status: Literal["none", "working", "failing", "switched_off"]
    failing_since: Timestamp | None
    switched_off_at: Timestamp | None
    switched_off_reason: str | None


def endpoint_answer(endpoint: WebhookEndpoint) -> WebhookEndpointAnswer:
    """A merchant's endpoint as the dashboard shows it."""
    status: Literal["none", "working", "failing", "switched_off"] = "working"
    if endpoint.url is None:
        status = "none"
    elif endpoint.off_at is not None:
        status = "switched_off"
    elif endpoint.failing_since is not None:
        status = "failing"
    return WebhookEndpointAnswer(
        url=endpoint.url,
        status=status,
        failing_since=endpoint.failing_since,
        switched_off_at=endpoint.off_at,
        switched_off_reason=endpoint.off_reason,
    )


def has_private_address(url: str, *, allow_loopback: bool) -> bool:
    """Whether a URL's host is an IP address, in whatever notation, to which no webhook is ever sent.

    A host name is not resolved here, but each time that a webhook is sent, because its addresses may change.
    """
    host = (HttpUrl(url).host or "").strip("[]")
    try:
        ip_address(host)
    except ValueError:
        return False
    return not is_allowed(host, allow_loopback=allow_loopback)


@route(
    "GET",
    "/api/merchants/me",
    auth="bearer",
    answers=MerchantAnswer,
    summary="Read the account's profile",
)
async def read_profile(call: Call[None]) -> MerchantAnswer:
    merchant = await find_merchant(call.services.store.pool, merchant_id=call.merchant_id)
    if merchant is None:
        raise MerchantNotFound(merchant_id=call.merchant_id)
    return MerchantAnswer.model_validate(merchant)


@route(
    "PUT",
    "/api/merchants/me",
    auth="bearer",
    body=ProfileChanges,
    answers=MerchantAnswer,
    summary="Change the account's name or webhook URL: absent fields are kept, a webhookUrl of null ends webhooks",
)
async def set_profile(call: Call[ProfileChanges]) -> MerchantAnswer:
    body, services = call.body, call.services
    if body.webhook_url is not None and has_private_address(
        body.webhook_url, allow_loopback=services.webhook_allow_loopback
    ):
        raise validation_error(FieldError("webhookUrl", "Must be at a public address"))
    merchant = await change_profile(
        services.store,
        merchant_id=call.merchant_id,
        name=UNCHANGED if body.name is None else body.name,
        webhook_url=body.webhook_url if "webhook_url" in body.model_fields_set else UNCHANGED,
        by=call.by,
    )
    return MerchantAnswer.model_validate(merchant)


@route(
    "GET",
    "/api/merchants/me/webhook",
    auth="bearer",
    answers=WebhookEndpointAnswer,
    summary="Read where webhooks are sent, whether they are delivered, and if they were switched off, why",
)
async def read_webhook_endpoint(call: Call[None]) -> WebhookEndpointAnswer:
    endpoint = await find_webhook_endpoint(call.services.store.pool, merchant_id=call.merchant_id)
    if endpoint is None:
        raise MerchantNotFound(merchant_id=call.merchant_id)
    return endpoint_answer(endpoint)


@route(
    "GET",
    "/api/merchants/me/webhook-secret",
    auth="bearer",
    answers=WebhookSecretAnswer,
    summary="Read the secret that signs webhooks, and the previous one while it still signs",
)
async def read_webhook_secret(call: Call[None]) -> WebhookSecretAnswer:
    services = call.services
    return WebhookSecretAnswer.model_validate(
        await get_webhook_secret(
            services.store.pool, merchant_id=call.merchant_id, cipher=services.cipher, now=call.by.at
        )
    )


@route(
    "POST",
    "/api/merchants/me/webhook-secret/rotate",
    auth="bearer",
    body=Nothing,
    body_required=False,
    answers=WebhookSecretAnswer,
    summary="Replace the webhook secret; for 24 hours the previous one signs as well",
)
async def rotate_webhook_secret(call: Call[Nothing]) -> WebhookSecretAnswer:
    return WebhookSecretAnswer.model_validate(
        await rotate(
            call.services.store, merchant_id=call.merchant_id, cipher=call.services.cipher, by=call.by
        )
    )
