"""Rate limits per address and per account, counted in Redis for all processes together.

While Redis does not answer, each process counts for itself, and allows a quarter.
"""

import asyncio
import contextlib
import hashlib
import hmac
import ipaddress
import math
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import structlog
from aiohttp import web
from limits import RateLimitItem
from limits.aio.storage import RedisStorage
from limits.aio.strategies import MovingWindowRateLimiter
from prometheus_client import Counter
from redis.asyncio import ConnectionPool
from redis.exceptions import RedisError

from payloops.events.connections import one_line
from payloops.http.problems import Problem

REDIS_SECONDS = 0.25
"""Timeout of Redis, for all limits of a request together."""
REDIS_PAUSE = 1.0
"""After Redis did not answer, seconds until it is used again."""
LOCAL_DIVISOR = 4
"""By how much a process divides the limits while it counts by itself."""
MAX_WINDOWS = 20_000
"""Windows that a process keeps while it counts by itself; the least recently used is dropped first."""
CLOCK_TOLERANCE = 0.001
"""Seconds added to `Retry-After`, so that a client that returns exactly then is accepted."""
IPV6_PREFIX = 64
"""Bits of an IPv6 address that identify a network: whoever has one of its addresses has all of them."""

LIMITED = Counter(
    "payloops_rate_limited", "Attempts refused with 429, by what was counted", ["limit", "counted_by"]
)

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """The limits on one kind of request. All of them apply."""

    per_address: Sequence[RateLimitItem]
    per_account: Sequence[RateLimitItem]


class RateLimits:
    """Counts attempts, together with all other processes."""

    def __init__(
        self,
        *,
        limits: Mapping[str, Limit],
        redis: ConnectionPool,
        secret: str,
        enabled: bool,
    ) -> None:
        """
        Args:
            limits: by name, as in `Route.limits`.
            redis: connections with short timeouts and without retries.
            secret: the same in all processes. Redis gets addresses and accounts only as digests keyed with it.
            enabled: if False, everything is allowed.
        """
        self._limits = limits
        self._enabled = enabled
        self._digest_key = hashlib.sha256(b"payloops rate limits" + secret.encode()).digest()
        storage = RedisStorage(
            "async+redis://",
            implementation="redispy",
            key_prefix="payloops:limits",
            connection_pool=redis,  # type: ignore[arg-type]  # documented, but not in its type
        )
        self._redis = redis
        self._shared = MovingWindowRateLimiter(storage)
        self._local = LocalWindows(clock=time.monotonic)
        self._redis_paused_until = -math.inf
        self._is_alone = False

    async def try_from_address(self, name: str, address: str) -> None:
        """Count an attempt from an address.

        Raises:
            Problem: 429 rate_limit, with `Retry-After`.
        """
        await self._try(self._limits[name].per_address, name, "address", address)

    async def try_account(self, name: str, account: str) -> None:
        """Count an attempt for an account: an email address, regardless of case, or an id.

        Raises:
            Problem: 429 rate_limit, with `Retry-After`.
        """
        await self._try(self._limits[name].per_account, name, "account", fold_case(account))

    async def _try(self, items: Sequence[RateLimitItem], *names: str) -> None:
        if not self._enabled:
            return
        name, counted_by, who = names
        key = (name, counted_by, hmac.digest(self._digest_key, who.encode(), hashlib.sha256).hex()[:32])
        wait = await self._wait(items, key)
        if wait is not None:
            LIMITED.labels(name, counted_by).inc()
            raise Problem(
                429,
                "rate_limit",
                "Too many attempts; try again later",
                headers={"Retry-After": str(max(1, math.ceil(wait + CLOCK_TOLERANCE)))},
            )

    async def _wait(self, items: Sequence[RateLimitItem], key: Sequence[str]) -> float | None:
        """None if this attempt is allowed, otherwise seconds until the next one is."""
        if time.monotonic() >= self._redis_paused_until:
            try:
                async with asyncio.timeout(REDIS_SECONDS):
                    wait = await self._shared_wait(items, key)
            except (RedisError, OSError, TimeoutError) as error:
                self._redis_paused_until = time.monotonic() + REDIS_PAUSE
                if not self._is_alone:
                    log.warning("rate_limits.redis_down", error=one_line(error))
                self._is_alone = True
                await self._reconnect()
            else:
                if self._is_alone:
                    log.info("rate_limits.redis_up")
                self._is_alone = False
                return wait
        return self._local.wait(items, key)

    async def _reconnect(self) -> None:
        """Close connections that nobody uses: a server that has become a replica keeps them, and refuses all."""
        with contextlib.suppress(RedisError, OSError, TimeoutError):
            async with asyncio.timeout(REDIS_SECONDS):
                await self._redis.disconnect(inuse_connections=False)

    async def _shared_wait(self, items: Sequence[RateLimitItem], key: Sequence[str]) -> float | None:
        for item in items:
            if not await self._shared.hit(item, *key):
                break
        else:
            return None
        windows = [await self._shared.get_window_stats(item, *key) for item in items]
        return max(
            (window.reset_time - time.time() for window in windows if window.remaining <= 0), default=0
        )


class LocalWindows:
    """Moving windows in the process's memory, with limits divided by `LOCAL_DIVISOR`."""

    def __init__(self, *, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._tries: dict[tuple[str, ...], deque[float]] = {}

    def wait(self, items: Sequence[RateLimitItem], key: Sequence[str]) -> float | None:
        """None if this attempt is allowed, and then counted; otherwise seconds until the next one is."""
        now = self._clock()
        windows = [(item, self._window(item, key)) for item in items]
        waits = [tries[0] + item.get_expiry() - now for item, tries in windows if len(tries) == tries.maxlen]
        if any(wait > 0 for wait in waits):
            return max(waits)
        for _, tries in windows:
            tries.append(now)  # drops the oldest, if the window is full
        return None

    def _window(self, item: RateLimitItem, key: Sequence[str]) -> deque[float]:
        name = (*key, str(item))
        tries = self._tries.pop(name, None)
        if tries is None:
            tries = deque(maxlen=max(1, item.amount // LOCAL_DIVISOR))
        self._tries[name] = tries
        if len(self._tries) > MAX_WINDOWS:
            del self._tries[next(iter(self._tries))]
        return tries


def fold_case(account: str) -> str:
    """Lower case as in PostgreSQL's `lower`, letter by letter: `str.lower` makes two letters of İ."""
    return "".join(letter.lower()[0] for letter in account)


def client_address(request: web.BaseRequest, *, trusted_proxies: int) -> str:
    """The client's address; for IPv6, its /64 network.

    Each proxy appends the address of its client to `X-Forwarded-For`. Entries before those of the trusted proxies may
    be forged, so the n-th entry from the right, which the outermost trusted proxy wrote, is the client. If there are
    fewer, the request did not pass all of them, and the connection's peer is used.

    Args:
        trusted_proxies: number of proxies between clients and this process; if 0, the header is ignored.
    """
    peer = request.remote or ""
    if trusted_proxies > 0:
        entries = ",".join(request.headers.getall("X-Forwarded-For", [])).split(",")
        if len(entries) >= trusted_proxies:
            return _counted_address(entries[-trusted_proxies]) or _counted_address(peer) or peer
    return _counted_address(peer) or peer


def _counted_address(text: str) -> str | None:
    """An IPv4 address, or the /64 network of an IPv6 address; None if the text is neither."""
    text = text.strip().strip('"')
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.ip_network((address, IPV6_PREFIX), strict=False))
