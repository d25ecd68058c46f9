"""`payloops projections status`: how far each projection is, as a table or as JSON."""

from dataclasses import asdict

from rich.table import Table
from rich.text import Text

from payloops.events.connections import command_pool
from payloops.printing import make_console, plain_table, print_plain_json
from payloops.projections.projection import all_projections
from payloops.projections.status import ProjectionStatus, projections_status


async def show_projections_status(*, database_url: str, as_json: bool) -> None:
    """Print position, lag in events and seconds, and parked events of every projection."""
    async with command_pool(database_url, application_name="payloops status") as pool:
        found = await projections_status(pool)
    if as_json:
        print_plain_json([asdict(each) for each in found])
    else:
        make_console().print(status_table(found))


def show_projections(*, as_json: bool) -> None:
    """Print what this version has: each projection with its version and tables."""
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
