"""The command line. Each command imports what it runs, so that `--help` is quick."""

import os
from contextlib import contextmanager
from datetime import timedelta
from importlib.metadata import version
from typing import TYPE_CHECKING, Annotated
from uuid import UUID

import typer

from payloops.audit.commands import audit
from payloops.command_line import (
    DATABASE_DOWN,
    DEFAULT_DATA_DIR,
    WRONG_SETTINGS,
    AsJson,
    DataDir,
    database_url_of,
    fail,
    refuse_unusable,
    run_async,
    run_process,
    settings_of,
    settings_of_environment,
)
from payloops.privacy.commands import privacy

if TYPE_CHECKING:
    from collections.abc import Iterator

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
projections = typer.Typer(
    help="Inspect, rebuild and verify the tables built from the log.", no_args_is_help=True
)
app.add_typer(projections, name="projections")
events = typer.Typer(help="Inspect the event log.", no_args_is_help=True)
app.add_typer(events, name="events")
staff = typer.Typer(help="Manage support staff, who can read every merchant's orders.", no_args_is_help=True)
app.add_typer(staff, name="staff")
app.add_typer(privacy, name="privacy")
keys = typer.Typer(help="Rotate the key that encrypts secrets in the database.", no_args_is_help=True)
app.add_typer(keys, name="keys")
webhooks = typer.Typer(help="Show webhooks received from processors, and their effect.", no_args_is_help=True)
app.add_typer(webhooks, name="webhooks")
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
    from payloops.dev import DevOptions, run_dev  # noqa: PLC0415
    from payloops.embedded import StartError  # noqa: PLC0415
    from payloops.settings import SettingsError  # noqa: PLC0415

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
    except SettingsError as error:
        fail(str(error), status=WRONG_SETTINGS)
    except StartError as error:
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

    from payloops.client import AnsweredError, ServiceAbsentError  # noqa: PLC0415
    from payloops.demo import DemoStuckError, run_demo  # noqa: PLC0415
    from payloops.demo_merchant import read_demo_merchant  # noqa: PLC0415

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
    except ServiceAbsentError as error:
        fail(f"{error}: start one with `make dev`, or name another with --url")
    except (AnsweredError, DemoStuckError) as error:
        fail(str(error))


@app.command()
def serve(
    *, workers: Annotated[int, typer.Option(min=1, max=64, help="Processes that share the port.")] = 1
) -> None:
    """Serve the HTTP API."""
    settings = settings_of_environment()
    from contextlib import nullcontext  # noqa: PLC0415

    from payloops.shared_metrics import share_metrics  # noqa: PLC0415

    with share_metrics() if workers > 1 else nullcontext():
        from payloops.serve import run  # noqa: PLC0415

        run(settings, workers=workers)


@app.command()
def projector() -> None:
    """Keep the tables that queries read up to date with the event log, and seal the log.

    Any number may run: for each projection one is active, and the others stand by.
    """
    settings = settings_of_environment()
    from payloops.logs import configure_logs  # noqa: PLC0415
    from payloops.projector import run_projector  # noqa: PLC0415

    configure_logs(settings, process="projector")
    run_process(run_projector(settings))


