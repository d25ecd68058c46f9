"""Rate limits per address and per account, counted in Redis for all processes together.

While Redis does not answer, each process counts for itself, and allows a quarter.
"""

import asyncio
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

from payloops.http.problems import Problem

REDIS_SECONDS = 0.25
"""How long Redis may take for one request's limits."""
REDIS_PAUSE = 1.0
"""Seconds without asking Redis again after it did not answer."""
STRICTER = 4
"""What a process allows by itself is this many times less."""
REMEMBERED = 20_000
"""Windows that a process keeps while Redis is away; the one unused for longest goes first."""
EARLY = 0.001
"""Seconds, for clocks and roundings: whoever comes back when told is let in."""
IPV6_SITE = 64
"""Bits of an IPv6 address that name a site: who has one address of it has them all."""

LIMITED = Counter(
    "payloops_rate_limited", "Tries refused with 429, by what was counted", ["limit", "counted_by"]
)

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """What is allowed of one kind of request; every window has to allow it."""

    per_address: Sequence[RateLimitItem]
    per_account: Sequence[RateLimitItem]


class RateLimits:
    """Counts what was tried, for one process together with all others."""

    def __init__(
        self,
        *,
        limits: Mapping[str, Limit],
        redis: ConnectionPool,
        secret: str,
        enabled: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Args:
            limits: by the name that routes declare.
            redis: connections with short timeouts and without retries.
            secret: the same in every process; addresses and accounts are counted under a digest with it.
            enabled: where not, everything is allowed.
        """
        self._limits = limits
        self._enabled = enabled
        self._clock = clock
        self._digest_key = hashlib.sha256(b"payloops rate limits" + secret.encode()).digest()
        storage = RedisStorage(
            "async+redis://",
            implementation="redispy",
            key_prefix="payloops:limits",
            connection_pool=redis,  # type: ignore[arg-type]  # as its documentation has it
        )
        self._shared = MovingWindowRateLimiter(storage)
        self._own = OwnWindows(clock=clock)
        self._away_until = -math.inf

    async def try_from_address(self, name: str, address: str) -> None:
        """Count a try from an address.

        Raises:
            Problem: 429 rate_limit, with the seconds after which there is room again.
        """
        await self._try(self._limits[name].per_address, name, "address", address)

    async def try_account(self, name: str, account: str) -> None:
        """Count a try at an account: an email in whatever case, or an id.

        Raises:
            Problem: 429 rate_limit, with the seconds after which there is room again.
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
                headers={"Retry-After": str(max(1, math.ceil(wait + EARLY)))},
            )

    async def _wait(self, items: Sequence[RateLimitItem], key: Sequence[str]) -> float | None:
        """Seconds until the next try has room, None where this one had."""
        if self._clock() >= self._away_until:
            try:
                async with asyncio.timeout(REDIS_SECONDS):
                    return await self._shared_wait(items, key)
            except (RedisError, OSError, TimeoutError) as error:
                self._away_until = self._clock() + REDIS_PAUSE
                log.warning("rate_limits.redis_down", error=type(error).__name__)
        return self._own.wait(items, key)

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


class OwnWindows:
    """Moving windows in memory, stricter than the limits they stand in for."""

    def __init__(self, *, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._tries: dict[tuple[str, ...], deque[float]] = {}

    def wait(self, items: Sequence[RateLimitItem], key: Sequence[str]) -> float | None:
        """Seconds until the next try has room, None where this one had: it is then counted."""
        now = self._clock()
        windows = [(item, self._window(item, key)) for item in items]
        waits = [tries[0] + item.get_expiry() - now for item, tries in windows if len(tries) == tries.maxlen]
        if any(wait > 0 for wait in waits):
            return max(waits)
        for _, tries in windows:
            tries.append(now)  # the oldest falls out
        return None

    def _window(self, item: RateLimitItem, key: Sequence[str]) -> deque[float]:
        name = (*key, str(item))
        tries = self._tries.pop(name, None)
        if tries is None:
            tries = deque(maxlen=max(1, item.amount // STRICTER))
        self._tries[name] = tries
        if len(self._tries) > REMEMBERED:
            del self._tries[next(iter(self._tries))]
        return tries


def fold_case(account: str) -> str:
    """Lower case as the database has it, letter by letter: `str.lower` tells İ from i, PostgreSQL does not."""
    return "".join(letter.lower()[0] for letter in account)


def client_address(request: web.BaseRequest, *, trusted_proxies: int) -> str:
    """Where a request comes from; of IPv6, the /64.

    Each proxy appends to `X-Forwarded-For` whom it was called by. What stands before the entries of the trusted
    ones may have been written by anyone, so the n-th from the right is the client as the outermost trusted one
    saw it. Where there are fewer, the request did not come by way of them all.

    Args:
        trusted_proxies: how many stand between clients and this process; 0: the header means nothing.
    """
    peer = request.remote or ""
    if trusted_proxies > 0:
        entries = ",".join(request.headers.getall("X-Forwarded-For", [])).split(",")
        if len(entries) >= trusted_proxies:
            return _site(entries[-trusted_proxies]) or _site(peer) or peer
    return _site(peer) or peer


def _site(text: str) -> str | None:
    """The address, or the network that it is counted with; None where it is no address."""
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
    return str(ipaddress.ip_network((address, IPV6_SITE), strict=False))
