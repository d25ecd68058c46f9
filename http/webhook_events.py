"""Webhooks to the merchant, as the dashboard shows them. `/api/webhooks`, by dashboard token."""

from uuid import UUID

from payloops.commands.webhook_events import WebhookEventRow, WebhookStatus, list_webhook_events
from payloops.http.fields import Timestamp
from payloops.http.pages import PageQuery, Pagination, pagination
from payloops.http.routing import AnswerModel, Call, route


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


def webhook_answer(row: WebhookEventRow) -> WebhookAnswer:
    """A webhook as the dashboard shows it."""
    return WebhookAnswer(
        id=row.id,
        order_id=row.order_id,
        event_type=row.event_type,
        status=row.status,
        attempts=row.attempts,
        last_attempt_at=row.last_attempt_at,
        delivered_at=row.delivered_at,
        created_at=row.created_at,
    )


@route(
    "GET",
    "/api/webhooks",
    auth="bearer",
    query=WebhookQuery,
    answers=WebhookPage,
    summary="List webhooks and how far their delivery has come, newest first",
)
async def read_webhooks(call: Call[None, WebhookQuery]) -> WebhookPage:
    rows, total = await list_webhook_events(
        call.services.store.pool,
        merchant_id=call.merchant_id,
        page=call.query.page,
        limit=call.query.limit,
        status=call.query.status,
    )
    return WebhookPage(
        data=[webhook_answer(row) for row in rows], pagination=pagination(call.query, total=total)
    )