@app.command()
def subscriber() -> None:
    """Start and signal Temporal workflows for new events in the log.

    Any number may run: one is active for payments and one for webhooks, and the others stand by.
    """
    settings = settings_of_environment()
    from payloops.stopping import exit_now  # noqa: PLC0415
    from payloops.subscriber import run_subscriber  # noqa: PLC0415

    run_process(run_subscriber(settings))
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
    settings = settings_of_environment()
    from payloops.stopping import exit_now  # noqa: PLC0415
    from payloops.worker import BankOptions, run_worker  # noqa: PLC0415

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
    database_url = os.environ.get("DATABASE_URL")
    if not database_url:
        fail("DATABASE_URL: required", status=WRONG_SETTINGS)
    refuse_unusable(database_url)
    from sqlalchemy.exc import DBAPIError, OperationalError  # noqa: PLC0415

    from payloops.events.connections import NO_CONNECTION_LEFT, TooManyConnections  # noqa: PLC0415
    from payloops.migrate import LaterSchemaError  # noqa: PLC0415
    from payloops.migrate import migrate as apply  # noqa: PLC0415

    try:
        applied = apply(database_url=database_url)
    except OperationalError as error:
        if NO_CONNECTION_LEFT.search(str(error.orig)):
            fail(str(TooManyConnections()))
        fail(f"{DATABASE_DOWN}: {error.orig}")
    except DBAPIError as error:
        fail(f"migration: {error.orig}")
    except LaterSchemaError as error:
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
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Ask the processors about payments, record what they answer, and report what does not agree.

    Exits with status 1 if something is left for people to look at. Settings that are not in the environment are
    taken from the `payloops dev` of the data directory.
    """
    from payloops.dev_environment import read_environment  # noqa: PLC0415
    from payloops.reconcile import run_reconcile  # noqa: PLC0415

    times = {"older_than": _duration("--older-than", older_than), "since": _duration("--since", since)}
    for name, value in read_environment(data_dir=data_dir).items():
        os.environ.setdefault(name, value)
    settings = settings_of_environment()
    agrees = run_async(
        run_reconcile(settings, **times, sandbox=sandbox, as_json=as_json),
        interrupted="what processors said was recorded of some payments; run it again for the others",
    )
    if not agrees:
        raise typer.Exit(1)


def _duration(option: str, text: str) -> timedelta:
    from payloops.reconcile import duration  # noqa: PLC0415

    try:
        return duration(text)
    except ValueError as error:
        fail(f"{option}: {error}", status=WRONG_SETTINGS)


@projections.command("status")
def projections_status(
    *,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    as_json: AsJson = False,
) -> None:
    """Show the position and lag of each projection and subscriber, and the events that it parked.

    Needs only DATABASE_URL, or a running `payloops dev`.
    """
    from payloops.projections_status import show_projections_status  # noqa: PLC0415

    run_async(show_projections_status(database_url=database_url_of(data_dir), as_json=as_json))


Names = Annotated[
    list[str] | None, typer.Argument(help="Names of projections; all if none is given.", show_default=False)
]
Workers = Annotated[
    int | None,
    typer.Option("--workers", min=1, max=64, help="Number of worker processes; one per core if not given."),
]


@projections.command("list")
def projections_list(*, as_json: AsJson = False) -> None:
    """List the projections of this version of the code, their versions and tables. Needs no database."""
    from payloops.projections_status import show_projections  # noqa: PLC0415

    show_projections(as_json=as_json)


@projections.command("rebuild")
def projections_rebuild(
    names: Names = None,
    *,
    workers: Workers = None,
    restart: Annotated[
        bool, typer.Option("--restart", help="Start over instead of resuming an interrupted rebuild.")
    ] = False,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    as_json: AsJson = False,
) -> None:
    """Rebuild tables from the log beside the live ones, and swap them in at the end, while the service runs.

    An interrupted rebuild resumes when it is run again. Until the swap the live tables are unchanged. Replaying
    events has no side effects: no webhook is sent, no workflow started, no processor called.
    Needs only DATABASE_URL, or a running `payloops dev`.
    """
    from payloops.projections_rebuild import run_rebuild  # noqa: PLC0415

    with _projection_errors():
        run_async(
            run_rebuild(
                database_url=database_url_of(data_dir),
                names=names or [],
                workers=workers or os.cpu_count() or 1,
                restart=restart,
                as_json=as_json,
            ),
            interrupted="the live tables are as they were, or rebuilt already; run it again to resume",
        )


@projections.command("verify")
def projections_verify(
    names: Names = None,
    *,
    workers: Workers = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    as_json: AsJson = False,
) -> None:
    """Compare the live tables with the log, row by row. Exits with status 1 if something differs.

    Builds a second copy of the tables to compare with, and does not change the live ones. Needs only DATABASE_URL,
    or a running `payloops dev`.
    """
    from payloops.projections_rebuild import run_verify  # noqa: PLC0415

    with _projection_errors():
        agrees = run_async(
            run_verify(
                database_url=database_url_of(data_dir),
                names=names or [],
                workers=workers or os.cpu_count() or 1,
                as_json=as_json,
            ),
            interrupted="run it again; it begins anew",
        )
    if not agrees:
        raise typer.Exit(1)


@projections.command("retry-parked")
def projections_retry_parked(
    names: Names = None, *, data_dir: DataDir = DEFAULT_DATA_DIR, as_json: AsJson = False
) -> None:
    """Apply parked events again, and have the subscribers forward theirs again.

    A parked event is one that a projection could not apply, or a subscriber could not forward. Exits with status 1
    if some are still parked afterwards. Needs only DATABASE_URL, or a running `payloops dev`.
    """
    from payloops.projections_rebuild import run_retry_parked  # noqa: PLC0415

    with _projection_errors():
        done = run_async(
            run_retry_parked(database_url=database_url_of(data_dir), names=names or [], as_json=as_json),
            interrupted="run it again to retry the rest",
        )
    if not done:
        raise typer.Exit(1)


@contextmanager
def _projection_errors() -> "Iterator[None]":
    from payloops.projections.building import BuildUnderWay, TablesBusy  # noqa: PLC0415
    from payloops.projections.projection import UnknownProjection  # noqa: PLC0415
    from payloops.projections.verifying import VersionsDiffer  # noqa: PLC0415
    from payloops.projections_rebuild import WorkerKilledError  # noqa: PLC0415

    try:
        yield
    except UnknownProjection as error:
        fail(str(error), status=WRONG_SETTINGS)
    except (BuildUnderWay, TablesBusy, VersionsDiffer, WorkerKilledError) as error:
        fail(str(error))


@events.command("types")
def events_types(*, data_dir: DataDir = DEFAULT_DATA_DIR, as_json: AsJson = False) -> None:
    """Count the log's events by type and version, and mark those that this version of the code cannot read.

    Needs only DATABASE_URL, or a running `payloops dev`.
    """
    from payloops.event_types import show_event_types  # noqa: PLC0415

    run_async(show_event_types(database_url=database_url_of(data_dir), as_json=as_json))


@webhooks.command("received")
def webhooks_received(
    *,
    effect: Annotated[
        str | None,
        typer.Option("--effect", help="Only events with this effect: applied, none, or one explained above."),
    ] = None,
    processor: Annotated[
        str | None, typer.Option("--processor", help="Only events of this processor.")
    ] = None,
    order_id: Annotated[UUID | None, typer.Option("--order", help="Only events about this order.")] = None,
    merchant_id: Annotated[
        UUID | None, typer.Option("--merchant", help="Only events of this merchant.")
    ] = None,
    limit: Annotated[
        int, typer.Option("--limit", min=1, max=100_000, help="Maximum number of events to show.")
    ] = 20,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    as_json: AsJson = False,
) -> None:
    """Show the events that processors sent, newest first, including those that had no effect.

    unhandled: events of this type are not handled. unknown_order: it matches no order. unmatched: it matches no
    payment of its order for certain. contradiction: it cannot be true. received: it has not been processed yet.

    Needs only DATABASE_URL, or a running `payloops dev`.
    """
    from payloops.commands.processor_events import EFFECTS  # noqa: PLC0415
    from payloops.commands.processors import PROCESSORS  # noqa: PLC0415
    from payloops.received_webhooks import show_received  # noqa: PLC0415

    for option, given, known in (("--effect", effect, EFFECTS), ("--processor", processor, PROCESSORS)):
        if given is not None and given not in known:
            fail(f"{option}: use one of {', '.join(known)}", status=WRONG_SETTINGS)
    run_async(
        show_received(
            database_url=database_url_of(data_dir),
            effect=effect,
            processor=processor,
            order_id=order_id,
            merchant_id=merchant_id,
            limit=limit,
            as_json=as_json,
        )
    )


@webhooks.command("show")
def webhooks_show(
    id: Annotated[UUID, typer.Argument(help="Id of the event, as `received` shows it.", metavar="ID")],
    *,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    as_json: AsJson = False,
) -> None:
    """Show an event as the processor sent it, with card numbers and secrets removed."""
    from payloops.received_webhooks import NoSuchEvent, show_event  # noqa: PLC0415

    try:
        run_async(show_event(database_url=database_url_of(data_dir), id=id, as_json=as_json))
    except NoSuchEvent as error:
        fail(str(error))


@keys.command("status")
def keys_status(*, data_dir: DataDir = DEFAULT_DATA_DIR, as_json: AsJson = False) -> None:
    """Count the secrets encrypted with ENCRYPTION_KEY and with older keys.

    Exits with status 1 if older keys are still needed.
    """
    from payloops.keys import show_status  # noqa: PLC0415
    from payloops.settings import KeySettings  # noqa: PLC0415

    if not run_async(show_status(settings_of(KeySettings, data_dir), as_json=as_json)):
        raise typer.Exit(1)


@keys.command("rotate")
def keys_rotate(*, data_dir: DataDir = DEFAULT_DATA_DIR, as_json: AsJson = False) -> None:
    """Re-encrypt with ENCRYPTION_KEY every secret that is encrypted with one of ENCRYPTION_KEYS_OLDER.

    Runs beside the service, and may be interrupted and run again. Exits with status 1 if some secrets are left.
    """
    from payloops.keys import rotate  # noqa: PLC0415
    from payloops.settings import KeySettings  # noqa: PLC0415

    done = run_async(
        rotate(settings_of(KeySettings, data_dir), as_json=as_json),
        interrupted="some secrets are re-encrypted; run it again for the others",
    )
    if not done:
        raise typer.Exit(1)


@staff.command("add")
def staff_add(
    email: Annotated[str, typer.Argument(help="Email address with which the member logs in.")],
    *,
    name: Annotated[str, typer.Option("--name", help="Name of the member.")],
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Add a member. Prompts for the password; without a terminal it is read from a line of standard input.

    Needs only DATABASE_URL, or a running `payloops dev`.
    """
    from payloops.commands.add_staff import StaffEmailTaken  # noqa: PLC0415
    from payloops.staff import NotAcceptable, add, read_password  # noqa: PLC0415

    database_url = database_url_of(data_dir)
    try:
        row = run_async(add(database_url=database_url, email=email, name=name, password=read_password()))
    except (NotAcceptable, StaffEmailTaken) as error:
        fail(str(error))
    typer.echo(f"added {row.email} ({row.id})")


