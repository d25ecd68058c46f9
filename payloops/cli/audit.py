"""The commands of `payloops audit`."""

from collections.abc import Coroutine
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, TypeVar
from uuid import UUID

import typer

from payloops.cli.execution import WRONG_SETTINGS, database_url_of, fail, run_async, settings_of
from payloops.cli.options import DEFAULT_DATA_DIR, AsJson, DataDir

audit = typer.Typer(
    help="Show what happened to orders, and check that nobody has tampered with the log.",
    no_args_is_help=True,
)
OrderId = Annotated[UUID, typer.Argument(help="The order's id.", metavar="ID")]
T = TypeVar("T")
AS_OF = "a version, or a time in UTC: 3, or 2027-01-31T15:40:02"


@audit.command("order")
def audit_order(
    order_id: OrderId,
    *,
    at: Annotated[
        str | None, typer.Option("--at", metavar="WHEN", help=f"Show the order as it was at {AS_OF}.")
    ] = None,
    diff: Annotated[
        tuple[str, str] | None,
        typer.Option(
            "--diff", metavar="WHEN WHEN", help="Show the differences between two versions or times."
        ),
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", help="Keep running, and show new events as they happen, until Ctrl-C.")
    ] = False,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    as_json: AsJson = False,
) -> None:
    """Show everything that happened to an order, oldest first: when, what, who, how much, references.

    Needs only DATABASE_URL, or a running `payloops dev`.
    """
    from payloops.audit.trail import show_differences, show_state, show_trail  # noqa: PLC0415

    if sum((at is not None, diff is not None, follow)) > 1:
        fail("give only one of --at, --diff and --follow", status=WRONG_SETTINGS)
    url = database_url_of(data_dir)
    if at is not None:
        as_of = _understood(at)
        _run(show_state(database_url=url, order_id=order_id, as_of=as_of, as_json=as_json))
    elif diff is not None:
        between = (_understood(diff[0]), _understood(diff[1]))
        _run(show_differences(database_url=url, order_id=order_id, between=between, as_json=as_json))
    else:
        _run(show_trail(database_url=url, order_id=order_id, follow=follow, as_json=as_json))


