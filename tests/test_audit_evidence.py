"""Evidence about an order holds by itself, says whose it is, and does not survive a changed byte."""

import json
import random
import re
import stat
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import orjson
import pytest
from ordering import BY, pay, report
from processes import run_command
from projecting import append
from pydantic import SecretStr
from random_orders import new_order
from uuid_utils.compat import uuid7

from payloops.audit import evidence
from payloops.audit.evidence import make_statement, signed
from payloops.audit.evidence_check import NotEvidence, Report, check_evidence, run_check
from payloops.audit.evidence_format import file_bytes
from payloops.audit.masking import MASKED, MOST_NESTED, masked_body
from payloops.commands.processor_events import (
    MOST_OF_ALL,
    MOST_OF_ONE,
    keep_processor_event,
    note_effect,
)
from payloops.commands.record_webhook_attempt import record_webhook_attempt
from payloops.commands.webhooks import WebhookAttempt, find_webhook
from payloops.events.connections import connect
from payloops.events.event_store import EventStore
from payloops.events.log_rows import Fault
from payloops.events.orders import Order
from payloops.events.personal_data import DROPPED
from payloops.events.sealer import seal_next
from payloops.events.seals import AuditKey, AuditKeys, SealedRange, seal_of
from payloops.events.timestamps import utc_now
from payloops.settings import Settings


@pytest.fixture
async def order(store: EventStore, merchant_id: UUID) -> Order:
    """Paid, among the events of others, with an event of its processor and a webhook."""
    made = new_order(merchant_id, amount=4_999, customer_email="ada@example.com")
    await append(store, *(new_order(merchant_id) for _ in range(5)))
    await append(store, report(pay(made), "captured"))
    await append(store, *(new_order(merchant_id) for _ in range(5)))
    body = {"data": {"client_secret": "pi_secret_1", "billing_details": {"email": "ada@example.com"}}}
    received: dict[str, Any] = {"merchant_id": merchant_id, "processor": "stripe", "key": "evt_1"}
    await keep_processor_event(
        store.pool, **received, event_id="evt_1", type="charge.refunded", body=json.dumps(body), at=BY.at
    )
    await note_effect(store.pool, **received, effect="none", order_id=made.id)
    await a_webhook(store, made)
    return made


async def a_webhook(store: EventStore, order: Order) -> None:
    webhook_id = uuid4()
    async with store.pool.connection() as connection:
        await connection.execute(
            """INSERT INTO webhook_events (id, merchant_id, order_id, event_type, created_at, payload)
               VALUES (%s, %s, %s, 'payment.captured', now(), '{}')""",
            (webhook_id, order.merchant_id, order.id),
        )
    webhook = await find_webhook(store.pool, webhook_id=webhook_id, merchant_id=None)
    attempt = WebhookAttempt(
        attempted_at=utc_now(), duration_ms=12, status_code=500, error="500", answer="a secret of theirs"
    )
    url = "https://user:password@shop.example/hook?key=theirs"
    await record_webhook_attempt(store, webhook=webhook, key="k", url=url, attempt=attempt, by=BY)


async def sealed(database_url: str, keys: AuditKeys, *, limit: int = 100) -> None:
    async with await connect(database_url, application_name="test") as connection:
        await seal_next(connection, keys=keys, limit=limit)


async def exported(store: EventStore, order: Order, keys: AuditKeys) -> dict[str, Any]:
    bundle: dict[str, Any] = orjson.loads(
        file_bytes(signed(await make_statement(store, order_id=order.id), keys))
    )
    return bundle


def checked(bundle: dict[str, Any], *public_keys: bytes) -> Report:
    return check_evidence(file_bytes(bundle), public_keys=public_keys)


async def test_evidence_has_everything_and_holds(
    store: EventStore, database_url: str, order: Order, keys: AuditKeys
) -> None:
    await sealed(database_url, keys)
    bundle = await exported(store, order, keys)
    said = bundle["statement"]
    assert [event["topic"] for event in said["events"]] == [
        *("order.created", "payment.requested", "payment.captured")
    ]
    assert (said["order"]["status"], said["order"]["amountCaptured"]) == ("captured", 4_999)
    assert said["order"]["customerEmail"] == "ada@example.com"
    assert said["explanation"]["next"] == ["The merchant can refund up to 49.99 USD."]
    assert [proof["seal"] for proof in said["proofs"]] == [1, 1, 1]
    [received] = said["processorEvents"]
    assert received["body"]["data"] == {"client_secret": MASKED, "billing_details": {"email": MASKED}}
    [webhook] = said["webhooks"]
    assert [each["statusCode"] for each in webhook["attempts"]] == [500]
    assert webhook["attempts"][0]["url"] == "https://shop.example/hook"
    assert "theirs" not in json.dumps(said)
    report = checked(bundle, keys.present.public)
    assert (report.wrong, report.notes) == ([], [])
    assert "3 of them are proven to be in the sealed log: seal 1 over 1 to 13" in report.checked


