"""The shapes of stored events: an example of each that was ever written, and the fields that each version has.

`make shapes` adds what is missing in tests/stored_events, and changes nothing that is there.
"""

import base64
import dataclasses
import inspect
import random
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from pathlib import Path
from typing import Any, cast
from uuid import UUID

import orjson
from eventsourcing.persistence import StoredEvent
from random_orders import new_order, random_order
from uuid_utils.compat import uuid7

from payloops.commands.pay_order import request_payment
from payloops.commands.payment_outcomes import report_captured, report_failed
from payloops.commands.resolve_order import Sighting, resolve
from payloops.commands.route_payment import Route
from payloops.events import checkout_sessions as checkout
from payloops.events import merchants as account
from payloops.events.encoding import decode, encode
from payloops.events.event_types import fact_types
from payloops.events.metadata import Metadata
from payloops.events.orders import NO_REASON, NO_REFERENCES
from payloops.events.stream import Stream, StreamEvent, topic_of
from payloops.events.timestamps import timestamp_text, utc_now

FOLDER = Path(__file__).with_name("stored_events")
SHAPES = FOLDER / "shapes.json"
BY = Metadata(at=utc_now(), actor="system", correlation_id="an example")


def name_of(topic: str, version: int) -> str:
    """Of an example."""
    return f"{topic}.v{version}"


@dataclass(frozen=True)
class Example:
    """A stream up to the event that is the example, as stored, and what it has to be read as.

    Attributes:
        fact: the last event, decoded.
        state: the attributes of the aggregate after it.
    """

    name: str
    stream: list[StoredEvent]
    personal_key: bytes | None
    fact: dict[str, Any]
    state: dict[str, Any]


def read_example(path: Path) -> Example:
    content = orjson.loads(path.read_bytes())
    key = content["personal_key"]
    return Example(
        name=path.stem,
        stream=[
            StoredEvent(UUID(content["stream_id"]), version, row["topic"], orjson.dumps(row["state"]))
            for version, row in enumerate(content["stream"], start=1)
        ],
        personal_key=None if key is None else base64.b64decode(key),
        fact=content["fact"],
        state=content["state"],
    )


def read_examples() -> list[Example]:
    return [read_example(path) for path in sorted(FOLDER.glob("*.v*.json"))]


def fold(stream: Sequence[StoredEvent], *, personal_key: bytes | None) -> tuple[StreamEvent, Any]:
    """The last event decoded, and the aggregate."""
    aggregate: Any = None
    for stored in stream:
        fact = decode(stored, personal_key=personal_key if stored.originator_version == 1 else None)
        aggregate = fact.mutate(aggregate)
    return fact, aggregate


def attributes(value: Any) -> dict[str, Any]:
    """Of a fact or an aggregate, without the library's own."""
    return {name: each for name, each in vars(value).items() if not name.startswith("_")}


def plain(value: Any, *, as_in: Any = None) -> Any:
    """A value as JSON has it.

    Args:
        as_in: what was written of it before: fields of objects that were added since are left out.
    """
    match value:
        case datetime():
            return timestamp_text(value)
        case Enum() | UUID():
            return str(value)
        case dict():
            known = as_in if isinstance(as_in, dict) else {}
            return {str(name): plain(each, as_in=known.get(str(name))) for name, each in value.items()}
        case set() | frozenset():
            return sorted(plain(each) for each in value)
        case list() | tuple():
            return [plain(each) for each in value]
        case _ if dataclasses.is_dataclass(value):
            fields = {each.name: getattr(value, each.name) for each in dataclasses.fields(value)}
            names = fields.keys() & as_in.keys() if isinstance(as_in, dict) else fields.keys()
            return {name: plain(fields[name], as_in=(as_in or {}).get(name)) for name in names}
        case _:
            return value


def plain_attributes(value: Any, *, as_in: dict[str, Any] | None = None) -> dict[str, Any]:
    """The attributes of a fact or an aggregate as JSON has them; of those that were written before, where some were."""
    given = attributes(value)
    names = given.keys() if as_in is None else given.keys() & as_in.keys()
    return {name: plain(given[name], as_in=(as_in or {}).get(name)) for name in sorted(names)}


def shape_of(fact: type[StreamEvent]) -> dict[str, Any]:
    """The fields of a type as its version has them: what must not change while the version stays."""
    return {
        "fields": {
            each.name: each.type if isinstance(each.type, str) else _annotation(each.type)
            for each in dataclasses.fields(cast("Any", fact))
        },
        "personal": sorted(fact.PERSONAL),
    }


def _annotation(type_: Any) -> str:
    return inspect.formatannotation(type_).replace("typing.", "")  # as Python 3.14 writes it


def read_shapes() -> dict[str, dict[str, Any]]:
    return cast("dict[str, dict[str, Any]]", orjson.loads(SHAPES.read_bytes()))


# -- adding what is missing


def sample_streams() -> Iterator[list[StreamEvent]]:
    """Streams in which every type of fact occurs in its present version. Give new ones a place here."""
    whole: dict[str, Any] = {
        "customer_id": "cus_1",
        "customer_email": "ada@example.com",
        "description": "A book",
        "metadata": {"cart": "7"},
        "return_url": "https://shop.example/done",
    }
    yield collected(new_order(uuid7(), **whole))
    yield from (collected(random_order(random.Random(seed), uuid7())) for seed in range(1_000))
    yield collected(sample_one_charge())
    yield collected(sample_account())
    yield collected(sample_session(checkout.CheckoutSessionCompleted))
    yield collected(sample_session(checkout.CheckoutSessionExpired, reason="time"))


