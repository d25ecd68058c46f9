"""`payloops audit verify FILE`: checks evidence about an order, from the file alone."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any
from uuid import UUID

import orjson

from payloops.audit.evidence_format import FORMAT, canonical, file_bytes, signed_text
from payloops.events.log_rows import Fault, LogRow, fault_of, recorded_bytes, row_leaf
from payloops.events.merkle import proven_root
from payloops.events.seals import AuditKeys, Seal, is_signed, key_id
from payloops.events.timestamps import parse_timestamp
from payloops.printing import make_console, print_plain_json, print_rows


class NotEvidence(Exception):
    """The file is not an evidence file, or is malformed."""


@dataclass(slots=True)
class Report:
    """The result of checking evidence: what was checked, what is wrong (empty if the evidence holds), and remarks."""

    checked: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def run_check(*, path: Path, public_keys: Sequence[bytes], as_json: bool) -> bool:
    """Check a file and print the result. Returns whether the evidence holds.

    Args:
        public_keys: the service's, from a trusted source. Without them, the public key in the file is trusted.

    Raises:
        OSError: it cannot be read.
        NotEvidence: see there.
    """
    content = path.read_bytes()
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
        console.print_line(f"✓ {line}")
    for line in report.notes:
        console.print_line(f"· {line}")
    for line in report.wrong:
        console.print_line(f"✗ {line}", style="bold red")
    console.print("the evidence holds" if not report.wrong else "the evidence does NOT hold")
    return not report.wrong


def check_evidence(
    content: bytes, *, public_keys: Sequence[bytes] = (), mac_keys: Sequence[bytes] = ()
) -> Report:
    """Check the whole content of a file: a single changed byte is detected.

    Args:
        mac_keys: the service's, to check who wrote the events: the file itself cannot show that.

    Raises:
        NotEvidence: see there.
    """
    try:
        bundle = orjson.loads(content)
        if bundle["format"] != FORMAT:
            raise NotEvidence(f"this version checks {FORMAT!r}, not {bundle['format']!r}")
        return _check_bundle(bundle, content, public_keys=public_keys, mac_keys=mac_keys)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise NotEvidence(f"this is not an evidence file: {type(error).__name__} {error}") from None


def _check_bundle(
    bundle: dict[str, Any], content: bytes, *, public_keys: Sequence[bytes], mac_keys: Sequence[bytes]
) -> Report:
    report = Report()
    statement = bundle["statement"]
    _check(
        report,
        "the file has the form in which evidence is exported, to the byte",
        file_bytes(bundle) == content,
    )
    digest = hashlib.sha256(canonical(statement)).hexdigest()
    _check(report, f"the statement has the digest {digest}", digest == bundle["digest"])
    known = _check_signature(report, bundle, digest, public_keys)
    rows = [_row(event) for event in statement["events"]]
    _check_events(report, rows, statement, mac_keys)
    _check_proofs(report, rows, statement, known)
    return report


def _check(report: Report, claim: str, holds: bool) -> None:
    (report.checked if holds else report.wrong).append(claim if holds else f"not so: {claim}")


def _check_signature(
    report: Report, bundle: dict[str, Any], digest: str, public_keys: Sequence[bytes]
) -> dict[str, bytes]:
    """Check the signature of the statement. Returns the public keys that may have signed seals, by id."""
    signature = bundle["signature"]
    public = _bytes(signature["publicKey"])
    good = (
        is_signed(signed_text(digest), signature=_bytes(signature["signature"]), public=public)
        and key_id(public) == signature["key"]
    )
    _check(report, f"it is signed by the key {signature['key']}", good)
    if public_keys:
        _check(report, "that key is one of those that you gave", public in public_keys)
    else:
        report.notes.append(
            f"the file cannot prove whose key that is: compare {public.hex()} with the output of"
            " `payloops audit key`, or give it with --public-key"
        )
    return {key_id(each): each for each in (*public_keys, public)}


def _check_events(
    report: Report, rows: Sequence[LogRow], statement: dict[str, Any], mac_keys: Sequence[bytes]
) -> None:
    order_id = UUID(statement["order"]["id"])
    in_order = [row.version for row in rows] == list(range(1, len(rows) + 1))
    rising = all(before.position < after.position for before, after in pairwise(rows))
    of_order = {row.stream_id for row in rows} == {order_id} and statement["order"]["version"] == len(rows)
    _check(
        report,
        f"its {len(rows)} events are all of the order's up to version {len(rows)}, in their order",
        in_order and rising and of_order,
    )
    told = {Fault.CONTENT, Fault.MAC} if mac_keys else {Fault.CONTENT}
    faults = [(row, fault) for row in rows if (fault := fault_of(row, mac_keys=mac_keys)) in told]
    intact = all(fault is not Fault.CONTENT for _, fault in faults)
    _check(report, "the content of each has the hash that is stored with it", intact)
    report.wrong += [f"event {row.position}, {row.topic}: {fault}" for row, fault in faults]


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
        _check(
            report, f"{len(proven)} of them are proven to be in the sealed log: {_ranges(seals)}", not failed
        )
    report.wrong += [f"event {position} differs from what was sealed" for position in sorted(failed)]
    unsealed = len(by_position.keys() - proven - failed)
    if unsealed:
        report.notes.append(
            f"not sealed yet when this was exported: {unsealed} of the events, which only our signature protects"
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
    """Parse hexadecimal, in lower case and without spaces only, so that a changed byte of the file is detected.

    Raises:
        ValueError: it is written differently.
    """
    found = bytes.fromhex(text)
    if found.hex() != text:
        raise ValueError("hexadecimal is not in lower case, or contains spaces")
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


def _seal(seal: dict[str, Any]) -> Seal:
    return Seal(
        number=seal["number"],
        first_position=seal["firstPosition"],
        last_position=seal["lastPosition"],
        root=_bytes(seal["root"]),
        previous=_bytes(seal["previous"]),
        sealed_at=parse_timestamp(seal["sealedAt"]),
        key_id=seal["key"],
        signature=_bytes(seal["signature"]),
    )


def show_keys(keys: AuditKeys, *, as_json: bool) -> None:
    """Print the public keys, the current one first."""
    if as_json:
        print_plain_json([{"key": id, "publicKey": each.hex()} for id, each in keys.public_keys.items()])
        return
    cells = [
        (id, each.hex(), "AUDIT_KEY: signs now" if id == keys.present.id else "AUDIT_KEYS_OLDER")
        for id, each in keys.public_keys.items()
    ]
    print_rows(make_console(), "Key", "Public key (Ed25519)", "Of", rows=cells)
