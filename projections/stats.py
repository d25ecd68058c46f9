"""Figures of a merchant's payments, for the dashboard's first page.

Money is counted on the day it was captured, so that past days do not change; the numbers of payments are counted by
when they began.
"""

from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from functools import cache
from typing import Any, LiteralString
from uuid import UUID

from psycopg import sql
from psycopg.rows import class_row

from payloops.events.event_store import EventReader, EventStore
from payloops.events.orders import PaymentStatus
from payloops.events.timestamps import midnight
from payloops.projections.own_writes import WRITTEN_AND_REACHED, read_own_writes
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

    Payments under way are not counted. 0 if none has ended.
    """
    ended = sum(count for (status, _), count in begun.items() if status in ENDED)
    captured = sum(count for (status, _), count in begun.items() if status == PaymentStatus.CAPTURED)
    return round(captured / ended, 4) if ended else 0.0


def average(volume: int, *, payments: int) -> int | None:
    """The average amount of payments, to the nearest minor unit; None if there is none."""
    return (2 * volume + payments) // (2 * payments) if payments else None


# Whole days of the window come from their totals. For the parts of days at its two ends, payments are counted.
EDGES: LiteralString = """
    WITH edges AS MATERIALIZED (
        SELECT currency, status, processor, created_at, captured_at, amount_captured FROM payments
        WHERE merchant_id = %(merchant_id)s AND {in_currency} AND (
            created_at >= %(begin)s AND created_at < %(begin_until)s
            OR created_at >= %(end_from)s AND created_at < %(end)s
            OR captured_at >= %(begin)s AND captured_at < %(begin_until)s
            OR captured_at >= %(end_from)s AND captured_at < %(end)s
        )
    )
"""
OF_EDGES: LiteralString = """
        UNION ALL
        SELECT currency, status, processor, (created_at AT TIME ZONE 'UTC')::date, 1, 0, 0 FROM edges
        WHERE created_at >= %(begin)s AND created_at < %(begin_until)s
           OR created_at >= %(end_from)s AND created_at < %(end)s
        UNION ALL
        SELECT currency, 'captured', processor, (captured_at AT TIME ZONE 'UTC')::date, 0, 1, amount_captured
        FROM edges
        WHERE captured_at >= %(begin)s AND captured_at < %(begin_until)s
           OR captured_at >= %(end_from)s AND captured_at < %(end)s
"""
FIGURES: LiteralString = """
    SELECT {written_and_reached}, figures.*
    FROM (VALUES (1)) AS always (one)
    LEFT JOIN (
        SELECT currency, status, processor, day, sum(begun)::bigint, sum(captured)::bigint, sum(volume)::bigint
        FROM (
            SELECT currency, status, processor, day, begun, captured, volume FROM daily_volume
            WHERE merchant_id = %(merchant_id)s AND {in_currency} AND day >= %(first_day)s AND day < %(last_day)s
            {of_edges}
        ) AS counted (currency, status, processor, day, begun, captured, volume)
        GROUP BY GROUPING SETS ((currency, status, processor), (currency, day))
    ) figures ON true
