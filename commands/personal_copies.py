"""Copies of customers' personal data outside the event log and the projections, which an erasure must erase as well.

- `webhook_events`: webhook bodies, which contain the order; `webhook_attempts`: the responses of endpoints.
- `processor_events`: the bodies that processors sent.
- `idempotency_keys`: answers, kept for a day to be replayed.
- `staff_views`: the search terms of staff.
"""

import json
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import Any, Self
from uuid import UUID

import orjson
from psycopg import AsyncConnection
from psycopg.rows import TupleRow
from psycopg.types.json import Json
from pydantic.alias_generators import to_camel

from payloops.events.event_types import fact_types
from payloops.events.personal_data import ERASED

WEBHOOKS = "SELECT id, payload FROM webhook_events WHERE order_id = ANY(%(streams)s)"
# Recording an attempt locks the webhook's row: once it is locked here, the endpoint's answer is visible.
LOCK_WEBHOOKS = "SELECT FROM webhook_events WHERE order_id = ANY(%(streams)s) FOR UPDATE"
ERASE_WEBHOOK = "UPDATE webhook_events SET payload = %(value)s WHERE id = %(id)s"
WEBHOOK_ANSWERS = """
    SELECT a.key FROM webhook_events w JOIN webhook_attempts a ON a.webhook_event_id = w.id
    WHERE w.order_id = ANY(%(streams)s) AND a.answer NOT IN ('', %(erased)s)
"""
ERASE_WEBHOOK_ANSWERS = "UPDATE webhook_attempts SET answer = %(erased)s WHERE key = ANY(%(ids)s)"
BODIES = "SELECT id FROM processor_events WHERE order_id = ANY(%(streams)s) AND body <> %(erased)s"
BODIES_WITH_TEXT = """
    SELECT id FROM processor_events
    WHERE merchant_id = %(merchant_id)s AND body <> %(erased)s
      AND coalesce(order_id <> ALL(%(streams)s), true)
      AND EXISTS (SELECT FROM unnest(%(texts)s::text[]) AS text WHERE position(text IN lower(body)) > 0)
"""
ERASE_BODIES = "UPDATE processor_events SET body = %(erased)s WHERE id = ANY(%(ids)s)"
# These bodies are all answers of this service, so they are JSON.
KEPT_ANSWERS = """
    SELECT key, response_body FROM idempotency_keys
    WHERE merchant_id = %(merchant_id)s AND substring(response_body FOR 1) = '{'
      AND convert_from(response_body, 'UTF8')::json ->> 'id' = ANY(%(streams)s::uuid[]::text[])
"""
ERASE_KEPT_ANSWER = """
    UPDATE idempotency_keys SET response_body = %(value)s WHERE merchant_id = %(merchant_id)s AND key = %(id)s
"""
SEARCHES_WITH_TEXT = """
    SELECT id FROM staff_views
    WHERE (merchant_id IS NULL OR merchant_id = %(merchant_id)s)
      AND EXISTS (SELECT FROM unnest(%(texts)s::text[]) AS text WHERE position(text IN lower(query ->> 'q')) > 0)
"""
ERASE_SEARCHES = """
    UPDATE staff_views SET query = query || jsonb_build_object('q', %(erased)s::text) WHERE id = ANY(%(ids)s)
"""


@dataclass(frozen=True, slots=True)
class Copies:
    """How many copies there are, or were erased."""

    webhooks: int = 0
    webhook_answers: int = 0
    processor_events: int = 0
    kept_answers: int = 0
    staff_searches: int = 0

    def __add__(self, other: Self) -> Self:
        return type(self)(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))


def erased_in(value: Any) -> Any:
    """JSON made by this service, with its personal fields erased. Fields without a value are left unchanged."""
    readings = {
        to_camel(name): reading for fact in fact_types().values() for name, reading in fact.PERSONAL.items()
    }
    return _erased_in(value, readings)


def _erased_in(value: Any, readings: dict[str, Any]) -> Any:
    match value:
        case dict():
            return {
                name: readings[name] if name in readings and each else _erased_in(each, readings)
                for name, each in value.items()
            }
        case list():
            return [_erased_in(each, readings) for each in value]
        case _:
            return value


