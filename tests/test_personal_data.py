"""Personal data is sealed in the log: readable while its key is there, and never after."""

from typing import Any, cast
from uuid import UUID

import orjson
import pytest
from eventsourcing.persistence import StoredEvent
from uuid_utils.compat import uuid7

from payloops.events.authenticity import content_hash
from payloops.events.encoding import NewerVersion, UnknownTopic, decode, encode, open_state
from payloops.events.event_store import EventStore
from payloops.events.metadata import Metadata
from payloops.events.orders import Order, OrderCreated
from payloops.events.personal_data import DROPPED, PersonalDataUnreadable, customer_digest, email_digest
from payloops.events.stream import StreamEvent
from payloops.projections.order_events import order_events

EMAIL = "Ada.Lovelace@example.com"
GIVEN: dict[str, Any] = {
    "customer_email": EMAIL,
    "description": "A difference engine",
    "metadata": {"ship_to": {"name": "Ada"}, "gift": True},
}
ERASED: dict[str, Any] = {
    "customer_email": "[erased]",
    "description": "[erased]",
    "metadata": {"erased": "[erased]"},
}
NOTHING: dict[str, Any] = {"customer_email": None, "description": None, "metadata": {}}


def created(
    by: Metadata, *, merchant_id: str | None = None, customer_id: str | None = None, **personal: Any
) -> OrderCreated:
    order = Order.create(
        id=uuid7(),
        merchant_id=merchant_id or str(uuid7()),
        by=by,
        external_id="A-1",
        amount=4999,
        currency="USD",
        customer_id=customer_id,
        return_url=None,
        cancel_url=None,
        **(NOTHING | personal),
    )
    return cast("OrderCreated", order.collect_events()[0])


def personal(fact: Any) -> dict[str, Any]:
    return {name: getattr(fact, name) for name in OrderCreated.PERSONAL}


def test_what_is_stored_of_personal_fields_is_sealed_and_opens_with_the_streams_key(by: Metadata) -> None:
    fact = created(by, customer_id="cus_1", **GIVEN)
    stored, key = encode(fact)
    assert key is not None
    for text in (EMAIL, "A difference engine", "ship_to"):  # too long to stand in ciphertext by chance
        assert text.encode() not in stored.state
    assert orjson.loads(stored.state)["customer_id"] == "cus_1"
    assert decode(stored, personal_key=key.key) == fact


@pytest.mark.parametrize("gone", [None, DROPPED])
def test_without_its_key_every_given_field_reads_erased_and_the_hash_still_holds(
    by: Metadata, gone: bytes | None
) -> None:
    stored, _ = encode(created(by, **GIVEN))
    before = content_hash(stored)
    assert personal(decode(stored, personal_key=gone)) == ERASED
    assert content_hash(stored) == before


@pytest.mark.parametrize("name", list(GIVEN))
def test_a_field_that_was_not_given_reads_as_before_with_and_without_the_key(by: Metadata, name: str) -> None:
    stored, key = encode(created(by, **{name: GIVEN[name]}))
    assert key is not None
    assert personal(decode(stored, personal_key=key.key)) == NOTHING | {name: GIVEN[name]}
    assert personal(decode(stored, personal_key=None)) == NOTHING | {name: ERASED[name]}


def test_an_order_that_tells_nothing_of_anybody_needs_no_key(by: Metadata) -> None:
    stored, key = encode(created(by))
    assert key is None
    assert personal(decode(stored, personal_key=None)) == NOTHING


def test_a_customer_is_found_by_id_and_by_email_in_whatever_case(by: Metadata) -> None:
    fact = created(by, customer_id="cus_1", customer_email=EMAIL)
    other = created(by, merchant_id=fact.merchant_id, customer_id="cus_1", customer_email=EMAIL.upper())
    one, two = encode(fact)[1], encode(other)[1]
    assert one is not None
    assert two is not None
    assert (one.customer_digest, one.email_digest) == (two.customer_digest, two.email_digest)
    assert one.key != two.key
    elsewhere = encode(created(by, customer_id="cus_1", customer_email=EMAIL))[1]
    assert elsewhere is not None
    assert not {elsewhere.customer_digest, elsewhere.email_digest} & {one.customer_digest, one.email_digest}
    nobody = encode(created(by, customer_id="cus_1"))[1]
    assert nobody is not None
    assert nobody.customer_digest is not None
    assert nobody.email_digest is None


