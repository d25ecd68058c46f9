"""The commands of `payloops webhooks`."""

from typing import Annotated
from uuid import UUID

import typer

from payloops.cli.execution import WRONG_SETTINGS, database_url_of, fail, run_async
from payloops.cli.options import DEFAULT_DATA_DIR, AsJson, DataDir

webhooks = typer.Typer(help="Show webhooks received from processors, and their effect.", no_args_is_help=True)


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
    from payloops.operating.webhooks import show_received  # noqa: PLC0415

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
    from payloops.operating.webhooks import NoSuchEvent, show_event  # noqa: PLC0415

    try:
        run_async(show_event(database_url=database_url_of(data_dir), id=id, as_json=as_json))
    except NoSuchEvent as error:
        fail(str(error))
