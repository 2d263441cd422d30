"""Parts that our pictures for pages have in common: title and key, axes at a place in inches, text, marks."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .style import PAPER, SIZE, SOFT, TITLE_SIZE, WIDTH, fit, text_width, wrapped

if TYPE_CHECKING:
    from matplotlib.figure import Figure

EDGE, LINE = 0.12, 0.165
"""Inches: the margin of a picture, and from one line of text to the next."""
INSIDE = WIDTH - 2 * EDGE
KEY_MARK = 0.18
"""Inches that a mark before a name takes."""
BELOW = 0.55
"""Inches for the numbers and the label of an axis."""


@dataclass(frozen=True)
class Look:
    """colour: one of `style`.   mark: one of matplotlib's; "": a swatch."""

    colour: str
    mark: str = ""


def key_lines(key: Sequence[tuple[Look, bool, str]], inches: float) -> list[list[tuple[float, Look, bool, str]]]:
    """Entries of the key on lines of so many inches, each with the place where it begins."""
    lines: list[list[tuple[float, Look, bool, str]]] = []
    place = math.inf
    for look, filled, name in key:
        name = fit(name, 0.6 * inches)
        wide = KEY_MARK + text_width(name)
        if place + wide > inches:
            lines.append([])
            place = 0.0
        lines[-1].append((place, look, filled, name))
        place += wide + 0.22
    return lines


class Head:
    """The title of a picture of WIDTH inches, the words under it, and a key of (look, is filled, name).

    inches: that they take, with the margin above and the room below them.
    """

    def __init__(self, title: str, about: str, key: Sequence[tuple[Look, bool, str]], room: float = 0.15) -> None:
        self._title, self._about, self._key = title, wrapped(about, INSIDE), key_lines(key, INSIDE)
        key_inches = 0.06 + 0.2 * len(self._key) if key else 0.0
        self.inches = EDGE + 0.24 + LINE * len(self._about) + key_inches + room

    def draw(self, figure: "Figure") -> None:
        """At the top of a figure."""
        title = fit(self._title, INSIDE, TITLE_SIZE, bold=True)
        write(figure, EDGE, EDGE + 0.08, title, size=TITLE_SIZE, weight="bold")
        top = EDGE + 0.24 + LINE / 2
        for line in self._about:
            write(figure, EDGE, top, line, color=SOFT)
            top += LINE
        top += 0.06
        for entries in self._key:
            for place, look, filled, name in entries:
                draw_key_mark(figure, EDGE + place, top, look, filled)
                write(figure, EDGE + place + KEY_MARK, top, name)
            top += 0.2


def add_axes(figure: "Figure", left: float, top: float, wide: float, tall: float) -> Any:
    """Axes of so many inches at a place in inches from the upper left corner."""
    width, height = figure.get_size_inches()
    axes = figure.add_axes((left / width, 1 - (top + tall) / height, wide / width, tall / height))
    axes.tick_params(labelsize=SIZE, length=3)
    return axes


def write_label(figure: "Figure", text: str, centre: float, under: float) -> None:
    """What an axis says, around `centre` where the margins allow it. under: inches to the axis from above."""
    text = fit(text, INSIDE)
    half = text_width(text) / 2
    write(figure, max(EDGE + half, min(WIDTH - EDGE - half, centre)), under + 0.34, text, ha="center")


def write(figure: "Figure", left: float, top: float, text: str, size: float = SIZE, **how: Any) -> None:
    """Text at a place in inches from the upper left corner; never read as mathematics."""
    width, height = figure.get_size_inches()
    figure.text(left / width, 1 - top / height, text, fontsize=size, va="center_baseline", parse_math=False, **how)


def draw_key_mark(figure: "Figure", left: float, top: float, look: Look, filled: bool) -> None:
    """A mark before a name; a swatch where a look has none."""
    from matplotlib.lines import Line2D

    width, height = figure.get_size_inches()
    x, y, size = (left + 0.07) / width, 1 - top / height, 6.5 if look.mark else 9.0
    figure.add_artist(Line2D([x], [y], linestyle="", markersize=size, **_mark(look, filled)))


def draw_marks(axes: Any, xs: Sequence[float], ys: Sequence[float], look: Look, filled: bool) -> None:
    """The same mark at several places."""
    size = 4.5 if look.mark in ("<", ">") else 6.5
    axes.plot(xs, ys, linestyle="", markersize=size, zorder=4, clip_on=False, **_mark(look, filled))


def _mark(look: Look, filled: bool) -> dict[str, Any]:
    return {
        "marker": look.mark or "s",
        "color": look.colour,
        "markerfacecolor": look.colour if filled else PAPER,
        "markeredgewidth": 1.3,
    }
