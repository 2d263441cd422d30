"""Pictures of rows: names at the left, marks with intervals (or bars) along an axis, figures at the right.

What is drawn is described by values, so that it can be checked without looking at pixels.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .style import BAND, INK, PAPER, SIZE, SOFT, TITLE_SIZE, WIDTH, fit, picture, text_width, wrapped
from .style import LINE as GRID

if TYPE_CHECKING:
    from matplotlib.figure import Figure

EDGE, LINE = 0.12, 0.165
"""Inches: the margin of a picture, and from one line of text to the next."""
ROW, BETWEEN = 0.185, 0.13
"""Inches: height of a row, and room between blocks."""
NAMES_MOST, TEXTS_MOST = 2.3, 2.4
"""Inches for names and for figures."""
KEY_MARK = 0.18
"""Inches that a mark before a name takes."""
BELOW = 0.55
"""Inches for the numbers and the label of an axis."""
ROOM = 0.04
"""Share of the axis that is left free at its ends."""


@dataclass(frozen=True)
class Look:
    """colour: one of `style`.   mark: one of matplotlib's; "": a swatch."""

    colour: str
    mark: str = ""


@dataclass(frozen=True)
class Row:
    """A line of a block, in units of the axis.

    value, low, high: a mark and its interval; None or not finite: there is none.   filled: of the mark.
    band: half the width of the band around zero.   bars: (from, to, colour), side by side.
    words: in place of a mark.   text: the figures at the right.
    """

    look: Look
    value: float | None = None
    low: float | None = None
    high: float | None = None
    filled: bool = True
    band: float = 0.0
    bars: tuple[tuple[float, float, str], ...] = ()
    words: str = ""
    text: str = ""


@dataclass(frozen=True)
class Block:
    """Rows that belong to one thing. about: under its name."""

    name: str
    about: str
    rows: list[Row]


@dataclass(frozen=True)
class Panel:
    """Blocks on one axis. lines: values with a line across.

    within: values that the axis shows at least.   cut: the axis never shows more; what lies beyond ends in an arrow.
    """

    axis: str
    blocks: list[Block]
    heading: str = ""
    lines: tuple[float, ...] = ()
    within: tuple[float, ...] = ()
    cut: tuple[float, float] = (-math.inf, math.inf)
    is_size: bool = False
    """Of numbers on the axis, without their sign: both directions count upwards."""


@dataclass(frozen=True)
class Picture:
    """A title, words under it, a key of (look, is filled, name), panels."""

    title: str
    about: str
    panels: list[Panel]
    key: list[tuple[Look, bool, str]] = field(default_factory=list[tuple[Look, bool, str]])


def draw_rows(shown: Picture, target: Path) -> None:
    """Draw it for a page. Raises OSError. Needs matplotlib."""
    inside = WIDTH - 2 * EDGE
    about, key = wrapped(shown.about, inside), key_lines(shown.key, inside)
    panels = [(panel, [*_heights(panel)]) for panel in shown.panels]
    head = EDGE + 0.24 + LINE * len(about) + (0.06 + 0.2 * len(key) if key else 0.0) + 0.1
    height = head + EDGE
    for panel, heights in panels:
        height += sum(heights) + BELOW + (0.3 if panel.heading else 0.0)
    blocks = [block for panel in shown.panels for block in panel.blocks]
    names = min(
        NAMES_MOST,
        max(max(text_width(block.name, bold=True), text_width(block.about)) for block in blocks) + 0.15,
    )
    texts = min(TEXTS_MOST, max(text_width(row.text) for block in blocks for row in block.rows) + 0.15 + KEY_MARK)
    with picture(target, WIDTH, height, dark=True) as figure:
        draw_head(figure, shown.title, about, key)
        top = head
        for panel, heights in panels:
            if panel.heading:
                _write(figure, EDGE, top + 0.12, fit(panel.heading, inside), weight="bold")
                top += 0.3
            _draw_panel(figure, panel, heights, top, names, texts)
            top += sum(heights) + BELOW


def _heights(panel: Panel) -> list[float]:
    """Inches of each block, the room after it included."""
    return [max(ROW * len(block.rows), 2 * LINE if block.about else LINE) + BETWEEN for block in panel.blocks]


