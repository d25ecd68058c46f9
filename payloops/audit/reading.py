"""Shared by the commands of `payloops audit`: connecting, finding an order, and parsing versions and times."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from uuid import UUID

from payloops.events.event_store import EventReader
from payloops.events.pools import command_pool
from payloops.events.stream import StreamEvent
from payloops.projections.order_history import NoSuchVersion, facts_as_of, order_facts
from payloops.projections.order_wording import exact_time
from payloops.projections.staff_orders import owner_of_order


class NotFound(Exception):
    """The requested order or state does not exist; the message names it."""


class NotUnderstood(Exception):
    """An argument is invalid; the message says how to write it."""


@asynccontextmanager
async def reading(database_url: str) -> AsyncIterator[EventReader]:
    """Connect to the log, for reading."""
    async with command_pool(database_url, application_name="payloops audit") as pool:
        yield EventReader(pool)


async def merchant_of(store: EventReader, order_id: UUID) -> UUID:
    """The merchant of an order.

    Raises:
        NotFound: there is no such order.
    """
    owner = await owner_of_order(store, order_id=order_id)
    if owner is None:
        raise NotFound(f"no order {order_id}")
    return owner


async def facts_of(store: EventReader, order_id: UUID) -> list[StreamEvent]:
    """All facts of an order, oldest first.

    Raises:
        NotFound: there is no such order.
    """
    facts = await order_facts(store, order_id=order_id)
    if facts is None:
        raise NotFound(f"no order {order_id}")
    return facts


def facts_up_to(facts: Sequence[StreamEvent], as_of: int | datetime) -> Sequence[StreamEvent]:
    """The facts of an order up to a version or time.

    Raises:
        NotFound: it has no such version, or did not exist at that time.
    """
    try:
        return facts_as_of(facts, as_of)
    except NoSuchVersion as error:
        lacking = f"version {as_of}" if isinstance(as_of, int) else f"state at {exact_time(as_of)} UTC"
        raise NotFound(f"order {error.order_id} has no {lacking}") from None


def moment_or_version(text: str) -> int | datetime:
    """Parse a version (`3`) or a time. A time without a time zone is UTC, as are all times in the output.

    Raises:
        NotUnderstood.
    """
    if text.isascii() and text.isdecimal() and len(text) <= len(str(2**31)):
        return int(text)
    try:
        return moment(text)
    except NotUnderstood as error:
        raise NotUnderstood(f"{error}; or a version: 3") from None


def moment(text: str) -> datetime:
    """Parse a time in ISO 8601, also with a space instead of the T; UTC if it has no time zone.

    Raises:
        NotUnderstood.
    """
    try:
        parsed = datetime.fromisoformat(text.removesuffix(" UTC"))
    except ValueError:
        raise NotUnderstood(f"{text!r} is not a time: write 2027-01-31T15:40:02, in UTC") from None
    return parsed.replace(tzinfo=parsed.tzinfo or UTC)
