"""The geometry of charts, computed from numbers; templates and stylesheets decide what they look like."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

WIDTH, HEIGHT = 1_000, 100
"""Of the drawing, in its own units: pages stretch it to the room that there is."""
GAP = 0.25
"""Between bars, as a share of the room of one."""
STEPS = (1, 2, 5, 10)


class Bar(NamedTuple):
    """A rectangle, from its upper left corner, in the drawing's units."""

    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True, slots=True, kw_only=True)
class BarChart:
    """A bar for each value, None for those that are 0. `top`: the value at the drawing's upper edge."""

    bars: list[Bar | None]
    top: int


def bar_chart(values: Sequence[int], *, top: int | None = None) -> BarChart:
    """Draw values that are not negative, from left to right.

    Args:
        top: the value at the upper edge; where none is given, a round one that is not less than any.
    """
    upper = round_up(max(values, default=0)) if top is None else top
    room = WIDTH / max(1, len(values))
    bars = [
        _bar(number * room, room, value * HEIGHT / upper) if value > 0 else None
        for number, value in enumerate(values)
    ]
    return BarChart(bars=bars, top=upper)


def _bar(x: float, room: float, height: float) -> Bar:
    height = max(1.0, height)  # what is there is seen
    return Bar(
        round(x + room * GAP / 2, 2), round(HEIGHT - height, 2), round(room * (1 - GAP), 2), round(height, 2)
    )


def round_up(value: int) -> int:
    """The least of 1, 2, 5, 10, 20, 50 … that is not less."""
    power = 1
    while power * STEPS[-1] < value:
        power *= 10
    return next(step * power for step in STEPS if step * power >= value)