# ---- titles and keys ---------------------------------------------------------------------------------------------


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


def draw_head(
    figure: "Figure",
    title: str,
    about: Sequence[str],
    key: Sequence[Sequence[tuple[float, Look, bool, str]]],
) -> None:
    """The title, the lines under it and the key, at the top of a figure of WIDTH inches."""
    inside = WIDTH - 2 * EDGE
    _write(figure, EDGE, EDGE + 0.08, fit(title, inside, TITLE_SIZE, bold=True), size=TITLE_SIZE, weight="bold")
    top = EDGE + 0.24 + LINE / 2
    for line in about:
        _write(figure, EDGE, top, line, color=SOFT)
        top += LINE
    top += 0.06
    for entries in key:
        for place, look, filled, name in entries:
            _key_mark(figure, EDGE + place, top, look, filled)
            _write(figure, EDGE + place + KEY_MARK, top, name)
        top += 0.2


def _key_mark(figure: "Figure", left: float, top: float, look: Look, filled: bool) -> None:
    """A mark before a name; a swatch where a look has none."""
    from matplotlib.lines import Line2D

    width, height = figure.get_size_inches()
    x, y, size = (left + 0.07) / width, 1 - top / height, 6.5 if look.mark else 9.0
    figure.add_artist(Line2D([x], [y], linestyle="", markersize=size, **_mark(look, filled)))


def _write(figure: "Figure", left: float, top: float, text: str, size: float = SIZE, **how: Any) -> None:
    """Text at a place in inches from the upper left corner; never read as mathematics."""
    width, height = figure.get_size_inches()
    figure.text(left / width, 1 - top / height, text, fontsize=size, va="center_baseline", parse_math=False, **how)


def _mark(look: Look, filled: bool) -> dict[str, Any]:
    return {
        "marker": look.mark or "s",
        "color": look.colour,
        "markerfacecolor": look.colour if filled else PAPER,
        "markeredgewidth": 1.3,
    }


# ---- a panel -----------------------------------------------------------------------------------------------------


def limits(panel: Panel) -> tuple[float, float]:
    """Both ends of its axis: all marks, intervals and bars, room at the ends; bands as far as they leave these room."""
    seen = [*panel.lines, *panel.within]
    bands = [0.0]
    for block in panel.blocks:
        for row in block.rows:
            ends = [end for left, right, _ in row.bars for end in (left, right)]
            ends += [each for each in (row.value, row.low, row.high) if each is not None]
            seen += [end for end in ends if math.isfinite(end)]
            bands.append(row.band if math.isfinite(row.band) else 0.0)
    low, high = max(panel.cut[0], min(seen, default=0.0)), min(panel.cut[1], max(seen, default=0.0))
    reach = min(max(bands), 1.5 * max(abs(low), abs(high)) or math.inf)
    low, high = (min(low, -reach), max(high, reach)) if reach else (low, high)
    room = ROOM * (high - low) or 0.05 * abs(high) or 1.0
    # What an axis must show is at its very end, unless something lies there.
    return low if low in panel.within else low - room, high if high in panel.within else high + room


