"""`payloops projections`: shows the readers of the log, rebuilds and verifies their tables, retries parked events."""

import time
from collections.abc import Iterator
from dataclasses import asdict

from rich.console import Console
from rich.text import Text

from payloops.events.connections import connect
from payloops.events.pools import command_pool
from payloops.printing import camel_case, make_console, plain_table, print_plain_json, print_rows
from payloops.progress import progress
from payloops.projections.building import rebuild
from payloops.projections.parked import list_parked_events, list_subscribers, retry_forwarding, retry_parked
from payloops.projections.projection import all_projections, find_projections
from payloops.projections.status import ProjectionStatus, projections_status
from payloops.projections.verifying import Difference, Verdict, verify

MAX_PARKED = 100
"""Maximum number of parked events that are listed."""
SUBSCRIBER_SECONDS = 10.0
"""How long to wait for a subscriber, which checks four times a second."""


async def show_projections_status(*, database_url: str, as_json: bool) -> None:
    """Print position and lag (in events and seconds) of every reader of the log, and the newest parked events."""
    async with command_pool(database_url, application_name="payloops status") as pool:
        found = await projections_status(pool)
        parked = await list_parked_events(pool, limit=MAX_PARKED)
    if as_json:
        print_plain_json(
            [
                camel_case(status)
                | {"parkedEvents": [camel_case(event) for event in parked if event.reader == status.name]}
                for status in found
            ]
        )
        return
    console = make_console()
    _print_status(console, found)
    if parked:
        console.print("\nParked, newest first; `payloops projections retry-parked` tries them again:")
        cells = [
            (each.reader, str(each.position), each.topic, f"{each.stream_id}:{each.version}", each.error)
            for each in parked
        ]
        print_rows(console, "Reader", "Position", "Event", "Stream and version", "Error", rows=cells)


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


def _print_status(console: Console, found: list[ProjectionStatus]) -> None:
    cells = [
        (
            each.name,
            str(each.position),
            str(each.head),
            str(each.lag_events),
            f"{each.lag_seconds:.1f}",
            Text(str(each.parked), style="red" if each.parked else ""),
            Text("running") if each.active else Text("none", style="red"),
        )
        for each in found
    ]
    columns = ("Reader", "Position", "Head", "Lag, events", "Lag, seconds", "Parked", "Process")
    print_rows(console, *columns, rows=cells)


class UnknownReader(Exception):
    """Neither a projection nor a subscriber is called that."""

    def __init__(self, name: str, *, known: list[str]) -> None:
        super().__init__(f"no projection or subscriber {name}; there are {', '.join(known)}")
        self.name = name


async def run_rebuild(
    *, database_url: str, names: list[str], workers: int, restart: bool, as_json: bool
) -> None:
    """Rebuild tables beside the live ones, swap them, and print how long it took.

    Raises:
        UnknownProjection, BuildUnderWay, TablesBusy.
    """
    projections = find_projections(names)
    began = time.monotonic()
    with progress() as report:
        built = await rebuild(
            database_url=database_url,
            projections=projections,
            report=report,
            workers=workers,
            restart=restart,
        )
    seconds = time.monotonic() - began
    if as_json:
        print_plain_json(
            {
                "projections": [each.name for each in projections],
                "position": built.position,
                "resumed": built.resumed,
                "seconds": round(seconds, 2),
                "eventsPerSecond": None if built.resumed else round(built.position / seconds),
            }
        )
        return
    names = [each.name for each in projections]
    rate = "the rest of it" if built.resumed else f"{built.position / seconds:,.0f} a second"
    print(  # noqa: T201
        f"rebuilt {', '.join(names)} from {built.position:,} events in {seconds:.1f} s, {rate}"
    )


async def run_verify(*, database_url: str, names: list[str], workers: int, as_json: bool) -> bool:
    """Compare live tables with the log, and print the differences. Returns whether there are none.

    Raises:
        UnknownProjection, BuildUnderWay, VersionsDiffer.
    """
    with progress() as report:
        verdicts = await verify(
            database_url=database_url, projections=find_projections(names), report=report, workers=workers
        )
    if as_json:
        print_plain_json([asdict(each) for each in verdicts])
    else:
        _print_verdicts(verdicts)
    return not any(each.differing for each in verdicts)


async def run_retry_parked(*, database_url: str, names: list[str], as_json: bool) -> bool:
    """Apply parked events, and have subscribers forward theirs. Returns whether nothing is left.

    Raises:
        UnknownReader: a name is neither a projection's nor a subscriber's.
    """
    known = [each.name for each in all_projections()]
    async with await connect(database_url, application_name="payloops retry-parked") as connection:
        await connection.execute("SET statement_timeout = '60s'")
        subscribers = await list_subscribers(connection, projections=known)
        for name in names:
            if name not in known and name not in subscribers:
                raise UnknownReader(name, known=[*known, *subscribers])
        projections = [each for each in all_projections() if not names or each.name in names]
        retried = [await retry_parked(connection, projection=each) for each in projections]
        retried += [
            await retry_forwarding(connection, subscriber=each, seconds=SUBSCRIBER_SECONDS)
            for each in subscribers
            if not names or each in names
        ]
    if as_json:
        print_plain_json([asdict(each) for each in retried])
    else:
        for each in retried:
            waiting = f", {each.waiting} wait for a subscriber" if each.waiting else ""
            print(f"{each.reader}: {each.applied} applied, {each.parked} parked still{waiting}")  # noqa: T201
    return not any(each.parked or each.waiting for each in retried)


def _print_verdicts(verdicts: list[Verdict]) -> None:
    console = make_console()
    table = plain_table("Table", "Projection", "Position", "Rows", "Differing")
    for each in verdicts:
        differing = Text(str(each.differing), style="red" if each.differing else "")
        table.add_row(each.table, each.projection, str(each.position), str(each.rows), differing)
    console.print(table)
    for verdict in verdicts:
        for difference in verdict.differences:
            console.print("\n".join(_lines(difference)))
        if verdict.differing > len(verdict.differences):
            console.print(f"{verdict.table}: … and {verdict.differing - len(verdict.differences)} more")


def _lines(difference: Difference) -> Iterator[str]:
    key = ", ".join(f"{name} {value}" for name, value in difference.key.items())
    if difference.live is None:
        yield f"{difference.table}, {key}: is missing"
    elif difference.rebuilt is None:
        yield f"{difference.table}, {key}: is of no event"
    else:
        yield f"{difference.table}, {key}:"
        for name, live in difference.live.items():
            yield f"  {name}: {_shown(live)}, but the log says {_shown(difference.rebuilt[name])}"


def _shown(value: str | None) -> str:
    return "nothing" if value is None else value
