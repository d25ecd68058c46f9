"""`payloops dev`: the whole service on this machine, from one command."""

import asyncio
import importlib
import os
import signal
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from payloops.daemons.start_checks import foreign_sealer, opens_nothing
from payloops.dev.client import RequestRefused, ServiceAbsent
from payloops.dev.demo_merchant import FILE_NAME as DEMO_MERCHANT_FILE
from payloops.dev.demo_merchant import DemoMerchant, ensure_demo_merchant
from payloops.dev.demo_staff import FILE_NAME as DEMO_STAFF_FILE
from payloops.dev.demo_staff import DemoStaff, ensure_demo_staff
from payloops.dev.environment import ENVIRONMENT_FILE, SECRETS_FILE, load_or_create_secrets, write_environment
from payloops.dev.parts import Part, how_it_ended, stop_parts
from payloops.dev.screen import Terminal, show_screen
from payloops.embedded import EmbeddedServers, NotStarted
from payloops.embedded.locks import choosing_ports, free_ports, port_is_free
from payloops.embedded.servers import Part as ServerPart
from payloops.events.pools import command_pool
from payloops.settings import HIGHEST_PORT, Settings, read_settings
from payloops.wiring import make_audit_keys, make_cipher

EXTERNAL: dict[ServerPart, str] = {
    "postgres": "DATABASE_URL",
    "valkey": "REDIS_URL",
    "temporal": "TEMPORAL_ADDRESS",
}
"""Servers that the user may provide, and the variable that names each."""

API_SECONDS = 30.0  # for the API to become ready
POLL_SECONDS = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class DevOptions:
    """The options of `payloops dev`. Of ports that are None, those of the last run are used, or any free ones."""

    data_dir: Path
    fresh: bool
    host: str
    port: int
    postgres_port: int | None
    temporal_port: int | None
    temporal_ui_port: int | None
    stop_with_parent: bool = False


def run_dev(options: DevOptions) -> None:
    """Start everything, show how to use it, keep it running until a signal, and stop it in order.

    Raises:
        NotStarted: a part did not start; the message is one line.
        InvalidSettings.
    """
    terminal = Terminal()
    began = time.monotonic()
    with interruptible():
        try:
            _run(options, terminal=terminal, began=began)
        except KeyboardInterrupt:
            terminal.say("Stopped.")


def _run(options: DevOptions, *, terminal: Terminal, began: float) -> None:
    if not port_is_free(options.port):
        raise NotStarted(
            part="API", why=f"port {options.port} is taken by another program: choose one with --port"
        )
    servers = _servers(options)
    named = ", ".join(each.capitalize().replace("Postgres", "PostgreSQL") for each in servers.parts)
    terminal.say(f"[dim]Starting {named or 'on your own servers'} …[/]")
    # Slow to import: done while the servers start.
    threading.Thread(target=importlib.import_module, args=["payloops.migrate"], daemon=True).start()
    with servers:
        if servers.temporal.put_aside:
            terminal.say(
                "[yellow]Temporal has another version: its data begins anew, "
                f"the old is {servers.temporal.put_aside}[/]",
            )
        environment = _environment(options, servers=servers)
        settings = _settings_in(environment)
        write_environment(environment, data_dir=servers.data_dir)
        _migrate(environment["DATABASE_URL"])
        asyncio.run(_check_keys(settings))
        parts = _parts(environment, options=options, servers=servers)
        try:
            for each in parts:
                each.start()
            url = _url(options)
            _wait_for_api(parts[0], url=url)
            merchant = _demo_merchant(url=url, data_dir=servers.data_dir)
            staff = _demo_staff(servers)
            seconds = time.monotonic() - began
            show_screen(terminal, servers=servers, merchant=merchant, staff=staff, seconds=seconds)
            parent = os.getppid() if options.stop_with_parent else None
            _keep_running(parts, servers=servers, terminal=terminal, parent=parent)
        finally:
            _stop(parts, terminal=terminal)


