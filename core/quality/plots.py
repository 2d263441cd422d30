"""The plots of a file of data: shares with their thresholds, agreement, what can be learnt, lengths, balance.

Each is there for light and for dark paper (name.png, name.dark.png); one without anything to show is not made.
What is drawn is described by values first, so that it can be checked without looking at pixels.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

from ..commands.check_data import LEAST, Measured
from ..data.text import one_line
from ..plots.costs import short
from ..plots.parts import BELOW, EDGE, INSIDE, Head, Look, add_axes, draw_marks, write, write_label
from ..plots.rows import NAMES_MOST, ROW
from ..plots.style import (
    BAND,
    BLUE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    PURPLE,
    RED,
    SIZE,
    SOFT,
    WIDTH,
    fit,
    picture,
    text_width,
)
from ..plots.style import LINE as GRID
from . import report_words as words
from .results import DataReport, Lengths

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

HEAD = 0.3
"""Inches of the heading of a group of rows."""
NAMED = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 40.0, 60.0, 80.0, 100.0)
"""Per cent that the axis of faults may name beside 0."""
VALUES_MOST, ROWS_MOST = 8, 60
"""Values of one key, and rows of the whole picture of balance; the tables have more."""
LENGTHS_MOST = 8
LONGEST = 80
"""Characters of a name, before it is fitted to its place."""
HIGH = 1.25
"""Inches of a histogram's axes."""
FEW = 40
"""Rows whose points are drawn on their curve."""

MET, MISSED, FREE = Look(GREEN, "o"), Look(RED, "D"), Look(GREY, "o")
"""Colours and marks of figures that meet their threshold, miss it, and have none."""