def _draw_panel(figure: "Figure", panel: Panel, heights: list[float], top: float, names: float, texts: float) -> None:
    """Its upper end is `top` inches under that of the figure; names and figures take so many inches at its sides."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    width, height = figure.get_size_inches()
    left, right, tall = EDGE + names, WIDTH - EDGE - texts, sum(heights)
    axes = figure.add_axes((left / width, 1 - (top + tall) / height, (right - left) / width, tall / height))
    low, high = limits(panel)
    axes.set(xlim=(low, high), ylim=(tall, 0.0), yticks=[])
    axes.patch.set_visible(False)  # lines between the blocks go all the way
    rows: list[tuple[float, Row]] = []
    y = 0.0
    for block, block_height in zip(panel.blocks, heights, strict=True):
        if y:
            line = [(EDGE / width, (WIDTH - EDGE) / width), (1 - (top + y) / height,) * 2]
            figure.add_artist(_hairline(line))
        middle = y + block_height / 2
        first = middle - (LINE / 2 if block.about else 0.0)
        _write(figure, EDGE, top + first, fit(block.name, names - 0.1, bold=True), weight="bold")
        _write(figure, EDGE, top + first + LINE, fit(block.about, names - 0.1), color=SOFT)
        for place, row in enumerate(block.rows):
            rows.append((middle + ROW * (place - (len(block.rows) - 1) / 2), row))
        y += block_height
    for value in panel.lines:
        axes.axvline(value, color=INK, linewidth=1.0, zorder=1.5)
    _draw_rows(axes, rows, (low, high))
    for y, row in rows:
        aside = right + 0.1
        if row.bars or (row.text and row.value is None):
            _key_mark(figure, aside, top + y, row.look, row.filled)
            aside += KEY_MARK
        _write(figure, aside, top + y, fit(row.text, WIDTH - EDGE - aside))
        if row.words:
            _key_mark(figure, left + 0.08, top + y, row.look, row.filled)
            words = fit(row.words, (right if row.text else WIDTH - EDGE) - left - 0.1 - KEY_MARK)
            behind = {"facecolor": PAPER, "edgecolor": "none", "pad": 1.0}
            _write(figure, left + 0.08 + KEY_MARK, top + y, words, color=SOFT, bbox=behind)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=max(3, int((right - left) / 0.6)), steps=[1, 2, 2.5, 5, 10]))
    if panel.is_size:
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{abs(value):g}"))
    axes.tick_params(labelsize=SIZE, length=3)
    axes.grid(axis="x")
    axes.spines["left"].set_visible(False)
    label = fit(panel.axis, WIDTH - 2 * EDGE)
    half = text_width(label) / 2
    centre = max(EDGE + half, min(WIDTH - EDGE - half, (left + right) / 2))
    _write(figure, centre, top + tall + 0.34, label, ha="center")


def _hairline(line: Sequence[tuple[float, float]]) -> Any:
    from matplotlib.lines import Line2D

    return Line2D(*line, color=GRID, linewidth=0.6, zorder=0)


def _draw_rows(axes: Any, rows: Sequence[tuple[float, Row]], ends: tuple[float, float]) -> None:
    """Bands, bars, intervals and marks, a collection of each: an artist for every row would take seconds."""
    thick = ROW * 72
    bands = [(y, row.band) for y, row in rows if row.band and math.isfinite(row.band)]
    if bands:
        ys, sizes = zip(*bands, strict=True)
        left = [-size for size in sizes]
        axes.hlines(ys, left, sizes, colors=BAND, linewidths=thick, capstyle="butt", zorder=0.5)
    bars = [(y, *bar) for y, row in rows for bar in row.bars if bar[0] != bar[1]]
    if bars:
        ys, left, right, colours = zip(*bars, strict=True)
        axes.hlines(ys, left, right, colors=colours, linewidths=0.78 * thick, capstyle="butt", zorder=2)
    low, high = ends
    intervals = [
        (y, max(low, row.low), min(high, row.high), row.look.colour)
        for y, row in rows
        if row.low is not None and row.high is not None and row.low <= high and row.high >= low
    ]
    if intervals:
        ys, left, right, colours = zip(*intervals, strict=True)
        axes.hlines(ys, left, right, colors=colours, linewidths=1.7, zorder=3)
    marks: dict[tuple[Look, bool], list[tuple[float, float]]] = {}
    for y, row in rows:
        seen = [] if row.low is None or row.high is None else [row.low, row.high]
        seen = [each for each in (row.value, *seen) if each is not None and not math.isnan(each)]
        beyond = Look(row.look.colour, "<"), Look(row.look.colour, ">")
        if seen and min(seen) < low:
            marks.setdefault((beyond[0], True), []).append((low, y))
        if seen and max(seen) > high:
            marks.setdefault((beyond[1], True), []).append((high, y))
        if row.value is not None and low <= row.value <= high:
            marks.setdefault((row.look, row.filled), []).append((row.value, y))
    for (look, filled), places in marks.items():
        xs, ys = zip(*places, strict=True)
        draw_marks(axes, xs, ys, look, filled)


def draw_marks(axes: Any, xs: Sequence[float], ys: Sequence[float], look: Look, filled: bool) -> None:
    """The same mark at several places."""
    size = 4.5 if look.mark in ("<", ">") else 6.5
    axes.plot(xs, ys, linestyle="", markersize=size, zorder=4, clip_on=False, **_mark(look, filled))
