"""Error responses: `application/problem+json` (RFC 9457), with `code` and `message` at the top level.

The only place that maps exceptions to responses. Handlers raise, or let exceptions of commands pass.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import NamedTuple

import orjson
import psycopg
from aiohttp import web

from payloops.commands.api_keys import ApiKeyNotFound
from payloops.commands.authenticate_api_key import InvalidApiKey, KeyCheckUnavailable, TooManyGuesses
from payloops.commands.authenticate_webhook import InvalidSignature, MissingSignature, NoWebhookSecret
from payloops.commands.change_password import WrongPassword
from payloops.commands.cipher import SealBroken
from payloops.commands.hashing import HashingOverloaded
from payloops.commands.idempotency import IdempotencyInProgress, IdempotencyMismatch
from payloops.commands.issue_api_key import TooManyApiKeys
from payloops.commands.log_in import InvalidCredentials
from payloops.commands.merchants import MerchantNotFound
from payloops.commands.processors import ProcessorNotConfigured, ProcessorUnknown
from payloops.commands.refusals import (
    CaptureExceedsAuthorized,
    CheckoutSessionNotFound,
    InvalidProcessor,
    InvalidStatus,
    NoProcessor,
    OrderNotFound,
    RefundExceedsCaptured,
    WayToPayNotOffered,
)
from payloops.commands.register_merchant import EmailTaken
from payloops.commands.retry_webhook import TooManyRetries, WebhooksOff
from payloops.commands.tokens import InvalidToken
from payloops.commands.webhooks import WebhookNotFound
from payloops.events.connections import SCHEMA_ERRORS
from payloops.events.errors import (
    OutcomeUnknown,
    ReceiptConflict,
    StoreUnavailable,
    StreamNotFound,
    StreamUnreadable,
    VersionConflict,
)
from payloops.events.fair_semaphore import TooManyWaiting
from payloops.projections.order_events import EventUnreadable
from payloops.projections.own_writes import ProjectionBehind

CONTENT_TYPE = "application/problem+json"
RETRY_AFTER = {409: "1", 429: "5", 503: "2"}
"""Seconds, by status, unless the problem itself says how long."""
PHRASES = {413: "Content Too Large"}
"""RFC 9110's phrases, which Python has from version 3.13 on."""


def title_of(status: int) -> str:
    """The phrase of a status, the same with all versions of Python."""
    return PHRASES.get(status) or HTTPStatus(status).phrase


@dataclass(frozen=True, slots=True)
class FieldError:
    """What is wrong with a field of the request. Never contains its value."""

    field: str
    message: str


class Problem(Exception):
    """An error response."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        errors: Sequence[FieldError] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(f"{status} {code}")
        self.status = status
        self.code = code
        self.message = message
        self.errors = errors
        self.headers = dict(headers or {})
        if status in RETRY_AFTER and code != "idempotency_mismatch":
            self.headers.setdefault("Retry-After", RETRY_AFTER[status])

    def body(self, *, correlation_id: str) -> bytes:
        return orjson.dumps(
            {
                "type": "about:blank",
                "title": title_of(self.status),
                "status": self.status,
                "detail": self.message,
                "code": self.code,
                "message": self.message,
                "errors": None
                if self.errors is None
                else [{"field": error.field, "message": error.message} for error in self.errors],
                "correlationId": correlation_id,
            }
        )

    def response(self, *, correlation_id: str) -> web.Response:
        return web.Response(
            status=self.status,
            body=self.body(correlation_id=correlation_id),
            content_type=CONTENT_TYPE,
            headers=self.headers,
        )

    @property
    def definite(self) -> bool:
        """Whether the same request would be refused again: such a response is stored under its idempotency key."""
        return self.status in (400, 403, 404) and self.code != "validation_error"


def validation_error(*errors: FieldError) -> Problem:
    """The request is malformed; names each field."""
    fields = ", ".join(dict.fromkeys(error.field for error in errors))
    return Problem(400, "validation_error", f"The request is not valid: {fields}", errors=errors)


def not_found(*errors: FieldError) -> Problem:
    """The response is the same whether the id is unknown, another merchant's, or malformed.

    Args:
        errors: name the parameter, if the id was not in the path.
    """
    return Problem(404, "not_found", "Not found", errors=errors or None)


class Refusal(NamedTuple):
    """The response to an exception. `message`: if None, the exception's own."""

    status: int
    code: str
    message: str | None = None


IN_PROGRESS = "A request with this Idempotency-Key is under way; try again"
OUTCOME_UNKNOWN = "Whether it was done is not known; try again, with the same Idempotency-Key"
UNREADABLE = "This was changed by another version of the service; nothing was done, try again"
BUSY = "The service is busy or a part of it is down; nothing was done, try again"

