"""The command line as a whole: its groups, and the commands that belong to none."""

import inspect
from datetime import timedelta
from importlib.metadata import version
from typing import Annotated

import typer

from payloops.cli.audit import audit
from payloops.cli.events import events
from payloops.cli.execution import (
    DATABASE_DOWN,
    WRONG_SETTINGS,
    fail,
    read,
    run_async,
    run_process,
    settings_of,
    settings_of_process,
)
from payloops.cli.keys import keys
from payloops.cli.options import DEFAULT_DATA_DIR, AsJson, DataDir, duration
from payloops.cli.privacy import privacy
from payloops.cli.projections import projections
from payloops.cli.resolve import resolve
from payloops.cli.staff import staff
from payloops.cli.webhooks import webhooks

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.add_typer(projections, name="projections")
app.add_typer(events, name="events")
app.add_typer(staff, name="staff")
app.add_typer(privacy, name="privacy")
app.add_typer(keys, name="keys")
app.add_typer(webhooks, name="webhooks")
app.add_typer(resolve, name="resolve")
app.add_typer(audit, name="audit")


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"payloops {version('payloops')}")
        raise typer.Exit


@app.callback()
def main(
    *,
    show_version: Annotated[
        bool,
        typer.Option("--version", help="Show the version and exit.", callback=_show_version, is_eager=True),
    ] = False,
) -> None:
    """PayLoops backend: the API gateway of a payment platform."""


@app.command()
def dev(
    *,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    fresh: Annotated[bool, typer.Option("--fresh", help="Delete all data first.")] = False,
    host: Annotated[str, typer.Option(envvar="HOST", help="Address the API listens on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(envvar="PORT", min=1, max=65535, help="Port of the API.")] = 3000,
    postgres_port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Port of PostgreSQL; any free port if not given.")
    ] = None,
    temporal_port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Port of Temporal; any free port if not given.")
    ] = None,
    temporal_ui_port: Annotated[
        int | None,
        typer.Option(min=1, max=65535, help="Port of Temporal's web interface; any free port if not given."),
    ] = None,
    stop_with_parent: Annotated[
        bool, typer.Option("--stop-with-parent", hidden=True, help="End when the calling program does.")
    ] = False,
) -> None:
    """Run the whole service on this machine, with embedded PostgreSQL, Valkey and Temporal servers.

    Where DATABASE_URL, REDIS_URL or TEMPORAL_ADDRESS is set, that server is used instead of an embedded one.
    """
    from payloops.dev.service import DevOptions, run_dev  # noqa: PLC0415
    from payloops.embedded import NotStarted  # noqa: PLC0415
    from payloops.settings import InvalidSettings  # noqa: PLC0415

    options = DevOptions(
        data_dir=data_dir,
        fresh=fresh,
        host=host,
        port=port,
        postgres_port=postgres_port,
        temporal_port=temporal_port,
        temporal_ui_port=temporal_ui_port,
        stop_with_parent=stop_with_parent,
    )
    try:
        run_dev(options)
    except InvalidSettings as error:
        fail(str(error), status=WRONG_SETTINGS)
    except NotStarted as error:
        fail(str(error))


