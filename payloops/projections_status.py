"""`payloops projections status`: how far each projection is, for eyes or for a program."""

import json
import sys
from dataclasses import asdict

from rich.console import Console
from rich.table import Column, Table

from payloops.events.connections import command_pool
from payloops.projections.projection import all_projections
from payloops.projections.status import ProjectionStatus, projections_status


async def show_projections_status(*, database_url: str, as_json: bool) -> None:
    """Print position, lag in events and seconds, and parked events of every projection."""
    async with command_pool(database_url, application_name="payloops status") as pool:
        found = await projections_status(pool)
    if as_json:
        print(json.dumps([asdict(each) for each in found], indent=2))  # noqa: T201 the command's output
    else:
        Console(width=None if sys.stdout.isatty() else 100, highlight=False).print(status_table(found))


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
        print(json.dumps(shown, indent=2))  # noqa: T201
        return
    table = Table("Projection", "Version", "Tables", "Of events")
    for each in found:
        events = ", ".join(f"{family}.*" for family in sorted(each.families))
        table.add_row(each.name, str(each.version), ", ".join(each.table_names), events)
    Console(width=None if sys.stdout.isatty() else 100, highlight=False).print(table)


def status_table(found: list[ProjectionStatus]) -> Table:
    table = Table(
        Column("Reader", no_wrap=True), "Position", "Head", "Lag, events", "Lag, seconds", "Parked", "Process"
    )
    for each in found:
        table.add_row(
            each.name,
            str(each.position),
            str(each.head),
            str(each.lag_events),
            f"{each.lag_seconds:.1f}",
            f"[red]{each.parked}[/]" if each.parked else "0",
            "running" if each.active else "[red]none[/]",
        )
    return table
