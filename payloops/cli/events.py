"""The commands of `payloops events`."""

import typer

from payloops.cli.execution import database_url_of, run_async
from payloops.cli.options import DEFAULT_DATA_DIR, AsJson, DataDir

events = typer.Typer(help="Inspect the event log.", no_args_is_help=True)


@events.command("types")
def events_types(*, data_dir: DataDir = DEFAULT_DATA_DIR, as_json: AsJson = False) -> None:
    """Count the log's events by type and version, and mark those that this version of the code cannot read.

    Needs only DATABASE_URL, or a running `payloops dev`.
    """
    from payloops.operating.events import show_event_types  # noqa: PLC0415

    run_async(show_event_types(database_url=database_url_of(data_dir), as_json=as_json))