@app.command()
def demo(
    *,
    url: Annotated[
        str | None, typer.Option(help="URL of the service; that of `payloops dev` if not given.")
    ] = None,
    api_key: Annotated[
        str | None,
        typer.Option(
            envvar="PAYLOOPS_API_KEY", help="API key of a merchant; the demo merchant's if not given."
        ),
    ] = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """Take an order through payment, capture and refund on a running service, and show each step."""
    import asyncio  # noqa: PLC0415

    from rich.console import Console  # noqa: PLC0415

    from payloops.dev.client import RequestRefused, ServiceAbsent  # noqa: PLC0415
    from payloops.dev.demo import DemoStuck, run_demo  # noqa: PLC0415
    from payloops.dev.demo_merchant import read_demo_merchant  # noqa: PLC0415

    kept = read_demo_merchant(data_dir=data_dir)
    key = api_key or (kept.api_key if kept else None)
    if key is None:
        fail(
            f"no API key: give --api-key or PAYLOOPS_API_KEY, or run `payloops dev` first "
            f"(its key is kept in {data_dir}; --data-dir names another)"
        )
    try:
        asyncio.run(
            run_demo(
                url=url or (kept.url if kept else "http://127.0.0.1:3000"),
                api_key=key,
                as_json=as_json,
                console=Console(highlight=False),
            )
        )
    except ServiceAbsent as error:
        fail(f"{error}: start one with `make dev`, or name another with --url")
    except (RequestRefused, DemoStuck) as error:
        fail(str(error))


@app.command()
def serve(
    *, workers: Annotated[int, typer.Option(min=1, max=64, help="Processes that share the port.")] = 1
) -> None:
    """Serve the HTTP API."""
    settings = settings_of_process()
    from contextlib import nullcontext  # noqa: PLC0415

    from payloops.daemons.shared_metrics import share_metrics  # noqa: PLC0415

    with share_metrics() if workers > 1 else nullcontext():
        from payloops.daemons.api import run  # noqa: PLC0415

        run(settings, workers=workers)


@app.command()
def projector() -> None:
    """Keep the tables that queries read up to date with the event log, and seal the log.

    Any number may run: for each projection one is active, and the others stand by.
    """
    settings = settings_of_process()
    from payloops.daemons.projector import run_projector  # noqa: PLC0415

    run_process(run_projector(settings))


@app.command()
def subscriber() -> None:
    """Start and signal Temporal workflows for new events in the log.

    Any number may run: one is active for payments and one for webhooks, and the others stand by.
    """
    settings = settings_of_process()
    from payloops.daemons.stopping import exit_now  # noqa: PLC0415
    from payloops.daemons.subscriber import run_subscribers  # noqa: PLC0415

    run_process(run_subscribers(settings))
    exit_now()


@app.command()
def worker(
    *,
    sandbox: Annotated[bool, typer.Option("--sandbox", help="Also simulate the payment processors.")] = False,
    bank_port: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=65535,
            help="With --sandbox: port of the simulated bank, where customers approve tok_3ds payments.",
        ),
    ] = None,
    bank_url: Annotated[
        str | None,
        typer.Option(help="URL at which browsers reach the bank; http://127.0.0.1:PORT if not given."),
    ] = None,
    webhooks_to: Annotated[
        str | None,
        typer.Option(
            help="URL of the API, to which the sandbox sends its webhooks; CHECKOUT_BASE_URL if not given."
        ),
    ] = None,
) -> None:
    """Run the activities that Temporal workflows call, and deliver webhooks to merchants."""
    settings = settings_of_process()
    from payloops.daemons.stopping import exit_now  # noqa: PLC0415
    from payloops.daemons.worker import BankOptions, run_worker  # noqa: PLC0415

    bank = None
    if bank_port is not None:
        if not sandbox:
            fail("--bank-port needs --sandbox")
        bank = BankOptions(
            port=bank_port,
            url=(bank_url or f"http://127.0.0.1:{bank_port}").rstrip("/"),
            webhooks_to=webhooks_to or settings.checkout_base_url,
        )
    run_process(run_worker(settings, sandbox=sandbox, bank=bank))
    exit_now()


@app.command()
def migrate() -> None:
    """Migrate the database to the schema of this version. Needs only DATABASE_URL.

    Safe to run at any time, also by several processes at once.
    """
    from payloops.settings import DatabaseSettings  # noqa: PLC0415

    database_url = read(DatabaseSettings).database_url.get_secret_value()
    from sqlalchemy.exc import DBAPIError, OperationalError  # noqa: PLC0415

    from payloops.events.connections import reach  # noqa: PLC0415
    from payloops.migrate import SchemaAhead  # noqa: PLC0415
    from payloops.migrate import migrate as apply  # noqa: PLC0415

    run_async(reach(database_url, application_name="payloops migrate"))
    try:
        applied = apply(database_url=database_url)
    except OperationalError as error:
        fail(f"{DATABASE_DOWN}: {error.orig}")
    except DBAPIError as error:
        fail(f"migration: {error.orig}")
    except SchemaAhead as error:
        fail(str(error))
    typer.echo("\n".join(f"applied {revision}" for revision in applied) or "nothing to apply")


@app.command()
def reconcile(
    *,
    older_than: Annotated[
        str,
        typer.Option(help="Check payments that have been under way for longer than this: 90s, 10m, 24h, 7d."),
    ] = "10m",
    since: Annotated[
        str, typer.Option(help="Also check all payments of orders that changed within this time; 0s: none.")
    ] = "24h",
    sandbox: Annotated[
        bool, typer.Option("--sandbox", help="Ask the sandbox instead of Stripe and Razorpay.")
    ] = False,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    as_json: AsJson = False,
) -> None:
    """Ask the processors about payments, record what they answer, and report what does not agree.

    Exits with status 1 if something is left for people to look at. Settings that are not in the environment are
    taken from the `payloops dev` of the data directory, unless DATABASE_URL names another database.
    """
    from payloops.reconcile.payments import run_reconcile  # noqa: PLC0415
    from payloops.settings import Settings  # noqa: PLC0415

    times = {"older_than": _duration("--older-than", older_than), "since": _duration("--since", since)}
    settings = settings_of(Settings, data_dir)
    agrees = run_async(
        run_reconcile(settings, **times, sandbox=sandbox, as_json=as_json),
        interrupted="what processors said was recorded of some payments; run it again for the others",
    )
    if not agrees:
        raise typer.Exit(1)


def _duration(option: str, text: str) -> timedelta:
    try:
        return duration(text)
    except ValueError as error:
        fail(f"{option}: {error}", status=WRONG_SETTINGS)


def _unwrap_help(commands: typer.Typer) -> None:
    """Have terminals wrap help where they end, instead of where the docstrings do."""
    for command in commands.registered_commands:
        paragraphs = inspect.cleandoc(command.callback.__doc__ or "").split("\n\n")
        command.help = "\n\n".join(paragraph.replace("\n", " ") for paragraph in paragraphs)
    for group in commands.registered_groups:
        assert group.typer_instance is not None
        _unwrap_help(group.typer_instance)


_unwrap_help(app)
