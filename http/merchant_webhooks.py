"""Webhooks to the merchant, as the dashboard shows them. `/api/webhooks`, by dashboard token."""

from typing import Any
from uuid import UUID

from payloops.commands.retry_webhook import retry_webhook
from payloops.commands.webhooks import (
    RecordedAttempt,
    WebhookStatus,
    find_webhook,
    list_attempts,
    list_webhooks,
)
from payloops.http.fields import Timestamp
from payloops.http.pagination import PageQuery, Pagination, pagination
from payloops.http.routing import AnswerModel, Call, Nothing, route


class WebhookQuery(PageQuery):
    status: WebhookStatus | None = None


class WebhookAnswer(AnswerModel):
    id: UUID
    order_id: UUID
    event_type: str
    status: WebhookStatus
    attempts: int
    last_attempt_at: Timestamp | None
    delivered_at: Timestamp | None
    created_at: Timestamp


class WebhookPage(AnswerModel):
    data: list[WebhookAnswer]
    pagination: Pagination


@route(
    "GET",
    "/api/webhooks",
    auth="bearer",
    long=True,
    query=WebhookQuery,
    answers=WebhookPage,
    summary="List webhooks and their delivery status, newest first",
)
async def read_webhooks(call: Call[None, WebhookQuery]) -> WebhookPage:
    rows, total = await list_webhooks(
        call.services.store.pool,
        merchant_id=call.merchant_id,
        page=call.query.page,
        limit=call.query.limit,
        status=call.query.status,
    )
    return WebhookPage(
        data=[WebhookAnswer.model_validate(row) for row in rows],
        pagination=pagination(call.query, total=total),
    )


class AttemptAnswer(AnswerModel):
    """One delivery attempt. `response`: the first KiB of the response; null without a response."""

    number: int
    url: str
    attempted_at: Timestamp
    duration_ms: int
    status_code: int | None
    error: str | None
    response: str | None


class WebhookDetails(AnswerModel):
    """A webhook with its body and every delivery attempt. `error`: why it was given up, if it was."""

    id: UUID
    order_id: UUID
    event_type: str
    status: WebhookStatus
    attempts: list[AttemptAnswer]
    retries: int
    error: str | None
    last_attempt_at: Timestamp | None
    delivered_at: Timestamp | None
    created_at: Timestamp
    body: dict[str, Any]


class RetryAnswer(AnswerModel):
    success: bool


def attempt_answer(recorded: RecordedAttempt) -> AttemptAnswer:
    """The response for a delivery attempt."""
    attempt = recorded.attempt
    return AttemptAnswer(
        number=recorded.number,
        url=recorded.url,
        attempted_at=attempt.attempted_at,
        duration_ms=attempt.duration_ms,
        status_code=attempt.status_code,
        error=attempt.error,
        response=attempt.answer,
    )


@route(
    "GET",
    "/api/webhooks/{id}",
    auth="bearer",
    answers=WebhookDetails,
    errors=("not_found",),
    summary="Read a webhook with every delivery attempt",
)
async def read_webhook(call: Call[None]) -> WebhookDetails:
    pool = call.services.store.pool
    webhook = await find_webhook(pool, webhook_id=call.id(), merchant_id=call.merchant_id)
    attempts = await list_attempts(pool, webhook_id=webhook.id)
    return WebhookDetails(
        id=webhook.id,
        order_id=webhook.order_id,
        event_type=webhook.event_type,
        status=webhook.status,
        attempts=[attempt_answer(each) for each in attempts],
        retries=webhook.retries,
        error=webhook.error,
        last_attempt_at=webhook.last_attempt_at,
        delivered_at=webhook.delivered_at,
        created_at=webhook.created_at,
        body=webhook.payload,
    )


@route(
    "POST",
    "/api/webhooks/{id}/retry",
    auth="bearer",
    body=Nothing,
    body_required=False,
    answers=RetryAnswer,
    errors=("not_found", "invalid_status", "conflict"),
    summary="Send a webhook again now, and restart its retry schedule",
)
async def send_webhook_again(call: Call[Nothing]) -> RetryAnswer:
    await retry_webhook(call.services.store, webhook_id=call.id(), merchant_id=call.merchant_id, by=call.by)
    return RetryAnswer(success=True)