@audit.command("search")
def audit_search(
    text: Annotated[
        str | None,
        typer.Argument(
            metavar="TEXT",
            help="The complete order id, external id, customer's email, processor reference or correlation id.",
        ),
    ] = None,
    *,
    external_id: Annotated[str | None, typer.Option(help="The merchant's own id of the order.")] = None,
    email: Annotated[
        str | None, typer.Option(help="The customer's email address; case does not matter.")
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option(help="The processor's id of a payment, transaction, refund or event: pi_…, ch_…, evt_…"),
    ] = None,
    correlation_id: Annotated[
        str | None, typer.Option(help="X-Correlation-ID of a request that changed the order.")
    ] = None,
    amount: Annotated[
        str | None, typer.Option(metavar="MONEY", help='The amount of the order: "49.99 USD".')
    ] = None,
    created_from: Annotated[
        str | None, typer.Option("--from", metavar="TIME", help="Created at or after this time, in UTC.")
    ] = None,
    created_to: Annotated[
        str | None, typer.Option("--to", metavar="TIME", help="Created before this time, in UTC.")
    ] = None,
    merchant: Annotated[UUID | None, typer.Option(metavar="ID", help="Only orders of this merchant.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1_000, help="Maximum number of orders to show.")] = 20,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    as_json: AsJson = False,
) -> None:
    """Find orders of all merchants, newest first. All given criteria must match.

    Exits with status 1 if no order matches. Needs only DATABASE_URL, or a running `payloops dev`.
    """
    from payloops.audit.reading import NotUnderstood, moment  # noqa: PLC0415
    from payloops.audit.search import show_found  # noqa: PLC0415
    from payloops.events.money import parse_money  # noqa: PLC0415
    from payloops.projections.staff_orders import StaffSearch  # noqa: PLC0415

    try:
        minor, currency = (None, None) if amount is None else parse_money(amount)
        search = StaffSearch(
            text=text,
            external_id=external_id,
            email=email,
            reference=reference,
            correlation_id=correlation_id,
            amount=minor,
            currency=currency,
            created_from=None if created_from is None else moment(created_from),
            created_to=None if created_to is None else moment(created_to),
            merchant_id=merchant,
        )
    except (NotUnderstood, ValueError) as error:
        fail(str(error), status=WRONG_SETTINGS)
    if search.created_from and search.created_to and search.created_from >= search.created_to:
        fail("--from must be before --to", status=WRONG_SETTINGS)
    work = show_found(database_url=database_url_of(data_dir), search=search, limit=limit, as_json=as_json)
    if not _run(work):
        raise typer.Exit(1)


@audit.command("why")
def audit_why(order_id: OrderId, *, data_dir: DataDir = DEFAULT_DATA_DIR, as_json: AsJson = False) -> None:
    """Explain how an order got into its current state: attempts, processors, what is pending and since when.

    Needs only DATABASE_URL, or a running `payloops dev`.
    """
    from payloops.audit.explanation import show_explanation  # noqa: PLC0415

    _run(show_explanation(database_url=database_url_of(data_dir), order_id=order_id, as_json=as_json))


@audit.command("replay")
def audit_replay(
    order_id: OrderId,
    *,
    at: Annotated[str | None, typer.Option("--at", metavar="WHEN", help=f"Stop at {AS_OF}.")] = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    as_json: AsJson = False,
) -> None:
    """Show the state of an order after each of its events.

    Needs only DATABASE_URL, or a running `payloops dev`.
    """
    from payloops.audit.explanation import show_replay  # noqa: PLC0415

    as_of = None if at is None else _understood(at)
    _run(show_replay(database_url=database_url_of(data_dir), order_id=order_id, as_of=as_of, as_json=as_json))


@audit.command("export")
def audit_export(
    order_id: OrderId,
    *,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="File to write; evidence-ID.json if not given, - for standard output."
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing file.")] = False,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Export the evidence about an order as one signed file: events with proofs, what processors sent, webhooks.

    If the order's events were changed by hand, says so and exits with status 1; the file then proves only that.

    In what processors sent, secrets, personal data and card numbers are masked; the customer data of the order itself
    is included. `payloops audit verify FILE` checks the file, anywhere. Needs DATABASE_URL and AUDIT_KEY, or a
    running `payloops dev`.
    """
    from payloops.audit.evidence import export_evidence  # noqa: PLC0415
    from payloops.audit.evidence_check import check_evidence  # noqa: PLC0415
    from payloops.settings import AuditSettings  # noqa: PLC0415
    from payloops.wiring import make_audit_keys  # noqa: PLC0415

    settings = settings_of(AuditSettings, data_dir)
    keys = make_audit_keys(settings)
    content = _run(
        export_evidence(
            database_url=settings.database_url.get_secret_value(),
            keys=keys,
            order_id=order_id,
            path=output,
            force=force,
        )
    )
    wrong = check_evidence(content, mac_keys=keys.mac_keys).wrong
    if wrong:
        fail("\n".join(["this evidence does NOT hold:", *wrong]))


@audit.command("key")
def audit_key(*, data_dir: DataDir = DEFAULT_DATA_DIR, as_json: AsJson = False) -> None:
    """Show the public keys with which others can check seals and evidence. Needs DATABASE_URL and AUDIT_KEY."""
    from payloops.audit.evidence_check import show_keys  # noqa: PLC0415
    from payloops.settings import AuditSettings  # noqa: PLC0415
    from payloops.wiring import make_audit_keys  # noqa: PLC0415

    show_keys(make_audit_keys(settings_of(AuditSettings, data_dir)), as_json=as_json)


@audit.command("verify")
def audit_verify(
    file: Annotated[
        Path | None, typer.Argument(help="An evidence file of `audit export`; checking it needs no database.")
    ] = None,
    *,
    public_key: Annotated[
        list[str] | None,
        typer.Option(
            "--public-key", metavar="HEX", help="With FILE: a public key of the service, from `audit key`."
        ),
    ] = None,
    anchor: Annotated[
        list[str] | None,
        typer.Option(
            "--anchor",
            metavar="POSITION:HASH",
            help="Also check that this seal, noted elsewhere, is still there.",
        ),
    ] = None,
    without_mac_until: Annotated[
        int, typer.Option(min=0, metavar="POSITION", help="Accept events without a MAC up to this position.")
    ] = 0,
    workers: Annotated[
        int | None,
        typer.Option(min=1, max=64, help="Number of processes; one per core, up to 4, if not given."),
    ] = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    as_json: AsJson = False,
) -> None:
    """Check that nobody changed the log by hand; with FILE, check that evidence file.

    If an event was edited, removed, inserted or reordered, names the first one and exits with status 1; so it does
    if FILE is not evidence, or does not hold. Exits with status 2 if FILE cannot be read. May run while the service
    does. Needs DATABASE_URL and AUDIT_KEY, or a running `payloops dev`; with FILE, neither.
    """
    if file is not None:
        if anchor:
            fail("--anchor checks the log, and cannot be combined with FILE", status=WRONG_SETTINGS)
        _verify_file(file, public_key or [], as_json=as_json)
        return
    if public_key:
        fail("--public-key needs the FILE to check", status=WRONG_SETTINGS)
    from payloops.audit.reading import NotUnderstood  # noqa: PLC0415
    from payloops.audit.verification import parse_anchor, run_verification  # noqa: PLC0415
    from payloops.settings import AuditSettings  # noqa: PLC0415
    from payloops.wiring import make_audit_keys  # noqa: PLC0415

    settings = settings_of(AuditSettings, data_dir)
    try:
        anchors = [parse_anchor(each) for each in anchor or ()]
    except NotUnderstood as error:
        fail(str(error), status=WRONG_SETTINGS)
    holds = _run(
        run_verification(
            database_url=settings.database_url.get_secret_value(),
            keys=make_audit_keys(settings),
            anchors=anchors,
            without_mac_until=without_mac_until,
            workers=workers,
            as_json=as_json,
        ),
        interrupted="not all of the log was checked",
    )
    if not holds:
        raise typer.Exit(1)


def _verify_file(path: Path, public_keys: list[str], *, as_json: bool) -> None:
    from payloops.audit.evidence_check import NotEvidence, run_check  # noqa: PLC0415

    try:
        known = [bytes.fromhex(each) for each in public_keys]
    except ValueError:
        fail("--public-key: must be hexadecimal, as `payloops audit key` prints it", status=WRONG_SETTINGS)
    try:
        holds = run_check(path=path, public_keys=known, as_json=as_json)
    except OSError as error:
        fail(f"{path}: {error.strerror}", status=WRONG_SETTINGS)
    except NotEvidence as error:
        fail(str(error))
    if not holds:
        raise typer.Exit(1)


def _understood(text: str) -> "int | datetime":
    from payloops.audit.reading import NotUnderstood, moment_or_version  # noqa: PLC0415

    try:
        return moment_or_version(text)
    except NotUnderstood as error:
        fail(str(error), status=WRONG_SETTINGS)


def _run(work: "Coroutine[Any, Any, T]", *, interrupted: str | None = None) -> "T":
    """Run work that reads the database, with its errors as messages."""
    from payloops.audit.reading import NotFound, NotUnderstood  # noqa: PLC0415
    from payloops.events.encoding import NewerVersion, UnknownTopic  # noqa: PLC0415
    from payloops.events.errors import StreamUnreadable  # noqa: PLC0415
    from payloops.events.personal_data import PersonalDataUnreadable  # noqa: PLC0415

    try:
        return run_async(work, interrupted=interrupted)
    except NotFound as error:
        fail(str(error))
    except NotUnderstood as error:
        fail(str(error), status=WRONG_SETTINGS)
    except StreamUnreadable as error:
        match error.__cause__:
            case UnknownTopic() | NewerVersion() as cause:
                fail(f"{cause}: `payloops audit order` can still show it")
            case PersonalDataUnreadable() as cause:
                fail(str(cause))
            case cause:
                fail(
                    f"{error}: {type(cause).__name__}; if it was changed by hand, `payloops audit verify` says so"
                )
