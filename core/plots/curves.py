"""The curves of a training run, read from its metrics.jsonl."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from ..data.jsonlines import read_lines
from .style import BLUE, DPI, GREEN, GREY, ORANGE, RED, SIZE, SOFT, TITLE_SIZE, WIDTH, fit, picture

Event = dict[str, Any]
Points = tuple[list[float], list[float]]
"""Steps and values, in the order of the steps; a value that could not be computed is NaN."""

SMOOTHED_FROM = 20
"""Training steps from which on a running mean is drawn over the single steps."""
WINDOWS = 20
"""The running mean is over one in so many of the steps, but over at least MEAN_STEPS."""
MEAN_STEPS = 5
MANY_POINTS = 30
"""More points than that are drawn without a mark each."""
SMALL = 0.001
"""An axis of values below that has them as 8e-05."""


@dataclass(frozen=True)
class Layout:
    """How the panels are put together: columns of panels of so many inches, sizes of text in points.

    apart: a panel's legend stands above it, and not among its lines, where a small panel has no room.
    """

    columns: int
    width: float
    height: float
    dpi: int
    title: float
    text: float
    ticks: float
    legend: float
    apart: bool = False


SCREEN = Layout(columns=3, width=4.6, height=3.3, dpi=130, title=10, text=8.5, ticks=8, legend=7.5)
"""curves.png of a run, looked at by itself."""
PAGE = Layout(2, WIDTH / 2, 2.6, DPI, title=9.5, text=SIZE, ticks=SIZE, legend=SIZE, apart=True)
LEGEND_LINE = 0.17
"""Inches of a line of a legend that stands apart."""


@dataclass(frozen=True)
class Line:
    """One measure in a panel. every_step: of training steps; drawn thin with its running mean where it is noisy."""

    key: str
    name: str
    colour: str
    every_step: bool = False
    style: str = "-"
    mark: str = "o"
    noisy: bool = True


@dataclass(frozen=True)
class Panel:
    """One picture of the curves. within: the values that its axis shows at least. is_share: an axis in per cent.

    instead_of: the title of the panel that this one replaces where that has nothing to show.
    needs: a figure of training steps without which there is no such panel.
    """

    title: str
    axis: str
    lines: tuple[Line, ...]
    within: tuple[float, ...] = ()
    is_share: bool = False
    instead_of: str = ""
    needs: str = ""


KL, LOSS = "Divergence from the teacher", "Loss"
PANELS = (
    Panel(  # of train_sft, whose steps are made of rows
        LOSS,
        "nats per trained token",
        (
            Line("loss", "training", BLUE, every_step=True),
            Line("val_loss", "held out", RED),
        ),
        needs="rows",
    ),
    Panel(
        LOSS,
        "loss per token (nats; ULD: probability)",
        (
            Line("loss", "training", BLUE, every_step=True),
            Line("val_total_loss", "held out", RED),
        ),
        instead_of=LOSS,
    ),
    Panel(
        "Most probable token is the data's",
        "share of tokens",
        (Line("val_accuracy", "of held-out answers", RED),),
        is_share=True,
    ),
    Panel(
        KL,
        "nats per token",
        (
            Line("val_kl", "KL(teacher || student), held-out answers", BLUE),
            Line("own_reverse_kl", "KL(student || teacher), its own answers", ORANGE, style="--", mark="s"),
        ),
        within=(0.0,),
    ),
    Panel(
        "Bits per byte",
        "bits per byte of held-out answers",
        (Line("val_bits_per_byte", "student", BLUE),),
        instead_of=KL,
    ),
    Panel(
        "Same most probable token as the teacher",
        "share of tokens",
        (
            Line("val_top1_agreement", "on held-out answers", BLUE),
            Line("own_top1_agreement", "on its own answers", ORANGE, style="--", mark="s"),
        ),
        is_share=True,
    ),
    Panel(
        "Entropy",
        "nats per token",
        (
            Line("val_entropy", "student, held-out answers", BLUE),
            Line("val_teacher_entropy", "teacher, held-out answers", GREEN, style=":", mark="^"),
            Line("own_entropy", "student, its own answers", ORANGE, style="--", mark="s"),
        ),
        within=(0.0,),
    ),
    Panel(
        "Matched share: one token on each side",
        "share of groups of tokens",
        (
            Line("val_single_groups", "of held-out answers", BLUE),
            Line("own_single_groups", "of its own answers", ORANGE, style="--", mark="s"),
        ),
        is_share=True,
    ),
    Panel(
        "Length of the student's answers",
        "mean tokens of an answer",
        (
            Line("answer_length", "in training", GREEN, every_step=True),
            Line("own_length", "to held-out prompts", ORANGE, style="--", mark="s"),
        ),
        within=(0.0,),
    ),
    Panel(
        "Broken answers of the student",
        "share",
        (
            Line("truncated", "cut off, in training", GREEN, every_step=True),
            Line("own_truncated", "cut off, to held-out prompts", ORANGE, style="--", mark="s"),
            Line("own_repetition", "repeated 4-grams, to held-out prompts", RED, style=":", mark="^"),
        ),
        within=(0.0, 0.05),
        is_share=True,
    ),
    Panel(
        "Gradient",
        "norm, before it is clipped",
        (Line("grad_norm", "training", BLUE, every_step=True),),
        within=(0.0,),
    ),
    Panel(
        "Learning rate",
        "learning rate",
        (Line("learning_rate", "training", BLUE, every_step=True, noisy=False),),
        within=(0.0,),
    ),
    Panel(
        "Speed",
        "trained tokens per second",
        (Line("tokens_per_s", "training", BLUE, every_step=True),),
        within=(0.0,),
    ),
)


def read_events(metrics: Path) -> list[Event]:
    """The events of a run, a torn last line left out. No file: none. Raises OSError."""
    events: list[Event] = []
    if metrics.exists():
        for _, line in read_lines(metrics):
            try:
                event = orjson.loads(line)
            except orjson.JSONDecodeError:  # torn, or damaged: the others are still worth drawing
                continue
            if isinstance(event, dict) and isinstance(event.get("step"), int) and "event" in event:
                events.append(event)
    return events


def points(events: Sequence[Event], line: Line) -> Points:
    """What a line shows: the training steps' values, or the validations'. What is no number is NaN, a gap."""
    kind = "train_step" if line.every_step else "val"
    found: dict[int, float] = {}
    for event in events:
        if event["event"] == kind and line.key in event:
            value = event[line.key]
            found[event["step"]] = float(value) if isinstance(value, int | float) else math.nan
    steps = sorted(found)
    return [float(step) for step in steps], [found[step] for step in steps]


def running_mean(values: Sequence[float], window: int) -> list[float]:
    """The mean of each value and those before it, `window` at most; values that are not finite are left out.

    >>> running_mean([1.0, 3.0, float("nan"), 5.0], 2)
    [1.0, 2.0, 3.0, 5.0]
    """
    means: list[float] = []
    for place in range(len(values)):
        seen = [value for value in values[max(0, place + 1 - window) : place + 1] if math.isfinite(value)]
        means.append(sum(seen) / len(seen) if seen else math.nan)
    return means


def draw_curves(metrics: Path, target: Path, *, layout: Layout = SCREEN, title: str = "") -> None:
    """Draw the curves of a run, in the format that the target's name ends in; the target is replaced as a whole.

    Panels without a single value are left out. With PAGE there is one for dark paper, too: name.dark.png.
    title: before what the run came to. Raises OSError. Needs matplotlib; nothing is shown on a screen.
    """
    events = read_events(metrics)
    panels = shown(events)
    columns = min(layout.columns, 2 if len(panels) in (2, 4) else max(1, len(panels)))
    wide = layout.width * layout.columns / columns if layout.apart else layout.width
    rows = [panels[start : start + columns] for start in range(0, max(1, len(panels)), columns)]
    above = [_above(row, layout) for row in rows]
    best = best_step(events)
    heads = [title, summary(events)] if title else [summary(events)]
    heads[-1] += " (dotted)" if best is not None and layout.apart else ""
    head = 0.4 + 0.2 * (len(heads) - 1)
    width, height = wide * columns, layout.height * len(rows) + sum(above) + head
    with picture(target, width, height, dpi=layout.dpi, dark=layout is PAGE) as figure:
        for line, text in enumerate(heads):
            size, weight = (12 if layout is SCREEN else TITLE_SIZE, "bold") if not line else (SIZE, "normal")
            text = fit(text, width - 0.3, size, bold=not line)
            place = (0.15 / width, 1 - (0.1 + 0.24 * line) / height)
            figure.text(*place, text, fontsize=size, fontweight=weight, va="top", parse_math=False)
        top = head
        for row, room in zip(rows, above, strict=True):
            top += room + layout.height
            for column, (panel, lines) in enumerate(row):
                left, low = wide * column + 0.75, height - top + 0.5
                axes = figure.add_axes(
                    (left / width, low / height, (wide - 0.9) / width, (layout.height - 0.85) / height)
                )
                _draw_panel(axes, panel, lines, best, layout, room)
                axes.set_xlim(*_span(events))
        if not panels:
            figure.text(0.5, 0.5, "no values yet", fontsize=10, color=SOFT, ha="center", va="center")


def shown(events: Sequence[Event]) -> list[tuple[Panel, list[tuple[Line, Points]]]]:
    """The panels with something to show, each with its lines' points."""
    panels: list[tuple[Panel, list[tuple[Line, Points]]]] = []
    figures = {name for event in events if event["event"] == "train_step" for name in event}
    for panel in PANELS:
        if panel.needs and panel.needs not in figures:
            continue
        lines = [(line, points(events, line)) for line in panel.lines]
        lines = [(line, found) for line, found in lines if any(map(math.isfinite, found[1]))]
        if lines and not any(panel.instead_of == other.title for other, _ in panels):
            panels.append((panel, lines))
    return panels