def draw_plots(report: DataReport, folder: Path) -> list[str]:
    """Write the plots into the folder, which is made if need be. Returns the names of the light ones, in their order.

    Plots that an earlier report left there are removed. Raises OSError. Needs matplotlib.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names: list[str] = []
    for name, draw in PLOTS.items():
        target = folder / f"{name}.png"
        if draw(report, target):
            names.append(target.name)
        else:
            target.unlink(missing_ok=True)
            target.with_suffix(".dark.png").unlink(missing_ok=True)
    return names


# ---- shares ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mark:
    """A figure in per cent. bound: its threshold.   allowed: from, to.   filled: whether the verdict is certain.
    text: the figure with its interval."""

    name: str
    value: float
    low: float
    high: float
    bound: float | None
    allowed: tuple[float, float]
    look: Look
    filled: bool
    text: str


def marks(report: DataReport) -> tuple[list[Mark], list[Mark]]:
    """(shares of rows at fault, figures of which more is better)."""
    found = [one for one in report.measured if math.isfinite(one.value)]
    return [_mark(one) for one in found if one.name in words.FAULTS], [
        _mark(one) for one in found if one.name not in words.FAULTS
    ]


def _mark(one: Measured) -> Mark:
    side, threshold = one.bound or ("", None)
    bound = None if threshold is None else 100 * threshold
    low, high = ((end if math.isfinite(end) else one.value) for end in (one.low, one.high))
    ends = words.between(one.low, one.high).replace(" to ", ", ")
    return Mark(
        one_line(one.name, LONGEST),
        100 * one.value,
        100 * low,
        100 * high,
        bound,
        (bound or 0.0, 100.0) if side == LEAST else (0.0, bound or 0.0),
        {None: FREE, True: MET, False: MISSED}[one.passed],
        one.certain is not False,
        f"{words.share(one.value)} [{ends}]" if ends else words.share(one.value),
    )


def shares(report: DataReport, target: Path) -> bool:
    """Every figure with its interval and what is allowed. Faults are few: their axis is drawn by the square root, which
    gives the same width to the chance error of every share."""
    faults, others = marks(report)
    if not faults and not others:
        return False
    both = [*faults, *others]
    seen = {(mark.look, mark.filled) for mark in both}
    key = [
        (look, filled, name)
        for look, filled, name in (
            (MET, True, "met"),
            (MET, False, "met, not certain"),
            (MISSED, True, "missed"),
            (MISSED, False, "missed, not certain"),
            (FREE, True, "no threshold"),
        )
        if (look, filled) in seen
    ]
    if any(mark.bound is not None for mark in both):
        key.append((Look(BAND), True, "allowed"))
    about = "Lines: 95 % intervals. A full mark: the whole interval is on that side of the threshold."
    groups = [
        (heading, axis, group, root)
        for heading, axis, group, root in (
            ("Less is better", "% of the rows, on a scale of square roots", faults, True),
            ("More is better", "%", others, False),
        )
        if group
    ]
    head = Head("What was found", about, key)
    height = head.inches + sum(HEAD + ROW * 1.25 * len(group) + BELOW for _, _, group, _ in groups) + EDGE
    names = min(NAMES_MOST, max(text_width(mark.name) for mark in both) + 0.15)
    texts = max(text_width(mark.text) for mark in both) + 0.2
    with picture(target, WIDTH, height, dark=True) as figure:
        head.draw(figure)
        top = head.inches
        for heading, axis, group, root in groups:
            write(figure, EDGE, top + 0.12, heading, weight="bold")
            top += HEAD
            _draw_marks(figure, group, axis, root, top, names, texts)
            top += ROW * 1.25 * len(group) + BELOW
    return True


def axis_of_faults(found: Sequence[Mark]) -> tuple[float, list[float]]:
    """(end of the axis in per cent, what it names): all intervals and thresholds."""
    end = min(100.0, 1.15 * max([1.0, *(max(mark.high, mark.allowed[1]) for mark in found)]))
    named = [0.0]
    for value in NAMED:
        if end / 20 <= value <= end and math.sqrt(value / end) - math.sqrt(named[-1] / end) > 0.08:
            named.append(value)
    return end, named


def _draw_marks(
    figure: "Figure", found: Sequence[Mark], axis: str, root: bool, top: float, names: float, texts: float
) -> None:
    tall = ROW * 1.25 * len(found)
    end, ticks = axis_of_faults(found) if root else (100.0, [0.0, 20.0, 40.0, 60.0, 80.0, 100.0])
    place: Callable[[float], float] = (lambda value: math.sqrt(max(0.0, value))) if root else (lambda value: value)
    axes = _axes(figure, EDGE + names, top, INSIDE - names - texts, tall)
    room = 0.02 * place(end)
    axes.set(xlim=(-room, place(end) + room), ylim=(tall, 0.0), yticks=[])
    axes.set_xticks([place(tick) for tick in ticks], [f"{tick:g}" for tick in ticks])
    axes.grid(axis="x")
    axes.spines["left"].set_visible(False)
    for number, mark in enumerate(found):
        y = ROW * 1.25 * (number + 0.5)
        if mark.bound is not None:
            left, right = map(place, mark.allowed)
            axes.hlines(y, left, min(right, place(end)), colors=BAND, linewidths=9.0, capstyle="butt", zorder=1)
            axes.vlines(place(mark.bound), y - 0.09, y + 0.09, colors=INK, linewidths=1.2, zorder=2)
        axes.hlines(y, place(mark.low), place(min(end, mark.high)), colors=mark.look.colour, linewidths=1.7, zorder=3)
        draw_marks(axes, [place(mark.value)], [y], mark.look, mark.filled)
        write(figure, EDGE, top + y, fit(mark.name, names - 0.1))
        write(figure, WIDTH - EDGE - texts + 0.15, top + y, mark.text)
    write_label(figure, axis, EDGE + names + (INSIDE - names - texts) / 2, top + tall)


# ---- agreement ---------------------------------------------------------------------------------------------------


def agreement(report: DataReport) -> list[tuple[str, Look, list[float]]]:
    """(name, look, figures of the rows in per cent, ascending) of F1 and ROUGE-L, where there are any."""
    found = (
        ("unigram F1", Look(BLUE, "o"), [one.f1 for one in report.shown]),
        ("ROUGE-L", Look(ORANGE, "s"), [one.rouge_l for one in report.shown]),
    )
    known = ((name, look, sorted(100 * value for value in values if _known(value))) for name, look, values in found)
    return [(name, look, values) for name, look, values in known if values]


def overlap(report: DataReport, target: Path) -> bool:
    """How many rows come so near to the teacher's new answers, at most."""
    found = agreement(report)
    if not found:
        return False
    key = [(look, True, f"{name}, mean {sum(values) / len(values):.1f} %") for name, look, values in found]
    needed = [one.bound for one in report.measured if one.name == "f1"]
    thresholds = [100 * each[1] for each in needed if each is not None and each[0] == LEAST]
    key += [(Look(INK, "|"), True, f"wanted of the mean F1: at least {value:g} %") for value in thresholds]
    rows = max(len(values) for _, _, values in found)
    head = Head(
        "Agreement with the teacher",
        f"{words.some(rows, 'row')}, answered by the teacher once more. The line shows how many of them agree at most "
        "as much as the axis says: the farther to the right, the more alike are the answers.",
        key,
    )
    left, high = EDGE + 0.6, 2.3
    with picture(target, WIDTH, head.inches + high + BELOW + EDGE, dark=True) as figure:
        head.draw(figure)
        axes = _axes(figure, left, head.inches, WIDTH - EDGE - 0.15 - left, high)
        axes.set(xlim=(-2.0, 102.0), ylim=(-3.0, 103.0))
        for _, look, values in found:
            steps = [100 * (number + 1) / len(values) for number in range(len(values))]
            axes.step([0.0, *values, 100.0], [0.0, *steps, 100.0], where="post", color=look.colour, linewidth=1.7)
            if len(values) <= FEW:
                draw_marks(axes, values, steps, look, True)
        for value in thresholds:
            axes.axvline(value, color=INK, linewidth=1.2, linestyle=(0, (4, 2)), zorder=1.5)
        axes.grid()
        axes.set_ylabel("% of the rows", fontsize=SIZE, labelpad=4)
        write_label(
            figure,
            "words in common with the teacher's new answer, %",
            left + INSIDE / 2 - 0.3,
            head.inches + high,
        )
    return True


