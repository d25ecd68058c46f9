"""`payloops audit export`: everything about an order, in one file that can be checked without access to the service.

The file contains a statement, its digest and the service's signature. The statement's events are those of the log, with
everything that their hashes cover; each sealed event has a proof that leads to the root of its seal. `evidence_check`
verifies it.
"""

import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

from psycopg import AsyncConnection
from psycopg.rows import TupleRow
from pydantic import TypeAdapter

from payloops.audit.evidence_format import FORMAT, canonical, file_bytes, signed_text
from payloops.audit.masking import masked_body
from payloops.audit.reading import NotUnderstood, facts_of, reading
from payloops.commands.processor_events import processor_events_of_order
from payloops.commands.webhooks import (
    RecordedAttempt,
    Webhook,
    list_attempts_of,
    list_webhooks_of_order,
)
from payloops.events.event_store import EventReader
from payloops.events.log_rows import LogRow, rows_of_stream
from payloops.events.merkle import merkle_proof, merkle_tree
from payloops.events.seals import AuditKeys, Seal, seal_of
from payloops.events.timestamps import timestamp_text, utc_now
from payloops.files import write_private
from payloops.http.order_history import OrderAsOf, OrderExplanationAnswer, order_as_of
from payloops.projections.order_explanation import explain_order
from payloops.projections.order_history import fold


async def export_evidence(
    *, database_url: str, keys: AuditKeys, order_id: UUID, path: Path | None, force: bool
) -> bytes:
    """Write the evidence about an order to a file, or to standard output if the path is `-`. Returns its content.

    Args:
        path: by default `evidence-<order>.json`.
        force: overwrite an existing file.

    Raises:
        NotFound: there is no such order.
        NotUnderstood: the file exists, or cannot be written.
    """
    path = path or Path(f"evidence-{order_id}.json")
    printed = path == Path("-")
    if not printed and path.exists() and not force:
        raise NotUnderstood(f"{path} exists: give --force to overwrite it, or another --output")
    async with reading(database_url) as reader:
        statement = await make_statement(reader, order_id=order_id)
    bundle = signed(statement, keys)
    content = file_bytes(bundle)
    if printed:
        sys.stdout.buffer.write(content)
        return content
    try:
        write_private(path, content.decode())
    except OSError as error:
        raise NotUnderstood(f"{path}: {error.strerror}") from None
    unsealed = len(statement["events"]) - len(statement["proofs"])
    pending = f", {unsealed} of them not sealed yet" if unsealed else ""
    print(  # noqa: T201  the command's output
        f"{path}: {len(statement['events'])} events{pending}, {len(statement['processorEvents'])} processor events,"
        f" {len(statement['webhooks'])} webhooks\n"
        f"digest {bundle['digest']}, signed by the key {keys.present.id}"
    )
    return content


def signed(statement: dict[str, Any], keys: AuditKeys) -> dict[str, Any]:
    """The bundle: a statement with its digest and the service's signature."""
    digest = hashlib.sha256(canonical(statement)).hexdigest()
    return {
        "format": FORMAT,
        "statement": statement,
        "digest": digest,
        "signature": {
            "key": keys.present.id,
            "publicKey": keys.present.public.hex(),
            "signature": keys.present.sign(signed_text(digest)).hex(),
        },
    }


async def make_statement(reader: EventReader, *, order_id: UUID) -> dict[str, Any]:
    """The statement about an order.

    Raises:
        NotFound.
    """
    facts = await facts_of(reader, order_id)
    order = fold(facts)
    now = utc_now()
    async with reader.pool.connection() as connection:
        rows = (await rows_of_stream(connection, order_id))[: len(facts)]
        proofs, seals = await _proofs(connection, rows)
    webhooks = await list_webhooks_of_order(reader.pool, order_id=order_id)
    attempts = await list_attempts_of(reader.pool, webhook_ids=[each.id for each in webhooks])
    as_of = TypeAdapter(OrderAsOf).dump_python(order_as_of(order), mode="json", by_alias=True)
    explanation = OrderExplanationAnswer.model_validate(explain_order(facts, now=now))
    return {
        "madeAt": timestamp_text(now),
        "merchantId": order.merchant_id,
        "order": as_of,
        "explanation": explanation.model_dump(mode="json", by_alias=True),
        "events": [_event(row) for row in rows],
        "proofs": proofs,
        "seals": [_seal(each) for each in seals],
        "processorEvents": [
            {
                "processor": each.processor,
                "eventId": each.event_id,
                "type": each.type,
                "effect": each.effect,
                "deliveries": each.deliveries,
                "receivedAt": timestamp_text(each.received_at),
                "body": masked_body(body),
            }
            for each, body in await processor_events_of_order(reader.pool, order_id=order_id)
        ],
        "webhooks": [_webhook(each, attempts[each.id]) for each in webhooks],
    }


def _event(row: LogRow) -> dict[str, Any]:
    """An event as it is stored. The state is JSON as text, because its exact bytes are hashed."""
    assert row.recorded_at is not None, "the event was decoded, so its time is valid"
    return {
        "position": row.position,
        "streamId": str(row.stream_id),
        "version": row.version,
        "topic": row.topic,
        "state": row.state.decode(),
        "merchantId": str(row.merchant_id),
        "recordedAt": timestamp_text(row.recorded_at),
        "contentHash": row.content_hash.hex(),
        "mac": None if row.mac is None else row.mac.hex(),
    }


async def _proofs(
    connection: AsyncConnection[TupleRow], rows: Sequence[LogRow]
) -> tuple[list[dict[str, Any]], list[Seal]]:
    """A proof for each sealed row, that its leaf is included in its seal; and the seals, each once.

    A seal has many leaves: they are read, and their tree is made, once for the rows of a seal.
    """
    proofs, seals = [], list[Seal]()
    sealed, tree = None, list[list[bytes]]()
    for row in rows:
        if sealed is None or not sealed.covers(row.position):
            sealed = await seal_of(connection, position=row.position)
            if sealed is None:
                continue
            seals.append(sealed.seal)
            tree = merkle_tree(sealed.leaves)
        beside = merkle_proof(tree, row.position - sealed.seal.first_position)
        proofs.append(
            {
                "position": row.position,
                "seal": sealed.seal.number,
                "beside": [each.hex() for each in beside],
            }
        )
    return proofs, list(dict.fromkeys(seals))


def _seal(seal: Seal) -> dict[str, Any]:
    return {
        "number": seal.number,
        "firstPosition": seal.first_position,
        "lastPosition": seal.last_position,
        "root": seal.root.hex(),
        "previous": seal.previous.hex(),
        "sealedAt": timestamp_text(seal.sealed_at),
        "key": seal.key_id,
        "signature": seal.signature.hex(),
    }


def _webhook(webhook: Webhook, attempts: Sequence[RecordedAttempt]) -> dict[str, Any]:
    """A webhook with its delivery attempts, without the responses of the merchant's endpoint."""
    return {
        "id": str(webhook.id),
        "type": webhook.event_type,
        "status": webhook.status,
        "createdAt": timestamp_text(webhook.created_at),
        "deliveredAt": None if webhook.delivered_at is None else timestamp_text(webhook.delivered_at),
        "error": webhook.error,
        "attempts": [
            {
                "number": each.number,
                "url": _public_address(each.url),
                "attemptedAt": timestamp_text(each.attempt.attempted_at),
                "durationMs": each.attempt.duration_ms,
                "statusCode": each.attempt.status_code,
                "error": each.attempt.error,
            }
            for each in attempts
        ],
    }


def _public_address(url: str) -> str:
    """A webhook's URL without user name, password, query and fragment, which may be secrets."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()