def best_step(events: Iterable[Event]) -> int | None:
    """Where the run kept its best student last."""
    steps = [event["step"] for event in events if event["event"] == "best_checkpoint_saved"]
    return steps[-1] if steps else None


def summary(events: Sequence[Event]) -> str:
    """What the run came to. A step that was made again after a crash counts once, as the later one."""
    tokens = {event["step"]: event.get("tokens", 0) for event in events if event["event"] == "train_step"}
    steps, best = max(tokens, default=0), best_step(events)
    what = f"{steps:,} step{'' if steps == 1 else 's'}, {sum(tokens.values()):,} tokens of answers"
    return what if best is None else f"{what}; best at step {best:,}"


def _above(row: Sequence[tuple[Panel, Sequence[tuple[Line, Points]]]], layout: Layout) -> float:
    """Inches that the legends of a row of panels take above them."""
    if not layout.apart:
        return 0.0
    return LEGEND_LINE * max((len(lines) for _, lines in row), default=0)


def _draw_panel(
    axes: Any,
    panel: Panel,
    lines: Sequence[tuple[Line, Points]],
    best: int | None,
    layout: Layout,
    room: float,
) -> None:
    """room: inches above the axes for a legend that stands apart."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    for line, (steps, values) in lines:
        _draw_line(axes, line, steps, values)
    validated = any(not line.every_step for line, _ in lines)
    if best is not None and validated:
        dotted = {"color": GREY, "linewidth": 1.0, "linestyle": (0, (1, 2))}
        axes.axvline(best, label="" if layout.apart else "best step", zorder=0, **dotted)
    wide, high = axes.bbox.size / layout.dpi
    start, above = (-0.12 / wide, room + 0.04) if layout.apart else (0.0, 0.0)
    axes.set_title(panel.title, fontsize=layout.title, loc="left", x=start, pad=6.0 + 72 * above)
    axes.set_xlabel("optimiser step", fontsize=layout.text)
    axes.set_ylabel(panel.axis, fontsize=layout.text)
    axes.yaxis.set_label_coords(-0.56 / wide, 0.5)
    axes.tick_params(labelsize=layout.ticks)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))
    _limit(axes, panel, lines)
    if panel.is_share:
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.3g} %"))
    elif max(map(abs, axes.get_ylim())) < SMALL:  # with all their zeros, or a power above the axis, they take more room
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
    axes.grid()
    handles, names = axes.get_legend_handles_labels()
    if layout.apart:
        place = {"loc": "upper left", "bbox_to_anchor": (start, 1 + above / high), "borderaxespad": 0.0}
        thin = {"borderpad": 0.0, "labelspacing": 0.2, "handlelength": 1.8, "handletextpad": 0.5}
        axes.legend(handles, names, fontsize=layout.legend, frameon=False, **place, **thin)
    else:
        look = {"frameon": True, "framealpha": 0.85, "edgecolor": "none"}
        axes.legend(handles, names, fontsize=layout.legend, loc="best", **look)


def _draw_line(axes: Any, line: Line, steps: list[float], values: list[float]) -> None:
    """Single steps faintly under their running mean where there are many; a mark for every point where few."""
    few, colour = len(steps) <= MANY_POINTS, line.colour
    if line.every_step and line.noisy and len(steps) >= SMOOTHED_FROM:
        window = max(MEAN_STEPS, len(steps) // WINDOWS)
        axes.plot(steps, values, color=colour, linewidth=0.8, alpha=0.35)
        name = f"{line.name}, mean of {window} steps"
        axes.plot(steps, running_mean(values, window), color=colour, linewidth=1.6, label=name)
        return
    axes.plot(
        steps,
        values,
        color=colour,
        linewidth=1.6,
        linestyle=line.style,
        marker=line.mark if few else "",
        markersize=4,
        label=line.name,
    )


def _limit(axes: Any, panel: Panel, lines: Sequence[tuple[Line, Points]]) -> None:
    """Room around the values, and the values in the picture that the panel wants there."""
    finite = [value for _, (_, values) in lines for value in values if math.isfinite(value)]
    low, high = min([*finite, *panel.within]), max([*finite, *panel.within])
    room = 0.06 * (high - low) or 0.05 * abs(high) or 0.05
    bottom = low if low == 0.0 and 0.0 in panel.within else low - room
    top = high + room
    if panel.is_share:  # no share is less than nothing or more than all
        bottom, top = max(0.0, bottom), min(top, 1.0 + 0.06 * (high - low))
    axes.set_ylim(bottom, top)


def _span(events: Sequence[Event]) -> tuple[float, float]:
    """The same steps in all panels, so that they can be compared; room around a single one."""
    steps = [event["step"] for event in events if event["event"] in ("train_step", "val")]
    room = 0.03 * (max(steps) - min(steps)) or 0.6
    return min(steps) - room, max(steps) + room
