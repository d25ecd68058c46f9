"""`payloops privacy`: shows and erases personal data of merchants' customers, with output as text or JSON.

The subject of a command is a customer, or the id of one order.
"""

import asyncio
import getpass
import time
from collections import Counter
from dataclasses import asdict
from typing import Any
from uuid import UUID

from psycopg_pool import AsyncConnectionPool
from rich.table import Table
from uuid_utils.compat import uuid7

from payloops.commands.erase_personal_data import Erased, Holdings, erase_personal_data, find_holdings
from payloops.commands.merchants import MerchantNotFound, find_merchant
from payloops.commands.personal_copies import Copies
from payloops.commands.personal_keys import Customer, HeldStream
from payloops.events.event_store import EventStore
from payloops.events.metadata import Metadata
from payloops.events.pools import command_pool
from payloops.events.timestamps import utc_now
from payloops.operating.confirming import confirm
from payloops.printing import camel_case, make_console, plain_table, print_plain_json
from payloops.progress import progress
from payloops.projections.building import BUILD
from payloops.projections.orders import CHECKPOINT
from payloops.projections.status import projections_status
from payloops.projections.verifying import SCRATCH
from payloops.settings import StoreSettings
from payloops.wiring import open_store

PROJECTION_SECONDS = 10.0
"""How long to wait until the tables show the erasure."""
POLL_SECONDS = 0.1
NAMES = {
    "webhooks": "webhooks that contain the order",
    "webhook_answers": "responses of the merchant's endpoint",
    "processor_events": "events received from processors",
    "kept_answers": "responses stored under idempotency keys",
    "staff_searches": "searches of the staff",
}
STAYS = (
    "Temporal's workflow histories, until the namespace's retention period ends",
    "backups, archives of the write-ahead log, and exports made before",
    "what the merchant put into customerId, externalId, URLs and refund reasons",
    "what operators wrote as the reason of a payloops resolve",
)
"""What this command cannot erase."""
BUILDS = "SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = ANY(%s))"


async def show(*, database_url: str, subject: Customer | UUID, as_json: bool) -> None:
    """Print how much is stored.

    Raises:
        OrderNotFound, MerchantNotFound: see there.
    """
    async with command_pool(database_url, application_name="payloops privacy") as pool:
        holdings = await _find(pool, subject)
    if as_json:
        print_plain_json(_held(holdings))
    else:
        _print_holdings(holdings)


async def erase(settings: StoreSettings, *, subject: Customer | UUID, ask: bool, as_json: bool) -> bool:
    """Show what is stored, ask for confirmation, erase it, and print what was erased and what cannot be.

    Returns:
        Whether nothing is left.

    Raises:
        OrderNotFound, MerchantNotFound, NotConfirmed: see there. Other exceptions as `EventStore.append`.
    """
    database_url = settings.database_url.get_secret_value()
    async with (
        command_pool(database_url, application_name="payloops privacy") as pool,
        open_store(settings, application_name="payloops privacy") as store,
    ):
        before = await _find(pool, subject)
        if not as_json:
            _print_holdings(before)
        erased, shown, left, unfinished_builds = Erased(), True, before, False
        ever_stored = bool(before.streams) or not before.is_empty
        if ever_stored:
            if ask:
                confirm("Erase it? This cannot be undone.")
            erased = await _erase(store, subject, before)
            shown = await _is_shown(pool, position=erased.position)
            left = await find_holdings(pool, subject)
            unfinished_builds = await _has_unfinished_builds(pool)
    if as_json:
        stays = _stays(before) | {"unfinishedBuilds": unfinished_builds}
        print_plain_json({"erased": _counts(erased), "shown": shown, "left": _held(left), "stays": stays})
    elif ever_stored:
        _print_outcome(before, erased, shown=shown, left=left, unfinished_builds=unfinished_builds)
    return left.is_empty


async def _find(pool: AsyncConnectionPool, subject: Customer | UUID) -> Holdings:
    holdings = await find_holdings(pool, subject)
    # An empty result for a mistyped merchant must not look like one for the customer.
    if not holdings.streams and await find_merchant(pool, merchant_id=holdings.merchant_id) is None:
        raise MerchantNotFound(merchant_id=holdings.merchant_id)
    return holdings


