"""Whatever is changed in the log behind the service's back is found, and the first event of it is named."""

import asyncio
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID

import psycopg
import pytest
import structlog
from eventsourcing.persistence import StoredEvent
from ordering import pay, report
from processes import process, run_command
from projecting import append, eventually, project_orders
from pydantic import SecretStr
from random_orders import new_order

from payloops.audit.verdict import Verdict
from payloops.audit.verification import Anchor, verify_log
from payloops.events import sealer
from payloops.events.authenticity import content_hash
from payloops.events.connections import connect
from payloops.events.event_store import EventStore
from payloops.events.log_check import Tampering
from payloops.events.sealer import ChainBroken, run_sealer, seal_next
from payloops.events.seals import AuditKey, AuditKeys, is_signed, last_seal, make_seal
from payloops.settings import Settings

ORDERS, EVENTS = 10, 30
"""Of the log: three events an order, each order appended after the one before."""
SEALED = 20
"""In two seals of ten; the rest is the tail."""


@pytest.fixture
async def log(store: EventStore, database_url: str, merchant_id: UUID, keys: AuditKeys) -> EventStore:
    """A log of 30 events, projected, the first 20 of them sealed."""
    for _ in range(ORDERS):
        await append(store, report(pay(new_order(merchant_id)), "captured"))
    await project_orders(database_url)
    async with await connect(database_url, application_name="test") as connection:
        for _ in range(2):
            assert await seal_next(connection, keys=keys, limit=SEALED // 2) == SEALED // 2
    return store


async def verified(
    database_url: str,
    keys: AuditKeys,
    *,
    anchors: Sequence[Anchor] = (),
    workers: int = 1,
    span_events: int = 7,
) -> Verdict:
    return await verify_log(
        database_url=database_url,
        keys=keys,
        report=lambda *_: None,
        anchors=anchors,
        workers=workers,
        span_events=span_events,
    )


async def by_hand(database_url: str, *statements: str, arguments: dict[str, object] | None = None) -> None:
    """Statements of somebody who may do everything, past the triggers."""
    async with await connect(database_url, application_name="by hand") as connection:
        await connection.execute("SET session_replication_role = replica")
        async with connection.transaction():
            for statement in statements:
                await connection.execute(statement, arguments)


async def rewritten(database_url: str, position: int) -> dict[str, object]:
    """The state of an event with other money in it, and the content hash that fits."""
    async with await connect(database_url, application_name="by hand") as connection:
        cursor = await connection.execute(
            "SELECT originator_id, originator_version, topic, state FROM stored_events"
            " WHERE notification_id = %s",
            (position,),
        )
        found = await cursor.fetchone()
    assert found is not None
    stream_id, version, topic, state = found
    state = state.replace(b"1000", b"9000")
    assert b"9000" in state
    return {
        "state": state,
        "hash": content_hash(StoredEvent(stream_id, version, topic, state)),
        "position": position,
    }


SHIFT_DOWN = [
    "UPDATE stored_events SET notification_id = -notification_id WHERE notification_id > {0}",
    "UPDATE stored_events SET notification_id = -notification_id - 1 WHERE notification_id < 0",
]
SHIFT_UP = [
    "UPDATE stored_events SET notification_id = -notification_id WHERE notification_id >= {0}",
    "UPDATE stored_events SET notification_id = -notification_id + 1 WHERE notification_id < 0",
]
COPY = """
    INSERT INTO stored_events (originator_id, originator_version, topic, state, notification_id, merchant_id,
                               content_hash, mac, recorded_at)
    SELECT originator_id, originator_version + 7, topic, state, {0}, merchant_id,
           sha256(uuid_send(originator_id) || int8send(originator_version + 7) || topic::bytea || '\\x00' || state),
           mac, recorded_at
    FROM stored_events WHERE notification_id = {1}
"""
"""A new event with the content hash that fits."""
SWAP = [
    "UPDATE stored_events SET notification_id = -1 WHERE notification_id = {0}",
    "UPDATE stored_events SET notification_id = {0} WHERE notification_id = {1}",
    "UPDATE stored_events SET notification_id = {1} WHERE notification_id = -1",
]
# Rows that are deleted and inserted again look as if they had been appended.
TAKE = [
    "CREATE TEMPORARY TABLE taken AS SELECT * FROM stored_events WHERE notification_id IN ({0}, {1})",
    "DELETE FROM stored_events WHERE notification_id IN ({0}, {1})",
]
PUT = """
    INSERT INTO stored_events (originator_id, originator_version, topic, state, notification_id, merchant_id,
                               content_hash, mac, recorded_at)
    SELECT originator_id, originator_version, topic, state, {0}, merchant_id, content_hash, mac, {1} FROM taken
"""
SWAP_AS_NEW = [*TAKE, PUT.format("{0} + {1} - notification_id", "recorded_at")]
SWAP_WITHOUT_TIMES = [*TAKE, PUT.format("{0} + {1} - notification_id", "max(recorded_at) OVER ()")]
EARLIER_AS_NEW = [*TAKE, PUT.format("notification_id", "recorded_at - interval '1 day'")]


def at(statements: list[str], *positions: int) -> list[str]:
    return [statement.format(*positions) for statement in statements]


@dataclass(frozen=True)
class Deed:
    """What somebody does by hand, and what is to be said of it."""

    what: str
    statements: list[str]
    position: int
    tampering: Tampering


SET_STATE = "UPDATE stored_events SET state = %(state)s WHERE notification_id = %(position)s"
SET_BOTH = (
    "UPDATE stored_events SET state = %(state)s, content_hash = %(hash)s WHERE notification_id = %(position)s"
)
ELSEWHERE = "UPDATE stored_events SET merchant_id = gen_random_uuid() WHERE notification_id = {0}"
LATER = "UPDATE stored_events SET recorded_at = recorded_at + interval '1 day' WHERE notification_id = {0}"
EARLIER = "UPDATE stored_events SET recorded_at = recorded_at - interval '1 day' WHERE notification_id = {0}"
ENDLESS = "UPDATE stored_events SET recorded_at = 'infinity' WHERE notification_id = {0}"
DELETE = "DELETE FROM stored_events WHERE notification_id = {0}"
TRUNCATE = "DELETE FROM stored_events WHERE notification_id >= {0}"
FORGET = "UPDATE checkpoints SET position = least(position, {0})"
DEEDS = [
    Deed("a sealed state", [SET_STATE], 8, Tampering.EDITED),
    Deed("a sealed state, with its hash", [SET_BOTH], 8, Tampering.EDITED),
    Deed("a sealed merchant", at([ELSEWHERE], 8), 8, Tampering.EDITED),
    Deed("a sealed time", at([LATER], 8), 8, Tampering.EDITED),
    Deed("a sealed time that is none", at([ENDLESS], 8), 8, Tampering.EDITED),
    Deed(
        "a sealed MAC", ["UPDATE stored_events SET mac = NULL WHERE notification_id = 8"], 8, Tampering.EDITED
    ),
    Deed("a sealed event is deleted", at([DELETE], 8), 8, Tampering.REMOVED),
    Deed("the first event is deleted", at([DELETE], 1), 1, Tampering.REMOVED),
    Deed("the last sealed event is deleted", at([DELETE], 20), 20, Tampering.REMOVED),
    Deed("sealed events are deleted", at([DELETE, DELETE.format(10)], 9), 9, Tampering.REMOVED),
    Deed(
        "a sealed event is deleted, those after it moved up",
        at([DELETE, *SHIFT_DOWN], 8),
        8,
        Tampering.REMOVED,
    ),
    Deed(
        "the last event of a seal is deleted, those after it moved up",
        at([DELETE, *SHIFT_DOWN], 10),
        10,
        Tampering.REMOVED,
    ),
    Deed("all from a sealed event on is deleted", at([TRUNCATE, FORGET], 17), 17, Tampering.REMOVED),
    Deed("sealed events are swapped", at(SWAP, 5, 8), 5, Tampering.REORDERED),
    Deed("sealed events of two seals are swapped", at(SWAP, 9, 12), 9, Tampering.REORDERED),
    Deed("an event is put between sealed ones", [*at(SHIFT_UP, 8), COPY.format(8, 2)], 8, Tampering.INSERTED),
    Deed("an event is put before all", [COPY.format(0, 2)], 0, Tampering.INSERTED),
    Deed("a state in the tail", [SET_STATE], 28, Tampering.EDITED),
    Deed("a state in the tail, with its hash", [SET_BOTH], 26, Tampering.EDITED),
    Deed("a merchant in the tail", at([ELSEWHERE], 26), 26, Tampering.EDITED),
    Deed("a later time in the tail", at([LATER], 26), 26, Tampering.REORDERED),
    Deed("an earlier time in the tail", at([EARLIER], 26), 26, Tampering.REORDERED),
    Deed(
        "a MAC in the tail",
        ["UPDATE stored_events SET mac = NULL WHERE notification_id = 26"],
        26,
        Tampering.EDITED,
    ),
    Deed("an event of the tail is deleted", at([DELETE], 26), 26, Tampering.REMOVED),
    Deed(
        "an event of the tail is deleted, those after it moved up",
        at([DELETE, *SHIFT_DOWN], 26),
        26,
        Tampering.REMOVED,
    ),
    Deed("the last event is deleted", at([DELETE], 30), 30, Tampering.REMOVED),
    Deed("the last events are deleted", at([TRUNCATE], 28), 28, Tampering.REMOVED),
    Deed(
        "the last events are deleted, and the readers' positions set back",
        at([TRUNCATE, FORGET.format(28)], 29),
        29,
        Tampering.REMOVED,
    ),
    Deed("events of the tail are swapped", at(SWAP, 24, 27), 24, Tampering.REORDERED),
    Deed("events of the tail are swapped as if new", at(SWAP_AS_NEW, 24, 27), 24, Tampering.REORDERED),
    Deed("events of a stream are swapped as if new", at(SWAP_WITHOUT_TIMES, 29, 30), 29, Tampering.REORDERED),
    Deed("an earlier time as if new", at(EARLIER_AS_NEW, 21, 21), 21, Tampering.REORDERED),
    Deed("an event is put into the tail", [*at(SHIFT_UP, 26), COPY.format(26, 2)], 26, Tampering.INSERTED),
    Deed("an event is appended", [COPY.format(31, 2)], 31, Tampering.INSERTED),
]


@pytest.mark.parametrize("deed", DEEDS, ids=lambda deed: deed.what)
async def test_what_is_done_by_hand_is_found_and_the_first_event_named(
    log: EventStore, database_url: str, keys: AuditKeys, deed: Deed
) -> None:
    assert (await verified(database_url, keys)).findings == []
    arguments = None
    if "%(state)s" in deed.statements[0]:
        arguments = await rewritten(database_url, deed.position)
    await by_hand(database_url, *deed.statements, arguments=arguments)
    for span_events in (7, 1_000):
        verdict = await verified(database_url, keys, span_events=span_events)
        first = verdict.findings[0]
        assert (first.position, first.tampering) == (deed.position, deed.tampering), verdict.findings
        assert not verdict.holds(without_mac_until=1_000)


UNSEAL = "DELETE FROM seals WHERE number >= {0}"
DEEDS_TO_SEALS = [
    Deed("a root", ["UPDATE seals SET root = sha256(root) WHERE number = 2"], 11, Tampering.UNSEALED),
    Deed("leaves", ["UPDATE seals SET leaves = leaves || leaves WHERE number = 2"], 11, Tampering.UNSEALED),
    Deed("a time", ["UPDATE seals SET sealed_at = now() WHERE number = 2"], 11, Tampering.UNSEALED),
    Deed(
        "a signature", ["UPDATE seals SET signature = root || root WHERE number = 1"], 1, Tampering.UNSEALED
    ),
    Deed("a range", ["UPDATE seals SET last_position = 19 WHERE number = 2"], 11, Tampering.UNSEALED),
    Deed("an inner seal", ["UPDATE seals SET sealed_at = now() WHERE number = 1"], 1, Tampering.UNSEALED),
    Deed("the first seal is deleted", ["DELETE FROM seals WHERE number = 1"], 1, Tampering.UNSEALED),
    Deed("the last seal is deleted", at([UNSEAL], 2), 11, Tampering.UNSEALED),
    Deed("all seals are deleted", at([UNSEAL], 1), 1, Tampering.UNSEALED),
]


@pytest.mark.parametrize("deed", DEEDS_TO_SEALS, ids=lambda deed: deed.what)
async def test_what_is_done_to_seals_is_found(
    log: EventStore, database_url: str, keys: AuditKeys, deed: Deed
) -> None:
    await by_hand(database_url, *deed.statements)
    for span_events in (7, 1_000):
        first, *_ = (await verified(database_url, keys, span_events=span_events)).findings
        assert (first.position, first.tampering) == (deed.position, deed.tampering)


@pytest.mark.parametrize("passed_off", [False, True])
async def test_who_has_no_audit_key_cannot_seal_what_he_changed(
    log: EventStore, database_url: str, keys: AuditKeys, passed_off: bool
) -> None:
    """Seals of another key over a changed event, under that key's name or under the right one."""
    changed = await rewritten(database_url, 8)
    none_made = "UPDATE checkpoints SET position = 0 WHERE name = 'seals'"
    await by_hand(database_url, SET_BOTH, "DELETE FROM seals", none_made, arguments=changed)
    own = AuditKey("a key that somebody made himself")
    async with await connect(database_url, application_name="by hand") as connection:
        for _ in range(2):
            await seal_next(connection, keys=AuditKeys(own), limit=10)
    if passed_off:
        await by_hand(database_url, f"UPDATE seals SET key_id = '{keys.present.id}'")
    found = [(each.position, each.tampering) for each in (await verified(database_url, keys)).findings]
    assert found == [(8, Tampering.EDITED), (1, Tampering.UNSEALED), (11, Tampering.UNSEALED)]


async def test_what_was_changed_after_its_seals_were_deleted_is_not_sealed_anew(
    log: EventStore, database_url: str, keys: AuditKeys
) -> None:
    """Or the service itself would, within a second, seal what no MAC covers, as it is now."""
    await by_hand(database_url, *at([UNSEAL], 2), *at([LATER], 12))
    async with await connect(database_url, application_name="test") as connection:
        with pytest.raises(ChainBroken, match="up to 20"):
            await seal_next(connection, keys=keys)
    found = [(each.position, each.tampering) for each in (await verified(database_url, keys)).findings]
    assert (11, Tampering.UNSEALED) in found


async def test_a_log_and_its_seals_cut_off_together_are_found_by_what_was_noted_elsewhere(
    log: EventStore, database_url: str, keys: AuditKeys
) -> None:
    async with await connect(database_url, application_name="test") as connection:
        newest = await last_seal(connection)
    assert newest is not None
    anchor = Anchor(newest.last_position, newest.hash)
    assert (await verified(database_url, keys, anchors=[anchor])).findings == []
    await by_hand(
        database_url,
        TRUNCATE.format(11),
        UNSEAL.format(2),
        FORGET.format(10),
        "DELETE FROM orders WHERE version > 1 AND id NOT IN (SELECT originator_id FROM stored_events)",
        "UPDATE orders SET version = 1",
    )
    assert (await verified(database_url, keys)).findings == []
    [finding] = (await verified(database_url, keys, anchors=[anchor])).findings
    assert (finding.position, finding.tampering) == (20, Tampering.UNSEALED)
    other = Anchor(10, newest.hash)
    [finding] = (await verified(database_url, keys, anchors=[other])).findings
    assert (finding.position, finding.tampering) == (10, Tampering.UNSEALED)


async def test_an_untouched_log_holds_however_it_is_divided(
    log: EventStore, database_url: str, keys: AuditKeys
) -> None:
    for span_events in (1, 10, 15, 1_000):
        verdict = await verified(database_url, keys, span_events=span_events)
        assert verdict.findings == []
        assert (verdict.events, verdict.unsealed, verdict.without_mac) == (EVENTS, EVENTS - SEALED, 0)
        assert verdict.newest is not None
        assert verdict.newest.last_position == SEALED
    empty = await verified(database_url, keys, workers=2, span_events=3)
    assert empty.findings == []


async def test_several_processes_name_the_first_event_too(
    log: EventStore, database_url: str, keys: AuditKeys
) -> None:
    await by_hand(database_url, *[EARLIER.format(n) for n in (4, 17, 23, 28)])
    verdict = await verified(database_url, keys, workers=2, span_events=3)
    assert [finding.position for finding in verdict.findings] == [4, 17, 23, 28]


async def test_a_log_restored_from_a_dump_holds(log: EventStore, database_url: str, keys: AuditKeys) -> None:
    """Then every row was written anew, by another transaction than the one it names."""
    await by_hand(database_url, "UPDATE stored_events SET topic = topic")
    assert (await verified(database_url, keys)).findings == []


async def test_events_of_before_there_were_macs_are_told_and_can_be_accepted(
    store: EventStore, database_url: str, merchant_id: UUID, keys: AuditKeys
) -> None:
    await append(store, report(pay(new_order(merchant_id)), "captured"))
    await by_hand(database_url, "UPDATE stored_events SET mac = NULL")
    await append(store, report(pay(new_order(merchant_id)), "captured"))
    for _ in ("not sealed yet", "sealed"):
        verdict = await verified(database_url, keys)
        assert verdict.findings == []
        assert (verdict.without_mac, verdict.first_without_mac, verdict.last_without_mac) == (3, 1, 3)
        assert not verdict.holds(without_mac_until=2)
        assert verdict.holds(without_mac_until=3)
        async with await connect(database_url, application_name="test") as connection:
            await seal_next(connection, keys=keys)


async def test_another_audit_key_knows_what_the_former_one_made(
    log: EventStore, database_url: str, settings: Settings, keys: AuditKeys
) -> None:
    former = settings.audit_key.get_secret_value()
    new = "another key of tests, long enough to sign"
    async with await connect(database_url, application_name="test") as connection:
        with pytest.raises(ChainBroken):
            await seal_next(connection, keys=AuditKeys.derive(new))
        rotated = AuditKeys.derive(new, older=[former])
        assert await seal_next(connection, keys=rotated) == EVENTS - SEALED
        newest = await last_seal(connection)
    assert newest is not None
    assert newest.key_id == rotated.present.id
    assert (await verified(database_url, rotated)).findings == []
    for forgetful in (AuditKeys.derive(new), keys):
        assert (await verified(database_url, forgetful)).findings != []


async def test_the_sealer_tells_at_once_what_is_not_the_services_own(
    log: EventStore, database_url: str, keys: AuditKeys
) -> None:
    await by_hand(database_url, COPY.format(33, 2))
    with structlog.testing.capture_logs() as logs:
        async with await connect(database_url, application_name="test") as connection:
            assert await seal_next(connection, keys=keys) == EVENTS - SEALED
            assert await seal_next(connection, keys=keys) == 1
            assert await seal_next(connection, keys=keys) == 0
    told = [(line["event"], line.get("position"), line.get("first")) for line in logs]
    assert told == [
        ("audit.sealed", 30, None),
        ("audit.event_not_authentic", 33, None),
        ("audit.events_missing", None, 31),
        ("audit.sealed", 33, None),
    ]
    first = (await verified(database_url, keys)).findings[0]
    assert (first.position, first.tampering) == (31, Tampering.REMOVED)


async def test_nothing_is_chained_to_a_seal_that_is_not_ours_and_that_is_said_until_it_is_put_right(
    log: EventStore, database_url: str, keys: AuditKeys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sealer, "LONGEST_PAUSE", 0.01)
    change = "UPDATE seals SET last_position = {0} WHERE number = 2"
    await by_hand(database_url, change.format(1_000_000))
    stop = asyncio.Event()

    async def told_twice() -> bool:
        told = [each for each in logs if each["event"] == "sealer.chain_broken"]
        assert all(each["error"] == "the signature of seal 2 is wrong" for each in told)
        return len(told) > 1

    async def sealed() -> bool:
        async with await connect(database_url, application_name="test") as connection:
            newest = await last_seal(connection)
        return newest is not None and newest.last_position == EVENTS

    with structlog.testing.capture_logs() as logs:
        sealing = asyncio.create_task(
            run_sealer(database_url=database_url, keys=keys, stop=stop, every_seconds=0.01)
        )
        await eventually(told_twice)
        await by_hand(database_url, change.format(SEALED))
        await eventually(sealed)
    stop.set()
    await sealing
    assert (await verified(database_url, keys)).findings == []


async def test_seals_cannot_be_changed_by_mistake(log: EventStore) -> None:
    for statement in ("UPDATE seals SET root = ''", "DELETE FROM seals", "TRUNCATE seals"):
        async with log.pool.connection() as connection:
            with pytest.raises(psycopg.errors.RaiseException):
                await connection.execute(statement)


async def test_several_sealers_make_one_chain_while_events_are_appended(
    store: EventStore, database_url: str, merchant_id: UUID, keys: AuditKeys
) -> None:
    stop = asyncio.Event()
    sealers = [
        asyncio.create_task(run_sealer(database_url=database_url, keys=keys, stop=stop, every_seconds=0.01))
        for _ in range(3)
    ]
    position = 0
    for _ in range(20):
        position = await append(store, *(report(pay(new_order(merchant_id)), "failed") for _ in range(5)))

    async def sealed() -> bool:
        verdict = await verified(database_url, keys)
        assert verdict.findings == []
        return verdict.newest is not None and verdict.newest.last_position == position

    await eventually(sealed)
    stop.set()
    await asyncio.gather(*sealers)


async def test_the_projectors_process_seals_and_the_command_verifies(
    settings: Settings, store: EventStore, database_url: str, merchant_id: UUID
) -> None:
    """As an operator sees it: the log holds; after an edit by hand, one line says what and where."""
    position = await append(store, *(report(pay(new_order(merchant_id)), "captured") for _ in range(5)))
    async with process(settings, "projector"):

        async def sealed() -> bool:
            async with await connect(database_url, application_name="test") as connection:
                newest = await last_seal(connection)
            return newest is not None and newest.last_position == position

        await eventually(sealed, within=60)
    status, out, err = await run_command(settings, "audit", "verify")
    assert status == 0, err
    assert "no event was edited, removed, inserted or reordered" in out
    assert f"events: {position} of {position}" in err
    status, out, _ = await run_command(settings, "audit", "verify", "--json")
    told = json.loads(out)
    assert (status, told["holds"], told["events"], told["unsealed"]) == (0, True, position, 0)
    anchor = told["sealed"]["anchor"]
    assert (await run_command(settings, "audit", "verify", "--anchor", anchor))[0] == 0
    for wrong in ("x", anchor[:-1], anchor.replace(":", ":0")):
        assert (await run_command(settings, "audit", "verify", "--anchor", wrong))[0] == 2
    # What would not be looked at is not taken for looked at.
    assert (await run_command(settings, "audit", "verify", "evidence.json", "--anchor", anchor))[0] == 2
    assert (await run_command(settings, "audit", "verify", "--public-key", "00"))[0] == 2
    edited = await rewritten(database_url, 8)
    await by_hand(database_url, SET_STATE, arguments=edited)
    status, out, _ = await run_command(settings, "audit", "verify")
    assert status == 1
    assert "its content does not fit its content hash, which is as it was sealed" in out
    await by_hand(database_url, SET_BOTH, arguments=edited)
    status, out, _ = await run_command(settings, "audit", "verify")
    assert status == 1
    assert "event 8 was edited: payment.requested" in out
    other = settings.model_copy(update={"audit_key": SecretStr("x" * 32)})
    assert (await run_command(other, "audit", "verify"))[0] == 1


def test_what_a_seal_says_is_signed_as_it_always_was() -> None:
    """What is signed is text that other tools can check, and that seals made before are checked by."""
    key = AuditKey("an audit key of tests, long enough")
    noon = datetime(2026, 1, 2, 12, tzinfo=UTC)
    first = make_seal(after=None, first=1, last=2, root=b"r" * 32, sealed_at=noon, key=key)
    seal = make_seal(after=first, first=3, last=9, root=b"s" * 32, sealed_at=noon, key=key)
    assert seal.statement.decode().splitlines() == [
        "payloops seal",
        "number: 2",
        "events: 3 to 9",
        f"root: {'73' * 32}",
        f"previous: {hashlib.sha256(first.statement).hexdigest()}",
        "sealed at: 2026-01-02T12:00:00.000000Z",
        "key: d1004b8ab4d4de41",
    ]
    assert f"previous: {'00' * 32}" in first.statement.decode()
    assert is_signed(seal.statement, signature=seal.signature, public=key.public)
    assert key.mac_key.hex() == "fb6c70962b4fe8c3eabec6866aeee8a21256f175d58713cf79c1501b1bbcb27e"
