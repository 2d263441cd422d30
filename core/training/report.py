"""What a run shows when it ends, read from its metrics.jsonl: the curves, and the figures before and after."""

import math
import os
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from ..data.jsonlines import read_lines

Event = dict[str, Any]
Points = tuple[list[float], list[float]]
"""Steps and values, in the order of the steps; a value that could not be computed is NaN."""

BLUE, ORANGE, GREEN, RED, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#7A7A7A"
"""Of Okabe and Ito's palette: apart for every kind of colour vision. Lines differ in their marks or dashes, too."""
SMOOTHED_FROM = 20
"""Training steps from which on a running mean is drawn over the single steps."""
WINDOWS = 20
"""The running mean is over one in so many of the steps, but over at least MEAN_STEPS."""
MEAN_STEPS = 5
PANEL_INCHES = (4.6, 3.3)
"""Width and height, with the room for its title and axes."""
MANY_POINTS = 30
"""More points than that are drawn without a mark each."""


@dataclass(frozen=True)
class Closing:
    """The figures of a run's closing summary.

    before, after, best: the measures of the validation before the first step, of the last one (empty where there was
    none after a step) and of the one at best_step. Measures that were not finite are missing.
    tokens: of answers, trained on in all steps.   phases: seconds by phase, over all steps.
    """

    steps: int = 0
    best_step: int | None = None
    before: dict[str, float] = field(default_factory=dict[str, float])
    after: dict[str, float] = field(default_factory=dict[str, float])
    best: dict[str, float] = field(default_factory=dict[str, float])
    tokens: int = 0
    phases: dict[str, float] = field(default_factory=dict[str, float])


@dataclass(frozen=True)
class Line:
    """One measure in a panel. every_step: of training steps, so that it is drawn thin with its running mean."""

    key: str
    name: str
    colour: str
    every_step: bool = False
    style: str = "-"
    mark: str = "o"


@dataclass(frozen=True)
class Panel:
    """One picture of the curves. within: the values that its axis shows at least. is_share: an axis in per cent.

    instead_of: the title of the panel that this one replaces where that has nothing to show.
    """

    title: str
    axis: str
    lines: tuple[Line, ...]
    within: tuple[float, ...] = ()
    is_share: bool = False
    instead_of: str = ""