def collected(stream: Stream) -> list[StreamEvent]:
    return stream.collect_events()


def sample_one_charge() -> Stream:
    """Two attempts were recorded as captured, and somebody saw one charge."""
    order = new_order(uuid7())
    for _ in range(2):
        route = Route(processor="stripe", reason="test")
        request_payment(order, route=route, payment_method=None, capture="automatic", by=BY)
        if order.attempt == 1:
            report_failed(order, order.payments[1], references=NO_REFERENCES, failure=NO_REASON, by=BY)
    for payment in order.payments.values():
        report_captured(order, payment, references=NO_REFERENCES, by=BY)
    resolve(order, Sighting(shows="one_charge", attempt=2, note="There is only pi_1"), by=BY)
    return order


def sample_account() -> Stream:
    id = uuid7()
    given = {"merchant_id": str(id), "name": "Shop", "email": "shop@example.com"}
    merchant = account.Merchant.begin(account.MerchantRegistered, id=id, by=BY, **given)
    url, key = "https://shop.example/webhooks", str(uuid7())
    choice = {"processor": "stripe", "enabled": True, "priority": 1, "test_mode": False}
    for fact, details in (
        (account.ProfileChanged, {"name": "Store", "webhook_url": url}),
        (account.PasswordChanged, {"token_version": 2}),
        (account.WebhookSecretRotated, {"previous_expires_at": timestamp_text(BY.at)}),
        (account.WebhooksSwitchedOff, {"url": url, "reason": "The endpoint answered 410 Gone"}),
        (account.WebhooksSwitchedOn, {"url": url}),
        (account.WebhookRetryRequested, {"webhook_event_id": str(uuid7()), "number": 1}),
        (
            account.ApiKeyIssued,
            {"api_key_id": key, "name": "shop", "prefix": "sk_test_abcd", "expires_at": None},
        ),
        (account.ApiKeyRevoked, {"api_key_id": key}),
        (account.ProcessorConfigured, choice),
        (account.ProcessorAdjusted, {**choice, "priority": 2}),
        (account.ProcessorRemoved, {"processor": "stripe"}),
    ):
        merchant.record(fact, by=BY, **details)
    return merchant


def sample_session(end: type[StreamEvent], **details: Any) -> Stream:
    session = checkout.CheckoutSession.begin(
        checkout.CheckoutSessionCreated,
        id=uuid7(),
        merchant_id=str(uuid7()),
        by=BY,
        amount=1_000,
        currency="USD",
        success_url="https://shop.example/done",
        cancel_url="https://shop.example/back",
        customer_id="cus_1",
        customer_email="ada@example.com",
        metadata={"cart": "7"},
        line_items=[{"name": "A book", "amount": 500, "quantity": 2}],
        expires_at=timestamp_text(BY.at),
    )
    session.record(checkout.CheckoutOrderPlaced, by=BY, order_id=str(uuid7()))
    session.record(checkout.CheckoutPaymentRetried, by=BY, attempt=2)
    session.record(end, by=BY, **details)
    return session


def write_example(stream: Sequence[StreamEvent]) -> Path:
    """The last of these facts, as it is stored today."""
    encoded = [encode(fact) for fact in stream]
    key = encoded[0][1]
    personal_key = None if key is None else key.key
    fact, aggregate = fold([stored for stored, _ in encoded], personal_key=personal_key)
    last = stream[-1]
    path = FOLDER / f"{name_of(topic_of(last), last.class_version)}.json"
    content = {
        "stream_id": str(last.originator_id),
        "personal_key": None if personal_key is None else base64.b64encode(personal_key).decode(),
        "stream": [{"topic": each.topic, "state": orjson.loads(each.state)} for each, _ in encoded],
        "fact": plain_attributes(fact),
        "state": plain_attributes(aggregate),
    }
    path.write_bytes(orjson.dumps(content, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
    return path


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    there = {example.name for example in read_examples()}
    missing = {
        topic for topic, fact in fact_types().items() if name_of(topic, fact.class_version) not in there
    }
    shortest: dict[str, list[StreamEvent]] = {}
    for stream in sample_streams() if missing else ():
        for number, fact in enumerate(stream, start=1):
            topic = topic_of(fact)
            if topic in missing and (topic not in shortest or number < len(shortest[topic])):
                shortest[topic] = stream[:number]
    for stream in shortest.values():
        print(f"wrote {write_example(stream).name}")  # noqa: T201
    if nowhere := sorted(missing - set(shortest)):
        sys.exit(f"record {', '.join(nowhere)} in a stream of sample_streams() in tests/evolution.py first")
    shapes = read_shapes() if SHAPES.exists() else {}
    for topic, type_ in fact_types().items():
        shapes.setdefault(name_of(topic, type_.class_version), shape_of(type_))
    options = orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE | orjson.OPT_SORT_KEYS
    SHAPES.write_bytes(orjson.dumps(shapes, option=options))


if __name__ == "__main__":
    main()