@staff.command("list")
def staff_list(*, data_dir: DataDir = DEFAULT_DATA_DIR, as_json: AsJson = False) -> None:
    """List present and former members."""
    from payloops.staff import show  # noqa: PLC0415

    run_async(show(database_url=database_url_of(data_dir), as_json=as_json))


@staff.command("remove")
def staff_remove(
    email: Annotated[str, typer.Argument(help="Email address of the member.")],
    *,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Remove a member and revoke their tokens at once. The record of what they viewed is kept."""
    from payloops.commands.staff import StaffNotFound  # noqa: PLC0415
    from payloops.staff import remove  # noqa: PLC0415

    try:
        run_async(remove(database_url=database_url_of(data_dir), email=email))
    except StaffNotFound as error:
        fail(str(error))
    typer.echo(f"removed {email}")


@staff.command("views")
def staff_views(
    *,
    email: Annotated[str | None, typer.Option("--email", help="Only views by this member.")] = None,
    order_id: Annotated[UUID | None, typer.Option("--order", help="Only views of this order.")] = None,
    merchant_id: Annotated[
        UUID | None, typer.Option("--merchant", help="Only views of this merchant's orders.")
    ] = None,
    limit: Annotated[
        int, typer.Option("--limit", min=1, max=100_000, help="Maximum number of views to show.")
    ] = 100,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    as_json: AsJson = False,
) -> None:
    """Show what staff viewed, newest first."""
    from payloops.staff import show_views  # noqa: PLC0415

    run_async(
        show_views(
            database_url=database_url_of(data_dir),
            as_json=as_json,
            limit=limit,
            email=email,
            order_id=order_id,
            merchant_id=merchant_id,
        )
    )
