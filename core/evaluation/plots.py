"""The plots of a report: what each of them shows. How it is drawn is in `core/plots`.

Each is there for light and for dark paper (name.png, name.dark.png); one without anything to show is not made.
"""

import itertools
import math
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from ..data.text import one_line
from ..plots.costs import CostPicture, Costs, Point, draw_costs
from ..plots.curves import PAGE, draw_curves, read_events, shown
from ..plots.parts import Look
from ..plots.rows import Block, Panel, Picture, Row, draw_rows
from ..plots.style import BAND, BLUE, GREEN, GREY, INK, ORANGE, PURPLE, RED
from .results import CLOSENESS, Difference, Gap, ModelInfo, Report, Score, TaskMetric, Unit

Of = TypeVar("Of", Difference, Gap)
COLOURS, MARKS = (BLUE, ORANGE, GREEN, RED, PURPLE), ("s", "^", "v", "P", "X", "h", "p")
"""Of the models between baseline and teacher, in turn: 35 that all look different."""
LESS = "↓"
ROWS_MOST = 100
"""In one picture; tasks beyond them are in the report's tables only."""
GAP_CUT = (-100.0, 200.0)
"""Per cent: a gap of a teacher that is hardly better has intervals without end."""
UNITS: dict[Unit, str] = {
    "share": "percentage points",
    "nats": "nats",
    "bits": "bits",
    "tokens": "tokens",
    "points": "points",
}


