"""The dashboard's figures. `/api/dashboard/stats`, by dashboard token."""

from collections import Counter
from datetime import UTC, date, datetime, time, timedelta
from typing import Annotated, Any

from pydantic import Field

from payloops.events.orders import PaymentStatus
from payloops.events.timestamps import timestamp_text
from payloops.http.fields import Currency, Moment, Timestamp
from payloops.http.problems import FieldError, validation_error
from payloops.http.routing import AnswerModel, Call, RequestModel, route
from payloops.projections.stats import Figures, average_ticket, payment_figures, success_rate

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

    `totalVolume` and `volumeByDay` are what was captured in the window, before refunds, by the day of the
    capture; `averageTicket` is that by captured payment. The others count the payments begun in the window, by
    how they stand now. Amounts are in the currency's minor unit.
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
    """`byCurrency` has the figures of each currency that has any, the one with most captured payments first.

    Of the flat figures, those of money (`totalVolume`, `averageTicket`, `volumeByDay`) are of `currency` alone:
    the one that was asked for, else the first of `byCurrency`, null where there is none. Those that count
    payments are of all currencies, unless one was asked for.
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
    """From when to when: the last 30 days in UTC, today among them, where nothing else is said.

    Raises:
        Problem: 400 where it is empty, or longer than 366 days.
    """
    if end is None:
        end = _midnight(now.date()) + timedelta(days=1)
    if begin is None:
        begin = _days_before(end, DEFAULT_DAYS)
    if begin >= end:
        raise validation_error(FieldError("from", "Must be before to"))
    if end - begin > timedelta(days=MAX_DAYS):
        raise validation_error(FieldError("from", f"Must be at most {MAX_DAYS} days before to"))
    return begin, end


def _days_before(end: datetime, days: int) -> datetime:
    """The start, in UTC, of that many days, the last of which `end` ends or is in."""
    try:
        last = (end - timedelta(microseconds=1)).date()
        return _midnight(last - timedelta(days=days - 1))
    except OverflowError:
        return datetime.min.replace(tzinfo=UTC)


def _midnight(day: date) -> datetime:
    return datetime.combine(day, time(), UTC)


def days_between(begin: datetime, end: datetime) -> list[date]:
    """Every day in UTC that the window touches."""
    last = (end - timedelta(microseconds=1)).date()
    return [begin.date() + timedelta(days=number) for number in range((last - begin.date()).days + 1)]


def _money(figures: Figures, *, days: list[date]) -> dict[str, Any]:
    """What `FiguresAnswer` has of money, as it is written."""
    volume, captured = figures.volume.get, figures.captured.get
    return {
        "totalVolume": figures.volume.total(),
        "averageTicket": average_ticket(figures),
        "volumeByDay": [{"date": day, "volume": volume(day, 0), "count": captured(day, 0)} for day in days],
    }


def _counts(begun: Counter[tuple[str, str]]) -> dict[str, Any]:
    """What it has of payments."""
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
    """The most frequent first; of equals, by name."""
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))
