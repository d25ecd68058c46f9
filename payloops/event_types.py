"""`payloops events types`: which types of events the log holds, for eyes or for a program."""

import sys
from collections import Counter
from typing import Any

import orjson
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from payloops.events.connections import command_pool
from payloops.events.event_types import EventType, count_event_types, fact_types


async def show_event_types(*, database_url: str, as_json: bool) -> None:
    """Print types, versions and counts, with progress on standard error."""
    counts: Counter[EventType] = Counter()
    async with command_pool(database_url, application_name="payloops events") as pool:
        with Progress(
            TextColumn("counting"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        ) as progress:
            task = progress.add_task("counting", total=None)
            async for done, total in count_event_types(pool, counts):
                progress.update(task, completed=done, total=total)
    lines = lines_of(counts)
    if as_json:
        sys.stdout.buffer.write(orjson.dumps(lines, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
        return
    table = Table("Type", "Version", "Events", "")
    for line in lines:
        table.add_row(line["type"], str(line["version"]), f"{line['events']:,}", REMARKS[line["known"]])
    Console(width=None if sys.stdout.isatty() else 100, highlight=False).print(table)


REMARKS = {
    "current": "",
    "older": "older: upcast when it is read",
    "newer": "[red]newer than this code, which refuses it[/]",
    "unknown": "[red]not known to this code[/]",
}


def lines_of(counts: Counter[EventType]) -> list[dict[str, Any]]:
    """One for each version that the log holds, and for each present version of a type that this code knows."""
    present = {EventType(topic, fact.class_version) for topic, fact in fact_types().items()}
    return [
        {"type": each.topic, "version": each.version, "events": counts[each], "known": how_known(each)}
        for each in sorted(present | set(counts), key=lambda each: (each.topic, each.version))
    ]


def how_known(each: EventType) -> str:
    """`current`, `older`, `newer` or `unknown`, to this code."""
    fact = fact_types().get(each.topic)
    if fact is None:
        return "unknown"
    if each.version == fact.class_version:
        return "current"
    return "older" if each.version < fact.class_version else "newer"
