"""The commands of `payloops audit`. Each imports what it runs, so that `--help` is quick."""

from collections.abc import Coroutine
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, TypeVar
from uuid import UUID

import typer

from payloops.command_line import (
    DEFAULT_DATA_DIR,
    WRONG_SETTINGS,
    AsJson,
    DataDir,
    audit_settings_of,
    database_url_of,
    fail,
    run_async,
)

audit = typer.Typer(
    help="What happened to orders, and that nobody has rewritten it: for support staff.", no_args_is_help=True
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
        typer.Option("--diff", metavar="WHEN WHEN", help="Show what differs between two such moments."),
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", help="Go on with what happens to it from now, until Ctrl-C.")
    ] = False,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    as_json: AsJson = False,
) -> None:
    """Show everything that happened to an order, oldest first: when, what, who, how much, references.

    Needs DATABASE_URL alone, or a `payloops dev` on the data directory; so do the other commands that read.
    """
    from payloops.audit.trail import show_differences, show_state, show_trail  # noqa: PLC0415

    if sum((at is not None, diff is not None, follow)) > 1:
        fail("give one of --at, --diff and --follow", status=WRONG_SETTINGS)
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
            help="Whichever is at hand, whole: an order's id, its external id, the customer's email, a reference at"
            " the processor, a correlation id.",
        ),
    ] = None,
    *,
    external_id: Annotated[str | None, typer.Option(help="The merchant's own id of the order.")] = None,
    email: Annotated[str | None, typer.Option(help="The customer's, in whatever case.")] = None,
    reference: Annotated[
        str | None,
        typer.Option(
            help="What the processor calls a payment, transaction, refund or event: pi_…, ch_…, evt_…"
        ),
    ] = None,
    correlation_id: Annotated[
        str | None, typer.Option(help="X-Correlation-ID of a request that changed the order.")
    ] = None,
    amount: Annotated[
        str | None, typer.Option(metavar="MONEY", help='That was ordered: "49.99 USD".')
    ] = None,
    created_from: Annotated[
        str | None, typer.Option("--from", metavar="TIME", help="Created then or later, in UTC.")
    ] = None,
    created_to: Annotated[
        str | None, typer.Option("--to", metavar="TIME", help="Created before, in UTC.")
    ] = None,
    merchant: Annotated[UUID | None, typer.Option(metavar="ID", help="Of this merchant.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1_000, help="The most to show.")] = 20,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    as_json: AsJson = False,
) -> None:
    """Find orders of every merchant, newest first; all that is given has to fit. Ends with 1 where none does."""
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
    work = show_found(database_url=database_url_of(data_dir), search=search, limit=limit, as_json=as_json)
    if not _run(work):
        raise typer.Exit(1)


@audit.command("why")
def audit_why(order_id: OrderId, *, data_dir: DataDir = DEFAULT_DATA_DIR, as_json: AsJson = False) -> None:
    """Explain in sentences why an order stands as it does: attempts, processors, what is pending and since when."""
    from payloops.audit.explanation import show_explanation  # noqa: PLC0415

    _run(show_explanation(database_url=database_url_of(data_dir), order_id=order_id, as_json=as_json))


@audit.command("replay")
def audit_replay(
    order_id: OrderId,
    *,
    at: Annotated[
        str | None, typer.Option("--at", metavar="WHEN", help=f"No further than to {AS_OF}.")
    ] = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    as_json: AsJson = False,
) -> None:
    """Fold an order event by event, and show its state after each."""
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
            "--output", "-o", help="The file; evidence-ID.json if not given, - for standard output."
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Write the evidence about an order into one signed file: events with proofs, what processors sent, webhooks.

    Ends with 1, and says so, where the order's events were changed by hand: the file then shows that, and proves
    nothing else.

    Of what processors sent, secrets, personal data and card numbers are masked; the order itself has its customer.
    `payloops audit verify FILE` checks it, anywhere. Needs DATABASE_URL and AUDIT_KEY, or a `payloops dev` on the
    data directory.
    """
    from payloops.audit.evidence import export_evidence  # noqa: PLC0415
    from payloops.audit.evidence_check import check_evidence  # noqa: PLC0415
    from payloops.wiring import make_audit_keys  # noqa: PLC0415

    settings = audit_settings_of(data_dir)
    content = _run(
        export_evidence(
            database_url=settings.database_url.get_secret_value(),
            keys=make_audit_keys(settings),
            order_id=order_id,
            path=output,
            force=force,
        )
    )
    wrong = check_evidence(content).wrong
    if wrong:
        fail("\n".join(["this evidence does NOT hold:", *wrong]))


@audit.command("key")
def audit_key(*, data_dir: DataDir = DEFAULT_DATA_DIR, as_json: AsJson = False) -> None:
    """Show the public keys by which seals and evidence are checked, for those who check them elsewhere."""
    from payloops.audit.evidence_check import show_keys  # noqa: PLC0415
    from payloops.wiring import make_audit_keys  # noqa: PLC0415

    show_keys(make_audit_keys(audit_settings_of(data_dir)), as_json=as_json)


@audit.command("verify")
def audit_verify(
    file: Annotated[
        Path | None, typer.Argument(help="Evidence of `audit export`: checked by itself, without a database.")
    ] = None,
    *,
    public_key: Annotated[
        list[str] | None,
        typer.Option(
            "--public-key", metavar="HEX", help="Of FILE: a key of the service, as `audit key` prints it."
        ),
    ] = None,
    anchor: Annotated[
        list[str] | None,
        typer.Option(
            "--anchor",
            metavar="POSITION:HASH",
            help="A seal that was noted elsewhere: it has to be there still.",
        ),
    ] = None,
    without_mac_until: Annotated[
        int, typer.Option(min=0, metavar="POSITION", help="Accept events without a MAC up to here.")
    ] = 0,
    workers: Annotated[
        int | None, typer.Option(min=1, max=64, help="Processes; as many as there are cores, up to 4.")
    ] = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    as_json: AsJson = False,
) -> None:
    """Check that nobody changed the log by hand; with FILE, check that evidence.

    Names the first event that was edited, removed, inserted or reordered, and ends with 1 where there is one. May
    run while the service does. Needs DATABASE_URL and AUDIT_KEY, or a `payloops dev` on the data directory; with
    FILE, nothing.
    """
    if file is not None:
        if anchor:
            fail("--anchor: a seal of the log; leave FILE out to check that", status=WRONG_SETTINGS)
        _verify_file(file, public_key or [], as_json=as_json)
        return
    if public_key:
        fail("--public-key: of evidence; give its FILE", status=WRONG_SETTINGS)
    from payloops.audit.reading import NotUnderstood  # noqa: PLC0415
    from payloops.audit.verification import parse_anchor, run_verification  # noqa: PLC0415
    from payloops.wiring import make_audit_keys  # noqa: PLC0415

    settings = audit_settings_of(data_dir)
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
        )
    )
    if not holds:
        raise typer.Exit(1)


def _verify_file(path: Path, public_keys: list[str], *, as_json: bool) -> None:
    from payloops.audit.evidence_check import NotEvidence, run_check  # noqa: PLC0415

    try:
        known = [bytes.fromhex(each) for each in public_keys]
    except ValueError:
        fail("--public-key: write it as `payloops audit key` prints it", status=WRONG_SETTINGS)
    try:
        holds = run_check(path=path, public_keys=known, as_json=as_json)
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


def _run(work: "Coroutine[Any, Any, T]") -> "T":
    """Run what reads the database; Ctrl-C is an end like any other."""
    from payloops.audit.reading import NotFound, NotUnderstood  # noqa: PLC0415
    from payloops.events.encoding import NewerVersion, UnknownTopic  # noqa: PLC0415
    from payloops.events.personal_data import PersonalDataUnreadable  # noqa: PLC0415

    try:
        return run_async(work)
    except NotFound as error:
        fail(str(error))
    except NotUnderstood as error:
        fail(str(error), status=WRONG_SETTINGS)
    except (UnknownTopic, NewerVersion) as error:
        fail(f"{error}: `payloops audit order` shows it all the same")
    except PersonalDataUnreadable as error:
        fail(str(error))
    except KeyboardInterrupt:
        raise typer.Exit(0) from None