# ---- learnability ------------------------------------------------------------------------------------------------


def surprises(report: DataReport) -> list[tuple[float, float]]:
    """(teacher, student) of each row that both have scored, in nats per byte."""
    found: list[tuple[float, float]] = []
    for one in report.shown:
        teacher, student = one.teacher_nats, one.student_nats
        if one.bytes and _known(teacher) and _known(student):
            found.append((teacher / one.bytes, student / one.bytes))
    return found


def learnability(report: DataReport, target: Path) -> bool:
    """Each row by the surprise of teacher and student."""
    found = surprises(report)
    if not found:
        return False
    more = sum(student > teacher for teacher, student in found)
    head = Head(
        "What there is to learn",
        "Surprise by the stored answers, in nats per byte. Above the line the student is more surprised than the "
        f"teacher: {more:,} of {words.some(len(found), 'row')}. The farther above, the more there is to learn.",
        [(Look(BLUE, "o"), True, "a row"), (Look(GREY, "_"), True, "both the same")],
    )
    side, left = 2.8, EDGE + 0.6
    with picture(target, WIDTH, head.inches + side + BELOW + EDGE, dark=True) as figure:
        head.draw(figure)
        axes = _axes(figure, left, head.inches, WIDTH - EDGE - 0.15 - left, side)
        xs, ys = zip(*found, strict=True)
        right, upper = (1.06 * max(values) or 1.0 for values in (xs, ys))
        axes.set(xlim=(0.0, right), ylim=(0.0, upper))
        axes.plot([0.0, max(right, upper)], [0.0, max(right, upper)], color=GREY, linewidth=1.2, zorder=1.5)
        axes.plot(xs, ys, linestyle="", marker="o", color=BLUE, markersize=5.0 if len(xs) <= 500 else 2.0, zorder=3)
        axes.grid()
        axes.set_ylabel("student", fontsize=SIZE)
        write_label(figure, "teacher, nats per byte", left + INSIDE / 2 - 0.3, head.inches + side)
    return True


# ---- lengths -----------------------------------------------------------------------------------------------------


def is_logarithmic(edges: Sequence[float]) -> bool:
    """Whether the bins of a histogram become wider from one to the next."""
    widths = [high - low for low, high in pairwise(edges)]
    return len(widths) > 2 and widths[-1] > 2 * widths[0] > 0