async def test_a_seal_is_read_once_however_many_of_its_events_are_the_orders(
    store: EventStore,
    database_url: str,
    order: Order,
    keys: AuditKeys,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A seal has up to ten thousand leaves: read for each event of a long order, they would fill the memory."""
    for limit in (6, 100):
        await sealed(database_url, keys, limit=limit)
    read: list[int] = []

    async def seen(connection: Any, *, position: int) -> SealedRange | None:
        read.append(position)
        return await seal_of(connection, position=position)

    monkeypatch.setattr(evidence, "seal_of", seen)
    bundle = await exported(store, order, keys)
    assert [each["seal"] for each in bundle["statement"]["proofs"]] == [1, 2, 2]
    assert len(read) == 2
    report = checked(bundle, keys.present.public)
    assert (report.wrong, report.notes) == ([], [])


async def test_no_event_of_a_processor_keeps_an_order_from_being_exported(
    store: EventStore, order: Order, keys: AuditKeys
) -> None:
    """A merchant can sign events of its own: nested as deep as they are accepted, they fit into no file."""
    async with store.pool.connection() as connection:
        await connection.execute("UPDATE processor_events SET body = %s", ("[" * 254 + "]" * 254,))
    bundle = await exported(store, order, keys)
    [received] = bundle["statement"]["processorEvents"]
    assert received["body"] == json.loads("[" * MOST_NESTED + json.dumps(MASKED) + "]" * MOST_NESTED)
    assert checked(bundle, keys.present.public).wrong == []


async def test_however_much_a_merchant_signs_the_evidence_stays_small(
    store: EventStore, order: Order, keys: AuditKeys
) -> None:
    """What is too large is left out, and does not displace what fits."""
    sizes = [MOST_OF_ONE + 1, *[MOST_OF_ONE] * (MOST_OF_ALL // MOST_OF_ONE), 3]
    async with store.pool.connection() as connection:
        await connection.cursor().executemany(
            """INSERT INTO processor_events
                   (id, merchant_id, processor, key, event_id, type, body, effect, order_id, received_at)
               SELECT %(id)s::uuid, merchant_id, processor, %(id)s::text, event_id, type,
                      rpad('"', %(size)s - 1, 'x') || '"', effect, order_id, received_at
               FROM processor_events WHERE key = 'evt_1'""",
            [{"id": str(uuid7()), "size": size} for size in sizes],
        )
    bundle = await exported(store, order, keys)
    bodies = [each["body"] for each in bundle["statement"]["processorEvents"]]
    assert len(bodies) == 1 + len(sizes)
    left_out = {n: body for n, body in enumerate(bodies) if str(body).startswith("[left out")}
    assert left_out == {n: f"[left out: {sizes[n - 1]} bytes]" for n in (1, len(sizes) - 1, len(sizes))}
    assert checked(bundle, keys.present.public).wrong == []


async def test_any_changed_byte_is_found(
    store: EventStore, database_url: str, order: Order, keys: AuditKeys
) -> None:
    await sealed(database_url, keys)
    content = file_bytes(await exported(store, order, keys))
    assert not check_evidence(content).wrong
    chance = random.Random(7)
    changes = [(chance.randrange(len(content)), 1 << chance.randrange(8)) for _ in range(300)]
    # What stands before the statement is under no digest: each byte of it, also by a letter's case.
    before = range(content.index(b'"statement"'))
    changes += [(place, bit) for place in before for bit in (1 << chance.randrange(8), 0x20)]
    changes.append((len(content) - 1, 1 << chance.randrange(8)))
    for place, bit in changes:
        changed = bytearray(content)
        changed[place] ^= bit
        try:
            assert check_evidence(bytes(changed)).wrong, (place, bit)
        except NotEvidence:
            continue
    for changed_length in (content + b" ", content[:-1], content.replace(b"{", b"{ ", 1)):
        assert check_evidence(changed_length).wrong


@pytest.mark.parametrize("resigned", [False, True])
async def test_who_signs_a_changed_statement_anew_is_found(
    store: EventStore, database_url: str, order: Order, keys: AuditKeys, resigned: bool
) -> None:
    """With a key of his own, or by us, who would never sign what the seals do not say."""
    await sealed(database_url, keys)
    said = (await exported(store, order, keys))["statement"]
    signer = AuditKeys(AuditKey("a key that somebody made himself")) if resigned else keys
    untouched = checked(signed(said, signer), keys.present.public).wrong
    assert bool(untouched) == resigned
    event = said["events"][2]
    event["state"] = event["state"].replace("4999", "9999")
    wrong = checked(signed(said, signer), keys.present.public).wrong
    assert any(line.startswith(f"event {event['position']}, payment.captured") for line in wrong)
    said["events"][1]["recordedAt"] = "2026-01-01T00:00:00.000000Z"
    wrong = checked(signed(said, signer), keys.present.public).wrong
    assert f"event {said['events'][1]['position']} differs from what was sealed" in wrong
    del said["events"][1]
    wrong = checked(signed(said, signer), keys.present.public).wrong
    assert any("events are all of the order's" in line for line in wrong)


async def test_what_no_seal_or_event_says_is_found_though_we_signed_it(
    store: EventStore, database_url: str, order: Order, keys: AuditKeys
) -> None:
    """The seals are signed one by one; events of another order, or not all of this one's, are no evidence of it."""
    await sealed(database_url, keys)
    bundle = await exported(store, order, keys)
    another = (await exported(store, await another_order(store, order), keys))["statement"]

    def wrong(change: Callable[[dict[str, Any]], Any]) -> list[str]:
        said = deepcopy(bundle["statement"])
        change(said)
        return checked(signed(said, keys), keys.present.public).wrong

    assert wrong(lambda said: None) == []
    backdated = {"sealedAt": "2026-01-01T00:00:00.000000Z"}
    assert wrong(lambda said: said["seals"][0].update(backdated)) == ["the signature of seal 1 is wrong"]
    for change in (
        lambda said: (said["events"].pop(), said["proofs"].pop()),
        lambda said: said["order"].update(id=another["order"]["id"]),
        lambda said: (said["events"].append(another["events"][3]), said["order"].update(version=4)),
        lambda said: (said["events"][0].update(position=99), said.update(proofs=[])),
        lambda said: (said.update(events=[], proofs=[]), said["order"].update(version=0)),
    ):
        [line] = wrong(change)
        assert line.startswith("not so: its"), line


async def another_order(store: EventStore, order: Order) -> Order:
    other = report(pay(report(pay(new_order(UUID(order.merchant_id))), "failed")), "captured")
    await append(store, other)
    return other


@pytest.mark.parametrize("proofs", [slice(0, 0), slice(0, 1)])
async def test_an_event_without_a_proof_of_its_own_is_not_said_to_be_sealed(
    store: EventStore, database_url: str, order: Order, keys: AuditKeys, proofs: slice
) -> None:
    """However many proofs there are of another one."""
    await sealed(database_url, keys)
    said = (await exported(store, order, keys))["statement"]
    said["proofs"] = said["proofs"][proofs] * 3
    found = checked(signed(said, keys), keys.present.public)
    without = 3 - proofs.stop
    assert found.notes == [
        f"not sealed yet when this was exported: {without} of the events, which only our signature protects"
    ]
    assert any("of them are proven" in line for line in found.checked) == (without < 3)
    assert not any(line.startswith("3 of them") for line in found.checked)


async def test_what_is_not_sealed_yet_is_said_to_be_so(
    store: EventStore, database_url: str, order: Order, keys: AuditKeys
) -> None:
    await sealed(database_url, keys, limit=7)
    bundle = await exported(store, order, keys)
    report = checked(bundle, keys.present.public)
    assert report.wrong == []
    assert report.notes == [
        "not sealed yet when this was exported: 1 of the events, which only our signature protects"
    ]


async def test_seals_of_a_former_key_are_checked_by_it(
    store: EventStore, database_url: str, settings: Settings, order: Order, keys: AuditKeys
) -> None:
    await sealed(database_url, keys)
    former = settings.audit_key.get_secret_value()
    new = AuditKeys.derive("another key of tests, long enough to sign", older=[former])
    bundle = await exported(store, order, new)
    assert checked(bundle, new.present.public, keys.present.public).notes == []
    [note] = checked(bundle, new.present.public).notes
    assert keys.present.id in note


async def test_erased_data_is_not_in_evidence_and_the_rest_holds(
    store: EventStore, database_url: str, order: Order, keys: AuditKeys
) -> None:
    await sealed(database_url, keys)
    async with store.pool.connection() as connection:
        await connection.execute("UPDATE personal_keys SET key = %s", (DROPPED,))
    bundle = await exported(store, order, keys)
    assert b"ada@example.com" not in file_bytes(bundle)
    assert bundle["statement"]["order"]["customerEmail"] == "[erased]"
    assert checked(bundle, keys.present.public).wrong == []


@pytest.mark.parametrize(
    ("body", "masked"),
    [
        ("not json 4242 4242 4242 4242", "not json **** **** **** ****"),
        ("[erased]", "[erased]"),
        (
            '{"amount": 5, "card": {"last4": "4242", "name": "Ada"}}',
            {"amount": 5, "card": {"last4": "4242", "name": MASKED}},
        ),
        (
            '{"contact": "+49 30 1", "vpa": "ada@bank", "email": null}',
            {"contact": MASKED, "vpa": MASKED, "email": None},
        ),
        (
            '[{"receipt_email": "a@b"}, {"token": "t"}, 1.5]',
            [{"receipt_email": MASKED}, {"token": MASKED}, 1.5],
        ),
        ('{"text": "4242424242424242"}', {"text": "*" * 16}),
        ('{"shipping": {"address": {"city": "Berlin"}}}', {"shipping": {"address": MASKED}}),
        (
            '{"payment_method": "pm_1", "description": "x", "statement": "y"}',
            {"payment_method": "pm_1", "description": "x", "statement": "y"},
        ),
    ],
)
def test_bodies_are_masked(body: str, masked: Any) -> None:
    assert masked_body(body) == masked


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"[]", b"null", b'{"format": "payloops evidence 1"}', b"\xff"]
)
def test_what_is_no_evidence_is_said_to_be_none(content: bytes) -> None:
    with pytest.raises(NotEvidence):
        check_evidence(content)