def _servers(options: DevOptions) -> EmbeddedServers:
    namespace = os.environ.get("TEMPORAL_NAMESPACE") or Settings.model_fields["temporal_namespace"].default
    return EmbeddedServers(
        data_dir=options.data_dir,
        temporal_namespaces=[namespace],
        fresh=options.fresh,
        also_fresh=[SECRETS_FILE, ENVIRONMENT_FILE, DEMO_MERCHANT_FILE, DEMO_STAFF_FILE],
        parts=[part for part, name in EXTERNAL.items() if not os.environ.get(name)],
        temporal_ui=True,
        postgres_port=options.postgres_port,
        temporal_port=options.temporal_port,
        temporal_ui_port=options.temporal_ui_port,
    )


def _environment(options: DevOptions, *, servers: EmbeddedServers) -> dict[str, str]:
    """The environment of the service's processes: the user's variables, and defaults for those that are not set."""
    own = {
        "ENVIRONMENT": "development",
        "CORS_ORIGINS": "*",
        "CHECKOUT_BASE_URL": _url(options),
        "SHUTDOWN_GRACE": "0.2",
        "WEBHOOK_ALLOW_LOOPBACK": "true",
        **load_or_create_secrets(data_dir=servers.data_dir),
        **{name: value for name, value in os.environ.items() if value},
        "HOST": options.host,
        "PORT": str(options.port),
        "PYTHONUNBUFFERED": "1",
    }
    own.pop("METRICS_PORT", None)  # three processes cannot use the same port
    if "postgres" in servers.parts:
        own["DATABASE_URL"] = servers.database_url
    if "valkey" in servers.parts:
        own["REDIS_URL"] = servers.redis_url
    if "temporal" in servers.parts:
        own["TEMPORAL_ADDRESS"] = servers.temporal_address
        if servers.temporal_ui_url is not None:
            own.setdefault("TEMPORAL_UI_URL", servers.temporal_ui_url)
    return own


def _settings_in(environment: dict[str, str]) -> Settings:
    """The settings that the service's processes will read.

    Raises:
        InvalidSettings: here, before any process is started that would fail on it again and again.
    """
    names = {name: name.upper() for name in Settings.model_fields}
    given = {field: environment[name] for field, name in names.items() if name in environment}
    return read_settings(Settings, **given)


def _url(options: DevOptions, *, port: int | None = None) -> str:
    host = "127.0.0.1" if options.host in {"0.0.0.0", "::"} else options.host  # noqa: S104
    port = port or options.port
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _migrate(database_url: str) -> None:
    from sqlalchemy.exc import SQLAlchemyError  # noqa: PLC0415 slow, and wanted while the servers start

    from payloops.migrate import SchemaAhead, migrate  # noqa: PLC0415

    try:
        migrate(database_url=database_url)
    except SQLAlchemyError as error:
        raise NotStarted(part="migrations", why=str(error).split("\n", 1)[0]) from error
    except SchemaAhead as error:
        raise NotStarted(part="migrations", why=f"{error}; --fresh drops all data") from error


async def _check_keys(settings: Settings) -> None:
    url = settings.database_url.get_secret_value()
    async with command_pool(url, application_name="payloops dev") as pool:
        unreadable = await opens_nothing(pool, make_cipher(settings))
        sealed_by = await foreign_sealer(pool, make_audit_keys(settings))
    if unreadable:
        raise NotStarted(
            part="API",
            why="ENCRYPTION_KEY opens nothing that is stored: start with the former one; --fresh drops all data",
        )
    if sealed_by is not None:
        raise NotStarted(
            part="API",
            why="AUDIT_KEY is not that of the log, which would look tampered with: start with the former one;"
            " --fresh drops all data",
        )


