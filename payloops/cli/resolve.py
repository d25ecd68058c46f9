"""The commands of `payloops resolve`."""

from typing import TYPE_CHECKING, Annotated
from uuid import UUID

import typer

from payloops.cli.execution import WRONG_SETTINGS, fail, run_async, settings_of
from payloops.cli.options import DEFAULT_DATA_DIR, AsJson, DataDir

if TYPE_CHECKING:
    from pathlib import Path

    from payloops.commands.resolve_order import Sighting

resolve = typer.Typer(
    help="Record what a processor's dashboard shows, for what nothing else can end.", no_args_is_help=True
)
LONGEST_NOTE = 500
Order = Annotated[UUID, typer.Argument(help="The order's id.", metavar="ORDER")]
Attempt = Annotated[int, typer.Argument(help="Number of the attempt to pay it.", min=1, metavar="ATTEMPT")]
Refund = Annotated[UUID, typer.Argument(help="The refund's id.", metavar="REFUND")]
Why = Annotated[
    str,
    typer.Option(
        "--why", help="What you saw, and where: kept for good, and shown to the merchant. No personal data."
    ),
]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only show what would be recorded.")]


@resolve.command("one-charge")
def resolve_one_charge(
    order_id: Order,
    attempt: Attempt,
    *,
    why: Why,
    yes: Yes = False,
    dry_run: DryRun = False,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    as_json: AsJson = False,
) -> None:
    """The dashboard shows a single charge for two attempts that are both captured here: it counts once.

    ATTEMPT is either of the two. The refund of the duplicate ends as failed (`same_charge`), and the capture that does
    not count is retracted. If there are two charges, refund one of them in the dashboard instead. A charge that the
    processor reports later under a reference of its own is recorded, and given back.

    Shows the order, and asks for confirmation. Needs DATABASE_URL and AUDIT_KEY, or a running `payloops dev`.
    """
    from payloops.commands.resolve_order import Sighting  # noqa: PLC0415

    seen = Sighting(shows="one_charge", attempt=attempt, note=_note(why))
    _run(order_id, seen, yes=yes, dry_run=dry_run, data_dir=data_dir, as_json=as_json)


@resolve.command("no-money")
def resolve_no_money(
    order_id: Order,
    attempt: Attempt,
    *,
    why: Why,
    yes: Yes = False,
    dry_run: DryRun = False,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    as_json: AsJson = False,
) -> None:
    """The dashboard shows no money for a payment that is under way here: it is not there, failed, or has expired.

    The payment ends as failed (`no_money`), and the order can be paid again; if its cancellation was requested, the
    order is cancelled. Refused if the order has changed within the last 10 minutes. A capture that the processor
    reports later is recorded.

    Shows the order, and asks for confirmation. Needs DATABASE_URL and AUDIT_KEY, or a running `payloops dev`.
    """
    from payloops.commands.resolve_order import Sighting  # noqa: PLC0415

    seen = Sighting(shows="no_money", attempt=attempt, note=_note(why))
    _run(order_id, seen, yes=yes, dry_run=dry_run, data_dir=data_dir, as_json=as_json)


@resolve.command("reference")
def resolve_reference(
    order_id: Order,
    attempt: Attempt,
    reference: Annotated[
        str,
        typer.Argument(help="The processor's, of the payment: pi_…, order_… or pay_….", metavar="REFERENCE"),
    ],
    *,
    why: Why,
    yes: Yes = False,
    dry_run: DryRun = False,
    sandbox: Annotated[
        bool, typer.Option("--sandbox", help="Ask the sandbox instead of Stripe and Razorpay.")
    ] = False,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    as_json: AsJson = False,
) -> None:
    """The dashboard shows a payment whose reference was never reported here.

    The processor is asked for it first: refused if it is unknown there, of another order, currency or amount. Then
    `payloops reconcile` asks by it what became of the payment, and goes on with captures, voids and refunds that waited
    for it. This cannot be undone.

    Shows the order, and asks for confirmation. Needs the settings of a process, or a running `payloops dev`.
    """
    from payloops.commands.resolve_order import Sighting  # noqa: PLC0415

    seen = Sighting(shows="reference", attempt=attempt, reference=_reference(reference), note=_note(why))
    _run(order_id, seen, yes=yes, dry_run=dry_run, data_dir=data_dir, as_json=as_json, sandbox=sandbox)


