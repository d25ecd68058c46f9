"""Every shape that an event was ever stored in is read for good (docs/events.md)."""

import json
import subprocess
import sys
from typing import Any

import orjson
import psycopg
import pytest
from evolution import (
    Example,
    fold,
    name_of,
    plain_attributes,
    read_examples,
    read_shapes,
    shape_of,
)
from processes import environment_of
from typer.testing import CliRunner

from payloops.cli.app import app
from payloops.events.event_types import fact_types
from payloops.events.orders import OrderCreated
from payloops.events.personal_data import DROPPED
from payloops.events.stream import StreamEvent
from payloops.settings import Settings

EXAMPLES = read_examples()
FACTS = fact_types()


def written_versions(fact: type[StreamEvent]) -> range:
    return range(1, fact.class_version + 1)


def test_there_is_an_example_of_every_version_of_every_type_and_of_nothing_else() -> None:
    """`make shapes` writes one for a new version, before it is written anywhere else."""
    names = {name_of(topic, version) for topic, fact in FACTS.items() for version in written_versions(fact)}
    assert {example.name for example in EXAMPLES} == names
    for example in EXAMPLES:
        last = example.stream[-1]
        version = orjson.loads(last.state).get("class_version", 1)
        assert name_of(last.topic, version) == example.name


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)
def test_an_example_still_decodes_and_folds_to_what_is_written_beside_it(example: Example) -> None:
    fact, aggregate = fold(example.stream, personal_key=example.personal_key)
    assert plain_attributes(fact, as_in=example.fact) == example.fact
    assert plain_attributes(aggregate, as_in=example.state) == example.state


READER = """
import json, sys
from eventsourcing.persistence import StoredEvent
from payloops.events.encoding import decode
for topic, state in json.load(sys.stdin):
    print(decode(StoredEvent(None, 1, topic, state.encode()), personal_key=None).TOPIC)
"""


@pytest.mark.parametrize("order", [1, -1])
def test_a_process_reads_types_whose_modules_it_has_not_imported(order: int) -> None:
    """Whichever comes first."""
    events = [(each.stream[-1].topic, each.stream[-1].state.decode()) for each in EXAMPLES][::order]
    events = [(topic, state) for topic, state in events if '"sealed"' not in state]
    read = subprocess.run(
        [sys.executable, "-P", "-c", READER],
        input=json.dumps(events),
        capture_output=True,
        text=True,
        check=True,
    )
    assert read.stdout.split() == [topic for topic, _ in events]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)
def test_an_example_folds_also_when_its_key_is_dropped(example: Example) -> None:
    """To the same but for what is personal, which reads erased."""
    _, aggregate = fold(example.stream, personal_key=DROPPED)
    personal = FACTS[example.stream[0].topic].PERSONAL
    read = plain_attributes(aggregate, as_in=example.state)
    for name, value in example.state.items():
        assert read[name] == (personal[name] if name in personal and value else value), name


@pytest.mark.parametrize("topic", sorted(FACTS))
def test_the_fields_of_a_type_change_with_its_version_alone(topic: str) -> None:
    """Where they have to: a new `class_version`, an upcaster, `make shapes` (docs/events.md)."""
    fact, shapes = FACTS[topic], read_shapes()
    assert shape_of(fact) == shapes[name_of(topic, fact.class_version)]


@pytest.mark.parametrize("topic", sorted(FACTS))
def test_there_is_an_upcaster_from_each_version_to_the_next(topic: str) -> None:
    fact = FACTS[topic]
    for version in written_versions(fact)[:-1]:
        assert callable(getattr(fact, f"upcast_v{version}_v{version + 1}", None)), version


def test_shapes_are_of_what_has_an_example() -> None:
    assert set(read_shapes()) == {example.name for example in EXAMPLES}


def changed(**added: Any) -> type[StreamEvent]:
    """`order.created` with other fields, and no topic of its own."""
    return type("Changed", (OrderCreated,), {"__annotations__": added})


@pytest.mark.parametrize("added", [{"gift": "bool"}, {"amount": "str"}, {"description": "str"}])
def test_a_field_that_is_added_or_of_another_type_is_another_shape(added: dict[str, str]) -> None:
    assert shape_of(changed(**added)) != shape_of(OrderCreated)
    assert shape_of(changed()) == shape_of(OrderCreated)


# -- what a log holds


def test_the_command_counts_a_log_by_type_and_version_and_names_what_it_does_not_know(
    settings: Settings,
) -> None:
    rows = [
        *[("order.created", {"metadata": {"class_version": 7}})] * 2,  # the merchant's, not ours
        *[("order.created", {"class_version": 2})] * 3,
        ("order.created", {"class_version": 3}),
        ("order.teleported", {}),
    ]
    with psycopg.connect(settings.database_url.get_secret_value(), autocommit=True) as connection:
        for position, (topic, state) in enumerate(rows, start=1):
            connection.execute(
                "INSERT INTO stored_events (originator_id, originator_version, topic, state, notification_id,"
                " merchant_id, content_hash) VALUES (gen_random_uuid(), 1, %s, %s, %s, gen_random_uuid(), '')",
                (topic, orjson.dumps(state), position),
            )
    shown = CliRunner().invoke(app, ["events", "types", "--json"], env=environment_of(settings))
    assert shown.exit_code == 0, shown.output
    lines = {(line["type"], line["version"]): line for line in json.loads(shown.stdout)}
    counted = {key: (line["events"], line["known"]) for key, line in lines.items() if line["events"]}
    assert counted == {
        ("order.created", 1): (2, "older"),
        ("order.created", 2): (3, "current"),
        ("order.created", 3): (1, "newer"),
        ("order.teleported", 1): (1, "unknown"),
    }
    assert {(topic, fact.class_version) for topic, fact in FACTS.items()} <= set(lines)
