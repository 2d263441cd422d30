"""Pictures of rows: names at the left, marks with intervals (or bars) along an axis, figures at the right.

What is drawn is described by values, so that it can be checked without looking at pixels.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .parts import (
    BELOW,
    EDGE,
    INSIDE,
    KEY_MARK,
    LINE,
    Head,
    Look,
    add_axes,
    draw_key_mark,
    draw_marks,
    write,
    write_label,
)
from .style import BAND, INK, PAPER, SOFT, WIDTH, fit, picture, text_width
from .style import LINE as GRID

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROW, BETWEEN = 0.185, 0.13
"""Inches: height of a row, and room between blocks."""
NAMES_MOST, TEXTS_MOST = 2.3, 2.4
"""Inches for names and for figures."""
ROOM = 0.04
"""Share of the axis that is left free at its ends."""


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
    head = Head(shown.title, shown.about, shown.key, room=0.1)
    panels = [(panel, [*_heights(panel)]) for panel in shown.panels]
    height = head.inches + EDGE
    for panel, heights in panels:
        height += sum(heights) + BELOW + (0.3 if panel.heading else 0.0)
    blocks = [block for panel in shown.panels for block in panel.blocks]
    names = min(
        NAMES_MOST,
        max(max(text_width(block.name, bold=True), text_width(block.about)) for block in blocks) + 0.15,
    )
    texts = min(TEXTS_MOST, max(text_width(row.text) for block in blocks for row in block.rows) + 0.15 + KEY_MARK)
    with picture(target, WIDTH, height, dark=True) as figure:
        head.draw(figure)
        top = head.inches
        for panel, heights in panels:
            if panel.heading:
                write(figure, EDGE, top + 0.12, fit(panel.heading, INSIDE), weight="bold")
                top += 0.3
            _draw_panel(figure, panel, heights, top, names, texts)
            top += sum(heights) + BELOW


def _heights(panel: Panel) -> list[float]:
    """Inches of each block, the room after it included."""
    return [max(ROW * len(block.rows), 2 * LINE if block.about else LINE) + BETWEEN for block in panel.blocks]


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
    axes = add_axes(figure, left, top, right - left, tall)
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
        write(figure, EDGE, top + first, fit(block.name, names - 0.1, bold=True), weight="bold")
        write(figure, EDGE, top + first + LINE, fit(block.about, names - 0.1), color=SOFT)
        for place, row in enumerate(block.rows):
            rows.append((middle + ROW * (place - (len(block.rows) - 1) / 2), row))
        y += block_height
    for value in panel.lines:
        axes.axvline(value, color=INK, linewidth=1.0, zorder=1.5)
    _draw_rows(axes, rows, (low, high))
    for y, row in rows:
        aside = right + 0.1
        if row.bars or (row.text and row.value is None):
            draw_key_mark(figure, aside, top + y, row.look, row.filled)
            aside += KEY_MARK
        write(figure, aside, top + y, fit(row.text, WIDTH - EDGE - aside))
        if row.words:
            draw_key_mark(figure, left + 0.08, top + y, row.look, row.filled)
            words = fit(row.words, (right if row.text else WIDTH - EDGE) - left - 0.1 - KEY_MARK)
            behind = {"facecolor": PAPER, "edgecolor": "none", "pad": 1.0}
            write(figure, left + 0.08 + KEY_MARK, top + y, words, color=SOFT, bbox=behind)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=max(3, int((right - left) / 0.6)), steps=[1, 2, 2.5, 5, 10]))
    if panel.is_size:
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{abs(value):g}"))
    axes.grid(axis="x")
    axes.spines["left"].set_visible(False)
    write_label(figure, panel.axis, (left + right) / 2, top + tall)


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