"""


ANY_CURRENCY = sql.SQL("true")
ONE_CURRENCY = sql.SQL("currency = %(currency)s")


@cache
def figures_query(*, one_currency: bool, whole_days: bool) -> bytes:
    """The statement.

    Args:
        whole_days: whether the window consists of whole days, so that no payments have to be counted.
    """
    query = (
        FIGURES.replace("{of_edges}", "") if whole_days else EDGES + FIGURES.replace("{of_edges}", OF_EDGES)
    )
    in_currency = ONE_CURRENCY if one_currency else ANY_CURRENCY
    return (
        sql.SQL(query).format(written_and_reached=WRITTEN_AND_REACHED, in_currency=in_currency).as_bytes(None)
    )


async def payment_figures(
    store: EventStore, *, merchant_id: UUID, begin: datetime, end: datetime, currency: str | None = None
) -> list[Figures]:
    """The merchant's figures for each currency with payments, the one with most captured payments first.

    Waits up to a second for the projection to include everything the merchant wrote before.

    Args:
        begin: inclusive.
        end: exclusive.
        currency: only this one, if given.
    """
    parts = parts_of(begin, end)
    whole_days = (parts["begin_until"], parts["end_from"]) == (begin, end)
    arguments: dict[str, Any] = {
        "merchant_id": merchant_id,
        "begin": begin,
        "end": end,
        "currency": currency,
        **parts,
    }
    found = await read_own_writes(
        store,
        figures_query(one_currency=currency is not None, whole_days=whole_days),
        arguments,
        projection=CHECKPOINT,
        # The number of payments at the ends depends on their length, so a generic plan may be bad.
        prepare=whole_days,
    )
    figures: dict[str, Figures] = {}
    for code, status, processor, day, begun, captured, volume in found:
        if code is None:
            continue  # there is nothing
        of_currency = figures.get(code)
        if of_currency is None:
            of_currency = figures[code] = Figures(currency=code)
        if day is None and begun:
            of_currency.begun[status, processor] = begun
        elif day is not None and captured:
            of_currency.captured[day] = captured
            of_currency.volume[day] = volume
    return sorted(
        figures.values(), key=lambda each: (-each.captured.total(), -each.begun.total(), each.currency)
    )


def parts_of(begin: datetime, end: datetime) -> dict[str, date | datetime]:
    """The window's whole days in UTC, `first_day` to before `last_day`, and where its two ends meet them.

    Where there is no whole day, all of it is the first end.
    """
    first_day, last_day = begin.astimezone(UTC).date(), end.astimezone(UTC).date()
    if midnight(first_day) < begin and first_day < last_day:
        first_day += timedelta(days=1)
    if first_day >= last_day:
        return {"first_day": first_day, "last_day": first_day, "begin_until": end, "end_from": end}
    return {
        "first_day": first_day,
        "last_day": last_day,
        "begin_until": midnight(first_day),
        "end_from": midnight(last_day),
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class DayFigures:
    """Payments in one currency on one day in UTC. Amounts in its minor unit.

    Attributes:
        begun: payments begun on this day. ended: those of them that have ended by now; succeeded: by a capture.
        captured: payments captured on this day. volume: what these brought, before refunds.
    """

    currency: str
    day: date
    begun: int
    ended: int
    succeeded: int
    captured: int
    volume: int


DAILY = sql.SQL("""
    SELECT currency, day, sum(begun)::bigint AS begun,
           coalesce(sum(begun) FILTER (WHERE status = ANY (%(ended)s)), 0)::bigint AS ended,
           coalesce(sum(begun) FILTER (WHERE status = 'captured'), 0)::bigint AS succeeded,
           sum(captured)::bigint AS captured, sum(volume)::bigint AS volume
    FROM daily_volume WHERE day >= %(first)s AND day <= %(last)s AND {of_merchant}
    GROUP BY currency, day ORDER BY currency, day
""")
ANY_MERCHANT = sql.SQL("true")
ONE_MERCHANT = sql.SQL("merchant_id = %(merchant_id)s")


async def figures_by_day(
    store: EventReader, *, first: date, last: date, merchant_id: UUID | None = None
) -> list[DayFigures]:
    """What there was on each day, by currency and day; days without a payment are not among them.

    Args:
        first, last: days in UTC, both inclusive.
        merchant_id: of whom; None: of all together.
    """
    query = DAILY.format(of_merchant=ANY_MERCHANT if merchant_id is None else ONE_MERCHANT)
    arguments = {
        "first": first,
        "last": last,
        "merchant_id": merchant_id,
        "ended": [status.value for status in ENDED],
    }
    async with (
        store.pool.connection() as connection,
        connection.cursor(row_factory=class_row(DayFigures)) as cursor,
    ):
        return await (await cursor.execute(query, arguments, prepare=False)).fetchall()
