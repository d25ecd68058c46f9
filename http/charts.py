"""The geometry of charts, computed from numbers. Templates and stylesheets decide what they look like."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

WIDTH, HEIGHT = 1_000, 100
"""Of the drawing, in its own units: pages stretch it to the available space."""
GAP = 0.25
"""Between bars, as a share of the space for each."""
STEPS = (1, 2, 5, 10)


class Bar(NamedTuple):
    """A rectangle: its upper left corner and its size, in the drawing's units."""

    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True, slots=True, kw_only=True)
class BarChart:
    """A bar for each value, None for zeros. `top`: the value at the upper edge."""

    bars: list[Bar | None]
    top: int


def bar_chart(values: Sequence[int], *, top: int | None = None) -> BarChart:
    """Draw values of 0 or more, from left to right.

    Args:
        top: the value at the upper edge; by default the maximum, rounded up.
    """
    upper = round_up(max(values, default=0)) if top is None else top
    space = WIDTH / max(1, len(values))
    bars = [
        _bar(number * space, space, value * HEIGHT / upper) if value > 0 else None
        for number, value in enumerate(values)
    ]
    return BarChart(bars=bars, top=upper)


def _bar(x: float, space: float, height: float) -> Bar:
    height = max(1.0, height)  # small values stay visible
    return Bar(
        round(x + space * GAP / 2, 2),
        round(HEIGHT - height, 2),
        round(space * (1 - GAP), 2),
        round(height, 2),
    )


def round_up(value: int) -> int:
    """The smallest of 1, 2, 5, 10, 20, 50 … that is not less than the value."""
    power = 1
    while power * STEPS[-1] < value:
        power *= 10
    return next(step * power for step in STEPS if step * power >= value)