async def _erase(store: EventStore, subject: Customer | UUID, before: Holdings) -> Erased:
    by = Metadata(at=utc_now(), actor=f"operator:{getpass.getuser()}", correlation_id=str(uuid7()))
    erased = Erased()
    with progress() as report:
        async for step in erase_personal_data(store, subject, by=by):
            erased += step
            report("erasing", erased.streams, max(len(before.streams), erased.streams))
    return erased


async def _is_shown(pool: AsyncConnectionPool, *, position: int) -> bool:
    """Wait, for a limited time, until the tables have reached a position of the log. Returns whether they have."""
    deadline = time.monotonic() + PROJECTION_SECONDS
    while True:
        status = {each.name: each.position for each in await projections_status(pool)}
        if status[CHECKPOINT] >= position:
            return True
        if time.monotonic() >= deadline:
            return False
        await asyncio.sleep(POLL_SECONDS)


async def _has_unfinished_builds(pool: AsyncConnectionPool) -> bool:
    """Whether there are tables of a rebuild or verification, which may contain data from before the erasure."""
    async with pool.connection() as connection:
        row = await (await connection.execute(BUILDS, ([BUILD, SCRATCH],))).fetchone()
    return row is not None and bool(row[0])


def _kind(stream: HeldStream) -> str:
    """The kind of a stream: `orders` for `order.created`."""
    return f"{stream.topic.partition('.')[0].replace('_', ' ')}s"


def _counts(erased: Erased) -> dict[str, int]:
    return {"streams": erased.streams, **camel_case(erased.copies)}


def _held(holdings: Holdings) -> dict[str, Any]:
    held = Counter(_kind(each) for each in holdings.streams if not each.dropped)
    return {
        "merchantId": holdings.merchant_id,
        "held": held,
        "begun": sum(each.dropped for each in holdings.streams),
        "copies": camel_case(holdings.copies),
    }


def _stays(holdings: Holdings) -> dict[str, Any]:
    return {"plain": [each.stream_id for each in holdings.streams if each.plain], "elsewhere": list(STAYS)}


def _print_holdings(holdings: Holdings) -> None:
    if holdings.is_empty:
        print("Nothing is stored any more: it was erased" if holdings.streams else "Nothing is stored")  # noqa: T201
        return
    table = plain_table("Stored", "How many")
    for kind, number in Counter(_kind(each) for each in holdings.streams if not each.dropped).items():
        table.add_row(kind, str(number))
    if begun := sum(each.dropped for each in holdings.streams):
        table.add_row("orders whose keys are dropped, with copies left", str(begun))
    _add_copies(table, holdings.copies)
    make_console().print(table)


def _print_outcome(
    before: Holdings, erased: Erased, *, shown: bool, left: Holdings, unfinished_builds: bool
) -> None:
    table = plain_table("Erased", "How many")
    table.add_row("orders and checkout sessions", str(erased.streams))
    _add_copies(table, erased.copies)
    make_console().print(table)
    lines = [f"Not erased: {each}." for each in STAYS]
    if plain := sum(each.plain for each in before.streams):
        lines.append(
            f"Not erased: the first events of {plain} orders, written without encryption by an older version. "
            "They are shown as [erased] everywhere, but are still in the table stored_events."
        )
    if unfinished_builds:
        lines.append(
            "Not erased: the tables of an unfinished rebuild or verification of projections. "
            "Let it finish, or run it again: payloops projections rebuild."
        )
    if not shown:
        lines.append(
            "The tables do not show it yet: the projection orders is behind (payloops projections status)."
        )
    if not left.is_empty:
        lines.append("More was stored meanwhile: run it again.")
    print("\n".join(lines))  # noqa: T201


def _add_copies(table: Table, copies: Copies) -> None:
    for name, number in asdict(copies).items():
        if number:
            table.add_row(NAMES[name], str(number))