def draw_plots(report: Report, folder: Path) -> list[str]:
    """Write the plots into the folder, which is made if need be. Returns the names of the light ones, in their order.

    Plots that an earlier report left there are removed. Raises OSError. Needs matplotlib.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for old in (*(folder / f"{name}.png" for name in ROWS), folder / "cost.png", *folder.glob("curves-*.png")):
        old.unlink(missing_ok=True)
        old.with_suffix(".dark.png").unlink(missing_ok=True)
    names: list[str] = []
    for name, describe in ROWS.items():
        if (found := describe(report)) is not None:
            names.append(f"{name}.png")
            draw_rows(found, folder / names[-1])
    if (paid := costs(report)) is not None:
        names.append("cost.png")
        draw_costs(paid, folder / names[-1])
    for name, title, metrics in runs(report):
        names.append(f"{name}.png")
        draw_curves(metrics, folder / names[-1], layout=PAGE, title=title)
    return names


# ---- rows --------------------------------------------------------------------------------------------------------


def accuracy(report: Report) -> Picture | None:
    """Scores of all models on each task, with their intervals."""
    look = looks(report.models)
    blocks: list[Block] = []
    for metric in report.metrics:
        scores = {score.model: score for score in metric.scores if math.isfinite(score.value)}
        rows = [_score(look[name], scores[name]) for name in look if name in scores]
        if metric.primary and metric.unit == "share" and rows:
            blocks.append(Block(metric.task, _about(metric), rows))
    blocks, more = _as_many_as_fit(blocks)
    if not blocks:
        return None
    return Picture(
        "Scores",
        "Lines: 95 % intervals, of each model by itself. Whether two models differ is in the differences."
        f"{_down(blocks)}{more}",
        [Panel("score, %", blocks, cut=(0.0, 100.0))],
        _key(report.models, {row.look for block in blocks for row in block.rows}),
    )


def _score(look: Look, score: Score) -> Row:
    low, high = _times_100(score.low), _times_100(score.high)
    between = f" [{low:.1f}, {high:.1f}]" if low is not None and high is not None else ""
    return Row(look, 100 * score.value, low, high, text=_minus(f"{100 * score.value:.1f} %{between}"))


def differences(report: Report) -> Picture | None:
    """Each model minus the baseline on each task, the interval, and what could not have been found."""
    look = looks(report.models)
    panels: dict[str, list[Block]] = {}
    of: dict[str, TaskMetric] = {}
    for metric in _one_of_each_unit(report.metrics):
        rows = [_difference(look[each.model], each, metric.unit) for each in _in_order(metric.differences, look)]
        if rows:
            # What is no share and has no unit has a scale of its own.
            name = f"{metric.task} {metric.metric}" if metric.unit == "points" else metric.unit
            panels.setdefault(name, []).append(Block(metric.task, _about(metric), rows))
            of[name] = metric
    fitting, more = _as_many_as_fit([block for blocks in panels.values() for block in blocks])
    kept = set(map(id, fitting))
    panels = {name: [block for block in blocks if id(block) in kept] for name, blocks in panels.items()}
    panels = {name: blocks for name, blocks in panels.items() if blocks}
    if not panels:
        return None
    against = {each.against for metric in report.metrics for each in metric.differences}
    baseline = against.pop() if len(against) == 1 else "the baseline"
    drawn = [row for blocks in panels.values() for block in blocks for row in block.rows]
    grey = (
        " Grey: true differences that would not be found reliably with so many items (less than 80 % power)."
        if any(row.band for row in drawn)
        else ""
    )
    return Picture(
        f"Differences from {one_line(baseline, 60)}",
        "On the same items; lines are 95 % intervals. A full mark: the interval excludes zero."
        f"{grey}{_down(fitting)}{more}",
        [
            Panel(f"difference, {UNITS[of[name].unit]}", blocks, lines=(0.0,), heading=_heading(of[name], len(panels)))
            for name, blocks in panels.items()
        ],
        [
            *_key(report.models, {row.look for row in drawn}),
            *[(Look(BAND), True, "smaller than detectable")] * bool(grey),
        ],
    )


def _heading(metric: TaskMetric, panels: int) -> str:
    if panels == 1:
        return ""
    return {"share": "Shares", "nats": "Nats", "bits": "Bits", "tokens": "Tokens", "points": metric.metric}[metric.unit]


def _difference(look: Look, found: Difference, unit: Unit) -> Row:
    scale = 100.0 if unit == "share" else 1.0
    value, low, high = (scale * each for each in (found.value, found.low, found.high))
    band = scale * (found.detectable or 0.0)
    digits = 1 if unit == "share" else _digits([value, low, high])
    text = _signed(value, digits)
    if not (math.isnan(low) or math.isnan(high)):
        text += f" [{_signed(low, digits)}, {_signed(high, digits)}]"
    return Row(look, value, low, high, filled=found.found, band=band, text=text)


def gap(report: Report) -> Picture | None:
    """How much of the way from baseline to teacher each model went."""
    look = looks(report.models)
    blocks = [
        Block(metric.task, _about(metric), [_gap(look[each.model], each) for each in found])
        for metric in report.metrics
        if metric.primary and (found := _in_order(metric.gaps, look))
    ]
    blocks, more = _as_many_as_fit(blocks)
    if not blocks:
        return None
    return Picture(
        "Gap recovered",
        "How much of the way from the baseline (0 %) to the teacher (100 %), with 95 % intervals; arrows point to "
        f"what lies outside.{_down(blocks)}{more}",
        [Panel("of the way to the teacher, %", blocks, lines=(0.0, 100.0), cut=GAP_CUT)],
        _key(report.models, {row.look for block in blocks for row in block.rows}),
    )


def _gap(look: Look, found: Gap) -> Row:
    if found.value is None or not math.isfinite(found.value):
        return Row(look, words=f"not defined: {found.why}" if found.why else "not defined")
    low, high = _times_100(found.low), _times_100(found.high)
    between = f" [{_whole(low)}, {_whole(high)}]" if low is not None and high is not None else ""
    text = _minus(f"{_whole(100 * found.value)} %{between}")
    return Row(look, 100 * found.value, low, high, text=text)


def _whole(value: float) -> str:
    """-0.3 -> 0"""
    text = f"{value:,.0f}"
    return "0" if text == "-0" else text


def wins(report: Report) -> Picture | None:
    """Items on which a model does better and worse than the baseline. Closeness has none: no question is answered."""
    look = looks(report.models)
    blocks = [
        Block(metric.task, f"n = {metric.items:,}", [_wins(look[each.model], each) for each in found])
        for metric in report.metrics
        if metric.primary
        and metric.task != CLOSENESS
        and metric.higher_is_better is not None
        and (found := _in_order(metric.differences, look))
    ]
    blocks, more = _as_many_as_fit(blocks)
    if not any(row.bars for block in blocks for row in block.rows):
        return None
    seen = {row.look for block in blocks for row in block.rows}
    return Picture(
        "Items won and lost",
        f"Share of the items on which a model does worse (left) and better (right) than the baseline.{more}",
        [Panel("% of items: ← worse, better →", blocks, lines=(0.0,), is_size=True)],
        [*_key(report.models, seen), (Look(GREY), True, "the baseline does better")],
    )


def _wins(look: Look, found: Difference) -> Row:
    items = found.wins + found.losses + found.ties
    text = f"{found.wins:,} better, {found.losses:,} worse, {found.ties:,} even"
    if not found.wins + found.losses:
        return Row(look, text=text)
    bars = ((-100 * found.losses / items, 0.0, GREY), (0.0, 100 * found.wins / items, look.colour))
    return Row(look, bars=bars, text=text)


ROWS: dict[str, Callable[[Report], Picture | None]] = {
    "accuracy": accuracy,
    "differences": differences,
    "gap": gap,
    "wins": wins,
}
"""By the name of the file."""


# ---- costs and curves --------------------------------------------------------------------------------------------


def costs(report: Report) -> CostPicture | None:
    """The mean score against what training cost, where two models tell it."""
    look = looks(report.models)
    trained = [each for each in report.models if each.training is not None]
    untrained = [each for each in report.models if each.training is None]
    metrics = [
        {score.model: score for score in metric.scores if math.isfinite(score.value)}
        for metric in report.metrics
        if metric.primary and metric.unit == "share" and metric.higher_is_better
    ]
    metrics = [scores for scores in metrics if all(each.name in scores for each in trained)]
    if len(trained) < 2 or not metrics:
        return None
    panels: list[Costs] = []
    for axis, size, cost in (
        _time(trained),
        ("tokens of answers, trained on", 1.0, "tokens"),
        ("US dollars", 1.0, "usd"),
    ):
        paid = {each.name: getattr(each.training, cost) for each in trained}
        paid = {name: value / size for name, value in paid.items() if value is not None and math.isfinite(value)}
        if len(paid) > 1 and max(paid.values()) > 0:
            points = [
                Point(look[name], value, *mean(scores[name] for scores in metrics)) for name, value in paid.items()
            ]
            panels.append(Costs(axis, points))
    if not panels:
        return None
    lines = [
        (look[each.name], mean(scores[each.name] for scores in metrics)[0])
        for each in untrained
        if all(each.name in scores for scores in metrics)
    ]
    seen = {point.look for panel in panels for point in panel.points} | {look for look, _ in lines}
    dashed = " Dashed: models without a record of training." if lines else ""
    many = f"mean of {len(metrics)} tasks" if len(metrics) > 1 else "one task"
    return CostPicture(
        "Score and what training cost",
        f"Score: {many}, with 95 % intervals.{dashed}",
        "score, %",
        panels,
        lines,
        _key(report.models, seen),
    )


def mean(scores: Iterable[Score]) -> tuple[float, float | None, float | None]:
    """In per cent, the mean of one model's scores on several tasks, and its 95 % interval where all errors are known.

    Tasks have different items, so that their errors are independent: SE = sqrt(sum of SE^2) / tasks.
    """
    found = list(scores)
    value = 100 * sum(score.value for score in found) / len(found)
    if len(found) == 1:
        return value, _times_100(found[0].low), _times_100(found[0].high)
    errors = [score.se for score in found if score.se is not None and math.isfinite(score.se)]
    if len(errors) < len(found):
        return value, None, None
    half = 196 * math.hypot(*errors) / len(found)
    return value, value - half, value + half


def _time(trained: Sequence[ModelInfo]) -> tuple[str, float, str]:
    longest = max((each.training.seconds or 0.0 for each in trained if each.training is not None), default=0.0)
    for name, size in (("hours", 3600.0), ("minutes", 60.0)):
        if longest >= 2 * size:
            return f"{name} of training", size, "seconds"
    return "seconds of training", 1.0, "seconds"


def runs(report: Report) -> list[tuple[str, str, Path]]:
    """Name of the plot, title and metrics.jsonl of each run that a student or checkpoint comes from and that tells."""
    models: dict[Path, list[str]] = {}
    for each in report.models:
        if each.training is not None and each.role in ("student", "checkpoint"):
            models.setdefault(Path(each.training.folder) / "metrics.jsonl", []).append(each.name)
    found: list[tuple[str, str, Path]] = []
    for metrics, names in models.items():
        try:
            if not shown(read_events(metrics)):
                continue
        except OSError:  # the run is somebody else's, or gone
            continue
        name = "curves-" + (re.sub(r"[^A-Za-z0-9._-]+", "-", names[0])[:60].strip("-.") or "run")
        taken = {other.casefold() for other, _, _ in found}
        unique = next(text for text in _numbered(name) if text.casefold() not in taken)
        found.append((unique, f"Training of {', '.join(names)}", metrics))
    return found


def _numbered(name: str) -> Iterable[str]:
    return itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))


# ---- shared ------------------------------------------------------------------------------------------------------


def looks(models: Sequence[ModelInfo]) -> dict[str, Look]:
    """How each model looks in every plot, in the order of the report."""
    found: dict[str, Look] = {}
    place = 0
    for each in models:
        if each.role == "baseline":
            found[each.name] = Look(GREY, "o")
        elif each.role == "teacher":
            found[each.name] = Look(INK, "D")
        else:
            found[each.name] = Look(COLOURS[place % len(COLOURS)], MARKS[place % len(MARKS)])
            place += 1
    return found


def _key(models: Sequence[ModelInfo], seen: set[Look]) -> list[tuple[Look, bool, str]]:
    return [(look, True, name) for name, look in looks(models).items() if look in seen]


def _in_order(found: Iterable[Of], look: dict[str, Look]) -> list[Of]:
    """In the order of the report; what cannot be named is left out."""
    of = {each.model: each for each in found}
    return [of[name] for name in look if name in of]


def _one_of_each_unit(metrics: Sequence[TaskMetric]) -> list[TaskMetric]:
    """Of each task the primary metric, and for every other unit the first metric that has it."""
    seen = {(metric.task, metric.unit) for metric in metrics if metric.primary}
    chosen: list[TaskMetric] = []
    for metric in metrics:
        if metric.primary or (metric.task, metric.unit) not in seen:
            seen.add((metric.task, metric.unit))
            chosen.append(metric)
    return chosen


def _as_many_as_fit(blocks: list[Block]) -> tuple[list[Block], str]:
    """The first ones of at most ROWS_MOST rows, one at least; and words for what is left out."""
    rows = list(itertools.accumulate(len(block.rows) for block in blocks))
    kept = max(1, sum(count <= ROWS_MOST for count in rows))
    more = len(blocks) - kept
    return blocks[:kept], f" {more:,} more task{'s are' if more > 1 else ' is'} in the tables only." if more > 0 else ""


def _down(blocks: Iterable[Block]) -> str:
    """What the arrow of `_about` means, where there is one."""
    return f" {LESS}: less is better." if any(LESS in block.about for block in blocks) else ""


def _about(metric: TaskMetric) -> str:
    name = metric.metric.replace(",", ", ")
    return f"{name}{f' {LESS}' if metric.higher_is_better is False else ''}, n = {metric.items:,}"


def _times_100(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else 100 * value


def _digits(values: Iterable[float]) -> int:
    """Digits after the point, so that the largest value has three that count."""
    largest = max((abs(value) for value in values if math.isfinite(value)), default=0.0)
    return min(6, max(0, 2 - math.floor(math.log10(largest)))) if largest else 1


def _signed(value: float, digits: int) -> str:
    """+1.2, −1.2, 0.0.

    >>> [_signed(value, 1) for value in (1.21, -1.21, -0.01, float("inf"))]
    ['+1.2', '−1.2', '0.0', '+∞']
    """
    text = f"{value:+.{digits}f}"
    return _minus(text[1:] if not text.strip("+-0.") else text.replace("inf", "∞"))


def _minus(text: str) -> str:
    return text.replace("-", "−")