def round_lengths(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten between the two, as many as have room on a logarithmic axis."""
    named: list[float] = []
    size = math.floor(math.log10(low))
    for value in (step * 10.0**power for power in range(size, size + 20) for step in (1, 2, 5)):
        if low <= value <= high and (not named or math.log(value / named[-1]) > 0.15 * math.log(high / low)):
            named.append(value)
    return named


def lengths(report: DataReport, target: Path) -> bool:
    """A histogram of each kind of length, two beside each other."""
    found = [each for each in report.lengths if sum(each.counts) > 0][:LENGTHS_MOST]
    if not found:
        return False
    lines = math.ceil(len(found) / 2)
    median = any(_known(each.quantiles.get("median")) for each in found)
    head = Head("Lengths", "How many rows are so long.", [(Look(INK, "|"), True, "median")] if median else [])
    line = HEAD + HIGH + BELOW
    wide = INSIDE / 2
    with picture(target, WIDTH, head.inches + lines * line + EDGE, dark=True) as figure:
        head.draw(figure)
        for number, each in enumerate(found):
            left, top = EDGE + wide * (number % 2), head.inches + line * (number // 2)
            write(figure, left, top + 0.12, fit(each.what, wide - 0.2, bold=True), weight="bold")
            axes = _axes(figure, left + 0.5, top + HEAD, wide - 0.72, HIGH)
            _draw_lengths(axes, each)
            write_label(figure, fit(each.unit, wide), left + wide / 2 + 0.14, top + HEAD + HIGH)
    return True


def _draw_lengths(axes: "Axes", each: Lengths) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    edges, counts = each.edges, each.counts
    if is_logarithmic(edges):
        first = next(place for place, count in enumerate(counts) if count)
        edges, counts = edges[first:], counts[first:]
        begin = edges[0] or edges[1]  # before it the axis is straight: a length of 0 is seen, too
        axes.set_xscale("symlog", linthresh=begin, linscale=0.3)
        axes.set_xticks([*([0.0] if edges[0] == 0 else []), *round_lengths(begin, edges[-1])])
        axes.minorticks_off()
    else:
        axes.xaxis.set_major_locator(MaxNLocator(nbins=4, steps=[1, 2, 5, 10], integer=True))
    widths = [high - low for low, high in pairwise(edges)]
    axes.bar(edges[:-1], counts, width=widths, align="edge", color=BLUE, edgecolor="none", linewidth=0, zorder=2)
    number = FuncFormatter(lambda value, _: short(value))
    aside = widths[0] if len(widths) == 1 else 0.0  # one bar that fills everything looks like none
    axes.set_xlim(max(0.0, edges[0] - aside), edges[-1] + aside)
    axes.set_ylim(0.0, 1.08 * max(counts))
    axes.xaxis.set_major_formatter(number)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=3, integer=True))
    axes.yaxis.set_major_formatter(number)
    axes.grid(axis="y")
    median = each.quantiles.get("median")
    if _known(median):
        axes.axvline(median, color=INK, linewidth=1.2, zorder=3)


# ---- balance -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bars:
    """The values of a key: (value, per cent of the rows, figures)."""

    name: str
    bars: list[tuple[str, float, str]]


def parts(report: DataReport) -> list[Bars]:
    """Every key that has more than one value, the most frequent values first, the others as one."""
    found: list[Bars] = []
    for name, values in words.rows_made_of(report).items():
        if len(values) < 2:
            continue
        first, others = words.shares_of(values, report.rows, VALUES_MOST)
        bars = [
            (one_line(value, LONGEST), 100 * part, f"{words.share(part)} ({rows:,})") for value, rows, part in first
        ]
        if others:
            rows = sum(values.values()) - sum(rows for _, rows, _ in first)
            part = rows / report.rows if report.rows else 0.0
            bars.append((f"{others:,} more", 100 * part, f"{words.share(part)} ({rows:,})"))
        if sum(len(each.bars) for each in found) + len(bars) > ROWS_MOST:
            break
        found.append(Bars(name, bars))
    return found


def balance(report: DataReport, target: Path) -> bool:
    """What the rows are made of: languages and every key of metadata with few values."""
    found = parts(report)
    if not found:
        return False
    colours = (BLUE, ORANGE, GREEN, PURPLE, RED)
    head = Head("Balance", "Shares of the rows. Rows without the key are in none of its bars.", [])
    flat = [bar for each in found for bar in each.bars]
    names = min(NAMES_MOST, max(text_width(name) for name, _, _ in flat) + 0.15)
    texts = max(text_width(text) for _, _, text in flat) + 0.2
    tall = sum(HEAD + ROW * len(each.bars) + 0.1 for each in found)
    with picture(target, WIDTH, head.inches + tall + BELOW + EDGE, dark=True) as figure:
        head.draw(figure)
        left, wide = EDGE + names, INSIDE - names - texts
        axes = _axes(figure, left, head.inches, wide, tall)
        end = min(100.0, 1.1 * max(part for _, part, _ in flat))
        axes.set(xlim=(0.0, end or 1.0), ylim=(tall, 0.0), yticks=[])
        axes.grid(axis="x")
        top = 0.0
        for number, each in enumerate(found):
            write(figure, EDGE, head.inches + top + 0.16, fit(each.name, INSIDE, bold=True), weight="bold")
            top += HEAD
            for name, part, text in each.bars:
                y = top + ROW / 2
                axes.hlines(y, 0.0, part, colors=colours[number % 5], linewidths=9.5, capstyle="butt", zorder=2)
                write(figure, EDGE, head.inches + y, fit(name, names - 0.1), color=SOFT)
                write(figure, left + wide + 0.15, head.inches + y, text)
                top += ROW
            top += 0.1
        write_label(figure, "% of the rows", left + wide / 2, head.inches + tall)
    return True


PLOTS: dict[str, Callable[[DataReport, Path], bool]] = {
    "shares": shares,
    "overlap": overlap,
    "learnability": learnability,
    "lengths": lengths,
    "balance": balance,
}
"""By the name of the file; each says whether there was something to draw."""


# ---- shared ------------------------------------------------------------------------------------------------------


def _known(value: float | None) -> TypeGuard[float]:
    return value is not None and math.isfinite(value)


def _axes(figure: "Figure", left: float, top: float, wide: float, tall: float) -> Any:
    """Axes whose left end is but a line of their grid."""
    axes = add_axes(figure, left, top, wide, tall)
    axes.spines["left"].set_color(GRID)
    return axes