REFUSALS: dict[type[Exception], Refusal] = {
    InvalidApiKey: Refusal(401, "invalid_api_key"),
    InvalidToken: Refusal(401, "invalid_token"),
    InvalidCredentials: Refusal(401, "invalid_credentials"),
    WrongPassword: Refusal(401, "invalid_credentials"),
    TooManyGuesses: Refusal(429, "rate_limit"),
    KeyCheckUnavailable: Refusal(503, "unavailable", BUSY),
    HashingOverloaded: Refusal(503, "unavailable", BUSY),
    EmailTaken: Refusal(400, "email_exists"),
    MerchantNotFound: Refusal(404, "not_found", "Not found"),
    ApiKeyNotFound: Refusal(404, "not_found", "Not found"),
    TooManyApiKeys: Refusal(400, "too_many_api_keys"),
    ProcessorUnknown: Refusal(400, "invalid_processor"),
    ProcessorNotConfigured: Refusal(404, "not_found", "Not found"),
    StreamNotFound: Refusal(404, "not_found", "Not found"),
    VersionConflict: Refusal(409, "conflict", "The resource kept changing meanwhile; try again"),
    ReceiptConflict: Refusal(409, "idempotency_in_progress", IN_PROGRESS),
    StreamUnreadable: Refusal(503, "unavailable", UNREADABLE),
    EventUnreadable: Refusal(503, "unavailable"),
    StoreUnavailable: Refusal(503, "unavailable", BUSY),
    ProjectionBehind: Refusal(503, "unavailable", BUSY),
    TooManyWaiting: Refusal(503, "unavailable", BUSY),
    OutcomeUnknown: Refusal(504, "outcome_unknown", OUTCOME_UNKNOWN),
    IdempotencyMismatch: Refusal(
        409, "idempotency_mismatch", "This Idempotency-Key was used for another request: use a new one"
    ),
    OrderNotFound: Refusal(404, "not_found", "Not found"),
    CheckoutSessionNotFound: Refusal(404, "not_found", "Not found"),
    WayToPayNotOffered: Refusal(400, "no_processor"),
    MissingSignature: Refusal(400, "missing_signature"),
    InvalidSignature: Refusal(400, "invalid_signature"),
    NoWebhookSecret: Refusal(400, "no_config"),
    InvalidStatus: Refusal(400, "invalid_status"),
    NoProcessor: Refusal(400, "no_processor"),
    InvalidProcessor: Refusal(400, "invalid_processor"),
    RefundExceedsCaptured: Refusal(400, "refund_exceeds_captured"),
    CaptureExceedsAuthorized: Refusal(400, "capture_exceeds_authorized"),
    WebhookNotFound: Refusal(404, "not_found", "Not found"),
    WebhooksOff: Refusal(400, "invalid_status"),
    TooManyRetries: Refusal(400, "invalid_status"),
    SealBroken: Refusal(503, "unavailable", BUSY),
    # These include the pool's own exceptions.
    psycopg.OperationalError: Refusal(503, "unavailable", BUSY),
    psycopg.InterfaceError: Refusal(503, "unavailable", BUSY),
    # A hosted database becomes read-only when its disk is full, or after a failover.
    psycopg.errors.ReadOnlySqlTransaction: Refusal(503, "unavailable", BUSY),
    # The database lacks migrations of this version.
    **dict.fromkeys(SCHEMA_ERRORS, Refusal(503, "unavailable", BUSY)),
}

CHALLENGES = {"invalid_token": "Bearer", "invalid_credentials": None, "invalid_api_key": "ApiKey"}


def problem_of(error: BaseException) -> Problem | None:
    """The response to an exception; None if the exception is unexpected: a bug."""
    match error:
        case Problem():
            return error
        case IdempotencyInProgress():
            wait = {"Retry-After": str(max(1, math.ceil(error.seconds)))}
            return Problem(409, "idempotency_in_progress", IN_PROGRESS, headers=wait)
        case web.HTTPNotFound():
            return Problem(404, "not_found", "There is no such path: GET /openapi.json lists those there are")
        case web.HTTPMethodNotAllowed():
            allow = ", ".join(sorted(error.allowed_methods))
            return Problem(405, "method_not_allowed", f"Allowed here: {allow}", headers={"Allow": allow})
        case web.HTTPRequestEntityTooLarge():
            return Problem(413, "payload_too_large", "The body is larger than 1 MiB")
        case web.HTTPException() if error.status < HTTPStatus.INTERNAL_SERVER_ERROR:
            return Problem(error.status, "bad_request", error.reason)
    refusal = next((REFUSALS[kind] for kind in type(error).__mro__ if kind in REFUSALS), None)
    if refusal is None:
        return None
    challenge = CHALLENGES.get(refusal.code)
    return Problem(
        refusal.status,
        refusal.code,
        refusal.message or str(error),
        headers={"WWW-Authenticate": challenge} if challenge else None,
    )


def internal_error() -> Problem:
    """The response to a bug: it says nothing about it; the log has the traceback."""
    return Problem(500, "internal_error", "Something went wrong on our side")
