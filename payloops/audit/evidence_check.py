"""`payloops audit verify FILE`: checks evidence about an order, from the file alone."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any
from uuid import UUID

import orjson

from payloops.audit.evidence import FORMAT, canonical, file_bytes, signed_text
from payloops.events.log_rows import Fault, LogRow, fault_of, recorded_bytes, row_leaf
from payloops.events.merkle import proven_root
from payloops.events.seals import AuditKeys, Seal, is_signed, key_id
from payloops.events.timestamps import parse_timestamp
from payloops.printing import make_console, plain_table, print_plain_json


class NotEvidence(Exception):
    """The file is none that `audit export` wrote, or not as it wrote it."""


@dataclass(slots=True)
class Report:
    """What was checked, and what is wrong; nothing is where the evidence holds."""

    checked: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def run_check(*, path: Path, public_keys: Sequence[bytes], as_json: bool) -> bool:
    """Check a file and print what was checked; whether it holds.

    Args:
        public_keys: those of the service that are known; none: the file's own is believed.

    Raises:
        NotEvidence: see there.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise NotEvidence(f"{path}: {error.strerror}") from None
    report = check_evidence(content, public_keys=public_keys)
    if as_json:
        print_plain_json(
            {
                "holds": not report.wrong,
                "checked": report.checked,
                "notes": report.notes,
                "wrong": report.wrong,
            }
        )
        return not report.wrong
    console = make_console()
    for line in report.checked:
        console.print(f"✓ {line}")
    for line in report.notes:
        console.print(f"· {line}")
    for line in report.wrong:
        console.print(f"✗ {line}", style="bold red")
    console.print("the evidence holds" if not report.wrong else "the evidence does NOT hold")
    return not report.wrong


def check_evidence(content: bytes, *, public_keys: Sequence[bytes] = ()) -> Report:
    """Check a file's content, all of it, so that a single changed byte is found.

    Raises:
        NotEvidence: it is none.
    """
    try:
        bundle = orjson.loads(content)
        if bundle["format"] != FORMAT:
            raise NotEvidence(f"this version checks {FORMAT!r}, not {bundle['format']!r}")
        return _check(bundle, content, public_keys)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise NotEvidence(
            f"this is no evidence that was exported here: {type(error).__name__} {error}"
        ) from None


def _check(bundle: dict[str, Any], content: bytes, public_keys: Sequence[bytes]) -> Report:
    report = Report()
    statement = bundle["statement"]
    _look(
        report,
        "the file has the form in which evidence is exported, to the byte",
        file_bytes(bundle) == content,
    )
    digest = hashlib.sha256(canonical(statement)).hexdigest()
    _look(report, f"the statement has the digest {digest}", digest == bundle["digest"])
    known = _check_signature(report, bundle, digest, public_keys)
    rows = [_row(event) for event in statement["events"]]
    _check_events(report, rows, statement)
    _check_proofs(report, rows, statement, known)
    return report


def _look(report: Report, what: str, holds: bool) -> None:
    (report.checked if holds else report.wrong).append(what if holds else f"not so: {what}")


def _check_signature(
    report: Report, bundle: dict[str, Any], digest: str, public_keys: Sequence[bytes]
) -> dict[str, bytes]:
    """Check the signature of the whole; the keys, by id, that seals may be signed with."""
    signature = bundle["signature"]
    public = _bytes(signature["publicKey"])
    good = (
        is_signed(signed_text(digest), signature=_bytes(signature["signature"]), public=public)
        and key_id(public) == signature["key"]
    )
    _look(report, f"it is signed by the key {signature['key']}", good)
    if public_keys:
        _look(report, "that key is one of those that you gave", public in public_keys)
    else:
        report.notes.append(
            f"whose key that is, the file cannot tell: compare {public.hex()} with what `payloops audit key`"
            " prints, or give it with --public-key"
        )
    return {key_id(each): each for each in (*public_keys, public)}


