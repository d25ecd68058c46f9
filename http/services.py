"""What handlers need from outside, created once by the composition root."""

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
from payloops.events.timestamps import utc_now
from payloops.events.turns import Turns
from payloops.http.admission import Admission
from payloops.http.rate_limits import RateLimits

Probe = Callable[[], Awaitable[object]]
"""Returns when a dependency answers, raises when it does not."""


@dataclass(frozen=True, kw_only=True)
class Services:
    """
    Attributes:
        gate: tells whom an API key stands for. token_gate: a dashboard token.
        long_reads: places for queries that may take long, fewer than the pool has connections.
        admission: how many requests are worked on at a time.
        limits: how often passwords may be tried, and accounts opened.
        checkout_base_url: start of a checkout page's address.
        workflow_url: what workflows' ids are hung to, for their pages in Temporal's web interface; None: it has none.
        trusted_proxies: how many stand before this process (`X-Forwarded-For`).
        key_mode: of the API keys issued here.
        staff_sessions: of staff in a browser, beside `staff_tokens` for programs.
        secure_cookies: whether browsers are to send them over TLS only, however a request came here.
        passwords, key_hasher: bcrypt for each, apart, so that neither holds up the other.
        webhook_allow_loopback: whether webhooks may go to this machine's own addresses.
        request_timeout: seconds a request may take, waiting asked for by the client aside.
        probes: by name of the dependency.
        metrics: puts together what a scrape is answered with.
        stopping: set when the process has been asked to end: no longer ready.
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
    long_reads: Turns
    admission: Admission
    checkout_base_url: str
    probes: Mapping[str, Probe]
    metrics: Callable[[], Awaitable[bytes]]
    cors_origins: tuple[str, ...] = ()
    secure_cookies: bool = True
    workflow_url: str | None = None
    trusted_proxies: int = 0
    webhook_allow_loopback: bool = False
    request_timeout: float = 15.0
    now: Callable[[], datetime] = utc_now
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
