"""`payloops events types`: lists the event types in the log, as a table or as JSON."""

from collections import Counter
from typing import Any

from rich.text import Text

from payloops.events.event_types import EventType, count_event_types, fact_types
from payloops.events.pools import command_pool
from payloops.printing import make_console, plain_table, print_plain_json
from payloops.progress import progress


async def show_event_types(*, database_url: str, as_json: bool) -> None:
    """Print types, versions and counts; progress goes to standard error."""
    counts: Counter[EventType] = Counter()
    async with command_pool(database_url, application_name="payloops events") as pool:
        with progress() as report:
            async for done, total in count_event_types(pool, counts):
                report("counting", done, total)
    lines = lines_of(counts)
    if as_json:
        print_plain_json(lines)
        return
    table = plain_table("Type", "Version", "Events", "")
    for line in lines:
        table.add_row(line["type"], str(line["version"]), f"{line['events']:,}", REMARKS[line["known"]])
    make_console().print(table)


REMARKS = {
    "current": Text(),
    "older": Text("older: upcast when it is read"),
    "newer": Text("newer than this code, which refuses it", style="red"),
    "unknown": Text("not known to this code", style="red"),
}


def lines_of(counts: Counter[EventType]) -> list[dict[str, Any]]:
    """A line for each version in the log, and for the current version of each type that this code knows."""
    current = {EventType(topic, fact.class_version) for topic, fact in fact_types().items()}
    return [
        {"type": each.topic, "version": each.version, "events": counts[each], "known": how_known(each)}
        for each in sorted(current | set(counts), key=lambda each: (each.topic, each.version))
    ]


def how_known(each: EventType) -> str:
    """Whether this code knows the version: `current`, `older`, `newer` or `unknown`."""
    fact = fact_types().get(each.topic)
    if fact is None:
        return "unknown"
    if each.version == fact.class_version:
        return "current"
    return "older" if each.version < fact.class_version else "newer"