def _check_events(report: Report, rows: Sequence[LogRow], statement: dict[str, Any]) -> None:
    order_id = UUID(statement["order"]["id"])
    in_order = [row.version for row in rows] == list(range(1, len(rows) + 1))
    rising = all(before.position < after.position for before, after in pairwise(rows))
    of_order = {row.stream_id for row in rows} == {order_id} and statement["order"]["version"] == len(rows)
    _look(
        report,
        f"its {len(rows)} events are all of the order's up to version {len(rows)}, in their order",
        in_order and rising and of_order,
    )
    broken = [row for row in rows if fault_of(row, mac_keys=()) is Fault.CONTENT]
    _look(report, "the content of each has the hash that is stored with it", not broken)
    report.wrong += [f"event {row.position}, {row.topic}: {Fault.CONTENT}" for row in broken]


def _check_proofs(
    report: Report, rows: Sequence[LogRow], statement: dict[str, Any], keys: Mapping[str, bytes]
) -> None:
    seals = {each["number"]: _seal(each) for each in statement["seals"]}
    for seal in seals.values():
        public = keys.get(seal.key_id)
        if public is None:
            report.notes.append(
                f"seal {seal.number} is signed by the key {seal.key_id}: give it with --public-key to check that"
            )
        elif not is_signed(seal.statement, signature=seal.signature, public=public):
            report.wrong.append(f"the signature of seal {seal.number} is wrong")
    by_position = {row.position: row for row in rows}
    proven: set[int] = set()
    failed: set[int] = set()
    for each in statement["proofs"]:
        (proven if _proven(each, by_position, seals) else failed).add(each["position"])
    if proven:
        _look(
            report, f"{len(proven)} of them are proven to be in the sealed log: {_ranges(seals)}", not failed
        )
    report.wrong += [f"event {position} is not what was sealed there" for position in sorted(failed)]
    open_ = len(by_position.keys() - proven - failed)
    if open_:
        report.notes.append(
            f"not sealed yet when this was made: {open_} of the events, which our signature alone holds"
        )


def _proven(proof: dict[str, Any], rows: Mapping[int, LogRow], seals: Mapping[int, Seal]) -> bool:
    row, seal = rows.get(proof["position"]), seals.get(proof["seal"])
    if row is None or seal is None:
        return False
    root = proven_root(
        row_leaf(row),
        index=row.position - seal.first_position,
        size=seal.last_position - seal.first_position + 1,
        proof=[_bytes(each) for each in proof["beside"]],
    )
    return root == seal.root


def _ranges(seals: Mapping[int, Seal]) -> str:
    return ", ".join(
        f"seal {seal.number} over {seal.first_position} to {seal.last_position}" for seal in seals.values()
    )


def _bytes(text: str) -> bytes:
    """Of hexadecimal as it is written here: `bytes.fromhex` takes capitals and spaces for the same.

    Raises:
        ValueError: it was written elsewhere.
    """
    found = bytes.fromhex(text)
    if found.hex() != text:
        raise ValueError("hexadecimal of another form")
    return found


def _row(event: dict[str, Any]) -> LogRow:
    return LogRow(
        position=event["position"],
        stream_id=UUID(event["streamId"]),
        version=event["version"],
        topic=event["topic"],
        state=event["state"].encode(),
        merchant_id=UUID(event["merchantId"]),
        recorded=recorded_bytes(parse_timestamp(event["recordedAt"])),
        content_hash=_bytes(event["contentHash"]),
        mac=None if event["mac"] is None else _bytes(event["mac"]),
    )


def _seal(told: dict[str, Any]) -> Seal:
    return Seal(
        number=told["number"],
        first_position=told["firstPosition"],
        last_position=told["lastPosition"],
        root=_bytes(told["root"]),
        previous=_bytes(told["previous"]),
        sealed_at=parse_timestamp(told["sealedAt"]),
        key_id=told["key"],
        signature=_bytes(told["signature"]),
    )


def show_keys(keys: AuditKeys, *, as_json: bool) -> None:
    """Print the public keys, the one that signs now first."""
    if as_json:
        print_plain_json([{"key": id, "publicKey": each.hex()} for id, each in keys.public_keys.items()])
        return
    table = plain_table("Key", "Public key (Ed25519)", "")
    for id, each in keys.public_keys.items():
        table.add_row(id, each.hex(), "signs now" if id == keys.present.id else "of AUDIT_KEYS_OLDER")
    make_console().print(table)
