"""A picture of what something cost and what it brought: one panel for each kind of cost."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .parts import EDGE, INSIDE, Head, Look, draw_marks
from .style import SIZE, WIDTH, fit, picture

HIGH, SIDE, UNDER = 2.3, 0.62, 0.6
"""Inches: height of the axes, and the room for their numbers at the left and below."""
LOGARITHMIC_FROM = 30
"""Costs that differ by more than this factor are drawn on a logarithmic axis."""


@dataclass(frozen=True)
class Point:
    """cost, value: in units of the axes.   low, high: interval of the value, or None."""

    look: Look
    cost: float
    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Costs:
    """A panel. axis: what was paid."""

    axis: str
    points: list[Point]


@dataclass(frozen=True)
class CostPicture:
    """axis: what was gained, the same in all panels.   lines: values that cost nothing here, drawn across."""

    title: str
    about: str
    axis: str
    panels: list[Costs]
    lines: list[tuple[Look, float]]
    key: list[tuple[Look, bool, str]]


def draw_costs(shown: CostPicture, target: Path) -> None:
    """Draw it for a page. Raises OSError. Needs matplotlib."""
    head = Head(shown.title, shown.about, shown.key, room=0.2)
    height = head.inches + HIGH + UNDER
    wide = (INSIDE - SIDE - 0.12) / len(shown.panels)
    with picture(target, WIDTH, height, dark=True) as figure:
        head.draw(figure)
        ends = _ends(shown)
        for place, panel in enumerate(shown.panels):
            left = EDGE + SIDE + place * wide
            axes = figure.add_axes((left / WIDTH, UNDER / height, (wide - 0.25) / WIDTH, HIGH / height))
            _draw(axes, panel, shown)
            axes.set_ylim(*ends)
            axes.set_xlabel(fit(panel.axis, wide - 0.1), fontsize=SIZE, parse_math=False)
            if place:
                axes.tick_params(labelleft=False)
            else:
                axes.set_ylabel(fit(shown.axis, HIGH + 0.4), fontsize=SIZE, parse_math=False)


def _ends(shown: CostPicture) -> tuple[float, float]:
    """Both ends of the axis that all panels share."""
    seen = [value for _, value in shown.lines]
    for panel in shown.panels:
        for point in panel.points:
            seen += [each for each in (point.value, point.low, point.high) if each is not None]
    seen = [value for value in seen if math.isfinite(value)]
    room = 0.06 * (max(seen) - min(seen)) or 1.0
    return min(seen) - room, max(seen) + room


def _draw(axes: Any, panel: Costs, shown: CostPicture) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    costs = [point.cost for point in panel.points]
    number = FuncFormatter(lambda value, _: short(value))
    if min(costs) > 0 and max(costs) > LOGARITHMIC_FROM * min(costs):
        axes.set_xscale("log")
        axes.set_xlim(min(costs) / 1.6, max(costs) * 1.6)
        axes.xaxis.set_major_locator(LogLocator(numticks=4))
        axes.xaxis.set_minor_locator(NullLocator())
    else:
        axes.set_xlim(0.0, 1.1 * max(costs) or 1.0)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=4, steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_major_formatter(number)
    for look, value in shown.lines:
        axes.axhline(value, color=look.colour, linewidth=1.2, linestyle=(0, (4, 2)), zorder=1.5)
    for point in panel.points:
        if point.low is not None and point.high is not None:
            axes.vlines(point.cost, point.low, point.high, colors=point.look.colour, linewidths=1.7, zorder=3)
        draw_marks(axes, [point.cost], [point.value], point.look, True)
    axes.grid()
    axes.tick_params(labelsize=SIZE, length=3)


def short(value: float) -> str:
    """A number in few signs.

    >>> [short(value) for value in (0.0, 0.25, 1500.0, 2.5e6, 3e9)]
    ['0', '0.25', '1.5k', '2.5M', '3G']
    """
    for size, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{name}"
    return f"{value:.3g}"