def test_what_is_sealed_opens_in_no_other_event(by: Metadata) -> None:
    stored, key = encode(created(by, **GIVEN))
    assert key is not None
    for moved in (
        StoredEvent(uuid7(), 1, stored.topic, stored.state),
        StoredEvent(stored.originator_id, 2, stored.topic, stored.state),
    ):
        with pytest.raises(PersonalDataUnreadable):
            decode(moved, personal_key=key.key)


@pytest.mark.parametrize(("box", "length"), [("", 32), ("AAAA", 32), ("A", 32), ("\u00fc", 32), (None, 31)])
def test_what_was_altered_in_whatever_way_is_said_to_be_unreadable(
    by: Metadata, box: str | None, length: int
) -> None:
    stored, key = encode(created(by, **GIVEN))
    assert key is not None
    state = orjson.loads(stored.state)
    if box is not None:
        state["sealed"]["box"] = box
    altered = StoredEvent(stored.originator_id, 1, stored.topic, orjson.dumps(state))
    with pytest.raises(PersonalDataUnreadable):
        decode(altered, personal_key=key.key[:length])


def test_customers_of_orders_that_are_stored_already_are_found_by_the_same_digests() -> None:
    merchant_id = "01900000-0000-7000-8000-000000000001"
    assert customer_digest(merchant_id, "cus_1").hex() == "e6c838ccaa7361873e9eac02a281297f"
    assert email_digest(merchant_id, EMAIL).hex() == "942f117d6a0b2515a3e954ec9e49984a"


def test_an_order_of_the_version_before_reads_as_it_was_until_it_is_erased(by: Metadata) -> None:
    fact = created(by, **GIVEN)
    state = orjson.loads(encode(created(by))[0].state) | GIVEN
    del state["class_version"]
    before = StoredEvent(fact.originator_id, 1, "order.created", orjson.dumps(state))
    assert personal(decode(before, personal_key=None)) == GIVEN
    assert personal(decode(before, personal_key=DROPPED)) == ERASED


def test_an_event_of_a_version_that_the_code_does_not_know_is_refused_not_guessed(by: Metadata) -> None:
    stored, _ = encode(created(by))
    state = orjson.loads(stored.state) | {"class_version": OrderCreated.class_version + 1}
    later = StoredEvent(stored.originator_id, 1, stored.topic, orjson.dumps(state))
    with pytest.raises(NewerVersion, match=r"order\.created"):
        decode(later, personal_key=None)
    with pytest.raises(UnknownTopic, match=r"order\.teleported"):
        decode(StoredEvent(stored.originator_id, 1, "order.teleported", stored.state), personal_key=None)


def test_an_event_of_a_type_that_the_code_does_not_know_still_has_a_readable_state(by: Metadata) -> None:
    fact = created(by, **GIVEN)
    stored, key = encode(fact)
    assert key is not None
    unknown = StoredEvent(stored.originator_id, 1, "order.teleported", stored.state)
    assert open_state(unknown, personal_key=key.key)["customer_email"] == EMAIL
    assert open_state(unknown, personal_key=None)["customer_email"] == "[erased]"


@pytest.fixture
async def order(store: EventStore, by: Metadata) -> StreamEvent:
    fact = created(by, customer_id="cus_1", **GIVEN)
    await store.append([fact])
    return fact


async def drop_key(store: EventStore, stream_id: UUID) -> None:
    async with store.pool.connection() as connection:
        await connection.execute("UPDATE personal_keys SET key = '' WHERE originator_id = %s", (stream_id,))


async def readings(store: EventStore, fact: StreamEvent) -> list[dict[str, Any]]:
    """The personal fields by every way that events are read."""
    folded = await store.load(Order, fact.originator_id)
    [recorded] = await store.read(after=0, limit=5)
    trail = await order_events(store, order_id=fact.originator_id, merchant_id=UUID(fact.merchant_id))
    assert folded is not None
    assert trail is not None
    return [personal(folded), personal(recorded.event), {name: trail[0].data[name] for name in GIVEN}]


async def test_every_way_of_reading_the_log_opens_it_and_none_does_once_the_key_is_dropped(
    store: EventStore, order: StreamEvent
) -> None:
    assert await readings(store, order) == [GIVEN] * 3
    await drop_key(store, order.originator_id)
    assert await readings(store, order) == [ERASED] * 3


async def test_an_append_that_is_refused_leaves_no_key(store: EventStore, order: StreamEvent) -> None:
    await drop_key(store, order.originator_id)
    with pytest.raises(Exception, match="has moved on"):
        await store.append([order])
    async with store.pool.connection() as connection:
        keys = await (await connection.execute("SELECT originator_id, key FROM personal_keys")).fetchall()
    assert keys == [(order.originator_id, b"")]