def _parts(environment: dict[str, str], *, options: DevOptions, servers: EmbeddedServers) -> list[Part]:
    """The service's processes. The API comes first: it is also stopped first."""
    with choosing_ports():
        [bank_port] = free_ports(wanted=[options.port + 1 if options.port < HIGHEST_PORT else None])
    bank_url = _url(options, port=bank_port)
    commands = {
        "api": ["serve"],
        "projector": ["projector"],
        "subscriber": ["subscriber"],
        "worker": [
            *("worker", "--sandbox", "--bank-port", str(bank_port)),
            *("--bank-url", bank_url, "--webhooks-to", _url(options)),
        ],
    }
    return [
        Part(
            name=name,
            arguments=arguments,
            environment=environment,
            log=servers.data_dir / f"logs/{name}.log",
            started=lambda child: servers.keep(child=child),
        )
        for name, arguments in commands.items()
    ]


def _wait_for_api(api: Part, *, url: str) -> None:
    deadline = time.monotonic() + API_SECONDS
    why = "no answer"
    while time.monotonic() < deadline:
        assert api.child is not None
        status = api.child.exit_status()
        if status is not None:
            output = api.child.output().strip().splitlines()
            raise NotStarted(
                part="API", why=f"{how_it_ended(status)}: {output[-1] if output else 'without output'}"
            )
        try:
            with urllib.request.urlopen(f"{url}/ready", timeout=5):  # noqa: S310 our own
                return
        except urllib.error.HTTPError as error:
            with error:
                why = error.read(500).decode(errors="replace")
        except OSError:
            pass
        time.sleep(0.05)
    raise NotStarted(part="API", why=f"not ready in {API_SECONDS:.0f} s: {why}; see {api.log.path}")


def _demo_merchant(*, url: str, data_dir: Path) -> DemoMerchant:
    try:
        return asyncio.run(ensure_demo_merchant(url=url, data_dir=data_dir))
    except (RequestRefused, ServiceAbsent) as error:
        raise NotStarted(part="demo merchant", why=str(error)) from error


def _demo_staff(servers: EmbeddedServers) -> DemoStaff | None:
    """A staff account; None in a database that the user provided, because staff can see all merchants there."""
    if "postgres" not in servers.parts:
        return None
    return asyncio.run(ensure_demo_staff(database_url=servers.database_url, data_dir=servers.data_dir))


def _keep_running(
    parts: list[Part], *, servers: EmbeddedServers, terminal: Terminal, parent: int | None
) -> None:
    """Keep everything running until a signal (KeyboardInterrupt), or until the parent process or the terminal is gone.

    The latter two are checked because `make` does not pass those signals on.
    """
    is_starting = True  # of what was logged until now, only what went wrong is shown
    while not terminal.is_gone() and parent in (None, os.getppid()):
        for each in parts:
            for line, style in each.log.lines(chatty=each.name == "api" and not is_starting):
                terminal.bare(line, style=style)
            died = each.watch()
            if died:
                terminal.say(f"[red]{died}[/]")
        for server in servers.ended():
            terminal.say(f"[red]{server} ended; starting it again[/]")
            try:
                servers.start_part(server)
            except NotStarted as error:
                terminal.say(f"[red]{error}[/]")
        is_starting = False
        time.sleep(POLL_SECONDS)


def _stop(parts: list[Part], *, terminal: Terminal) -> None:
    """Stop the API first, while the others still work for its last requests; then the others."""
    terminal.say("[dim]Stopping: API, then workers, then servers …[/]")
    try:
        stop_parts(parts[:1])
        stop_parts(parts[1:])
    except KeyboardInterrupt:  # a second Ctrl-C: stop at once
        stop_parts(parts, seconds=0)


@contextmanager
def interruptible() -> Iterator[None]:
    """Make SIGTERM and SIGHUP (a closed terminal) raise KeyboardInterrupt, as Ctrl-C does."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    names = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(name, interrupt) for name in names]
    try:
        yield
    finally:
        for name, handler in zip(names, before, strict=True):
            signal.signal(name, handler)
