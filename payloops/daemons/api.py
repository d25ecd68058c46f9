"""The API's processes: `payloops serve`."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from urllib.parse import quote

import structlog
import uvloop
from aiohttp import web
from limits import parse_many
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from temporalio.api.workflowservice.v1 import DescribeNamespaceRequest

from payloops.commands.api_keys import KeyMode
from payloops.commands.authenticate_api_key import ApiKeyGate
from payloops.commands.hashing import Hasher
from payloops.commands.log_in import TokenGate
from payloops.commands.note_key_use import KeyUses
from payloops.commands.tokens import SESSION_AUDIENCE, STAFF_AUDIENCE, Tokens
from payloops.commands.watch_orders import OrderWatch
from payloops.daemons.garbage_collection import tune_garbage_collector
from payloops.daemons.housekeeping import keep_house
from payloops.daemons.listening import NotOneSocket, PortTaken, accept, bind, handed_over, share
from payloops.daemons.metrics import open_metrics, state_readers
from payloops.daemons.outages import log_outages
from payloops.daemons.prefork import keep_running
from payloops.daemons.probes import Probe, dependencies
from payloops.daemons.schema_check import require_schema
from payloops.daemons.start_checks import check_at_start
from payloops.daemons.stopping import stop_on_signals
from payloops.daemons.temporal_client import unconnected_client
from payloops.events.background import in_background
from payloops.events.fair_semaphore import FairSemaphore
from payloops.http.admission import Admission
from payloops.http.app import create_app
from payloops.http.connections import connection_factory, finish_requests
from payloops.http.plain_requests import PLAIN_ROUTES
from payloops.http.rate_limits import REDIS_SECONDS, Limit, RateLimits
from payloops.http.request_metrics import hand_over
from payloops.http.services import Services
from payloops.logs import configure_logs
from payloops.settings import Environment, Settings
from payloops.wiring import make_audit_keys, make_cipher, open_store

FINISH_SECONDS = 20.0
"""How long requests in flight have to finish once the listener is closed."""
LONG_READS_WAITING = 64
"""How many of `Services.long_reads` may wait: fewer than the requests that a process always handles at a time."""
LONG_READ_WAITS = 2.0
"""How long one of them may wait, in seconds."""
REDIS_CONNECTIONS = 16
"""Maximum connections of a process to Redis, for rate limits."""
STAFF_SESSION = 8 * 3600
"""Lifetime of staff tokens and of staff sessions, in seconds: a working day."""

log = structlog.get_logger()


def run(settings: Settings, *, workers: int = 1) -> None:
    """Serve until SIGTERM or SIGINT, then finish the requests in flight.

    On the address of the settings, or where a socket that was handed over listens.

    Args:
        workers: number of processes that share the port; the kernel distributes connections to them.

    Raises:
        SystemExit: it cannot listen on the address; the message is one line.
    """
    configure_logs(settings, process="api")
    try:
        bound = handed_over() or bind(settings.host, settings.port, setting="PORT", shared=workers > 1)
    except (NotOneSocket, PortTaken) as error:
        raise SystemExit(f"payloops: {error}") from None
    with bound as listener:
        if workers == 1:
            uvloop.run(_serve(settings, listener))
        else:
            keep_running(
                lambda number: uvloop.run(_serve(settings, share(listener), checks=number == 1)),
                processes=workers,
                finish_seconds=settings.shutdown_grace + FINISH_SECONDS * 2,
            )


async def _serve(settings: Settings, listener: socket.socket, *, checks: bool = True) -> None:
    """
    Args:
        checks: whether this process logs outages of dependencies, and checks PostgreSQL's settings, and by reading all
            secrets of merchants the keys.
    """
    stop = stop_on_signals()
    async with AsyncExitStack() as stack:
        services = await stack.enter_async_context(serving(settings, listener))
        if checks:
            outages = log_outages(services.dependencies)
            await stack.enter_async_context(in_background(outages, name="outages"))
            checking = check_at_start(
                services.store.pool, cipher=services.cipher, audit_keys=make_audit_keys(settings)
            )
            await stack.enter_async_context(in_background(checking, name="start_checks"))
        await stop.wait()
        log.info("api.stopping")
    log.info("api.stopped")


@asynccontextmanager
async def serving(settings: Settings, listener: socket.socket) -> AsyncIterator[Services]:
    """Serve the API while the context lasts. Then: not ready, listener closed, requests finished, pools closed."""
    async with open_services(settings) as services:
        app = create_app(services)
        runner = web.AppRunner(app, shutdown_timeout=1.0, access_log=None)
        await runner.setup()
        assert runner.server is not None
        factory = connection_factory(runner.server, admission=services.admission, plain=app[PLAIN_ROUTES])
        acceptors = await accept(listener, factory)
        host, port = listener.getsockname()[:2]
        tune_garbage_collector()
        log.info(
            "api.listening", url=f"http://{f'[{host}]' if ':' in host else host}:{port}", pid=os.getpid()
        )
        try:
            yield services
        finally:
            services.stopping.set()
            services.watch.stop_waiting()
            # Time for load balancers to notice that /ready answers 503, and to stop sending requests.
            await asyncio.sleep(settings.shutdown_grace)
            for acceptor in acceptors:
                acceptor.close()
            await finish_requests(runner.server, seconds=FINISH_SECONDS)
            await runner.cleanup()


@asynccontextmanager
async def open_services(settings: Settings) -> AsyncIterator[Services]:
    """Open what handlers need. Works even if PostgreSQL, Redis or Temporal is down."""
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(
            open_store(settings, application_name="payloops api", patience=settings.database_patience)
        )
        redis: Redis = Redis.from_url(
            settings.redis_url.get_secret_value(), socket_timeout=1.0, socket_connect_timeout=1.0
        )
        stack.push_async_callback(redis.aclose)
        passwords = await stack.enter_async_context(Hasher(rounds=settings.bcrypt_rounds))
        keys = await stack.enter_async_context(Hasher(rounds=settings.bcrypt_rounds))
        uses = await stack.enter_async_context(KeyUses(store.pool))
        watch = await stack.enter_async_context(OrderWatch(store))
        await stack.enter_async_context(in_background(keep_house(store), name="housekeeping"))
        limits = await stack.enter_async_context(open_rate_limits(settings))
        temporal = await unconnected_client(settings)
        admission = Admission(limit=settings.max_in_flight)
        probes: dict[str, Probe] = {
            "postgres": lambda: require_schema(store.pool),
            "redis": redis.ping,
            "temporal": lambda: temporal.workflow_service.describe_namespace(
                DescribeNamespaceRequest(namespace=settings.temporal_namespace)
            ),
        }
        metrics = await stack.enter_async_context(
            open_metrics(
                samplers=[store.sample, admission.sample, hand_over],
                readers=state_readers(store, probes=probes),
            )
        )
        tokens = Tokens(secret=settings.jwt_secret.get_secret_value(), expires_in=settings.jwt_expires_in)
        mode: KeyMode = "live" if settings.environment is Environment.PRODUCTION else "test"
        yield Services(
            store=store,
            gate=ApiKeyGate(store.pool, keys=keys, mode=mode, uses=uses),
            token_gate=TokenGate(store.pool, tokens=tokens),
            key_mode=mode,
            passwords=passwords,
            key_hasher=keys,
            tokens=tokens,
            staff_tokens=Tokens(
                secret=settings.jwt_secret.get_secret_value(),
                expires_in=STAFF_SESSION,
                audience=STAFF_AUDIENCE,
            ),
            staff_sessions=Tokens(
                secret=settings.jwt_secret.get_secret_value(),
                expires_in=STAFF_SESSION,
                audience=SESSION_AUDIENCE,
            ),
            cipher=make_cipher(settings),
            watch=watch,
            limits=limits,
            long_reads=FairSemaphore(
                permits=settings.database_pool_size // 2,
                max_waiting=LONG_READS_WAITING,
                seconds=LONG_READ_WAITS,
            ),
            admission=admission,
            dependencies=dependencies(probes),
            metrics=metrics.text,
            checkout_base_url=settings.checkout_base_url,
            cors_origins=settings.cors_origins,
            secure_cookies=settings.environment is Environment.PRODUCTION,
            workflow_url=_workflow_url(settings),
            trusted_proxies=settings.trusted_proxies,
            webhook_allow_loopback=settings.webhook_allow_loopback,
            request_timeout=settings.request_timeout,
        )


@asynccontextmanager
async def open_rate_limits(settings: Settings) -> AsyncIterator[RateLimits]:
    """Open the rate limits, named as in `Route.limits`. If Redis is down, they use it when it is up."""
    login = Limit(
        per_address=parse_many(settings.login_limit_per_address),
        per_account=parse_many(settings.login_limit_per_account),
    )
    registration = Limit(
        per_address=parse_many(settings.register_limit_per_address),
        per_account=parse_many(settings.register_limit_per_account),
    )
    redis = BlockingConnectionPool.from_url(
        settings.redis_url.get_secret_value(),
        max_connections=REDIS_CONNECTIONS,
        timeout=REDIS_SECONDS,
        socket_timeout=REDIS_SECONDS,
        socket_connect_timeout=REDIS_SECONDS,
        retry=Retry(NoBackoff(), 0),
    )
    try:
        yield RateLimits(
            limits={"login": login, "password": login, "staff_login": login, "register": registration},
            redis=redis,
            secret=settings.jwt_secret.get_secret_value(),
            enabled=settings.rate_limits,
        )
    finally:
        await redis.aclose()


def _workflow_url(settings: Settings) -> str | None:
    """The URL of workflows in Temporal's web interface, to which a workflow id is appended."""
    if settings.temporal_ui_url is None:
        return None
    namespace = quote(settings.temporal_namespace, safe="")
    return f"{settings.temporal_ui_url.rstrip('/')}/namespaces/{namespace}/workflows/"
