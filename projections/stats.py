"""Figures of a merchant's payments: what the dashboard's first page shows.

Money and numbers of payments are counted at different moments: what was captured on the day it was captured, so
that a day that is over does not change; how payments fared by when they were begun.
"""

from collections import Counter
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import Any
from uuid import UUID

from psycopg import sql

from payloops.events.event_store import EventStore
from payloops.events.orders import PaymentStatus
from payloops.projections.own_writes import wait_for_own_writes
from payloops.projections.payments import CHECKPOINT

ENDED = (PaymentStatus.CAPTURED, PaymentStatus.FAILED, PaymentStatus.CANCELLED)


@dataclass(slots=True, kw_only=True)
class Figures:
    """Payments in one currency, within a window of time. Amounts in its minor unit.

    Attributes:
        begun: payments begun in the window, by (status now, processor).
        volume: captured in the window, by day in UTC; before refunds.
        captured: number of payments captured in the window, by day in UTC.
    """

    currency: str
    begun: Counter[tuple[str, str]] = field(default_factory=Counter)
    volume: Counter[date] = field(default_factory=Counter)
    captured: Counter[date] = field(default_factory=Counter)


def success_rate(begun: Counter[tuple[str, str]]) -> float:
    """The captured share of the payments that have ended (captured, failed or cancelled), 0 to 1.

    Those still under way say nothing yet. 0 where none has ended.
    """
    ended = sum(count for (status, _), count in begun.items() if status in ENDED)
    captured = sum(count for (status, _), count in begun.items() if status == PaymentStatus.CAPTURED)
    return round(captured / ended, 4) if ended else 0.0


def average_ticket(figures: Figures) -> int:
    """What a captured payment brought on average, to the nearest minor unit; 0 where there is none."""
    count = figures.captured.total()
    return (2 * figures.volume.total() + count) // (2 * count) if count else 0


FIGURES = sql.SQL("""
    SELECT currency, status, processor, NULL::date, count(*), 0
    FROM payments
    WHERE merchant_id = %(merchant_id)s AND created_at >= %(begin)s AND created_at < %(end)s AND {in_currency}
    GROUP BY currency, status, processor
    UNION ALL
    SELECT currency, NULL, NULL, (captured_at AT TIME ZONE 'UTC')::date, count(*), sum(amount_captured)
    FROM payments
    WHERE merchant_id = %(merchant_id)s AND captured_at >= %(begin)s AND captured_at < %(end)s AND {in_currency}
    GROUP BY 1, 4
""")
ANY_CURRENCY = sql.SQL("true")
ONE_CURRENCY = sql.SQL("currency = %(currency)s")


async def payment_figures(
    store: EventStore, *, merchant_id: UUID, begin: datetime, end: datetime, currency: str | None = None
) -> list[Figures]:
    """The merchant's figures, one for each currency that has any: the one with most captured payments first.

    Waits up to a second for the projection to contain everything the merchant wrote before.

    Args:
        begin: inclusive.
        end: exclusive.
        currency: of this one only.
    """
    await wait_for_own_writes(store, merchant_id=merchant_id, projection=CHECKPOINT)
    query = FIGURES.format(in_currency=ANY_CURRENCY if currency is None else ONE_CURRENCY)
    arguments: dict[str, Any] = {
        "merchant_id": merchant_id,
        "begin": begin,
        "end": end,
        "currency": currency,
    }
    async with store.pool.connection() as connection:
        found = await (await connection.execute(query, arguments, prepare=False)).fetchall()
    figures: dict[str, Figures] = {}
    for code, status, processor, day, count, volume in found:
        of_currency = figures.setdefault(code, Figures(currency=code))
        if day is None:
            of_currency.begun[status, processor] += count
        else:
            of_currency.captured[day] += count
            of_currency.volume[day] += int(volume)
    return sorted(
        figures.values(), key=lambda each: (-each.captured.total(), -each.begun.total(), each.currency)
    )