@resolve.command("refund-made")
def resolve_refund_made(
    order_id: Order,
    refund_id: Refund,
    *,
    reference: Annotated[
        str | None, typer.Option("--reference", help="The processor's reference of the refund.")
    ] = None,
    why: Why,
    yes: Yes = False,
    dry_run: DryRun = False,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    as_json: AsJson = False,
) -> None:
    """The dashboard shows that a refund was made, which is pending or failed here.

    A failure or return that the processor reports later is recorded; `refund-not-made` takes it back by hand.

    Shows the order, and asks for confirmation. Needs DATABASE_URL and AUDIT_KEY, or a running `payloops dev`.
    """
    from payloops.commands.resolve_order import Sighting  # noqa: PLC0415

    known = None if reference is None else _reference(reference)
    seen = Sighting(shows="refund_made", refund_id=str(refund_id), reference=known, note=_note(why))
    _run(order_id, seen, yes=yes, dry_run=dry_run, data_dir=data_dir, as_json=as_json)


@resolve.command("refund-not-made")
def resolve_refund_not_made(
    order_id: Order,
    refund_id: Refund,
    *,
    why: Why,
    yes: Yes = False,
    dry_run: DryRun = False,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    as_json: AsJson = False,
) -> None:
    """The dashboard shows that a refund was not made, and will not be, or that it came back.

    It ends as failed (`not_refunded`), and its amount can be refunded again. Refused if it was requested within the
    last 10 minutes. A refund that the processor reports later is recorded; `refund-made` takes it back by hand.

    Shows the order, and asks for confirmation. Needs DATABASE_URL and AUDIT_KEY, or a running `payloops dev`.
    """
    from payloops.commands.resolve_order import Sighting  # noqa: PLC0415

    seen = Sighting(shows="refund_not_made", refund_id=str(refund_id), note=_note(why))
    _run(order_id, seen, yes=yes, dry_run=dry_run, data_dir=data_dir, as_json=as_json)


def _reference(given: str) -> str:
    from payloops.http.processor_payloads import reference as recorded  # noqa: PLC0415

    if not given.isprintable() or recorded(given) != given:
        fail("that is no processor's reference, or it looks like a card number", status=WRONG_SETTINGS)
    return given


def _note(why: str) -> str:
    from payloops.commands.cards import holds_card_number  # noqa: PLC0415

    note = " ".join(why.split())
    if not note.isprintable() or not 1 <= len(note) <= LONGEST_NOTE:
        fail(f"--why: give a text of 1 to {LONGEST_NOTE} characters", status=WRONG_SETTINGS)
    if holds_card_number(note):
        fail("--why: that holds a card number, which must not be kept", status=WRONG_SETTINGS)
    return note


def _run(
    order_id: UUID,
    seen: "Sighting",
    *,
    yes: bool,
    dry_run: bool,
    data_dir: "Path",
    as_json: bool,
    sandbox: bool = False,
) -> None:
    from payloops.commands.refusals import (  # noqa: PLC0415
        ContradictsRecord,
        NotResolvable,
        OrderNotFound,
    )
    from payloops.events.errors import (  # noqa: PLC0415
        OutcomeUnknown,
        StoreUnavailable,
        StreamUnreadable,
        VersionConflict,
    )
    from payloops.operating.confirming import NotConfirmed  # noqa: PLC0415
    from payloops.operating.resolve import run_resolve  # noqa: PLC0415
    from payloops.processors.port import ProcessorUnreachable  # noqa: PLC0415
    from payloops.projections.own_writes import ProjectionBehind  # noqa: PLC0415
    from payloops.settings import Settings, StoreSettings  # noqa: PLC0415
    from payloops.wiring import make_cipher  # noqa: PLC0415

    if as_json and not (yes or dry_run):
        fail("--json cannot ask for confirmation: give --yes or --dry-run as well", status=WRONG_SETTINGS)
    # The processor is asked with the merchant's credentials, which the other commands do not open.
    settings = settings_of(Settings if seen.shows == "reference" else StoreSettings, data_dir)
    try:
        run_async(
            run_resolve(
                settings,
                order_id=order_id,
                seen=seen,
                ask=not yes,
                dry_run=dry_run,
                as_json=as_json,
                cipher=make_cipher(settings) if isinstance(settings, Settings) else None,
                sandbox=sandbox,
            ),
            interrupted="it may have been recorded; `payloops audit order` shows it, and running it again is safe",
        )
    except (
        OrderNotFound,
        NotResolvable,
        ContradictsRecord,
        StreamUnreadable,
        ProcessorUnreachable,
        ProjectionBehind,
    ) as error:
        fail(f"{error}; nothing was recorded")
    except NotConfirmed:
        fail("nothing was recorded")
    except OutcomeUnknown:
        fail("whether it was recorded is not known: run it again, which is safe")
    except (StoreUnavailable, VersionConflict) as error:
        fail(f"{error}: nothing was recorded; run it again")
