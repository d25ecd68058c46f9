"""`payloops projections status` and `list`, as a table or as JSON."""

from dataclasses import asdict

from rich.table import Table
from rich.text import Text

from payloops.events.connections import command_pool
from payloops.printing import make_console, plain_table, print_plain_json
from payloops.projections.projection import all_projections
from payloops.projections.status import ParkedEvent, ProjectionStatus, list_parked_events, projections_status

MAX_PARKED = 100
"""Maximum number of parked events that are listed."""


async def show_projections_status(*, database_url: str, as_json: bool) -> None:
    """Print position and lag (in events and seconds) of every reader of the log, and the newest parked events."""
    async with command_pool(database_url, application_name="payloops status") as pool:
        found = await projections_status(pool)
        parked = await list_parked_events(pool, limit=MAX_PARKED)
    if as_json:
        print_plain_json(
            [
                asdict(status)
                | {"parked_events": [asdict(event) for event in parked if event.reader == status.name]}
                for status in found
            ]
        )
        return
    console = make_console()
    console.print(status_table(found))
    if parked:
        console.print("\nParked, newest first; `payloops projections retry-parked` tries them again:")
        console.print(_parked_table(parked))


def _parked_table(events: list[ParkedEvent]) -> Table:
    table = plain_table("Reader", "Position", "Event", "Stream and version", "Error")
    for each in events:
        table.add_row(
            each.reader, str(each.position), each.topic, f"{each.stream_id}:{each.version}", each.error
        )
    return table


def show_projections(*, as_json: bool) -> None:
    """Print the projections of this version, with their versions and tables."""
    found = all_projections()
    if as_json:
        shown = [
            {
                "name": each.name,
                "version": each.version,
                "tables": each.table_names,
                "events": sorted(each.families),
            }
            for each in found
        ]
        print_plain_json(shown)
        return
    table = plain_table("Projection", "Version", "Tables", "Of events")
    for each in found:
        events = ", ".join(f"{family}.*" for family in sorted(each.families))
        table.add_row(each.name, str(each.version), ", ".join(each.table_names), events)
    make_console().print(table)


def status_table(found: list[ProjectionStatus]) -> Table:
    table = plain_table("Reader", "Position", "Head", "Lag, events", "Lag, seconds", "Parked", "Process")
    for each in found:
        table.add_row(
            each.name,
            str(each.position),
            str(each.head),
            str(each.lag_events),
            f"{each.lag_seconds:.1f}",
            Text(str(each.parked), style="red" if each.parked else ""),
            Text("running") if each.active else Text("none", style="red"),
        )
    return table
