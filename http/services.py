"""The dependencies of handlers, created once by the composition root."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from payloops.commands.api_keys import KeyMode
from payloops.commands.authenticate_api_key import ApiKeyGate
from payloops.commands.cipher import Cipher
from payloops.commands.hashing import Hasher
from payloops.commands.log_in import TokenGate
from payloops.commands.tokens import Tokens
from payloops.commands.watch_orders import OrderWatch
from payloops.events.event_store import EventStore
from payloops.events.fair_semaphore import FairSemaphore
from payloops.events.timestamps import utc_now
from payloops.http.admission import Admission
from payloops.http.rate_limits import RateLimits


@dataclass(frozen=True, kw_only=True)
class Services:
    """
    Attributes:
        gate: authenticates API keys.
        token_gate: authenticates dashboard tokens.
        key_mode: of the API keys issued here.
        passwords, key_hasher: bcrypt hashers for passwords and for API keys, separate so that neither delays the other.
        tokens: dashboard tokens.
        staff_tokens: tokens of staff who use the API.
        staff_sessions: tokens of staff who use the support console.
        limits: on password attempts and registrations.
        admission: limits how many requests are handled at a time.
        long_reads: limits how many queries that may take long run at a time, to fewer than the pool has connections.
        checkout_base_url: of checkout pages.
        dependencies: returns why each does not answer, by its name; None if it does.
        metrics: returns the response to a scrape.
        secure_cookies: whether cookies are for TLS only, even if the request came over plain HTTP.
        workflow_url: of workflows in Temporal's web interface, to which their ids are appended; None if there is none.
        trusted_proxies: number of proxies in front of this process (`X-Forwarded-For`).
        webhook_allow_loopback: whether webhooks may be sent to this machine's own addresses.
        request_timeout: seconds that a request may take, not counting a wait that the client requested.
        stopping: set when the process is shutting down, and no longer ready.
        now: the clock.
    """

    store: EventStore
    gate: ApiKeyGate
    token_gate: TokenGate
    key_mode: KeyMode
    passwords: Hasher
    key_hasher: Hasher
    tokens: Tokens
    staff_tokens: Tokens
    staff_sessions: Tokens
    cipher: Cipher
    watch: OrderWatch
    limits: RateLimits
    long_reads: FairSemaphore
    admission: Admission
    checkout_base_url: str
    dependencies: Callable[[], Awaitable[Mapping[str, Exception | None]]]
    metrics: Callable[[], Awaitable[bytes]]
    cors_origins: tuple[str, ...] = ()
    secure_cookies: bool = True
    workflow_url: str | None = None
    trusted_proxies: int = 0
    webhook_allow_loopback: bool = False
    request_timeout: float = 15.0
    now: Callable[[], datetime] = utc_now
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