async def count_copies(
    connection: AsyncConnection[TupleRow], *, merchant_id: UUID, stream_ids: Sequence[UUID]
) -> Copies:
    """How many copies there are of the personal data in these streams of a merchant."""
    given = _given(merchant_id, stream_ids)
    return Copies(
        webhooks=len(await _with_personal_data(connection, WEBHOOKS, given)),
        webhook_answers=len(await _ids(connection, WEBHOOK_ANSWERS, given)),
        processor_events=len(await _ids(connection, BODIES, given)),
        kept_answers=len(await _with_personal_data(connection, KEPT_ANSWERS, given)),
    )


async def erase_copies(
    connection: AsyncConnection[TupleRow], *, merchant_id: UUID, stream_ids: Sequence[UUID]
) -> Copies:
    """Erase these copies, in a transaction, once the streams' keys are dropped; return how many there were."""
    given = _given(merchant_id, stream_ids)
    await connection.execute(LOCK_WEBHOOKS, given)
    webhooks = await _with_personal_data(connection, WEBHOOKS, given)
    answers = await _ids(connection, WEBHOOK_ANSWERS, given)
    bodies = await _ids(connection, BODIES, given)
    kept = await _with_personal_data(connection, KEPT_ANSWERS, given)
    async with connection.cursor() as cursor:
        await cursor.executemany(
            ERASE_WEBHOOK, [{"id": id, "value": Json(value)} for id, value in webhooks.items()]
        )
        await cursor.executemany(
            ERASE_KEPT_ANSWER,
            [given | {"id": key, "value": orjson.dumps(value)} for key, value in kept.items()],
        )
        await cursor.execute(ERASE_WEBHOOK_ANSWERS, given | {"ids": answers})
        await cursor.execute(ERASE_BODIES, given | {"ids": bodies})
    return Copies(
        webhooks=len(webhooks),
        webhook_answers=len(answers),
        processor_events=len(bodies),
        kept_answers=len(kept),
    )


async def count_mentions(
    connection: AsyncConnection[TupleRow],
    *,
    merchant_id: UUID,
    emails: Sequence[str],
    beside: Sequence[UUID],
) -> Copies:
    """How many bodies from processors and searches of staff contain one of these addresses.

    Args:
        beside: streams whose bodies are not counted here, since `count_copies` counts them.
    """
    given = _given(merchant_id, beside) | {"texts": _texts(emails)}
    return Copies(
        processor_events=len(await _ids(connection, BODIES_WITH_TEXT, given)),
        staff_searches=len(await _ids(connection, SEARCHES_WITH_TEXT, given)),
    )


async def erase_mentions(
    connection: AsyncConnection[TupleRow],
    *,
    merchant_id: UUID,
    emails: Sequence[str],
    beside: Sequence[UUID],
) -> Copies:
    """Erase these mentions, in a transaction; return how many there were."""
    given = _given(merchant_id, beside) | {"texts": _texts(emails)}
    bodies = await _ids(connection, BODIES_WITH_TEXT, given)
    searches = await _ids(connection, SEARCHES_WITH_TEXT, given)
    await connection.execute(ERASE_BODIES, given | {"ids": bodies})
    await connection.execute(ERASE_SEARCHES, given | {"ids": searches})
    return Copies(processor_events=len(bodies), staff_searches=len(searches))


def _given(merchant_id: UUID, stream_ids: Sequence[UUID]) -> dict[str, Any]:
    return {"merchant_id": merchant_id, "streams": list(stream_ids), "erased": ERASED}


def _texts(emails: Sequence[str]) -> list[str]:
    """The addresses, in lower case, as they may be written in a text or in JSON."""
    lowered = {email.lower() for email in emails}
    return sorted(lowered | {json.dumps(email)[1:-1].lower() for email in lowered})


async def _ids(connection: AsyncConnection[TupleRow], query: str, given: dict[str, Any]) -> list[Any]:
    return [id for (id,) in await (await connection.execute(query.encode(), given)).fetchall()]


async def _with_personal_data(
    connection: AsyncConnection[TupleRow], query: str, given: dict[str, Any]
) -> dict[Any, Any]:
    """The JSON values that contain personal data, by key, with that data erased."""
    found = await (await connection.execute(query.encode(), given)).fetchall()
    values = {key: orjson.loads(value) if isinstance(value, bytes) else value for key, value in found}
    erased = {key: erased_in(value) for key, value in values.items()}
    return {key: value for key, value in erased.items() if value != values[key]}
