"""Volume and success rate over time, for support staff in a browser. `/support/volume`."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from itertools import groupby
from typing import Annotated
from uuid import UUID

from pydantic import Field

from payloops.commands.merchants import merchant_names
from payloops.http.charts import BarChart, bar_chart
from payloops.http.fields import QueryNumber
from payloops.http.money import money
from payloops.http.routing import Call, page
from payloops.http.support import SupportQuery, support_page
from payloops.projections.stats import DayFigures, average, figures_by_day

SPANS = (7, 30, 90, 365)
"""Numbers of days that the page offers."""
CHARTS = 6
"""Number of currencies with charts; the others are only in the table."""


class VolumeQuery(SupportQuery):
    days: Annotated[QueryNumber, Field(ge=1, le=366, description="Up to today, in UTC")] = 30
    merchant_id: UUID | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CurrencyVolume:
    """One currency over some days. Amounts in its minor unit.

    Attributes:
        days: every day, oldest first, including those without payments.
        success: share of captured payments among those that have ended, 0 to 1; None if none has.
    """

    currency: str
    days: list[DayFigures]
    volume: int
    captured: int
    ended: int
    success: float | None
    volume_chart: BarChart
    success_chart: BarChart

    @property
    def average(self) -> int | None:
        """The average captured payment; None if there was none."""
        return average(self.volume, payments=self.captured)


@page(
    "GET",
    "/support/volume",
    auth="staff_session",
    long=True,
    query=VolumeQuery,
    summary="Show volume and success rate over time, by currency",
)
async def read_support_volume(call: Call[None, VolumeQuery]) -> bytes:
    query, store = call.query, call.services.store
    call.viewed_merchant = query.merchant_id
    last = call.by.at.date()
    first = last - timedelta(days=query.days - 1)
    figures = await figures_by_day(store, first=first, last=last, merchant_id=query.merchant_id)
    shown_merchants = [] if query.merchant_id is None else [query.merchant_id]
    return support_page(
        call,
        "support_volume.html",
        query=query,
        spans=SPANS,
        first=first,
        last=last,
        currencies=list(by_currency(figures, first=first, days=query.days)),
        charts=CHARTS,
        merchants=await merchant_names(store.pool, merchant_ids=shown_merchants),
        money=money,
    )


def by_currency(figures: Sequence[DayFigures], *, first: date, days: int) -> Iterator[CurrencyVolume]:
    """The volume of each currency, the one with most captured payments first.

    Args:
        figures: grouped by currency; days without payments may be missing.
    """
    every_day = [first + timedelta(days=number) for number in range(days)]
    volumes = [
        _currency_volume(currency, {each.day: each for each in of_currency}, every_day)
        for currency, of_currency in groupby(figures, key=lambda each: each.currency)
    ]
    yield from sorted(volumes, key=lambda each: (-each.captured, -each.ended, each.currency))


def _currency_volume(currency: str, by_day: dict[date, DayFigures], days: Sequence[date]) -> CurrencyVolume:
    figures = [by_day.get(day) or _without_payment(currency, day) for day in days]
    ended = sum(each.ended for each in figures)
    return CurrencyVolume(
        currency=currency,
        days=figures,
        volume=sum(each.volume for each in figures),
        captured=sum(each.captured for each in figures),
        ended=ended,
        success=sum(each.succeeded for each in figures) / ended if ended else None,
        volume_chart=bar_chart([each.volume for each in figures]),
        success_chart=bar_chart([_percent(each) for each in figures], top=100),
    )


def _without_payment(currency: str, day: date) -> DayFigures:
    return DayFigures(currency=currency, day=day, begun=0, ended=0, succeeded=0, captured=0, volume=0)


def _percent(figures: DayFigures) -> int:
    return round(100 * figures.succeeded / figures.ended) if figures.ended else 0
