"""The dashboard's figures. `/api/dashboard/stats`, by dashboard token."""

from collections import Counter
from datetime import UTC, date, datetime, timedelta
from typing import Annotated, Any

from pydantic import Field

from payloops.events.orders import PaymentStatus
from payloops.events.timestamps import midnight, timestamp_text
from payloops.http.fields import Currency, Moment, Timestamp
from payloops.http.problems import FieldError, validation_error
from payloops.http.routing import AnswerModel, Call, RequestModel, route
from payloops.projections.stats import Figures, average, payment_figures, success_rate

DEFAULT_DAYS = 30
MAX_DAYS = 366

SuccessRate = Annotated[
    float,
    Field(ge=0, le=1, description="Share of captured payments among those that have ended; 0 if none has"),
]


class StatsQuery(RequestModel):
    from_: Annotated[
        Moment | None,
        Field(alias="from", description="Inclusive; by default the start of the last 30 days in UTC"),
    ] = None
    to: Annotated[Moment | None, Field(description="Exclusive; by default the end of today in UTC")] = None
    currency: Currency | None = None


class DayAnswer(AnswerModel):
    """What was captured on a day in UTC."""

    date: date
    volume: int
    count: int


class StatusCount(AnswerModel):
    status: PaymentStatus
    count: int


class ProcessorCount(AnswerModel):
    processor: str
    count: int


class FiguresAnswer(AnswerModel):
    """Figures of payments. A transaction, here, is a payment: one attempt to pay an order.

    `totalVolume` and `volumeByDay` are what was captured in the window, before refunds, by day of capture;
    `averageTicket` is the average per captured payment. The others count the payments begun in the window, by their
    current state. Amounts are in the currency's minor unit.
    """

    total_volume: int
    total_transactions: int
    success_rate: SuccessRate
    average_ticket: int
    volume_by_day: list[DayAnswer]
    transactions_by_status: list[StatusCount]
    transactions_by_processor: list[ProcessorCount]


class CurrencyFigures(FiguresAnswer):
    currency: str


class StatsAnswer(FiguresAnswer):
    """`byCurrency` contains the figures of each currency with payments, the one with most captured payments first.

    At the top level, the amounts (`totalVolume`, `averageTicket`, `volumeByDay`) are in `currency`: the one requested,
    otherwise the first of `byCurrency`, null if that is empty. The counts are over all currencies, unless one was
    requested.
    """

    currency: str | None
    from_: Annotated[Timestamp, Field(alias="from")]
    to: Timestamp
    by_currency: list[CurrencyFigures]


@route(
    "GET",
    "/api/dashboard/stats",
    auth="bearer",
    long=True,
    query=StatsQuery,
    answers=StatsAnswer,
    summary="Read figures, by currency, of the last 30 days or of a period of up to 366 days",
)
async def read_stats(call: Call[None, StatsQuery]) -> dict[str, Any]:
    begin, end = window(begin=call.query.from_, end=call.query.to, now=call.by.at)
    figures = await payment_figures(
        call.services.store,
        merchant_id=call.merchant_id,
        begin=begin,
        end=end,
        currency=call.query.currency,
    )
    days = days_between(begin, end)
    by_currency = [
        {**_money(each, days=days), **_counts(each.begun), "currency": each.currency} for each in figures
    ]
    first = by_currency[0] if by_currency else _money(Figures(currency=""), days=days)
    return {
        **first,
        **_counts(sum((each.begun for each in figures), Counter())),
        "currency": figures[0].currency if figures else call.query.currency,
        "from": timestamp_text(begin),
        "to": timestamp_text(end),
        "byCurrency": by_currency,
    }


def window(*, begin: datetime | None, end: datetime | None, now: datetime) -> tuple[datetime, datetime]:
    """The start and end of the window; by default the last 30 days in UTC, including today.

    Raises:
        Problem: 400 if it is empty, or longer than 366 days.
    """
    if end is None:
        end = midnight(now.date()) + timedelta(days=1)
    if begin is None:
        begin = _days_before(end, DEFAULT_DAYS)
    if begin >= end:
        raise validation_error(FieldError("from", "Must be before to"))
    if end - begin > timedelta(days=MAX_DAYS):
        raise validation_error(FieldError("from", f"Must be at most {MAX_DAYS} days before to"))
    return begin, end


def _days_before(end: datetime, days: int) -> datetime:
    """The start, in UTC, of a period of that many days, the last of which contains the moment before `end`."""
    try:
        last = (end - timedelta(microseconds=1)).date()
        return midnight(last - timedelta(days=days - 1))
    except OverflowError:
        return datetime.min.replace(tzinfo=UTC)


def days_between(begin: datetime, end: datetime) -> list[date]:
    """Every day in UTC that the window overlaps."""
    last = (end - timedelta(microseconds=1)).date()
    return [begin.date() + timedelta(days=number) for number in range((last - begin.date()).days + 1)]


def _money(figures: Figures, *, days: list[date]) -> dict[str, Any]:
    """The amounts of `FiguresAnswer`, in JSON's names."""
    volume, captured, total = figures.volume.get, figures.captured.get, figures.volume.total()
    return {
        "totalVolume": total,
        "averageTicket": average(total, payments=figures.captured.total()) or 0,
        "volumeByDay": [{"date": day, "volume": volume(day, 0), "count": captured(day, 0)} for day in days],
    }


def _counts(begun: Counter[tuple[str, str]]) -> dict[str, Any]:
    """The counts of `FiguresAnswer`, in JSON's names."""
    by_status: Counter[str] = Counter()
    by_processor: Counter[str] = Counter()
    for (status, processor), count in begun.items():
        by_status[status] += count
        by_processor[processor] += count
    return {
        "totalTransactions": begun.total(),
        "successRate": success_rate(begun),
        "transactionsByStatus": [{"status": each, "count": count} for each, count in _ranked(by_status)],
        "transactionsByProcessor": [
            {"processor": each, "count": count} for each, count in _ranked(by_processor)
        ],
    }


def _ranked(counts: Counter[str]) -> list[tuple[str, int]]:
    """The most frequent first; equally frequent ones by name."""
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))