KL, LOSS = "Divergence from the teacher", "Loss"
PANELS = (
    Panel(
        LOSS,
        "loss per token (nats; ULD: probability)",
        (
            Line("loss", "training", BLUE, every_step=True),
            Line("val_total_loss", "held out", RED),
        ),
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
            if isinstance(event, dict) and isinstance(event.get("step"), int):
                events.append(event)
    return events


def closing(events: Iterable[Event]) -> Closing:
    """The closing figures. Of two events of a kind for the same step the later one counts."""
    steps: dict[int, Event] = {}
    validations: dict[int, Event] = {}
    best_step: int | None = None
    for event in events:
        if event["event"] == "train_step":
            steps[event["step"]] = event
        elif event["event"] == "val":
            validations[event["step"]] = event
        elif event["event"] == "best_checkpoint_saved":
            best_step = event["step"]
    last = max(validations, default=0)
    phases: dict[str, float] = {}
    for event in steps.values():
        for name, seconds in event.get("phases", {}).items():
            phases[name] = phases.get(name, 0.0) + seconds
    return Closing(
        steps=max(steps, default=0),
        best_step=best_step,
        before=_measures(validations.get(0, {})),
        after=_measures(validations[last]) if last else {},
        best=_measures(validations.get(best_step, {})) if best_step is not None else {},
        tokens=sum(event.get("tokens", 0) for event in steps.values()),
        phases=phases,
    )


def _measures(event: Event) -> dict[str, float]:
    return {
        name: float(value)
        for name, value in event.items()
        if name.startswith(("val_", "own_")) and isinstance(value, int | float) and math.isfinite(value)
    }


def points(events: Sequence[Event], line: Line) -> Points:
    """What a line shows: the training steps' values, or the validations'; a null becomes NaN, a gap in the line."""
    kind = "train_step" if line.every_step else "val"
    found: dict[int, float] = {}
    for event in events:
        if event["event"] == kind and line.key in event:
            value = event[line.key]
            found[event["step"]] = math.nan if value is None else float(value)
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


def draw_curves(metrics: Path, target: Path) -> None:
    """Draw the curves of a run, in the format that the target's name ends in; the target is replaced as a whole.

    Panels without a single value are left out. Raises OSError. Needs matplotlib; nothing is shown on a screen.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    events = read_events(metrics)
    panels = shown(events)
    columns = 2 if len(panels) in (2, 4) else min(3, max(1, len(panels)))
    rows = max(1, -(-len(panels) // columns))
    width, height = PANEL_INCHES[0] * columns, PANEL_INCHES[1] * rows + 0.4
    figure = Figure(figsize=(width, height), dpi=130)
    FigureCanvasAgg(figure)
    done = closing(events)
    figure.text(0.15 / width, 1 - 0.1 / height, _title(done), fontsize=12, fontweight="bold", va="top")
    for place, (panel, lines) in enumerate(panels):
        left, low = PANEL_INCHES[0] * (place % columns) + 0.75, PANEL_INCHES[1] * (rows - 1 - place // columns) + 0.5
        axes = figure.add_axes(
            (left / width, low / height, (PANEL_INCHES[0] - 0.9) / width, (PANEL_INCHES[1] - 0.85) / height)
        )
        _draw_panel(axes, panel, lines, done.best_step)
        axes.set_xlim(*_span(events))
    if not panels:
        figure.text(0.5, 0.5, "no values yet", fontsize=10, color=GREY, ha="center", va="center")
    new = target.with_name(f".{target.name}.new")
    try:
        with warnings.catch_warnings():  # a sign that the font does not have is drawn as a box
            warnings.filterwarnings("ignore", "Glyph .* missing")
            figure.savefig(new, format=target.suffix.removeprefix("."))
        os.replace(new, target)
    finally:
        new.unlink(missing_ok=True)


def shown(events: Sequence[Event]) -> list[tuple[Panel, list[tuple[Line, Points]]]]:
    """The panels with something to show, each with its lines' points."""
    panels: list[tuple[Panel, list[tuple[Line, Points]]]] = []
    for panel in PANELS:
        lines = [(line, points(events, line)) for line in panel.lines]
        lines = [(line, found) for line, found in lines if any(map(math.isfinite, found[1]))]
        if lines and not any(panel.instead_of == other.title for other, _ in panels):
            panels.append((panel, lines))
    return panels


def _title(done: Closing) -> str:
    what = f"{done.steps:,} step{'' if done.steps == 1 else 's'}, {done.tokens:,} tokens of answers"
    return what if done.best_step is None else f"{what}; best at step {done.best_step:,}"


def _draw_panel(axes: Any, panel: Panel, lines: Sequence[tuple[Line, Points]], best_step: int | None) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    for line, (steps, values) in lines:
        _draw_line(axes, line, steps, values)
    validated = any(not line.every_step for line, _ in lines)
    if best_step is not None and validated:
        axes.axvline(best_step, color=GREY, linewidth=1.0, linestyle=(0, (1, 2)), label="best step", zorder=0)
    axes.set_title(panel.title, fontsize=10, loc="left")
    axes.set_xlabel("optimiser step", fontsize=8.5)
    axes.set_ylabel(panel.axis, fontsize=8.5)
    axes.yaxis.set_label_coords(-0.56 / (PANEL_INCHES[0] - 0.9), 0.5)
    axes.tick_params(labelsize=8)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))
    _limit(axes, panel, lines)
    if panel.is_share:
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.3g} %"))
    axes.grid(color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    handles, names = axes.get_legend_handles_labels()
    axes.legend(handles, names, fontsize=7.5, frameon=True, framealpha=0.85, edgecolor="none", loc="best")


def _draw_line(axes: Any, line: Line, steps: list[float], values: list[float]) -> None:
    """Single steps faintly under their running mean where there are many; a mark for every point where few."""
    few = len(steps) <= MANY_POINTS
    if line.every_step and len(steps) >= SMOOTHED_FROM:
        window = max(MEAN_STEPS, len(steps) // WINDOWS)
        axes.plot(steps, values, color=line.colour, linewidth=0.8, alpha=0.35)
        name = f"{line.name}, mean of {window} steps"
        axes.plot(steps, running_mean(values, window), color=line.colour, linewidth=1.6, label=name)
        return
    axes.plot(
        steps,
        values,
        color=line.colour,
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
    axes.set_ylim(bottom, high + room)


def _span(events: Sequence[Event]) -> tuple[float, float]:
    """The same steps in all panels, so that they can be compared; room around a single one."""
    steps = [event["step"] for event in events if event["event"] in ("train_step", "val")]
    room = 0.03 * (max(steps) - min(steps)) or 0.6
    return min(steps) - room, max(steps) + room