def test_a_file_cannot_write_lines_of_a_result(
    keys: AuditKeys, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = {"order": {"id": str(uuid4()), "version": 0}, "events": [], "proofs": [], "seals": []}
    bundle = signed(said, keys)
    bundle["signature"]["key"] += "\n✓ that key is one of those that you gave\nthe evidence holds\n"
    file = tmp_path / "evidence.json"
    file.write_bytes(file_bytes(bundle))
    assert not run_check(path=file, public_keys=[], as_json=False)
    *lines, verdict = capsys.readouterr().out.splitlines()
    assert verdict == "the evidence does NOT hold"
    assert not any(line.startswith(("✓ that key", "the evidence")) for line in lines)


async def test_the_commands_export_and_check(
    settings: Settings, store: EventStore, database_url: str, order: Order, keys: AuditKeys, tmp_path: Path
) -> None:
    await sealed(database_url, keys)
    file = tmp_path / "evidence.json"
    export = ("audit", "export", str(order.id), "--output", str(file))
    status, out, err = await run_command(settings, *export)
    assert (status, err) == (0, "")
    assert "3 events, 1 processor events, 1 webhooks" in out
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    status, _, err = await run_command(settings, *export)
    assert (status, err.count("\n")) == (2, 1)
    assert (await run_command(settings, *export, "--force"))[0] == 0
    nowhere_to_write = str(tmp_path / "missing" / "evidence.json")
    assert await run_command(settings, *export[:-1], nowhere_to_write) == (
        *(2, ""),
        f"payloops: {nowhere_to_write}: No such file or directory\n",
    )
    for columns in ("80", "200"):
        _, out, _ = await run_command(settings, "audit", "key", environment={"COLUMNS": columns})
        assert re.search(r"\b[0-9a-f]{64}\b", out), columns
    status, out, _ = await run_command(settings, "audit", "key", "--json")
    [key] = json.loads(out)
    nowhere = settings.model_copy(update={"database_url": "postgresql://nobody@127.0.0.1:1/none"})
    status, out, err = await run_command(
        nowhere, "audit", "verify", str(file), "--public-key", key["publicKey"]
    )
    assert (status, err) == (0, "")
    assert out.splitlines()[-1] == "the evidence holds"
    file.write_bytes(file.read_bytes().replace(b"captured", b"refunded"))
    status, out, _ = await run_command(nowhere, "audit", "verify", str(file), "--json")
    assert (status, json.loads(out)["holds"]) == (1, False)
    other = settings.model_copy(update={"audit_key": SecretStr("another audit key, 32 characters")})
    status, _, err = await run_command(other, *export, "--force")
    assert (status, err.count(Fault.MAC)) == (1, 3)
    async with store.pool.connection() as connection:
        await connection.execute("ALTER TABLE stored_events DISABLE TRIGGER stored_events_are_facts")
        await connection.execute(
            "UPDATE stored_events SET state = replace(convert_from(state, 'UTF8'), '4999', '9999')::bytea"
            " WHERE originator_id = %s AND topic = 'order.created'",
            (order.id,),
        )
    status, _, err = await run_command(settings, *export, "--force")
    assert status == 1
    assert err.splitlines()[0] == "payloops: this evidence does NOT hold:"
    assert "order.created: its content does not fit its content hash" in err
    status, out, err = await run_command(nowhere, "audit", "verify", str(tmp_path / "none.json"))
    assert (status, out, err) == (2, "", f"payloops: {tmp_path / 'none.json'}: No such file or directory\n")
    (tmp_path / "other.json").write_text("{}")
    status, out, err = await run_command(nowhere, "audit", "verify", str(tmp_path / "other.json"))
    assert (status, out, err.count("\n")) == (1, "", 1)
    unknown = str(uuid4())
    assert await run_command(settings, "audit", "export", unknown) == (
        1,
        "",
        f"payloops: no order {unknown}\n",
    )
